// What one process reads of a directory of torch.distributed.checkpoint (DCP): boxes of pieces,
// into memory that it has.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "engine/dcp_parts.hpp"

namespace perdure::engine {

// Elements of a piece of a tensor, and where they go.
struct BoxRead {
  std::size_t item = 0;               // in DcpMetadata::items
  std::size_t chunk = 0;              // of it
  std::vector<std::int64_t> offsets;  // in the chunk
  std::vector<std::int64_t> sizes;
  std::byte* into = nullptr;  // C-contiguous, and all of the box
};

// Every piece that a box is of is read once, with several threads and in the order of the files,
// and all of it, for its checksum is of all of it. Errors: those of DcpParts::piece, corrupt where
// a checksum is wrong; then some of the memory was written.
void read_boxes(DcpParts& parts, const std::vector<BoxRead>& boxes);

// What torch.save wrote of an item that is no tensor, with its checksums compared.
// Error(unsupported) where it is more than plain data: so whoever unpickles it executes nothing.
std::string read_value_bytes(DcpParts& parts, const format::DcpItem& item);

}  // namespace perdure::engine
