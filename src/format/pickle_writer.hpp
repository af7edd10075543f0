// data.pkl: a state as a pickle of protocol 2, in the words that torch.load's weights_only reader
// knows.
#pragma once

#include <string>

#include "format/storage_plan.hpp"

namespace perdure::format {

// `plan` must be of the same `state`, which it has found fit to be written. Error(invalid) for more
// than read_pickle would take.
std::string write_pickle(const Value& state, const StoragePlan& plan);

// "FloatStorage" for the dtypes that have a storage class of their own in torch, "" for the others,
// whose tensors are written through _rebuild_tensor_v3 and an UntypedStorage.
std::string_view storage_class(DType dtype) noexcept;
bool needs_untyped_storage(DType dtype, const StorageRecord& record) noexcept;

}  // namespace perdure::format
