// safetensors files as contents: a dict of their tensors, in the order of their bytes.
#pragma once

#include "format/contents.hpp"
#include "format/safetensors.hpp"

namespace perdure::format {

Contents read_safetensors_file(const Source& source);

// Puts the tensors of a file into `contents`: the file's first byte has offset `begin` there.
void add_safetensors(const Safetensors& file, std::uint64_t begin, Contents& contents, Dict& value);

// C-contiguous, and of no storage yet. Error(corrupt) for shapes that no tensor can have.
Tensor contiguous_tensor(DType dtype, std::vector<std::int64_t> shape);

}  // namespace perdure::format
