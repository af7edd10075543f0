#include "format/zip_fields.hpp"

#include <fmt/format.h>

#include <cstdint>

namespace perdure::format {
namespace {

constexpr std::uint32_t kFolderAttribute = 0x10;

}  // namespace

void require_zip(bool ok, std::uint64_t offset, const char* what) {
  if (!ok) throw Error(ErrorCode::corrupt, fmt::format("{} (at offset {})", what, offset));
}

// A zip64 field stands there if and only if its short field is all ones.
void apply_zip64(std::string_view extra, std::uint64_t offset, CentralEntry& entry,
                 bool size_is_max, bool compressed_is_max, bool offset_is_max) {
  ByteReader in(extra, "zip extra field", offset);
  bool seen = false;
  while (!in.done()) {
    const auto id = in.take<std::uint16_t>();
    const std::string_view body = in.take_bytes(in.take<std::uint16_t>());
    if (id != 0x0001) continue;
    require_zip(!seen, offset, "two zip64 fields for one record");
    seen = true;
    ByteReader field(body, "zip64 field", offset);
    if (size_is_max) entry.size = field.take<std::uint64_t>();
    if (compressed_is_max) entry.compressed = field.take<std::uint64_t>();
    if (offset_is_max) entry.header_offset = field.take<std::uint64_t>();
    require_zip(field.done(), offset, "a zip64 field with more in it than is called for");
  }
  require_zip(seen == (size_is_max || compressed_is_max || offset_is_max), offset,
              "a zip64 field that is missing or uncalled for");
}

CentralEntry take_central_entry(ByteReader& in, std::uint64_t directory) {
  const std::uint64_t offset = directory + in.at();
  require_zip(in.take<std::uint32_t>() == kCentralSignature, offset,
              "a damaged entry in the zip directory");
  in.take<std::uint32_t>();  // made by, needed
  CentralEntry entry;
  entry.flags = in.take<std::uint16_t>();
  entry.method = in.take<std::uint16_t>();
  in.take<std::uint32_t>();  // time and date
  entry.crc32 = in.take<std::uint32_t>();
  entry.compressed = in.take<std::uint32_t>();
  entry.size = in.take<std::uint32_t>();
  const auto name_size = in.take<std::uint16_t>();
  const auto extra_size = in.take<std::uint16_t>();
  const auto comment_size = in.take<std::uint16_t>();
  require_zip(in.take<std::uint16_t>() == 0, offset, "a zip of several volumes");
  in.take<std::uint16_t>();  // internal attributes
  // What is marked as a folder has no content to torch's reader, whatever lies there.
  require_zip((in.take<std::uint32_t>() & kFolderAttribute) == 0, offset,
              "a record that is marked as a folder");
  entry.header_offset = in.take<std::uint32_t>();
  entry.name = in.take_bytes(name_size);
  apply_zip64(in.take_bytes(extra_size), offset, entry, entry.size == kMax32,
              entry.compressed == kMax32, entry.header_offset == kMax32);
  in.take_bytes(comment_size);
  require_zip((entry.flags & ~kKnownFlags) == 0, offset,
              "a record with flags that PyTorch never sets (encrypted?)");
  require_zip(entry.compressed == entry.size || entry.method != 0, offset,
              "a stored record with two different sizes");
  require_zip(entry.compressed <= directory && entry.header_offset < directory, offset,
              "a record that does not fit in the file");
  return entry;
}

LocalHeader take_local_header(ByteReader& in, std::uint64_t offset) {
  require_zip(in.take<std::uint32_t>() == kLocalSignature, offset, "a damaged local zip header");
  in.take<std::uint16_t>();  // version needed
  LocalHeader header;
  header.flags = in.take<std::uint16_t>();
  header.method = in.take<std::uint16_t>();
  in.take<std::uint32_t>();  // time and date
  header.crc32 = in.take<std::uint32_t>();
  header.compressed = in.take<std::uint32_t>();
  header.size = in.take<std::uint32_t>();
  header.name_size = in.take<std::uint16_t>();
  header.extra_size = in.take<std::uint16_t>();
  return header;
}

}  // namespace perdure::format
