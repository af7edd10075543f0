// A zip file in its parts, each of which a test may falsify before the bytes are put together.
// Written against the format's own description (APPNOTE.TXT), not with the code under test.
#pragma once

#include <zlib.h>

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "format/coding.hpp"

namespace perdure::test {

using format::put;

struct ZipHeader {
  std::string name;
  std::uint16_t flags = 0;
  std::uint16_t method = 0;
  std::uint32_t crc32 = 0;
  std::uint32_t compressed = 0;
  std::uint32_t size = 0;
  std::string extra;
};

struct ZipEntry {
  std::string before;  // bytes in front of its local header
  ZipHeader local;
  std::string data;
  std::string descriptor;
  ZipHeader central;
  std::optional<std::uint32_t> offset;  // in the directory; nothing: the true one
  std::uint16_t disk = 0;
  std::string comment;
  bool listed = true;  // in the directory
  bool stored = true;  // header and data are in the file
};

struct ZipEnd {
  std::uint64_t count = 0, count_here = 0, size = 0, offset = 0;
  std::uint32_t disk = 0;
};

struct ZipParts {
  std::vector<ZipEntry> entries;
  std::string before_directory, before_end;
  bool with_zip64 = false;
  ZipEnd narrow, wide;  // filled in by finish(), then up to the test
  std::uint64_t locator_offset = 0;
  std::uint32_t locator_disks = 1, locator_disk = 0, wide_signature = 0x06064B50;
  std::uint64_t wide_size = 44;
  std::string comment, after;
};

inline std::uint32_t crc_of(const std::string& data) {
  return static_cast<std::uint32_t>(
      ::crc32(0, reinterpret_cast<const Bytef*>(data.data()), static_cast<uInt>(data.size())));
}

// As Python's zipfile writes it: everything in the header, nothing after the data.
inline ZipEntry plain_entry(std::string name, std::string data) {
  const auto size = static_cast<std::uint32_t>(data.size());
  ZipEntry entry;
  entry.local = {.name = std::move(name),
                 .crc32 = crc_of(data),
                 .compressed = size,
                 .size = size,
                 .extra = {}};
  entry.central = entry.local;
  entry.data = std::move(data);
  return entry;
}

inline std::string descriptor_of(const ZipEntry& entry, bool wide = false) {
  std::string out;
  put<std::uint32_t>(out, 0x08074B50);
  put<std::uint32_t>(out, entry.central.crc32);
  for (int i = 0; i < 2; ++i) {
    if (wide)
      put<std::uint64_t>(out, entry.data.size());
    else
      put<std::uint32_t>(out, static_cast<std::uint32_t>(entry.data.size()));
  }
  return out;
}

// As torch writes it: checksum and sizes follow the data.
inline ZipEntry streamed_entry(std::string name, std::string data) {
  ZipEntry entry = plain_entry(std::move(name), std::move(data));
  entry.local.flags = entry.central.flags = 0x0808;
  entry.local.crc32 = entry.local.compressed = entry.local.size = 0;
  entry.descriptor = descriptor_of(entry);
  return entry;
}

inline std::string zip64_field(std::initializer_list<std::uint64_t> numbers) {
  std::string out;
  put<std::uint16_t>(out, 1);
  put<std::uint16_t>(out, static_cast<std::uint16_t>(8 * numbers.size()));
  for (const std::uint64_t x : numbers) put<std::uint64_t>(out, x);
  return out;
}

// Fields that local header and directory entry have in common.
inline void put_fields(std::string& out, const ZipHeader& header) {
  put<std::uint16_t>(out, header.flags);
  put<std::uint16_t>(out, header.method);
  put<std::uint32_t>(out, 0x00210000);
  put<std::uint32_t>(out, header.crc32);
  put<std::uint32_t>(out, header.compressed);
  put<std::uint32_t>(out, header.size);
  put<std::uint16_t>(out, static_cast<std::uint16_t>(header.name.size()));
  put<std::uint16_t>(out, static_cast<std::uint16_t>(header.extra.size()));
}

inline std::string local_bytes(const ZipEntry& entry) {
  std::string out = entry.before;
  put<std::uint32_t>(out, 0x04034B50);
  put<std::uint16_t>(out, 20);
  put_fields(out, entry.local);
  return out + entry.local.name + entry.local.extra + entry.data + entry.descriptor;
}

inline std::string directory_bytes(const ZipEntry& entry, std::uint32_t offset) {
  std::string out;
  put<std::uint32_t>(out, 0x02014B50);
  put<std::uint16_t>(out, 0x0314);
  put<std::uint16_t>(out, 20);
  put_fields(out, entry.central);
  put<std::uint16_t>(out, static_cast<std::uint16_t>(entry.comment.size()));
  put<std::uint16_t>(out, entry.disk);
  put<std::uint16_t>(out, 0);
  put<std::uint32_t>(out, 0x01800000);
  put<std::uint32_t>(out, entry.offset.value_or(offset));
  return out + entry.central.name + entry.central.extra + entry.comment;
}

inline std::string zip64_end_bytes(const ZipParts& zip) {
  std::string out;
  put<std::uint32_t>(out, zip.wide_signature);
  put<std::uint64_t>(out, zip.wide_size);
  put<std::uint32_t>(out, 0x002D031E);
  put<std::uint32_t>(out, zip.wide.disk);
  put<std::uint32_t>(out, zip.wide.disk);
  put<std::uint64_t>(out, zip.wide.count_here);
  put<std::uint64_t>(out, zip.wide.count);
  put<std::uint64_t>(out, zip.wide.size);
  put<std::uint64_t>(out, zip.wide.offset);
  put<std::uint32_t>(out, 0x07064B50);
  put<std::uint32_t>(out, zip.locator_disk);
  put<std::uint64_t>(out, zip.locator_offset);
  put<std::uint32_t>(out, zip.locator_disks);
  return out;
}

inline std::string end_bytes(const ZipParts& zip) {
  std::string out;
  put<std::uint32_t>(out, 0x06054B50);
  put<std::uint16_t>(out, static_cast<std::uint16_t>(zip.narrow.disk));
  put<std::uint16_t>(out, 0);
  put<std::uint16_t>(out, static_cast<std::uint16_t>(zip.narrow.count_here));
  put<std::uint16_t>(out, static_cast<std::uint16_t>(zip.narrow.count));
  put<std::uint32_t>(out, static_cast<std::uint32_t>(zip.narrow.size));
  put<std::uint32_t>(out, static_cast<std::uint32_t>(zip.narrow.offset));
  put<std::uint16_t>(out, static_cast<std::uint16_t>(zip.comment.size()));
  return out + zip.comment + zip.after;
}

// Puts the file together; `falsify_end` may change the end records once their true values are
// known.
template <class F>
std::string build(ZipParts zip, F&& falsify_end) {
  std::string out, directory;
  std::uint64_t count = 0;
  for (const ZipEntry& entry : zip.entries) {
    const auto offset = static_cast<std::uint32_t>(out.size() + entry.before.size());
    if (entry.stored) out += local_bytes(entry);
    if (entry.listed) directory += directory_bytes(entry, offset), ++count;
  }
  out += zip.before_directory;
  zip.narrow = {
      .count = count, .count_here = count, .size = directory.size(), .offset = out.size()};
  zip.wide = zip.narrow;
  out += directory + zip.before_end;
  zip.locator_offset = out.size();
  falsify_end(zip);
  if (zip.with_zip64) out += zip64_end_bytes(zip);
  return out + end_bytes(zip);
}

inline std::string build(const ZipParts& zip) {
  return build(zip, [](ZipParts&) {});
}

}  // namespace perdure::test
