// The state_dict of a registered module or optimizer, encoded again and again: as long as nothing
// but numbers and texts changes in it, the value of the last time is given again.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "ownership.hpp"
#include "retracer.hpp"

namespace perdure::python {

class EntryEncoder {
 public:
  EntryEncoder(nanobind::object object, nanobind::str root)
      : object_(std::move(object)), root_(std::move(root)) {}
  virtual ~EntryEncoder() = default;
  EntryEncoder(const EntryEncoder&) = delete;
  EntryEncoder& operator=(const EntryEncoder&) = delete;

  // `dtensors`: a sequence of those whose local parts stand in the state_dict.
  Value encode(nanobind::handle state_dict, nanobind::object dtensors = nanobind::none());
  // Version counters of the stepped tensors of the last value, in the order in which they stand in
  // it; 0 for those that have none.
  std::vector<std::uint64_t> versions() const;
  // Lets go of everything that it holds of the last value.
  void forget();

  const nanobind::object& object() const { return object_; }

 private:
  virtual std::unique_ptr<Ownership> ownership() const = 0;
  void remember(ObjectEncoder& encoder, const Value& value);

  nanobind::object object_;
  nanobind::str root_;
  nanobind::object dtensors_;
  Value kept_;                         // None where the last value cannot be given again
  std::vector<WalkedTensor> tensors_;  // all of kept_, or the stepped ones of a value that is not
};

class ModuleEncoder : public EntryEncoder {
 public:
  ModuleEncoder(nanobind::object module, nanobind::str root,
                std::shared_ptr<const Optimizers> optimizers)
      : EntryEncoder(std::move(module), std::move(root)), optimizers_(std::move(optimizers)) {}

 private:
  std::unique_ptr<Ownership> ownership() const override {
    return std::make_unique<ModuleOwnership>(object().ptr(), *optimizers_);
  }
  std::shared_ptr<const Optimizers> optimizers_;
};

class OptimizerEncoder : public EntryEncoder {
 public:
  using EntryEncoder::EntryEncoder;

 private:
  std::unique_ptr<Ownership> ownership() const override {
    return std::make_unique<OptimizerOwnership>(object().ptr());
  }
};

}  // namespace perdure::python
