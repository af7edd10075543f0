// LoadOptions::mmap: tensors that look into the file.
#include <cstdint>
#include <cstring>
#include <fstream>
#include <numeric>
#include <perdure/file.hpp>

#include "engine/run_fixture.hpp"
#include "format/memory_source.hpp"
#include "format/same_value.hpp"
#include "io/file.hpp"
#include "storage/faulty_system.hpp"

namespace perdure::test {
namespace {

class MmapTest : public testing::Test {
 protected:
  MmapTest() { perdure::save(path, state()); }

  Value state() {
    const auto size = static_cast<std::int64_t>(numbers.size());
    const Tensor large = Tensor::over(numbers.data(), DType::float32, {size / 2, 2});
    Tensor view = large;
    view.shape = {100};
    view.strides = {1};
    view.storage_offset = size - 100;
    return Dict{{"large", large},
                {"view", view},
                {"empty", Tensor::over(numbers.data(), DType::float32, {0, 3})},
                {"epoch", 3}};
  }
  Value mapped(bool verify = false) { return load(path, {.mmap = true, .verify = verify}); }
  void damage() {
    std::fstream file(path, std::ios::binary | std::ios::in | std::ios::out);
    file.seekp(6 << 20);
    file.put('\x7f');
  }

  std::vector<float> numbers = [] {
    std::vector<float> x(3 << 20);
    std::iota(x.begin(), x.end(), 1.0F);
    return x;
  }();
  TemporaryDirectory directory;
  std::filesystem::path path = directory / "cp.pt";
};

TEST_F(MmapTest, GivesTheSame) {
  for (const bool verify : {false, true})
    EXPECT_EQ(Comparison::difference(mapped(verify), state()), "");
}

TEST_F(MmapTest, WritingChangesNoFile) {
  const Value value = mapped();
  std::memset(value["large"].as_tensor().storage->data, 0xEE, 1000);
  EXPECT_EQ(Comparison::difference(load(path), state()), "");
}

TEST_F(MmapTest, ATensorKeepsTheMapping) {
  Tensor tensor = mapped()["large"].as_tensor();
  std::filesystem::remove(path);
  EXPECT_EQ(reinterpret_cast<const float*>(tensor.storage->data)[5], 6.0F);
}

TEST_F(MmapTest, IsVerifiedWhereAskedFor) {
  damage();
  mapped();
  EXPECT_ERROR(corrupt, "['large'] is damaged", mapped(true));
}

TEST_F(MmapTest, OnlyTheKeysThatAreWanted) {
  damage();
  const Value value =
      load(path, {.keys = {{Value("epoch")}, {Value("empty")}}, .mmap = true, .verify = true});
  EXPECT_EQ(value["epoch"].as_int(), 3);
}

TEST_F(MmapTest, WhatIsNoFileCannotBeMapped) {
  const auto file = CheckpointFile::open(source_of(file_of(state())));
  EXPECT_ERROR(invalid, "only a file", file.map_all(file.value()));
}

TEST_F(MmapTest, AFileThatWasCutIsAnError) {
  FaultySystem system;
  const auto source = io::open_source(system, AT_FDCWD, path.c_str(), 0, "cp.pt");
  const auto file = CheckpointFile::open(source);
  std::filesystem::resize_file(path, 100);
  EXPECT_ERROR(io, "cp.pt", file.map_all(file.value()));
}

}  // namespace
}  // namespace perdure::test
