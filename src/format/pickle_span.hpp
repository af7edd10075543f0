// Where a pickle in the middle of a file ends: found by stepping from opcode to opcode, without
// reading what is long.
#pragma once

#include <cstdint>
#include <perdure/file.hpp>
#include <string>

namespace perdure::format {

// The bytes of the pickle that begins at `offset`, up to its STOP and with it: as read_pickle takes
// them. Error(corrupt) where the file ends before that, Error(unsupported) for what read_pickle
// refuses in any case: opcodes that no PyTorch file needs, and more than kMaxPickle.
std::string read_pickle_at(const Source& source, std::uint64_t offset);

}  // namespace perdure::format
