// data.pkl: a state as a pickle of protocol 2, in the words that torch.load's weights_only reader
// knows.
#pragma once

#include <string>

#include "format/storage_plan.hpp"

namespace perdure::format {

// Numbers of a state whose pickle is used again. More of them are better written anew.
inline constexpr std::size_t kMaxHoles = std::size_t{1} << 18;

// Where a number stands that is no key, or in one: another may be put there.
struct PickleHole {
  std::size_t begin = 0;
  std::size_t end = 0;
  const Value* kept = nullptr;  // the number, where a kept tree holds it; null elsewhere
};

struct WrittenPickle {
  std::string text;
  std::vector<PickleHole> holes;
  bool is_reusable = false;  // the holes are few, and whatever the numbers are, it is no more than
                             // read_pickle would take
};

// `plan` must be of the same `state`, which it has found fit to be written. Error(invalid) for more
// than read_pickle would take.
WrittenPickle write_pickle(const Value& state, const StoragePlan& plan);

// "FloatStorage" for the dtypes that have a storage class of their own in torch, "" for the others,
// whose tensors are written through _rebuild_tensor_v3 and an UntypedStorage.
std::string_view storage_class(DType dtype) noexcept;
bool needs_untyped_storage(DType dtype, const StorageRecord& record) noexcept;

}  // namespace perdure::format
