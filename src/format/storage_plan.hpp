// Which bytes of which memory go into which record, and what each tensor then looks into.
#pragma once

#include <perdure/value.hpp>
#include <string>
#include <unordered_map>
#include <vector>

namespace perdure::format {

// One record data/N. What several tensors share is written once; what no tensor covers is not
// written.
struct StorageRecord {
  const TensorStorage* storage = nullptr;
  std::uint64_t begin = 0;  // bytes of the storage that are left out in front
  std::uint64_t size = 0;   // bytes that are written
  DType dtype = DType::uint8;
  bool mixed = false;                     // tensors of several dtypes look into it
  Liveness liveness = Liveness::stepped;  // the least that a tensor in it claims
};

struct PlannedTensor {
  KeyPath path;
  const Tensor* tensor = nullptr;
  std::int64_t record = -1;  // -1: on the meta device, no bytes
};

class StoragePlan {
 public:
  // Walks the state in the order in which it will be pickled. Error(invalid) with the place of a
  // value that no file can hold: opaque objects, cycles, more than 500 levels, ints of more than
  // 255 bytes, tensors that reach outside of their storage or whose bytes are not there.
  explicit StoragePlan(const Value& state);

  const std::vector<StorageRecord>& records() const { return records_; }
  const std::vector<PlannedTensor>& tensors() const { return tensors_; }
  std::int64_t record_of(const Tensor& tensor) const;       // -1: none
  std::int64_t storage_offset(const Tensor& tensor) const;  // elements, in the record

 private:
  friend class StateWalk;
  void add_tensor(const Tensor& tensor, const KeyPath& path);
  StorageRecord& record_for(const Tensor& tensor);
  void settle();
  static void check_gradient(const PlannedTensor& planned, const StorageRecord& record);

  std::vector<StorageRecord> records_;
  std::vector<PlannedTensor> tensors_;
  std::unordered_map<std::string, std::size_t> by_memory_;  // data, size, device -> record
  std::unordered_map<const Tensor*, std::int64_t> by_tensor_;
};

}  // namespace perdure::format
