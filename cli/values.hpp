// The values of tensors as text, as torch prints them.
#pragma once

#include <perdure/file.hpp>
#include <string>

namespace perdure::cli {

// Name, dtype, shape, and the values, of a large tensor only the first and last of each dimension;
// its checksums are compared in any case.
std::string values_text(const CheckpointFile& file, const std::string& name, const Tensor& tensor);

}  // namespace perdure::cli
