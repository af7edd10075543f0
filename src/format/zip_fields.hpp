// The structures of a zip archive, each by itself: what ZipReader compares with each other, and
// what ZipScan looks for one by one.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "format/coding.hpp"

namespace perdure::format {

inline constexpr std::uint32_t kLocalSignature = 0x04034B50;
inline constexpr std::uint32_t kCentralSignature = 0x02014B50;
inline constexpr std::uint32_t kDescriptorSignature = 0x08074B50;
inline constexpr std::uint64_t kLocalSize = 30;    // without name and extra field
inline constexpr std::uint64_t kCentralSize = 46;  // without name, extra field and comment
inline constexpr std::uint64_t kDescriptorSize = 16;
inline constexpr std::uint64_t kLargeDescriptorSize = 24;
// A short field that is all ones refers to the zip64 field.
inline constexpr std::uint32_t kMax32 = 0xFFFFFFFF;
// Bit 3 (sizes after the data) and bit 11 (names are UTF-8) are all that torch and plain zip tools
// need.
inline constexpr std::uint16_t kKnownFlags = 0x0808;
inline constexpr std::uint16_t kDescriptorFlag = 0x0008;

// Error(corrupt) with the offset, unless `ok`.
void require_zip(bool ok, std::uint64_t offset, const char* what);

struct CentralEntry {
  std::string_view name;
  std::uint16_t flags = 0;
  std::uint16_t method = 0;
  std::uint32_t crc32 = 0;
  std::uint64_t size = 0;
  std::uint64_t compressed = 0;  // as it lies in the file; `size` where method is 0
  std::uint64_t header_offset = 0;
};
// The next entry of the directory, which begins at `directory` in the file; all that it lists lies
// before. Error(corrupt) where it contradicts itself.
CentralEntry take_central_entry(ByteReader& in, std::uint64_t directory);

struct LocalHeader {
  std::uint16_t flags = 0;
  std::uint16_t method = 0;
  std::uint32_t crc32 = 0;
  std::uint32_t compressed = 0;
  std::uint32_t size = 0;
  std::uint16_t name_size = 0;
  std::uint16_t extra_size = 0;

  bool is_deferred() const { return (flags & kDescriptorFlag) != 0; }
  std::uint64_t data_offset(std::uint64_t header_offset) const {
    return header_offset + kLocalSize + name_size + extra_size;
  }
};
// Error(corrupt) where there is none. The name follows.
LocalHeader take_local_header(ByteReader& in, std::uint64_t offset);

// Takes the sizes and the offset that are all ones from the extra field of a record. Error(corrupt)
// where they stand there and are not called for, or the other way round.
void apply_zip64(std::string_view extra, std::uint64_t offset, CentralEntry& entry,
                 bool size_is_max, bool compressed_is_max, bool offset_is_max);

}  // namespace perdure::format
