// .metadata of a directory that torch.distributed.checkpoint loads.
#pragma once

#include <string>

#include "format/dcp_metadata.hpp"

namespace perdure::format {

// A pickle of protocol 2. Every item has one chunk, which of a tensor is all of it; in a path, ints
// and strings are
// what they are.
std::string write_dcp_metadata(const DcpMetadata& metadata);

}  // namespace perdure::format
