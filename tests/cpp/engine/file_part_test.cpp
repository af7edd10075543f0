// CheckpointFile::part: a box of a tensor, of single files and of what several ranks have saved.
#include <algorithm>
#include <atomic>
#include <cstring>
#include <numeric>
#include <perdure/checkpoint_manager.hpp>
#include <random>

#include "engine/owned_tensor.hpp"
#include "engine/rank_program.hpp"
#include "engine/rank_threads.hpp"
#include "format/encoder.hpp"
#include "format/memory_source.hpp"
#include "storage/temporary_directory.hpp"

namespace perdure::test {
namespace {

using Box = std::vector<std::int64_t>;

Tensor numbers(Box shape, Box strides, std::int64_t offset, std::size_t in_storage) {
  std::vector<float> data(in_storage);
  std::iota(data.begin(), data.end(), 0.0F);
  Tensor tensor = owned(std::move(data));
  tensor.shape = std::move(shape);
  tensor.strides = std::move(strides);
  tensor.storage_offset = offset;
  return tensor;
}

float at(const Tensor& tensor, const Box& place) {
  std::int64_t number = tensor.storage_offset;
  for (std::size_t d = 0; d < place.size(); ++d) number += place[d] * tensor.strides[d];
  float value = 0;
  std::memcpy(&value, tensor.storage->data + number * 4, 4);
  return value;
}

// `part` has the elements of `whole` from `offsets` on.
void expect_part(const Tensor& part, const Tensor& whole, const Box& offsets, const Box& sizes) {
  ASSERT_EQ(part.shape, sizes);
  ASSERT_EQ(part.storage->size, part.numel() * 4);
  Box place(sizes.size());
  for (std::uint64_t i = 0; i < part.numel(); ++i) {
    Box in_whole = place;
    for (std::size_t d = 0; d < place.size(); ++d) in_whole[d] += offsets[d];
    float value = 0;  // C-contiguous
    std::memcpy(&value, part.storage->data + i * 4, 4);
    ASSERT_EQ(value, at(whole, in_whole)) << i;
    for (std::size_t d = place.size(); d-- > 0;) {
      if (++place[d] < sizes[d]) break;
      place[d] = 0;
    }
  }
}

// In each of the ways in which a part is read.
void expect_box(const CheckpointFile& file, const Tensor& in_file, const Tensor& whole,
                const Box& offsets, const Box& sizes) {
  const Tensor all = file.part(in_file, offsets, sizes);
  EXPECT_EQ(all.storage->data, nullptr);
  EXPECT_NE(all.storage, in_file.storage);
  file.read_all(Value(all));
  expect_part(all, whole, offsets, sizes);

  Tensor one = file.part(in_file, offsets, sizes);
  std::vector<std::byte> memory(one.storage->size + 1, std::byte{0xEE});
  file.read(static_cast<std::size_t>(one.storage->record),
            MutableBytes(memory).first(one.storage->size));
  EXPECT_EQ(memory.back(), std::byte{0xEE});
  one.storage->data = memory.data();
  expect_part(one, whole, offsets, sizes);

  if (!file.reads_in_place()) return;
  const Tensor live = file.part(in_file, offsets, sizes);
  std::vector<std::byte> own(live.storage->size + 1, std::byte{0xEE});
  live.storage->data = own.data();
  file.read_in_place({static_cast<std::size_t>(live.storage->record)});
  EXPECT_EQ(own.back(), std::byte{0xEE});
  expect_part(live, whole, offsets, sizes);
}

void expect_random_boxes(const CheckpointFile& file, const Tensor& in_file, const Tensor& whole,
                         int count) {
  std::mt19937 random(7);
  const auto up_to = [&](std::int64_t most) {
    return static_cast<std::int64_t>(random() % static_cast<std::uint64_t>(most + 1));
  };
  for (int i = 0; i < count && !testing::Test::HasFailure(); ++i) {
    Box offsets, sizes;
    for (const std::int64_t size : whole.shape) {
      offsets.push_back(i == 0 ? 0 : up_to(size));
      sizes.push_back(i == 0 ? size : up_to(size - offsets.back()));
    }
    SCOPED_TRACE(repr(Value::size(offsets)) + " " + repr(Value::size(sizes)));
    expect_box(file, in_file, whole, offsets, sizes);
  }
}

Value strided_tensors() {
  const Tensor plain = numbers({4, 5, 6}, {30, 6, 1}, 0, 120);
  Tensor turned = plain, window = plain, row = plain;  // of one storage
  turned.shape = {6, 4, 5};
  turned.strides = {1, 30, 6};
  window.shape = {2, 3};
  window.strides = {60, 12};
  window.storage_offset = 7;
  row.shape = {3, 4};
  row.strides = {0, 1};  // expanded
  return Dict{{"plain", plain},
              {"turned", turned},
              {"window", window},
              {"row", row},
              {"alone", numbers({10}, {3}, 2, 40)},
              {"scalar", numbers({}, {}, 0, 1)},
              {"empty", numbers({0, 3}, {3, 1}, 0, 0)}};
}

TEST(FilePartTest, OfAnyStridedTensorOfAFile) {
  const Value state = strided_tensors();
  const CheckpointFile file = CheckpointFile::open(source_of(file_of(state)));
  ASSERT_TRUE(file.reads_in_place());
  for (const auto& [name, tensor] : state.as_dict()) {
    SCOPED_TRACE(name.as_string());
    expect_random_boxes(file, file.value()[name.as_string()].as_tensor(), tensor.as_tensor(), 60);
  }
}

std::string foreign_file_of(const Value& state) {
  std::string out;
  format::Encoder(state, CheckpointInfo(), nullptr, format::Extras::none)
      .write([&](ConstBytes bytes) {
        out.append(reinterpret_cast<const char*>(bytes.data()), bytes.size());
      });
  return out;
}

TEST(FilePartTest, OfAFileOfAnotherProgram) {
  const Value state = strided_tensors();
  const CheckpointFile file = CheckpointFile::open(source_of(foreign_file_of(state)));
  ASSERT_FALSE(file.has_block_checksums());
  for (const auto& [name, tensor] : state.as_dict()) {
    SCOPED_TRACE(name.as_string());
    expect_random_boxes(file, file.value()[name.as_string()].as_tensor(), tensor.as_tensor(), 30);
  }
}

// Whatever part of the storage it is in that is not asked for.
TEST(FilePartTest, DamageIsFoundBeforeItIsTaken) {
  const Value state = Dict{{"w", numbers({3000, 1000}, {1000, 1}, 0, 3'000'000)}};  // 3 blocks
  for (const bool foreign : {false, true}) {
    std::string bytes = foreign ? foreign_file_of(state) : file_of(state);
    const auto check = [&](bool damaged) {
      const CheckpointFile file = CheckpointFile::open(source_of(bytes));
      const Tensor& whole = file.value()["w"].as_tensor();
      for (const auto& [offsets, sizes] :
           {std::pair{Box{1500, 3}, Box{100, 5}}, {Box{0, 0}, Box{3000, 1}}}) {
        const Tensor part = file.part(whole, offsets, sizes);
        if (damaged) {
          EXPECT_ERROR(corrupt, "['w'] is damaged", file.read_all(Value(part)));
        } else {
          file.read_all(Value(part));
          expect_part(part, state["w"].as_tensor(), offsets, sizes);
        }
      }
    };
    check(false);
    bytes[6'100'000] ^= 1;  // about row 1525
    check(true);
  }
}

TEST(FilePartTest, RefusesWhatIsNoPart) {
  const Value state = strided_tensors();
  const CheckpointFile file = CheckpointFile::open(source_of(file_of(state)));
  const Tensor whole = file.value()["plain"].as_tensor();
  const auto refused = [&](const Box& offsets, const Box& sizes) {
    EXPECT_ERROR(invalid, "is asked for of a tensor of", file.part(whole, offsets, sizes));
  };
  refused({0, 0}, {1, 1});
  refused({0, 0, 0}, {1, 1});
  refused({0, 0, 0, 0}, {1, 1, 1, 1});
  refused({-1, 0, 0}, {1, 1, 1});
  refused({0, 0, 0}, {-1, 1, 1});
  refused({0, 0, 1}, {1, 1, 6});
  refused({5, 0, 0}, {0, 1, 1});
  refused({std::numeric_limits<std::int64_t>::max(), 0, 0}, {2, 1, 1});
  refused({0, 0, 0}, {std::numeric_limits<std::int64_t>::max(), 1, 1});
  const CheckpointFile other = CheckpointFile::open(source_of(file_of(state)));
  EXPECT_ERROR(invalid, "another file", other.part(whole, {0, 0, 0}, {1, 1, 1}));
  EXPECT_ERROR(invalid, "another file",
               file.part(state["plain"].as_tensor(), {0, 0, 0}, {1, 1, 1}));
}

TEST(FilePartTest, KeepsWhatATensorIs) {
  Tensor tensor = numbers({4, 4}, {4, 1}, 0, 16);
  tensor.neg = true;
  tensor.storage->device = "cuda:1";
  const CheckpointFile file = CheckpointFile::open(source_of(file_of(Dict{{"w", tensor}})));
  const Tensor part = file.part(file.value()["w"].as_tensor(), {1, 1}, {2, 2});
  EXPECT_TRUE(part.neg);
  EXPECT_FALSE(part.conj);
  EXPECT_EQ(part.storage->device, "cuda:1");
}

class RankPartTest : public testing::Test {
 protected:
  // Row r has 1000 * step + 5 * r, ...; of seven rows, 0-1, 2-3 and 4-6 are of ranks 0, 1 and 2.
  RankPartTest() {
    on_ranks(3, [&](const auto& ranks) {
      RankProgram program(ranks->rank(), 3);
      ManagerOptions options;
      options.ranks = ranks;
      CheckpointManager manager(directory.path(), std::move(options));
      program.go_to(1);
      manager.save(program.state).wait();
    });
    path = directory / "step-0000000001-g00000001.dcp";
    whole = numbers({7, 5}, {5, 1}, 0, 35);
    auto* data = reinterpret_cast<float*>(whole.storage->data);
    for (int i = 0; i < 35; ++i) data[i] += 1000;
  }

  TemporaryDirectory directory;
  std::filesystem::path path;
  Tensor whole;
};

TEST_F(RankPartTest, OfATensorThatLiesInPieces) {
  const CheckpointFile file = CheckpointFile::open(path);
  ASSERT_TRUE(file.reads_in_place());
  expect_random_boxes(file, file.value()["model"]["weight"].as_tensor(), whole, 150);
  const Tensor bias = numbers({3}, {1}, 0, 3);
  for (int i = 0; i < 3; ++i) reinterpret_cast<float*>(bias.storage->data)[i] = 1.5F;
  expect_random_boxes(file, file.value()["model"]["bias"].as_tensor(), bias, 30);
}

// A piece is compared where something of it is wanted, and no other.
TEST_F(RankPartTest, DamageIsFoundInThePiecesThatAreRead) {
  const std::filesystem::path second = path / "__1_0.distcp";
  std::string bytes = TemporaryDirectory::content(second);
  const float first = 1010;
  const std::size_t at = bytes.find(std::string(reinterpret_cast<const char*>(&first), 4));
  ASSERT_NE(at, std::string::npos);
  bytes[at] ^= 4;
  TemporaryDirectory::write(second, bytes);
  const CheckpointFile file = CheckpointFile::open(path);
  const Tensor in_file = file.value()["model"]["weight"].as_tensor();
  expect_box(file, in_file, whole, {0, 0}, {2, 5});
  expect_box(file, in_file, whole, {4, 1}, {3, 2});
  for (const auto& [offsets, sizes] :
       {std::pair{Box{0, 0}, Box{7, 5}}, {Box{3, 0}, Box{1, 5}}, {Box{1, 4}, Box{4, 1}}})
    EXPECT_ERROR(corrupt, "__1_0.distcp", file.read_all(Value(file.part(in_file, offsets, sizes))));
}

// Counts how it is read.
class CountedSource final : public Source {
 public:
  explicit CountedSource(std::shared_ptr<const Source> inner) : inner_(std::move(inner)) {}
  std::uint64_t size() const override { return inner_->size(); }
  const std::string& name() const override { return inner_->name(); }
  void read(std::uint64_t offset, MutableBytes into) const override { inner_->read(offset, into); }
  ConstBytes read_bulk(std::uint64_t offset, MutableBytes into,
                       MutableBytes scratch) const override {
    ++bulk;
    return inner_->read_bulk(offset, into, scratch);
  }
  mutable std::atomic<int> bulk = 0;

 private:
  std::shared_ptr<const Source> inner_;
};

TEST(SharedCache, IsNeverPassedBy) {
  const TemporaryDirectory directory;
  save(directory / "a.pt", Dict{{"weight", owned(std::vector<float>(1 << 20, 0.5F))}});
  for (const bool shares : {false, true}) {
    const auto source = std::make_shared<CountedSource>(open_source(directory / "a.pt"));
    CheckpointFile file = CheckpointFile::open(source);
    if (shares) file.share_cache();
    file.read_all(file.value());
    EXPECT_EQ(source->bulk > 0, !shares);
    const auto* const numbers =
        reinterpret_cast<const float*>(file.value()["weight"].as_tensor().storage->data);
    EXPECT_EQ(std::count(numbers, numbers + (1 << 20), 0.5F), 1 << 20);
  }
}

}  // namespace
}  // namespace perdure::test
