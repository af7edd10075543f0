// The zip that perdure writes, against what torch.save writes.
#include "format/archive_layout.hpp"

#include <gtest/gtest.h>

#include <cstdint>

#include "format/coding.hpp"
#include "format/crc32.hpp"
#include "format/memory_source.hpp"
#include "format/torch_file.hpp"
#include "format/zip_reader.hpp"

namespace perdure::test {
namespace {

using namespace format;

constexpr std::uint64_t kGiB = std::uint64_t{1} << 30;

ZipRecord placed(std::vector<ZipRecord>& records, std::string name, std::uint64_t size) {
  append_record(records, std::move(name), size);
  return records.back();
}

// getPadding of caffe2/serialize/inline_container.cc, in its own words.
std::uint64_t torch_data_offset(std::uint64_t header, std::size_t name_size, std::uint64_t size) {
  std::uint64_t start = header + 30 + name_size + 4;
  if (size >= 0xFFFFFFFF || header >= 0xFFFFFFFF) {
    start += 4;
    if (size >= 0xFFFFFFFF) start += 16;
    if (header >= 0xFFFFFFFF) start += 8;
  }
  return start % 64 == 0 ? start : start + 64 - start % 64;
}

TEST(ArchiveLayout, PlacesRecordsAsTorchSaveDoes) {
  // Offsets of a real file: torch.save of a model, an AdamW and two numbers.
  std::vector<ZipRecord> records;
  const struct {
    const char* name;
    std::uint64_t size, header, data;
  } expected[] = {{"show/data.pkl", 1004, 0, 64},
                  {"show/.format_version", 1, 1084, 1152},
                  {"show/.storage_alignment", 2, 1169, 1280},
                  {"show/byteorder", 6, 1298, 1408},
                  {"show/data/0", 8, 1430, 1536}};
  for (const auto& [name, size, header, data] : expected) {
    const ZipRecord record = placed(records, name, size);
    EXPECT_EQ(record.header_offset, header) << name;
    EXPECT_EQ(record.data_offset, data) << name;
  }
}

TEST(ArchiveLayout, RebuildsAFileOfTorchSaveByteForByte) {
  std::vector<ZipRecord> records;
  std::string rebuilt;
  const auto source = source_of(kTorchFile);
  for (const auto& found : read_zip_directory(*source)) {
    const std::string data = kTorchFile.substr(found.offset, found.size);
    append_record(records, "archive/" + found.name, found.size);
    records.back().crc32 = crc32(as_bytes(data));
    rebuilt += local_header(records.back()) + data + data_descriptor(records.back());
  }
  rebuilt += central_directory(records);
  EXPECT_EQ(records.size(), 7u);
  EXPECT_TRUE(rebuilt == kTorchFile);
}

TEST(ArchiveLayout, RecordsBeginWhereTheLastOneEnds) {
  std::vector<ZipRecord> records;
  const std::uint64_t sizes[] = {0, 1, 63,         64,         65, 0,          4096, 5 * kGiB,
                                 0, 7, 0xFFFFFFFE, 0xFFFFFFFF, 1,  100 * kGiB, 3};
  std::uint64_t header = 0;
  for (std::size_t i = 0; i < std::size(sizes); ++i) {
    const std::string name = "archive/data/" + std::to_string(i * 17);
    const ZipRecord record = placed(records, name, sizes[i]);
    EXPECT_EQ(record.header_offset, header);
    EXPECT_EQ(record.data_offset, torch_data_offset(header, name.size(), sizes[i]));
    EXPECT_EQ(local_header(record).size(), record.data_offset - record.header_offset);
    EXPECT_EQ(data_descriptor(record).size(), record.descriptor_size());
    header = record.data_offset + sizes[i] + record.descriptor_size();
  }
}

TEST(ArchiveLayout, DescriptorIsWideForLargeRecordsAndForAllThatLieAfter4GiB) {
  std::vector<ZipRecord> records;
  EXPECT_EQ(placed(records, "a/0", 0xFFFFFFFE).descriptor_size(), 16u);
  EXPECT_EQ(placed(records, "a/1", 7).descriptor_size(), 24u);  // header after 0xFFFFFFFF
  EXPECT_EQ(placed(records, "a/2", 0).descriptor_size(), 0u);
  records.clear();
  EXPECT_EQ(placed(records, "a/0", 0xFFFFFFFF).descriptor_size(), 24u);
}

TEST(ArchiveLayout, LocalHeaderHasTheBytesThatTorchWrites) {
  std::vector<ZipRecord> records;
  const std::string header = local_header(placed(records, "a/b", 5));
  EXPECT_EQ(header.substr(0, 30),
            std::string("PK\3\4\0\0\x08\x08\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\3\0\x1f\0", 30));
  EXPECT_EQ(header.substr(30, 7), std::string("a/bFB\x1b\0", 7));
  EXPECT_EQ(header.substr(37), std::string(27, 'Z'));
  const std::string empty = local_header(placed(records, "a/c", 0));
  EXPECT_EQ(get<std::uint16_t>(&empty[6]), 0x0800);
}

TEST(ArchiveLayout, LargeRecordsHaveZip64FieldsInBothHeaders) {
  std::vector<ZipRecord> records;
  placed(records, "a/0", 5 * kGiB);
  const ZipRecord second = placed(records, "a/1", 6 * kGiB);
  const std::string local = local_header(second);
  EXPECT_EQ(get<std::uint16_t>(&local[33]), 0x0001);
  EXPECT_EQ(get<std::uint16_t>(&local[35]), 24);
  EXPECT_EQ(get<std::uint64_t>(&local[37]), 6 * kGiB);
  EXPECT_EQ(get<std::uint64_t>(&local[45]), 0u);  // compressed: not known to torch's writer yet
  EXPECT_EQ(get<std::uint64_t>(&local[53]), second.header_offset);
  EXPECT_EQ(local.substr(61, 2), "FB");

  const std::string directory = central_directory(records);
  const char* entry =
      directory.data() + 46 + 3 + 20;  // after the first one: name, zip64 without offset
  EXPECT_EQ(get<std::uint32_t>(entry), 0x02014B50u);
  EXPECT_EQ(get<std::uint32_t>(entry + 20), 0xFFFFFFFFu);
  EXPECT_EQ(get<std::uint32_t>(entry + 24), 0xFFFFFFFFu);
  EXPECT_EQ(get<std::uint32_t>(entry + 42), 0xFFFFFFFFu);
  EXPECT_EQ(get<std::uint64_t>(entry + 46 + 3 + 4), 6 * kGiB);
  EXPECT_EQ(get<std::uint64_t>(entry + 46 + 3 + 12), 6 * kGiB);
  EXPECT_EQ(get<std::uint64_t>(entry + 46 + 3 + 20), second.header_offset);
}

TEST(ArchiveLayout, EndRecordsAreCutToWhatFits) {
  std::vector<ZipRecord> records;
  placed(records, "a/0", 5 * kGiB);
  const std::string directory = central_directory(records);
  const char* end = directory.data() + directory.size() - 22;
  const std::uint64_t entries = directory.size() - 22 - 20 - 56;
  EXPECT_EQ(get<std::uint16_t>(end + 10), 1);
  EXPECT_EQ(get<std::uint32_t>(end + 12), entries);
  EXPECT_EQ(get<std::uint32_t>(end + 16), 0xFFFFFFFFu);
  const char* end64 = end - 20 - 56;
  EXPECT_EQ(get<std::uint64_t>(end64 + 40), entries);
  EXPECT_EQ(get<std::uint64_t>(end64 + 48), records.back().end());
  EXPECT_EQ(get<std::uint64_t>(end - 20 + 8), records.back().end() + entries);  // the locator
}

TEST(ArchiveLayout, MoreThan65535RecordsAreCountedIn64Bits) {
  constexpr std::size_t kCount = 70'000;
  std::vector<ZipRecord> records;
  std::string file;
  for (std::size_t i = 0; i < kCount; ++i) {
    const ZipRecord record = placed(records, "archive/data/" + std::to_string(i), 0);
    file += local_header(record);
  }
  const std::string directory = central_directory(records);
  const char* end = directory.data() + directory.size() - 22;
  EXPECT_EQ(get<std::uint16_t>(end + 8), 0xFFFF);
  EXPECT_EQ(get<std::uint64_t>(end - 20 - 56 + 32), kCount);
  const auto found = read_zip_directory(*source_of(file + directory));
  ASSERT_EQ(found.size(), kCount);
  EXPECT_EQ(found.back().name, "data/69999");
  EXPECT_EQ(found.back().offset, records.back().data_offset);
}

// A reader must find in a 4 GiB file what the layout says, so the reader is shown one that is not
// there: a source that makes up the headers and reads as zeros between them.
class SparseSource final : public Source {
 public:
  explicit SparseSource(const std::vector<ZipRecord>& records)
      : directory_(central_directory(records)) {
    for (const ZipRecord& record : records) {
      pieces_.emplace_back(record.header_offset, local_header(record));
      pieces_.emplace_back(record.data_offset + record.size, data_descriptor(record));
    }
    pieces_.emplace_back(records.back().end(), directory_);
    size_ = records.back().end() + directory_.size();
  }
  std::uint64_t size() const override { return size_; }
  const std::string& name() const override { return name_; }
  void read(std::uint64_t offset, MutableBytes into) const override {
    for (std::size_t i = 0; i < into.size(); ++i) into[i] = at(offset + i);
  }

 private:
  std::byte at(std::uint64_t offset) const {
    for (const auto& [begin, bytes] : pieces_)
      if (offset >= begin && offset - begin < bytes.size())
        return static_cast<std::byte>(bytes[offset - begin]);
    return std::byte{0};
  }
  std::string directory_;
  std::string name_ = "sparse.pt";
  std::vector<std::pair<std::uint64_t, std::string>> pieces_;
  std::uint64_t size_ = 0;
};

TEST(ArchiveLayout, TheReaderFindsRecordsBeyond4GiB) {
  std::vector<ZipRecord> records;
  for (const std::uint64_t size : {5 * kGiB, std::uint64_t{0}, std::uint64_t{1},
                                   0xFFFFFFFFu + std::uint64_t{0}, 6 * kGiB, std::uint64_t{9}})
    append_record(records, "archive/data/" + std::to_string(records.size()), size);
  const auto found = read_zip_directory(SparseSource(records));
  ASSERT_EQ(found.size(), records.size());
  for (std::size_t i = 0; i < records.size(); ++i) {
    EXPECT_EQ(found[i].offset, records[i].data_offset);
    EXPECT_EQ(found[i].size, records[i].size);
  }
}

TEST(Crc32, KnownValuesAndCombination) {
  EXPECT_EQ(crc32(as_bytes("123456789")), 0xCBF43926u);
  EXPECT_EQ(crc32(as_bytes("")), 0u);
  EXPECT_EQ(crc32(as_bytes("6789"), crc32(as_bytes("12345"))), 0xCBF43926u);
  EXPECT_EQ(crc32(ConstBytes(), 0xCBF43926u), 0xCBF43926u);
  EXPECT_EQ(crc32_combine(crc32(as_bytes("12345")), crc32(as_bytes("6789")), 4), 0xCBF43926u);
  // 5 GiB of zeros after "a": the length does not fit 32 bits.
  const std::string zeros(1 << 20, '\0');
  std::uint32_t one = crc32(as_bytes("a"));
  std::uint32_t mebibyte = crc32(as_bytes(zeros)), all = 0;
  for (int i = 0; i < 5 * 1024; ++i) all = crc32_combine(all, mebibyte, zeros.size());
  std::uint32_t pieces = one;
  for (int i = 0; i < 5 * 1024; ++i) pieces = crc32_combine(pieces, mebibyte, zeros.size());
  EXPECT_EQ(crc32_combine(one, all, 5 * kGiB), pieces);
}

}  // namespace
}  // namespace perdure::test
