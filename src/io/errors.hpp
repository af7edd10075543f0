// From errno to perdure::Error.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "io/system.hpp"

namespace perdure::io {

// "cannot <action> '<path>': <what errno means>". ENOENT is not_found; ENOSPC, EDQUOT and EFBIG are
// full; the rest io.
[[noreturn]] void throw_error(int error, std::string_view action, std::string_view path);

// Error(full) or Error(io) for a file that is being written; a full disk is told with what was
// needed and what is left.
[[noreturn]] void throw_write_error(System& system, int fd, int error, std::string_view action,
                                    std::string_view path, std::uint64_t needed);

std::string format_bytes(std::uint64_t bytes);  // "1.5 GB", in powers of 1000 as disks are sold

}  // namespace perdure::io
