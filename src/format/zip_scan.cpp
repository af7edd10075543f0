#include "format/zip_scan.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cstdint>

#include "format/archive_layout.hpp"
#include "format/zip_fields.hpp"

namespace perdure::format {
namespace {

constexpr std::uint64_t kStride = std::uint64_t{4} << 20;
// More than any model has tensors, and a bound on what a hostile file can make us allocate.
constexpr std::size_t kMaxClaims = std::size_t{1} << 23;

// Names and extra fields of torch's have less than 400 bytes. Structures may overlap where a file
// means harm, and what each of them costs must stay near its size.
constexpr std::size_t kMaxField = 1024;
constexpr std::uint64_t kLongest = kCentralSize + 3 * kMaxField;
constexpr std::size_t kMaxName = 64;  // that is kept; of what anyone asks for, none is longer

// Without the top folder; "" for what is no record of torch's.
std::string inner_name(std::string_view name) {
  const std::size_t slash = name.find('/');
  if (slash == 0 || slash == name.npos) return {};
  return std::string(name.substr(slash + 1, kMaxName));
}

// Whether the fields fill the extra field. Where they do not, its length is damaged, and with it
// the place of the data.
bool is_filled(std::string_view extra) {
  while (extra.size() >= 4) {
    const std::size_t size = get<std::uint16_t>(&extra[2]);
    if (size > extra.size() - 4) return false;
    extra.remove_prefix(4 + size);
  }
  return extra.empty();
}

// What take_central_entry would refuse most often, without an exception.
bool may_be_entry(std::string_view bytes) {
  const auto field = [&](std::size_t at) { return get<std::uint16_t>(&bytes[at]); };
  return bytes.size() >= kCentralSize && (field(8) & ~kKnownFlags) == 0 && field(10) == 0 &&
         field(28) <= kMaxField && field(30) <= kMaxField && field(32) <= kMaxField;
}

// Where the data of a record begins that is aligned as torch does it.
std::uint64_t aligned_offset(const CentralEntry& entry) {
  std::vector<ZipRecord> records;
  append_record(records, std::string(entry.name), entry.size, entry.header_offset);
  return records.front().data_offset;
}

}  // namespace

ZipScan::ZipScan(const Source& source) : file_size_(source.size()) {
  std::string bytes;
  for (std::uint64_t at = 0; at < file_size_; at += kStride) {
    bytes.resize(std::min(kStride + kLongest, file_size_ - at));
    source.read(at, std::as_writable_bytes(std::span(bytes)));
    look_through(bytes, at);
  }
  waiting_.clear();
}

void ZipScan::look_through(std::string_view bytes, std::uint64_t base) {
  for (std::size_t i = bytes.find("PK"); i < kStride; i = bytes.find("PK", i + 1)) {
    try {
      take(bytes.substr(i), base + i);
    } catch (const Error& error) {
      if (error.code() != ErrorCode::corrupt) throw;  // bytes that only begin as a structure
    }
  }
}

void ZipScan::take(std::string_view bytes, std::uint64_t offset) {
  ByteReader in(bytes, "zip structure", offset);
  switch (ByteReader(in).take<std::uint32_t>()) {
    case kLocalSignature:
      return take_header(in, offset);
    case kDescriptorSignature:
      return take_descriptor(in, offset);
    case kCentralSignature:
      if (may_be_entry(bytes)) take_entry(in, offset);
      return;
    default:
      return;
  }
}

void ZipScan::take_header(ByteReader& in, std::uint64_t offset) {
  const LocalHeader header = take_local_header(in, offset);
  if ((header.flags & ~kKnownFlags) != 0 || header.method != 0 || header.name_size > kMaxField ||
      header.extra_size > kMaxField)
    return;
  RecordClaim claim{.name = inner_name(in.take_bytes(header.name_size)),
                    .data_offset = header.data_offset(offset),
                    .size = std::nullopt};
  if (!is_filled(in.take_bytes(header.extra_size))) return;
  if (!add({std::move(claim), offset, std::nullopt})) return;
  if (header.is_deferred())
    waiting_.try_emplace(found_.back().claim.data_offset, found_.size() - 1);
  else if (header.size == header.compressed && header.size != kMax32)
    settle(found_.back().claim, header.size, header.crc32);
}

// A descriptor fits the header that lies as far before it as it says that the bytes are long.
void ZipScan::take_descriptor(ByteReader& in, std::uint64_t offset) {
  in.take<std::uint32_t>();
  const auto crc = in.take<std::uint32_t>();
  ByteReader narrow(in), wide(in);
  const std::uint64_t size = narrow.take<std::uint32_t>();
  if (narrow.take<std::uint32_t>() == size) settle_at(offset, size, crc);
  const auto wide_size = wide.take<std::uint64_t>();
  if (wide.take<std::uint64_t>() == wide_size) settle_at(offset, wide_size, crc);
}

void ZipScan::settle_at(std::uint64_t offset, std::uint64_t size, std::uint32_t crc) {
  const auto it = size <= offset ? waiting_.find(offset - size) : waiting_.end();
  if (it == waiting_.end()) return;
  settle(found_[it->second].claim, size, crc);
  waiting_.erase(it);
}

void ZipScan::settle(RecordClaim& claim, std::uint64_t size, std::uint32_t crc) const {
  if (size > file_size_ - claim.data_offset) return;
  claim.size = size;
  claim.crc32 = crc;
}

// Where the data lies, the local header says; where that is damaged, it follows from the alignment.
void ZipScan::take_entry(ByteReader& in, std::uint64_t offset) {
  const CentralEntry entry = take_central_entry(in, offset);
  Found found{{.name = inner_name(entry.name),
               .data_offset = aligned_offset(entry),
               .size = entry.size,
               .crc32 = entry.crc32},
              offset,
              entry.header_offset};
  if (add(found)) listed_.emplace(entry.header_offset, found_.size() - 1);
  const auto header = std::ranges::lower_bound(found_, entry.header_offset, {}, &Found::offset);
  if (header == found_.end() || header->offset != entry.header_offset || header->header_offset ||
      header->claim.data_offset == found.claim.data_offset)
    return;
  found.claim.data_offset = header->claim.data_offset;
  add(found);
}

bool ZipScan::add(const Found& found) {
  if (found.claim.name.empty() || found.claim.data_offset > file_size_) return false;
  if (found_.size() == kMaxClaims)
    throw Error(ErrorCode::unsupported, fmt::format("a zip of more than {} records", kMaxClaims));
  found_.push_back(found);
  return true;
}

bool ZipScan::is_listed(const Found& header) const {
  const auto [begin, end] = listed_.equal_range(header.offset);
  return std::any_of(begin, end, [&](const auto& entry) {
    return found_[entry.second].claim.name == header.claim.name;
  });
}

std::vector<RecordClaim> ZipScan::claims(const KnownSize& known_size) const {
  std::vector<RecordClaim> headers, entries;
  std::uint64_t end = 0;  // of the record before
  bool endless = false;   // it is not known where that ends
  for (const Found& found : found_) {
    if (found.offset < end) continue;
    if (found.header_offset) {
      entries.push_back(found.claim);
      continue;
    }
    const RecordClaim& claim = found.claim;
    if (endless && !is_listed(found)) continue;
    const auto size = claim.size || !known_size ? claim.size : known_size(claim.name);
    endless = !size;
    if (size) end = claim.data_offset + std::min(*size, file_size_ - claim.data_offset);
    headers.push_back(claim);
  }
  headers.insert(headers.end(), std::make_move_iterator(entries.begin()),
                 std::make_move_iterator(entries.end()));
  return headers;
}

}  // namespace perdure::format
