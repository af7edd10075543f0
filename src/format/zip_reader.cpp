#include "format/zip_reader.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cstdint>

#include "format/coding.hpp"
#include "format/utf8.hpp"
#include "format/zip_fields.hpp"

namespace perdure::format {
namespace {

constexpr std::uint64_t kEndSize = 22;
constexpr std::uint64_t kLocatorSize = 20;
constexpr std::uint64_t kEnd64Size = 56;
constexpr std::uint16_t kDeflated = 8;
// About ten million records: more than any model has tensors, and a bound on what a hostile file
// can make us allocate.
constexpr std::uint64_t kMaxDirectorySize = std::uint64_t{1} << 30;

// A descriptor, the header behind it and a name of the usual length.
constexpr std::uint64_t kNear = 160;
constexpr std::uint64_t kSmallRecord = std::uint64_t{64} << 10;
constexpr std::uint64_t kLookAhead = std::uint64_t{64} << 20;

struct Directory {
  std::uint64_t offset = 0;
  std::uint64_t size = 0;
  std::uint64_t count = 0;
};

class ZipReader {
 public:
  ZipReader(const Source& source, std::vector<PackedRecord>* packed)
      : source_(source), packed_(packed) {}
  std::vector<CheckpointFile::Record> read();
  std::optional<CheckpointFile::Record> find_last(std::string_view name);

 private:
  static void require(bool ok, std::uint64_t offset, const char* what) {
    require_zip(ok, offset, what);
  }
  std::string read_bytes(std::uint64_t offset, std::uint64_t size) const {
    std::string out(size, '\0');
    source_.read(offset, std::as_writable_bytes(std::span(out)));
    return out;
  }
  std::string read_near(std::uint64_t offset, std::uint64_t size);
  void announce(const std::vector<CentralEntry>& entries, std::uint64_t until);

  Directory find_directory() const;
  Directory read_end64(const std::string& tail, std::uint64_t end_offset, const Directory& narrow,
                       std::uint64_t* directory_end) const;
  std::vector<CentralEntry> parse_central(std::string_view bytes, const Directory& directory) const;
  void check_names(const std::vector<CentralEntry>& entries, const Directory& directory);
  void check_name(std::string_view name, std::uint64_t offset) const;
  std::uint64_t check_local(const CentralEntry& entry, std::uint64_t next);
  void check_local_zip64(const CentralEntry& entry, std::uint64_t offset,
                         const LocalHeader& local) const;
  void check_descriptor(const CentralEntry& entry, std::uint64_t offset, std::uint64_t next);
  void add(const CentralEntry& entry, std::uint64_t data,
           std::vector<CheckpointFile::Record>& records);

  const Source& source_;
  std::vector<PackedRecord>* packed_;
  std::string top_;  // "archive/"
  std::uint64_t near_offset_ = 0;
  std::string near_;                // bytes of the file, from near_offset_ on
  std::size_t announced_ = 0;       // entries whose beginning the source knows to be read soon
  std::uint64_t announced_to_ = 0;  // in the file
};

// Where a record ends, the next one begins: both are read at one go.
std::string ZipReader::read_near(std::uint64_t offset, std::uint64_t size) {
  if (offset < near_offset_ || offset + size > near_offset_ + near_.size()) {
    near_ = read_bytes(offset, std::min(std::max(size, kNear), source_.size() - offset));
    near_offset_ = offset;
  }
  return near_.substr(offset - near_offset_, size);
}

// Of the records themselves nothing is read here, so the source cannot know where the next bytes
// will be. Small records are taken whole: they are read next in any case.
void ZipReader::announce(const std::vector<CentralEntry>& entries, std::uint64_t until) {
  std::uint64_t begin = announced_to_, end = announced_to_;
  for (; announced_ < entries.size() && entries[announced_].header_offset <= until; ++announced_) {
    const std::uint64_t header = entries[announced_].header_offset;
    if (header > end + kSmallRecord) {
      source_.will_read(begin, end - begin);
      begin = header - kLargeDescriptorSize;
    }
    end = header + kNear - kLargeDescriptorSize;
  }
  source_.will_read(begin, end - begin);
  announced_to_ = end;
}

Directory ZipReader::find_directory() const {
  const std::uint64_t file_size = source_.size();
  require(file_size >= kEndSize + kCentralSize + kLocalSize, file_size,
          "too short to be a PyTorch file; it was cut off");
  const std::uint64_t tail_size = std::min(file_size, kEndSize + kLocatorSize + kEnd64Size);
  const std::string tail = read_bytes(file_size - tail_size, tail_size);
  const std::uint64_t end_offset = file_size - kEndSize;
  ByteReader in(std::string_view(tail).substr(tail_size - kEndSize), "zip end record", end_offset);
  require(in.take<std::uint32_t>() == 0x06054B50, end_offset,
          "no zip end record at the end of the file; it was cut off, or something was appended");
  require(in.take<std::uint32_t>() == 0, end_offset, "a zip of several volumes");
  const auto count = in.take<std::uint16_t>();
  require(in.take<std::uint16_t>() == count, end_offset,
          "the zip end record contradicts itself on the number of records");
  Directory directory{.offset = 0, .size = in.take<std::uint32_t>(), .count = count};
  directory.offset = in.take<std::uint32_t>();
  require(in.take<std::uint16_t>() == 0, end_offset, "a zip comment, which PyTorch never writes");
  std::uint64_t directory_end = end_offset;
  directory = read_end64(tail, end_offset, directory, &directory_end);
  require(directory.offset <= directory_end && directory.size == directory_end - directory.offset,
          end_offset, "the zip directory does not lie where the end record says");
  require(directory.count > 0 && directory.count <= directory.size / kCentralSize &&
              directory.count <= directory.offset / kLocalSize,
          end_offset, "the number of records does not fit the size of the zip directory");
  require(directory.size <= kMaxDirectorySize, directory.offset,
          "a zip directory of more than 1 GiB");
  return directory;
}

// torch writes the zip64 end record always, others only where it is needed; it must agree with the
// short one.
Directory ZipReader::read_end64(const std::string& tail, std::uint64_t end_offset,
                                const Directory& narrow, std::uint64_t* directory_end) const {
  const bool needed = narrow.count == 0xFFFF || narrow.size == kMax32 || narrow.offset == kMax32;
  const std::uint64_t before_end = tail.size() - kEndSize;
  const bool present = before_end >= kLocatorSize &&
                       get<std::uint32_t>(&tail[before_end - kLocatorSize]) == 0x07064B50;
  if (!present) {
    require(!needed, end_offset, "the zip64 end record is missing");
    return narrow;
  }
  const std::uint64_t locator_offset = end_offset - kLocatorSize;
  ByteReader locator(std::string_view(tail).substr(before_end - kLocatorSize), "zip64 locator",
                     locator_offset);
  locator.take<std::uint32_t>();
  require(locator.take<std::uint32_t>() == 0, locator_offset, "a zip of several volumes");
  const auto end64_offset = locator.take<std::uint64_t>();
  require(locator.take<std::uint32_t>() <= 1, locator_offset, "a zip of several volumes");
  require(locator_offset >= kEnd64Size && end64_offset == locator_offset - kEnd64Size,
          locator_offset, "the zip64 locator points somewhere else");
  ByteReader in(std::string_view(tail).substr(before_end - kLocatorSize - kEnd64Size),
                "zip64 end record", end64_offset);
  require(in.take<std::uint32_t>() == 0x06064B50, end64_offset,
          "no zip64 end record where the locator points");
  require(in.take<std::uint64_t>() == kEnd64Size - 12, end64_offset,
          "the zip64 end record has an odd size");
  in.take<std::uint32_t>();  // made by, needed
  require(in.take<std::uint64_t>() == 0, end64_offset, "a zip of several volumes");
  Directory wide{.offset = 0, .size = 0, .count = in.take<std::uint64_t>()};
  require(in.take<std::uint64_t>() == wide.count, end64_offset,
          "the zip64 end record contradicts itself on the number of records");
  wide.size = in.take<std::uint64_t>();
  wide.offset = in.take<std::uint64_t>();
  require((narrow.count == 0xFFFF || narrow.count == wide.count) &&
              (narrow.size == kMax32 || narrow.size == wide.size) &&
              (narrow.offset == kMax32 || narrow.offset == wide.offset),
          end64_offset, "the two zip end records contradict each other");
  *directory_end = end64_offset;
  return wide;
}

std::vector<CentralEntry> ZipReader::parse_central(std::string_view bytes,
                                                   const Directory& directory) const {
  ByteReader in(bytes, "zip directory", directory.offset);
  std::vector<CentralEntry> entries;
  entries.reserve(directory.count);  // at most size / 46, checked
  while (!in.done()) entries.push_back(take_central_entry(in, directory.offset));
  require(entries.size() == directory.count, directory.offset,
          "the zip directory has another number of records than it says");
  return entries;
}

void ZipReader::check_name(std::string_view name, std::uint64_t offset) const {
  require(name.starts_with(top_) && name.size() > top_.size(), offset,
          "a record outside of the archive's one top folder");
  const auto is_odd = [](char c) {
    return static_cast<unsigned char>(c) < 0x20 || c == 0x7F || c == '\\';
  };
  require(is_strict_utf8(name) && std::ranges::none_of(name, is_odd), offset,
          "a record name with control characters or a backslash, or that is no UTF-8");
  for (std::size_t at = 0; at <= name.size();) {
    const std::size_t slash = std::min(name.find('/', at), name.size());
    const std::string_view part = name.substr(at, slash - at);
    require(!part.empty() && part != "." && part != "..", offset,
            "a record name that leaves the archive");
    at = slash + 1;
  }
}

void ZipReader::check_names(const std::vector<CentralEntry>& entries, const Directory& directory) {
  const std::string_view first = entries.front().name;
  top_ = std::string(first.substr(0, std::min(first.find('/'), first.size()))) + "/";
  std::vector<std::string_view> names;
  names.reserve(entries.size());
  for (const CentralEntry& entry : entries) {
    check_name(entry.name, directory.offset);
    names.push_back(entry.name);
  }
  std::ranges::sort(names);  // no hash table, in which hostile names could collide
  require(std::ranges::adjacent_find(names) == names.end(), directory.offset,
          "two records of the same name");
}

void ZipReader::check_descriptor(const CentralEntry& entry, std::uint64_t offset,
                                 std::uint64_t next) {
  const std::uint64_t size = next - offset;
  require(size == kDescriptorSize || size == kLargeDescriptorSize, offset,
          "a data descriptor of an odd size, or bytes between records");
  const std::string bytes = read_near(offset, size);
  ByteReader in(bytes, "data descriptor", offset);
  require(in.take<std::uint32_t>() == kDescriptorSignature, offset, "a damaged data descriptor");
  require(in.take<std::uint32_t>() == entry.crc32, offset,
          "the checksums in data descriptor and directory differ");
  for (const std::uint64_t expected : {entry.compressed, entry.size})
    require(
        (size == kDescriptorSize ? in.take<std::uint32_t>() : in.take<std::uint64_t>()) == expected,
        offset, "the sizes in data descriptor and directory differ");
}

// Where a local header says "see zip64", that field must say the same as the directory.
void ZipReader::check_local_zip64(const CentralEntry& entry, std::uint64_t offset,
                                  const LocalHeader& local) const {
  const std::string extra = read_bytes(offset + kLocalSize + entry.name.size(), local.extra_size);
  CentralEntry wide{.name = entry.name, .size = local.size, .compressed = local.compressed};
  apply_zip64(extra, offset, wide, local.size == kMax32, local.compressed == kMax32, false);
  require(wide.size == entry.size && wide.compressed == entry.compressed, offset,
          "sizes in local header and directory differ");
}

// Returns the offset of the data. `next` is where the next record, or the directory, begins:
// records must lie end to end, so that nothing can hide between them and none can overlap another.
std::uint64_t ZipReader::check_local(const CentralEntry& entry, std::uint64_t next) {
  const std::uint64_t offset = entry.header_offset;
  require(next >= offset && next - offset >= kLocalSize + entry.name.size(), offset,
          "records that overlap");
  const std::string bytes = read_near(offset, kLocalSize + entry.name.size());
  ByteReader in(bytes, "local zip header", offset);
  const LocalHeader local = take_local_header(in, offset);
  require(local.flags == entry.flags && local.method == entry.method, offset,
          "flags or method in local header and directory differ");
  const bool unset = local.crc32 == 0 && local.compressed == 0 && local.size == 0;
  const bool equal = local.crc32 == entry.crc32 &&
                     (local.size == entry.size || local.size == kMax32) &&
                     (local.compressed == entry.compressed || local.compressed == kMax32);
  require(equal || (local.is_deferred() && unset), offset,
          "checksum or size in local header and directory differ");
  require(local.name_size == entry.name.size() && in.take_bytes(local.name_size) == entry.name,
          offset, "the names in local header and directory differ");
  const std::uint64_t data = local.data_offset(offset);
  require(data <= next && entry.compressed <= next - data, offset, "records that overlap");
  if (local.size == kMax32 || local.compressed == kMax32) check_local_zip64(entry, offset, local);
  if (local.is_deferred())
    check_descriptor(entry, data + entry.compressed, next);
  else
    require(data + entry.compressed == next, data + entry.compressed,
            "bytes between records that belong to none");
  return data;
}

std::vector<CheckpointFile::Record> ZipReader::read() {
  const Directory directory = find_directory();
  const std::string bytes = read_bytes(directory.offset, directory.size);
  std::vector<CentralEntry> entries = parse_central(bytes, directory);
  check_names(entries, directory);
  std::ranges::sort(entries, {}, &CentralEntry::header_offset);
  require(entries.front().header_offset == 0, 0, "bytes before the first record");
  std::vector<CheckpointFile::Record> records;
  records.reserve(entries.size());
  for (std::size_t i = 0; i < entries.size(); ++i) {
    const CentralEntry& entry = entries[i];
    announce(entries, entry.header_offset + kLookAhead);
    const std::uint64_t next =
        i + 1 < entries.size() ? entries[i + 1].header_offset : directory.offset;
    add(entry, check_local(entry, next), records);
  }
  return records;
}

// Its entry is that which begins with the last signature and ends where the directory does.
std::optional<CheckpointFile::Record> ZipReader::find_last(std::string_view name) {
  constexpr std::uint64_t kMaxEntry = 512;
  const Directory directory = find_directory();
  const std::uint64_t size = std::min(directory.size, kMaxEntry);
  const std::uint64_t begin = directory.offset + directory.size - size;
  const std::string bytes = read_bytes(begin, size);
  std::string signature;
  put<std::uint32_t>(signature, kCentralSignature);
  const std::size_t at = bytes.rfind(signature);
  if (at == std::string::npos) return std::nullopt;
  ByteReader in(std::string_view(bytes).substr(at), "zip directory", begin + at);
  const CentralEntry entry = take_central_entry(in, directory.offset);
  if (!in.done() || entry.name.substr(entry.name.find('/') + 1) != name || entry.method != 0)
    return std::nullopt;
  const std::uint64_t offset = entry.header_offset;
  const std::string header_bytes = read_bytes(offset, kLocalSize + entry.name.size());
  ByteReader header(header_bytes, "local zip header", offset);
  const std::uint64_t data = take_local_header(header, offset).data_offset(offset);
  require(header.take_bytes(entry.name.size()) == entry.name, offset,
          "the names in local header and directory differ");
  require(data <= directory.offset && entry.size <= directory.offset - data, offset,
          "a record that does not fit in the file");
  return CheckpointFile::Record{std::string(name), data, entry.size, entry.crc32};
}

void ZipReader::add(const CentralEntry& entry, std::uint64_t data,
                    std::vector<CheckpointFile::Record>& records) {
  CheckpointFile::Record record{std::string(entry.name.substr(top_.size())), data, entry.compressed,
                                entry.crc32};
  if (entry.method == 0) return records.push_back(std::move(record));
  PackedRecord packed{std::move(record), entry.size};
  if (packed_ == nullptr || entry.method != kDeflated) refuse_packed(packed);
  packed_->push_back(std::move(packed));
}

// What the source itself has to say (io) names the file already.
template <typename F>
auto named(const Source& source, F&& parse) {
  try {
    return parse();
  } catch (const Error& error) {
    if (error.code() != ErrorCode::corrupt && error.code() != ErrorCode::unsupported) throw;
    throw Error(error.code(), fmt::format("{}: {}", source.name(), error.what()));
  }
}

}  // namespace

void refuse_packed(const PackedRecord& packed) {
  throw Error(ErrorCode::unsupported,
              fmt::format("record {} is compressed (at offset {}); torch.save never does that. "
                          "Unpack the archive and pack it without compression, or save the object "
                          "again",
                          repr(Value(packed.record.name)), packed.record.offset));
}

std::vector<CheckpointFile::Record> read_zip_directory(const Source& source,
                                                       std::vector<PackedRecord>* packed) {
  return named(source, [&] { return ZipReader(source, packed).read(); });
}

std::optional<CheckpointFile::Record> find_last_record(const Source& source,
                                                       std::string_view name) {
  return named(source, [&] { return ZipReader(source, nullptr).find_last(name); });
}

}  // namespace perdure::format
