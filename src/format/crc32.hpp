// CRC-32 as zip uses it (polynomial 0x04C11DB7, reflected; ISO-HDLC). libdeflate computes, zlib
// combines.
#pragma once

#include <cstdint>
#include <perdure/error.hpp>

namespace perdure::format {

// Bytes of the blocks that .perdure/index has checksums for. Small enough that a damaged block says
// where, and that a block stays in cache between the copy and the checksum; large enough that the
// list is short.
inline constexpr std::uint64_t kBlockSize = 4u << 20;

std::uint32_t crc32(ConstBytes bytes, std::uint32_t crc = 0) noexcept;
// CRC of A followed by B, where `second` is B's and `second_size` its length in bytes.
std::uint32_t crc32_combine(std::uint32_t first, std::uint32_t second,
                            std::uint64_t second_size) noexcept;

}  // namespace perdure::format
