// One tensor of a checkpoint as a file of numpy's.
#pragma once

#include <functional>
#include <optional>
#include <perdure/file.hpp>
#include <perdure/value.hpp>
#include <string>

namespace perdure {

struct NpyOptions {
  // The dtype to write, where numpy lacks the tensor's, or another is wanted. What holds every
  // value exactly: float32 for bfloat16, float16, float8 and integers of up to 16 bits; float64 for
  // these, float32 and integers of 32 bits; complex64 and complex128 for the smaller complex ones;
  // and for dtypes that numpy lacks the unsigned integer of their size, which gets their bits.
  std::optional<DType> dtype = {};
};

// Writes the tensor that is called so (keys joined with dots) in the .npy format, front to back, to
// `sink`, with every checksum compared; elements in the tensor's own order, whatever its strides
// are. Streamed: a tensor that is contiguous or the transpose of one takes a few tens of MB of
// memory, another one up to 100 MB, and is streamed once for each 32 MiB of it.
//
// Errors: not_found (lists names like it), invalid (what is called so is no tensor), unsupported
// (numpy has no such dtype: the text says which one to ask for; the file has no data for it), and
// those of load. What `sink` throws is thrown.
void write_npy(const CheckpointFile& file, const std::string& name,
               const std::function<void(ConstBytes)>& sink, const NpyOptions& options = {});

}  // namespace perdure
