// What is left of a state when its damaged tensors are taken out of it.
#pragma once

#include <functional>
#include <optional>
#include <perdure/repair.hpp>
#include <perdure/value.hpp>
#include <string>
#include <unordered_map>
#include <vector>

namespace perdure::engine {

class Sieve {
 public:
  // Why a tensor is lost; "" where it is whole.
  using Judge = std::function<std::string(const Tensor&)>;
  // `tensors_alone`: everything else is another state's, and lost.
  Sieve(Judge judge, bool tensors_alone)
      : judge_(std::move(judge)), tensors_alone_(tensors_alone) {}

  // Containers without what is lost, shared as they were; tensors and scalars are those of `state`.
  // Nothing where all of it is lost.
  std::optional<Value> sift(const Value& state);

  const std::vector<Lost>& lost() const { return lost_; }  // in the order of the state
  std::uint64_t tensors() const { return tensors_; }       // that were kept
  std::uint64_t scalars() const { return scalars_; }

 private:
  std::optional<Value> sift_at(const Value& key, const Value& value);
  std::optional<Value> sift_tensor(const Tensor& tensor, const Value& whole);
  std::optional<Value> sift_opaque(const Value& value);
  Value sift_dict(const Dict& dict);
  Value sift_items(const Value& value);
  void fill(Dict& out, const Dict& dict);
  bool has_tensors(const Value& value);
  bool finds_tensors(const Value& value);
  void lose(std::string why) { lost_.push_back({format_path(path_), "", {}, std::move(why)}); }

  Judge judge_;
  bool tensors_alone_;
  KeyPath path_;
  std::vector<Lost> lost_;
  std::uint64_t tensors_ = 0;
  std::uint64_t scalars_ = 0;
  std::unordered_map<const void*, Value> done_;        // containers, by what they were
  std::unordered_map<const void*, bool> has_tensors_;  // the same
};

}  // namespace perdure::engine
