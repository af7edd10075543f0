// The records of an open file as something to read, and the tensors that lie in them: what
// CheckpointFile and verify share.
#pragma once

#include <functional>
#include <optional>
#include <perdure/file.hpp>

#include "engine/bulk_read.hpp"
#include "format/contents.hpp"

namespace perdure::engine {

// How to read a record of `contents` into `into` (nowhere, where that is empty): with the checksum
// of each block where there is an index of them, and of the whole where not. Refers to both.
RecordRead read_of(const format::Contents& contents, const CheckpointFile::Record& record,
                   MutableBytes into);

// Gives the storage memory that it owns.
void allocate_owned(TensorStorage& storage);

// The tensor of a NumPy array, which stands in a dict of its own (docs/format.md): without it the
// rest of that dict means nothing. Null for any other value.
const Tensor* array_in(const Value& value);

// Calls `visit` for every tensor below `value`, each container once, with its place.
void for_each_tensor(const Value& value,
                     const std::function<void(const KeyPath&, const Tensor&)>& visit);

}  // namespace perdure::engine
