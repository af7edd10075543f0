// Where the records of a PyTorch zip lie, and the bytes around them: a pure function of names and
// sizes.
//
// This is the layout of torch.save (caffe2/serialize/inline_container.cc, miniz) to the byte, so
// that torch may compute offsets without reading headers (.format_version 1). docs/format.md
// describes it in words.
#pragma once

#include <cstdint>
#include <perdure/error.hpp>
#include <string>
#include <string_view>
#include <vector>

namespace perdure::format {

inline constexpr std::uint64_t kAlignment = 64;  // of the data of every record in the file
// The first place from `offset` on where such data may begin.
constexpr std::uint64_t aligned(std::uint64_t offset) {
  return (offset + kAlignment - 1) / kAlignment * kAlignment;
}
inline constexpr std::string_view kArchiveName = "archive";  // the one top folder in the zip

struct ZipRecord {
  std::string name;                 // with the top folder: "archive/data/0"
  std::uint64_t header_offset = 0;  // of its local header
  std::uint64_t data_offset = 0;    // multiple of kAlignment
  std::uint64_t size = 0;
  std::uint32_t crc32 = 0;

  // zip64 sizes in descriptor and extra field: torch decides by this alone.
  bool is_large() const { return size >= 0xFFFFFFFF || header_offset >= 0xFFFFFFFF; }
  std::uint64_t descriptor_size() const { return size == 0 ? 0 : is_large() ? 24 : 16; }
  std::uint64_t end() const { return data_offset + size + descriptor_size(); }
};

// Appends a record after the last one, or the first one at `begin`, at the place that the layout
// gives it.
void append_record(std::vector<ZipRecord>& records, std::string name, std::uint64_t size,
                   std::uint64_t begin = 0);

std::string local_header(const ZipRecord& record);  // from header_offset up to data_offset
std::string data_descriptor(const ZipRecord& record);
// Central directory, zip64 end record and locator, end record. Its length does not depend on the
// checksums.
std::string central_directory(const std::vector<ZipRecord>& records);
void put_central_directory(std::string& out, const std::vector<ZipRecord>& records);
// Its length is that of the entries of all records and of what ends it.
std::uint64_t directory_entries_size(const std::vector<ZipRecord>& records);
inline constexpr std::uint64_t kDirectoryEndSize = 56 + 20 + 22;

}  // namespace perdure::format
