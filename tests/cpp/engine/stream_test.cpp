// What is streamed is what is there, each byte once, in bounded memory, and never of a damaged
// block that is known to be one.
#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <mutex>
#include <random>

#include "engine/bulk_read.hpp"
#include "engine/run_fixture.hpp"
#include "format/crc32.hpp"
#include "format/memory_source.hpp"

namespace perdure::test {
namespace {

using format::kBlockSize;

std::string random_bytes(std::size_t size, unsigned seed) {
  std::string bytes(size, '\0');
  std::mt19937_64 random(seed);
  for (std::size_t at = 0; at < size; at += 8) {
    const std::uint64_t x = random();
    std::memcpy(bytes.data() + at, &x, std::min<std::size_t>(8, size - at));
  }
  return bytes;
}

// Tensors of these sizes over their own memory.
struct State {
  std::vector<std::string> memory;
  Value value;

  explicit State(const std::vector<std::size_t>& sizes, unsigned seed = 1) {
    Dict dict;
    for (const std::size_t size : sizes)
      memory.push_back(random_bytes(size, seed + static_cast<unsigned>(memory.size())));
    for (std::size_t i = 0; i < memory.size(); ++i)
      dict.set(fmt::format("t{}", i), Value(Tensor::over(memory[i].data(), DType::uint8,
                                                         {static_cast<std::int64_t>(sizes[i])})));
    value = Value(std::move(dict));
  }
  std::string file() const {
    std::string out;
    write_to(
        [&](ConstBytes bytes) {
          out.append(reinterpret_cast<const char*>(bytes.data()), bytes.size());
        },
        value, {});
    return out;
  }
};

CheckpointFile open(std::string bytes) {
  return CheckpointFile::open(std::make_shared<MemorySource>(std::move(bytes)));
}

std::vector<std::size_t> all_of(const CheckpointFile& file) {
  std::vector<std::size_t> numbers(file.storages().size());
  for (std::size_t i = 0; i < numbers.size(); ++i) numbers[i] = i;
  return numbers;
}

// Puts runs where they belong, and counts what came.
class Collector {
 public:
  explicit Collector(const std::vector<std::string>& like) {
    for (const std::string& memory : like) out_.emplace_back(memory.size(), '\0');
  }
  void take(std::size_t storage, std::uint64_t at, ConstBytes bytes) {
    EXPECT_EQ(at % kBlockSize, 0U);
    EXPECT_LE(bytes.size(), kBlockSize);
    std::memcpy(out_.at(storage).data() + at, bytes.data(), bytes.size());
    const std::lock_guard lock(mutex_);
    total_ += bytes.size();
  }
  const std::vector<std::string>& out() const { return out_; }
  std::uint64_t total() const { return total_; }

 private:
  std::vector<std::string> out_;
  std::uint64_t total_ = 0;
  std::mutex mutex_;
};

const std::vector<std::size_t> kSizes = {5,  0,   (9 << 20) + 3, 1, 70000, kBlockSize, 12 << 20,
                                         99, 100, kBlockSize + 1};

TEST(StreamTest, EveryByteOnce) {
  const State state(kSizes);
  const CheckpointFile file = open(state.file());
  Collector collector(state.memory);
  file.stream(all_of(file), [&](std::size_t storage, std::uint64_t at, ConstBytes bytes) {
    collector.take(storage, at, bytes);
  });
  EXPECT_EQ(collector.out(), state.memory);
  std::uint64_t total = 0;
  for (const std::string& memory : state.memory) total += memory.size();
  EXPECT_EQ(collector.total(), total);
}

TEST(StreamTest, OnlyWhatIsAskedFor) {
  const State state(kSizes);
  const CheckpointFile file = open(state.file());
  std::mutex mutex;
  file.stream({4, 2}, [&](std::size_t storage, std::uint64_t, ConstBytes) {
    const std::lock_guard lock(mutex);
    EXPECT_TRUE(storage == 4 || storage == 2);
  });
  EXPECT_THROW(file.stream({kSizes.size()}, {}), std::exception);
}

TEST(StreamTest, NothingOfADamagedBlockComes) {
  const State state({3 * kBlockSize});
  std::string bytes = state.file();
  const std::uint64_t offset = open(bytes).records().front().offset;
  bytes[offset + kBlockSize + 5] ^= 1;
  const CheckpointFile file = open(bytes);
  EXPECT_ERROR(corrupt, "['t0']", file.stream({0}, [](std::size_t, std::uint64_t at, ConstBytes) {
    EXPECT_NE(at, kBlockSize);
  }));
}

TEST(StreamTest, WhatTheSinkThrowsEndsIt) {
  const State state({8 * kBlockSize});
  const CheckpointFile file = open(state.file());
  struct Enough {};
  EXPECT_THROW(file.stream({0}, [](std::size_t, std::uint64_t, ConstBytes) { throw Enough(); }),
               Enough);
}

// As in a file that is not perdure's, and in one whose blocks are of another size.
TEST(StreamTest, OneChecksumForARecordIsComparedAtItsEnd) {
  std::string bytes = random_bytes((9 << 20) + 100, 7);
  const CheckpointFile::Record record{
      "data/0", 10, 9 << 20, format::crc32(std::as_bytes(std::span(bytes)).subspan(10, 9 << 20))};
  for (const bool damaged : {false, true}) {
    if (damaged) bytes[5000] ^= 1;
    const MemorySource source(bytes);
    std::atomic<std::uint64_t> total = 0;
    engine::RecordRead read{&record, record.size, std::span(&record.crc32, 1), {}};
    read.sink = [&](std::uint64_t, ConstBytes run) { total += run.size(); };
    int found = 0;
    engine::bulk_read(source, {read}, [&](const auto&, const auto& block) {
      ++found;
      EXPECT_EQ(block.size, record.size);
    });
    EXPECT_EQ(total, record.size);
    EXPECT_EQ(found, damaged ? 1 : 0);
  }
}

// ---- two files

TEST(StreamPairsTest, EveryByteBesideItsPartner) {
  const State one(kSizes, 1);
  const State two(kSizes, 50);
  const CheckpointFile a = open(one.file());
  const CheckpointFile b = open(two.file());
  std::vector<std::pair<std::size_t, std::size_t>> pairs;
  for (std::size_t i = kSizes.size(); i-- > 0;) pairs.emplace_back(i, i);
  Collector of_a(one.memory);
  Collector of_b(two.memory);
  a.stream_pairs(b, pairs, [&](std::size_t pair, std::uint64_t at, ConstBytes x, ConstBytes y) {
    EXPECT_EQ(x.size(), y.size());
    of_a.take(pairs[pair].first, at, x);
    of_b.take(pairs[pair].second, at, y);
  });
  EXPECT_EQ(of_a.out(), one.memory);
  EXPECT_EQ(of_b.out(), two.memory);
}

// As float32 beside bfloat16, either way.
TEST(StreamPairsTest, OneMayBeAMultipleOfTheOther) {
  std::vector<std::size_t> doubled;
  for (const std::size_t size : kSizes) doubled.push_back(2 * size);
  const State small(kSizes, 1);
  const State large(doubled, 50);
  const CheckpointFile a = open(small.file());
  const CheckpointFile b = open(large.file());
  std::vector<std::pair<std::size_t, std::size_t>> pairs;
  for (std::size_t i = 0; i < kSizes.size(); ++i) pairs.emplace_back(i, i);
  for (const bool swapped : {false, true}) {
    std::vector<std::string> small_out(kSizes.size());
    std::vector<std::string> large_out(kSizes.size());
    for (std::size_t i = 0; i < kSizes.size(); ++i) {
      small_out[i].resize(kSizes[i]);
      large_out[i].resize(doubled[i]);
    }
    const auto take = [&](std::size_t pair, std::uint64_t at, ConstBytes x, ConstBytes y) {
      EXPECT_EQ(2 * x.size(), y.size());
      std::memcpy(small_out[pair].data() + at, x.data(), x.size());
      std::memcpy(large_out[pair].data() + 2 * at, y.data(), y.size());
    };
    if (swapped)
      b.stream_pairs(a, pairs, [&](std::size_t pair, std::uint64_t at, ConstBytes x, ConstBytes y) {
        take(pair, at, y, x);
      });
    else
      a.stream_pairs(b, pairs, take);
    EXPECT_EQ(small_out, small.memory);
    EXPECT_EQ(large_out, large.memory);
  }
}

TEST(StreamPairsTest, DamageInEitherIsFoundAndNamed) {
  const State state({2 * kBlockSize, 100});
  const std::string good = state.file();
  std::string bad = good;
  bad[open(good).records()[0].offset + kBlockSize + 9] ^= 1;
  const CheckpointFile a = open(good);
  const CheckpointFile b = open(bad);
  const auto ignore = [](std::size_t, std::uint64_t at, ConstBytes, ConstBytes) {
    EXPECT_EQ(at, 0U);
  };
  EXPECT_ERROR(corrupt, "['t0']", a.stream_pairs(b, {{0, 0}, {1, 1}}, ignore));
  EXPECT_ERROR(corrupt, "['t0']", b.stream_pairs(a, {{0, 0}, {1, 1}}, ignore));
}

TEST(StreamPairsTest, OthersAreRefused) {
  const State state({100, 150, 0});
  const CheckpointFile file = open(state.file());
  EXPECT_ERROR(invalid, "side by side", file.stream_pairs(file, {{0, 1}}, {}));
  EXPECT_ERROR(invalid, "side by side", file.stream_pairs(file, {{0, 2}}, {}));
}

TEST(StreamTest, AChecksumIsTheRecords) {
  const State state({100, 0});
  const CheckpointFile file = open(state.file());
  EXPECT_EQ(file.checksum(0), format::crc32(std::as_bytes(std::span(state.memory[0]))));
  EXPECT_EQ(file.checksum(1), 0U);
}

}  // namespace
}  // namespace perdure::test
