#include "format/crc32.hpp"

#include <libdeflate.h>
#include <zlib.h>

#include <cstdint>

namespace perdure::format {

std::uint32_t crc32(ConstBytes bytes, std::uint32_t crc) noexcept {
  // libdeflate takes a null pointer, which an empty span may have, as "begin anew".
  return bytes.empty() ? crc : libdeflate_crc32(crc, bytes.data(), bytes.size());
}

std::uint32_t crc32_combine(std::uint32_t first, std::uint32_t second,
                            std::uint64_t second_size) noexcept {
  return static_cast<std::uint32_t>(
      ::crc32_combine64(first, second, static_cast<z_off64_t>(second_size)));
}

}  // namespace perdure::format
