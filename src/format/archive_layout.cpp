#include "format/archive_layout.hpp"

#include <algorithm>
#include <cstdint>

#include "format/coding.hpp"

namespace perdure::format {
namespace {

constexpr std::uint32_t kMax32 = 0xFFFFFFFF;

std::uint32_t clamp32(std::uint64_t x) {
  return static_cast<std::uint32_t>(std::min<std::uint64_t>(x, kMax32));
}

// Bit 3: sizes and CRC follow the data. Bit 11: names are UTF-8. A record without data has no
// descriptor.
std::uint16_t flags(const ZipRecord& record) { return record.size == 0 ? 0x0800 : 0x0808; }

// `compressed` is 0 in local headers, where torch's writer does not know it yet.
std::string zip64_extra(const ZipRecord& record, std::uint64_t compressed) {
  if (!record.is_large()) return {};
  std::string fields;
  if (record.size >= kMax32) {
    put<std::uint64_t>(fields, record.size);
    put<std::uint64_t>(fields, compressed);
  }
  if (record.header_offset >= kMax32) put<std::uint64_t>(fields, record.header_offset);
  std::string out;
  put<std::uint16_t>(out, 0x0001);
  put<std::uint16_t>(out, static_cast<std::uint16_t>(fields.size()));
  return out + fields;
}

// Bytes of what zip64_extra gives.
std::uint64_t zip64_extra_size(const ZipRecord& record) {
  if (!record.is_large()) return 0;
  return 4 + (record.size >= kMax32 ? 16 : 0) + (record.header_offset >= kMax32 ? 8 : 0);
}

constexpr std::uint64_t kLocalHeaderSize = 30;
constexpr std::uint64_t kCentralHeaderSize = 46;
constexpr std::uint64_t kPaddingHeaderSize = 4;  // 'F' 'B' and the length of the padding

void put_central_entry(std::string& out, const ZipRecord& record) {
  const std::string extra = zip64_extra(record, record.size);
  put<std::uint32_t>(out, 0x02014B50);
  put<std::uint16_t>(out, 0);  // made by
  put<std::uint16_t>(out, 0);  // version needed
  put<std::uint16_t>(out, flags(record));
  put<std::uint16_t>(out, 0);  // stored
  put<std::uint32_t>(out, 0);  // time and date
  put<std::uint32_t>(out, record.crc32);
  put<std::uint32_t>(out, clamp32(record.size));
  put<std::uint32_t>(out, clamp32(record.size));
  put<std::uint16_t>(out, static_cast<std::uint16_t>(record.name.size()));
  put<std::uint16_t>(out, static_cast<std::uint16_t>(extra.size()));
  put<std::uint16_t>(out, 0);  // comment
  put<std::uint16_t>(out, 0);  // disk
  put<std::uint16_t>(out, 0);  // internal attributes
  put<std::uint32_t>(out, 0);  // external attributes
  put<std::uint32_t>(out, clamp32(record.header_offset));
  out += record.name + extra;
}

// `size` bytes of entries lie at `offset`.
void put_end_records(std::string& out, std::uint64_t count, std::uint64_t size,
                     std::uint64_t offset) {
  put<std::uint32_t>(out, 0x06064B50);  // zip64 end of central directory: torch always writes it
  put<std::uint64_t>(out, 44);
  put<std::uint16_t>(out, 0x031E);
  put<std::uint16_t>(out, 0x002D);
  put<std::uint32_t>(out, 0);
  put<std::uint32_t>(out, 0);
  put<std::uint64_t>(out, count);
  put<std::uint64_t>(out, count);
  put<std::uint64_t>(out, size);
  put<std::uint64_t>(out, offset);
  put<std::uint32_t>(out, 0x07064B50);  // its locator
  put<std::uint32_t>(out, 0);
  put<std::uint64_t>(out, offset + size);
  put<std::uint32_t>(out, 1);
  put<std::uint32_t>(out, 0x06054B50);  // end of central directory
  put<std::uint32_t>(out, 0);
  const auto count16 = static_cast<std::uint16_t>(std::min<std::uint64_t>(count, 0xFFFF));
  put<std::uint16_t>(out, count16);
  put<std::uint16_t>(out, count16);
  put<std::uint32_t>(out, clamp32(size));
  put<std::uint32_t>(out, clamp32(offset));
  put<std::uint16_t>(out, 0);  // comment
}

}  // namespace

void append_record(std::vector<ZipRecord>& records, std::string name, std::uint64_t size,
                   std::uint64_t begin) {
  ZipRecord record;
  record.name = std::move(name);
  record.size = size;
  record.header_offset = records.empty() ? begin : records.back().end();
  const std::uint64_t unpadded = record.header_offset + kLocalHeaderSize + record.name.size() +
                                 zip64_extra_size(record) + kPaddingHeaderSize;
  record.data_offset = aligned(unpadded);
  records.push_back(std::move(record));
}

std::string local_header(const ZipRecord& record) {
  const std::string zip64 = zip64_extra(record, 0);
  const std::uint64_t extra =
      record.data_offset - record.header_offset - kLocalHeaderSize - record.name.size();
  const std::uint64_t padding = extra - zip64.size() - kPaddingHeaderSize;
  std::string out;
  put<std::uint32_t>(out, 0x04034B50);
  put<std::uint16_t>(out, 0);  // version needed
  put<std::uint16_t>(out, flags(record));
  put<std::uint16_t>(out, 0);  // stored
  put<std::uint32_t>(out, 0);  // time and date
  put<std::uint32_t>(out, 0);  // crc and sizes stand in the data descriptor
  put<std::uint64_t>(out, 0);
  put<std::uint16_t>(out, static_cast<std::uint16_t>(record.name.size()));
  put<std::uint16_t>(out, static_cast<std::uint16_t>(extra));
  out += record.name + zip64 + "FB";
  put<std::uint16_t>(out, static_cast<std::uint16_t>(padding));
  return out + std::string(padding, 'Z');
}

std::string data_descriptor(const ZipRecord& record) {
  std::string out;
  if (record.size == 0) return out;
  put<std::uint32_t>(out, 0x08074B50);
  put<std::uint32_t>(out, record.crc32);
  for (int i = 0; i < 2; ++i) {
    if (record.is_large())
      put<std::uint64_t>(out, record.size);
    else
      put<std::uint32_t>(out, static_cast<std::uint32_t>(record.size));
  }
  return out;
}

std::uint64_t directory_entries_size(const std::vector<ZipRecord>& records) {
  std::uint64_t size = 0;
  for (const ZipRecord& record : records)
    size += kCentralHeaderSize + record.name.size() + zip64_extra_size(record);
  return size;
}

std::string central_directory(const std::vector<ZipRecord>& records) {
  std::string out;
  put_central_directory(out, records);
  return out;
}

void put_central_directory(std::string& out, const std::vector<ZipRecord>& records) {
  const std::size_t before = out.size();
  for (const ZipRecord& record : records) put_central_entry(out, record);
  put_end_records(out, records.size(), out.size() - before,
                  records.empty() ? 0 : records.back().end());
}

}  // namespace perdure::format
