// Reading with several threads gives what is there, finds every damaged block, and tells the first
// error of the file: whatever the page cache has, and whatever the system refuses.
#include "engine/bulk_read.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstring>
#include <random>

#include "engine/run_fixture.hpp"
#include "format/crc32.hpp"
#include "format/memory_source.hpp"
#include "io/file.hpp"
#include "storage/faulty_system.hpp"

namespace perdure::test {
namespace {

using engine::bulk_read;
using engine::DamagedBlock;
using engine::RecordRead;
using format::kBlockSize;

std::string random_bytes(std::size_t size, unsigned seed = 1) {
  std::string bytes(size, '\0');
  std::mt19937 random(seed);
  for (char& byte : bytes) byte = static_cast<char>(random());
  return bytes;
}

ConstBytes bytes_of(const std::string& text) { return std::as_bytes(std::span(text)); }

// A file of records without a format, and where they are to go.
struct Layout {
  std::string file;
  std::vector<CheckpointFile::Record> records;
  std::vector<std::vector<std::uint32_t>> sums;
  std::vector<std::vector<std::byte>> memory;
  std::uint64_t block_size;

  Layout(const std::vector<std::size_t>& sizes, std::uint64_t block, std::size_t gap = 100)
      : block_size(block) {
    std::size_t offset = gap;
    for (const std::size_t size : sizes) {
      records.push_back({fmt::format("data/{}", records.size()), offset, size, 0});
      offset += size + gap;
    }
    file = random_bytes(offset);
    for (auto& record : records) {
      auto& sum = sums.emplace_back();
      for (std::uint64_t at = 0; at < record.size; at += block)
        sum.push_back(format::crc32(
            bytes_of(file).subspan(record.offset + at, std::min(block, record.size - at))));
      memory.emplace_back(record.size, std::byte{0xEE});
    }
  }

  std::vector<RecordRead> reads(bool compare_first = false) {
    std::vector<RecordRead> out;
    for (std::size_t i = 0; i < records.size(); ++i)
      out.push_back({&records[i], block_size, sums[i], memory[i], compare_first});
    return out;
  }
  bool is_whole(std::size_t i) const {
    return records[i].size == 0 ||
           std::memcmp(memory[i].data(), file.data() + records[i].offset, records[i].size) == 0;
  }
};

void expect_no_damage(const RecordRead& read, const DamagedBlock&) {
  ADD_FAILURE() << read.record->name;
}

struct Shape {
  const char* name;
  std::vector<std::size_t> sizes;
  std::uint64_t block_size;
};
void PrintTo(const Shape& shape, std::ostream* out) { *out << shape.name; }

class BulkReadShapes : public testing::TestWithParam<Shape> {
 protected:
  Layout layout{GetParam().sizes, GetParam().block_size};
};

TEST_P(BulkReadShapes, ReadsWhatIsThere) {
  const MemorySource source(layout.file);
  for (const bool compare_first : {false, layout.block_size <= kBlockSize}) {
    for (auto& memory : layout.memory) std::ranges::fill(memory, std::byte{0xEE});
    bulk_read(source, layout.reads(compare_first), expect_no_damage);
    for (std::size_t i = 0; i < layout.records.size(); ++i) EXPECT_TRUE(layout.is_whole(i)) << i;
  }
}

TEST_P(BulkReadShapes, TakesRecordsInAnyOrderAndOnlySome) {
  const MemorySource source(layout.file);
  auto reads = layout.reads();
  std::ranges::reverse(reads);
  reads.resize((reads.size() + 1) / 2);
  bulk_read(source, reads, expect_no_damage);
  for (std::size_t i = 0; i < layout.records.size(); ++i)
    EXPECT_TRUE(layout.records[i].size == 0 ||
                layout.is_whole(i) == (i >= layout.records.size() / 2))
        << i;
}

TEST_P(BulkReadShapes, FindsEveryDamagedBlockAndNoOther) {
  std::vector<std::uint64_t> expected;
  for (const auto& record : layout.records)
    for (std::uint64_t at = 0; at < record.size; at += layout.block_size)
      if ((record.offset + at) % 3 == 0) {
        const std::uint64_t last = std::min(at + layout.block_size, record.size) - 1;
        layout.file[record.offset + last] ^= 0x20;
        expected.push_back(record.offset + at);
      }
  std::vector<std::uint64_t> found;
  auto reads = layout.reads();
  for (RecordRead& read : reads) read.into = {};
  bulk_read(MemorySource(layout.file), reads,
            [&](const RecordRead&, const DamagedBlock& block) { found.push_back(block.offset); });
  std::ranges::sort(found);
  EXPECT_EQ(found, expected);
}

std::vector<std::size_t> many_small() {
  std::vector<std::size_t> sizes;
  for (std::size_t i = 0; i < 3000; ++i) sizes.push_back(i % 7 == 0 ? 0 : i * 37 % 9000);
  return sizes;
}

INSTANTIATE_TEST_SUITE_P(
    All, BulkReadShapes,
    testing::Values(Shape{"nothing", {}, kBlockSize}, Shape{"empty", {0, 0, 0}, kBlockSize},
                    Shape{"tiny", {1}, kBlockSize}, Shape{"small", {5, 0, 700, 64}, kBlockSize},
                    Shape{"many_small", many_small(), kBlockSize},
                    Shape{"one_block", {kBlockSize}, kBlockSize},
                    Shape{"around_a_block", {kBlockSize - 1, kBlockSize + 1, 3}, kBlockSize},
                    Shape{"large", {13 << 20, 1, (9 << 20) + 12345}, kBlockSize},
                    Shape{"small_blocks", {100000, 70001}, 1000},
                    Shape{"large_blocks", {21 << 20, 5 << 20}, (std::uint64_t{9} << 20) + 5},
                    // as in a file that is not perdure's: one checksum for a record
                    Shape{"whole_records", {17 << 20, 3 << 20, 10}, std::uint64_t{1} << 40}),
    [](const auto& instance) { return std::string(instance.param.name); });

TEST(BulkReadTest, NothingOfADamagedBlockIsWrittenWhereItIsComparedFirst) {
  Layout layout({(10 << 20) + 5}, kBlockSize);
  layout.file[layout.records[0].offset + kBlockSize + 77] ^= 1;
  int damaged = 0;
  const auto count = [&](const RecordRead&, const DamagedBlock& block) {
    ++damaged;
    EXPECT_EQ(block.offset, layout.records[0].offset + kBlockSize);
    throw Error(ErrorCode::corrupt, "damaged");
  };
  EXPECT_ERROR(corrupt, "damaged", bulk_read(MemorySource(layout.file), layout.reads(true), count));
  EXPECT_EQ(damaged, 1);
  const auto block = std::span(layout.memory[0]).subspan(kBlockSize, kBlockSize);
  EXPECT_TRUE(std::ranges::all_of(block, [](std::byte x) { return x == std::byte{0xEE}; }));
}

// However the threads take turns.
TEST(BulkReadTest, TellsTheFirstErrorOfTheFile) {
  Layout layout({40 << 20}, kBlockSize);
  for (const std::uint64_t block : {3, 4, 5, 6, 7, 9})
    layout.file[layout.records[0].offset + block * kBlockSize] ^= 1;
  const MemorySource source(layout.file);
  for (int i = 0; i < 20; ++i) {
    const auto tell = [&](const RecordRead&, const DamagedBlock& block) {
      throw Error(ErrorCode::corrupt,
                  fmt::format("block {}", (block.offset - layout.records[0].offset) / kBlockSize));
    };
    EXPECT_ERROR(corrupt, "block 3", bulk_read(source, layout.reads(), tell));
  }
}

TEST(BulkReadTest, ARecordOfNoBytesMayNotHaveAChecksum) {
  CheckpointFile::Record record{"data/0", 10, 0, 7};
  int damaged = 0;
  bulk_read(MemorySource(std::string(20, 'x')), {{&record, 0, std::span(&record.crc32, 1), {}}},
            [&](const RecordRead&, const DamagedBlock& block) { damaged += block.offset == 10; });
  EXPECT_EQ(damaged, 1);
}

// ---- through the operating system

class BulkReadFile : public testing::Test {
 protected:
  BulkReadFile() { TemporaryDirectory::write(path, layout.file); }

  std::shared_ptr<const Source> open() {
    return io::open_source(system, AT_FDCWD, path.c_str(), 0, "cp.pt");
  }
  void expect_whole() {
    for (const bool compare_first : {false, true}) {
      for (auto& memory : layout.memory) std::ranges::fill(memory, std::byte{0xEE});
      bulk_read(*open(), layout.reads(compare_first), expect_no_damage);
      for (std::size_t i = 0; i < layout.records.size(); ++i) EXPECT_TRUE(layout.is_whole(i)) << i;
    }
    EXPECT_EQ(system.open_descriptors(), 0U);
  }

  // From an odd offset to the very end, with a gap that is worth leaving out.
  Layout layout{{(11 << 20) + 3, 0, 5000, 6 << 20, 1}, kBlockSize, 0};
  TemporaryDirectory directory;
  std::filesystem::path path = directory / "cp.pt";
  FaultySystem system;
};

TEST_F(BulkReadFile, WarmAndColdAndAsItIs) {
  for (const std::optional<bool> cached :
       {std::optional(true), std::optional(false), std::optional<bool>()}) {
    system.all_cached = cached;
    expect_whole();
  }
}

TEST_F(BulkReadFile, WhatIsCachedIsReadThroughOneDescriptor) {
  system.all_cached = true;
  expect_whole();
  EXPECT_EQ(system.count(Call::openat), 2);  // one for each opening
}

TEST_F(BulkReadFile, TheCacheServesWherePastItIsRefused) {
  system.all_cached = false;
  system.fail(Call::openat, 2, EINVAL);  // the second opening, with O_DIRECT
  expect_whole();
  EXPECT_TRUE(system.fired());
  for (const int error : {EINVAL, EOPNOTSUPP, EIO}) {
    system.fail(Call::pread, 1, error);
    expect_whole();
    EXPECT_TRUE(system.fired());
  }
}

TEST_F(BulkReadFile, ShortAndInterruptedReads) {
  for (const bool cached : {true, false}) {
    system.all_cached = cached;
    system.interrupting = true;
    for (const std::size_t limit :
         {std::size_t{1} << 20, std::size_t{12288}, std::size_t{100001}}) {
      system.transfer_limit = limit;
      expect_whole();
    }
    system.transfer_limit = SIZE_MAX;
  }
}

TEST_F(BulkReadFile, AnErrorOfTheDiskIsToldAsOne) {
  system.all_cached = true;
  const auto source = open();
  system.fail(Call::pread, 2, EIO);
  EXPECT_ERROR(io, "cp.pt", bulk_read(*source, layout.reads(), expect_no_damage));
}

TEST_F(BulkReadFile, AFileThatWasCutMeanwhileIsAnErrorAndNoDamage) {
  for (const bool cached : {true, false}) {
    system.all_cached = cached;
    const auto source = open();
    std::filesystem::resize_file(path, 7 << 20);
    EXPECT_ERROR(io, "cut", bulk_read(*source, layout.reads(), expect_no_damage));
    TemporaryDirectory::write(path, layout.file);
  }
}

// The kernel's own word, where nobody else drops caches: a file that was just written is cached.
TEST_F(BulkReadFile, TheRealSystemKnowsWhatIsCached) {
  io::System& real = io::real_system();
  const int fd = real.openat(AT_FDCWD, path.c_str(), O_RDONLY, 0);
  ASSERT_GE(fd, 0);
  EXPECT_LE(real.cached(fd, 0, layout.file.size()), layout.file.size());
  EXPECT_LE(real.cached(fd, 4097, 1), 1U);
  EXPECT_EQ(real.cached(-1, 0, 100), 100U);  // cannot be told: then the cache is as good as any
  real.close(fd);
}

}  // namespace
}  // namespace perdure::test
