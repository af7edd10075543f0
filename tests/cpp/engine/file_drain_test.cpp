// The pipeline gives the bytes that the encoder gives, whatever the sizes, the arena and the
// passes.
#include "engine/file_drain.hpp"

#include <gtest/gtest.h>

#include <cstdint>
#include <random>

#include "format/encoder.hpp"
#include "storage/memory_storage.hpp"

namespace perdure::test {
namespace {

constexpr std::uint64_t kBlock = engine::Arena::kBlockSize;

struct States {
  std::vector<std::unique_ptr<std::vector<std::byte>>> memory;
  Value::Items items;

  void add(std::uint64_t bytes, Liveness liveness, std::mt19937& random) {
    auto& content = *memory.emplace_back(std::make_unique<std::vector<std::byte>>(bytes));
    for (std::size_t i = 0; i < bytes; i += 1 + random() % 5000)
      content[i] = static_cast<std::byte>(random());
    Tensor tensor = Tensor::over(content.data(), DType::uint8, {static_cast<std::int64_t>(bytes)});
    tensor.liveness = liveness;
    items.emplace_back(std::move(tensor));
  }
};

std::string written(const format::Encoder& encoder) {
  std::string out;
  encoder.write([&](ConstBytes bytes) {
    out.append(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  });
  return out;
}

std::string drained(const format::Encoder& encoder, std::uint64_t staging, bool overlapped) {
  engine::Arena arena(staging, {});
  arena.reserve(encoder.file_size());
  engine::StagedFile file(encoder, arena, overlapped);
  storage::MemoryStorage storage;
  const auto out = storage.create("a", encoder.file_size(), storage::IfExists::fail);
  {
    std::jthread copier([&] { file.copy(engine::Pass::at_save); });
    std::jthread fence([&] { file.copy(engine::Pass::before_step); });
    engine::drain(file, encoder, *out);
  }
  EXPECT_TRUE(file.wait_copied(engine::Pass::at_save));
  EXPECT_TRUE(file.wait_copied(engine::Pass::before_step));
  out->commit();
  const auto source = storage.open("a");
  std::string content(source->size(), '\0');
  source->read(0, std::as_writable_bytes(std::span(content)));
  return content;
}

void expect_the_same(const Value& state) {
  CheckpointInfo info;
  info.step = 12;
  const format::Encoder encoder(state, info);
  const std::string expected = written(encoder);
  ASSERT_EQ(expected.size(), encoder.file_size());
  for (const std::uint64_t staging : {engine::Arena::kMinBytes, 100 * kBlock})
    for (const bool overlapped : {false, true})
      EXPECT_TRUE(drained(encoder, staging, overlapped) == expected)
          << "staging " << staging << ", overlapped " << overlapped << ", "
          << encoder.tensors().size() << " tensors";
}

TEST(FileDrainTest, NoTensors) { expect_the_same(Dict{{"epoch", 3}}); }

TEST(FileDrainTest, AThousandEmptyOnes) {
  States states;
  std::mt19937 random(1);
  for (int i = 0; i < 1000; ++i) states.add(0, Liveness::stepped, random);
  expect_the_same(Value::list(states.items));
}

TEST(FileDrainTest, ATextLongerThanTheArena) {
  expect_the_same(Dict{{"text", std::string(50 << 20, 'x')}});
}

TEST(FileDrainTest, SizesAroundABlock) {
  for (const std::int64_t difference : {-600, -200, -64, -16, -1, 0, 1, 64}) {
    States states;
    std::mt19937 random(2);
    states.add(kBlock + static_cast<std::uint64_t>(difference), Liveness::stepped, random);
    states.add(1, Liveness::detached, random);
    states.add(kBlock - 200, Liveness::detached, random);
    expect_the_same(Value::list(states.items));
  }
}

TEST(FileDrainTest, RandomStates) {
  std::mt19937 random(20261124);
  for (int round = 0; round < 12; ++round) {
    States states;
    const auto count = 1 + random() % 60;
    for (std::size_t i = 0; i < count; ++i) {
      const std::uint64_t size = random() % (std::uint64_t{1} << (random() % 24));
      states.add(size, random() % 2 ? Liveness::stepped : Liveness::live, random);
    }
    expect_the_same(Value::list(states.items));
  }
}

}  // namespace
}  // namespace perdure::test
