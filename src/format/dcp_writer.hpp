// .metadata of a directory that torch.distributed.checkpoint loads.
#pragma once

#include <string>

#include "format/dcp_metadata.hpp"

namespace perdure::format {

// A pickle of protocol 2. Every item has its chunks; of one that is no tensor, only the place of
// the one that it has counts. In a path, ints and strings are what they are.
std::string write_dcp_metadata(const DcpMetadata& metadata);

}  // namespace perdure::format
