// Sources that are put together of others: every byte where it belongs, whatever the cut.
#include "engine/joined_source.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <random>

#include "engine/gathered_tensor.hpp"
#include "engine/strided_source.hpp"
#include "expect_error.hpp"
#include "format/coding.hpp"
#include "format/crc32.hpp"
#include "format/memory_source.hpp"

namespace perdure::test {
namespace {

using namespace engine;

std::string read_all(const Source& source, std::uint64_t at, std::size_t count) {
  std::string out(count, '\0');
  source.read(at, std::as_writable_bytes(std::span(out)));
  return out;
}

std::shared_ptr<const Source> named(std::string bytes, std::string name) {
  return std::make_shared<MemorySource>(std::move(bytes), std::move(name));
}

TEST(JoinedSource, ReadsAcrossItsParts) {
  JoinedSource joined("joined");
  EXPECT_EQ(joined.append(named("abcdef", "one"), 1, 3), 0u);
  EXPECT_EQ(joined.append(named("", "none"), 0, 0), 3u);
  EXPECT_EQ(joined.append(named("xyz", "two"), 0, 3), 3u);
  ASSERT_EQ(joined.size(), 6u);
  for (std::size_t at = 0; at <= 6; ++at)
    for (std::size_t count = 0; at + count <= 6; ++count)
      EXPECT_EQ(read_all(joined, at, count), std::string("bcdxyz").substr(at, count));
  EXPECT_EQ(joined.place(2).name, "one");
  EXPECT_EQ(joined.place(2).offset, 3u);
  EXPECT_EQ(joined.place(3).name, "two");
  EXPECT_EQ(joined.place(3).offset, 0u);
  EXPECT_EQ(joined.place(6).name, "joined");
  EXPECT_ERROR(io, "'joined': it has 6", read_all(joined, 4, 3));
  EXPECT_ERROR(io, "'joined': it has 6", read_all(joined, 7, 0));
}

TEST(SubSource, EndsWhereItIsToEnd) {
  const SubSource part(named("abcdef", "file"), 2, 3);
  EXPECT_EQ(read_all(part, 1, 2), "de");
  EXPECT_EQ(part.place(1).offset, 3u);
  EXPECT_ERROR(io, "'file'", read_all(part, 1, 3));
  EXPECT_ERROR(corrupt, "should have 5 bytes at offset 2, and has 6",
               SubSource(named("abcdef", "file"), 2, 5));
}

// ---- tensors in pieces

class Cut {
 public:
  explicit Cut(unsigned seed) : random_(seed) {
    itemsize_ = std::size_t{1} << below(4);
    for (std::size_t i = 0, count = below(5); i < count; ++i)
      shape_.push_back(1 + static_cast<std::int64_t>(below(7)));
    std::size_t size = itemsize_;
    for (const std::int64_t x : shape_) size *= static_cast<std::size_t>(x);
    for (std::size_t i = 0; i < size; ++i) whole_ += static_cast<char>(random_());
    split(std::vector<std::int64_t>(shape_.size()), shape_, 4);
    std::shuffle(pieces_.begin(), pieces_.end(), random_);
  }

  void check() {
    const GatheredTensor tensor("'x'", itemsize_, shape_, pieces_);
    ASSERT_EQ(tensor.size(), whole_.size());
    EXPECT_EQ(read_all(tensor, 0, whole_.size()), whole_);
    for (int i = 0; i < 20; ++i) {
      const std::size_t at = below(whole_.size() + 1), count = below(whole_.size() - at + 1);
      EXPECT_EQ(read_all(tensor, at, count), whole_.substr(at, count));
    }
    for (int i = 0; i < 5; ++i) check_place(tensor, below(whole_.size()));
  }

 private:
  std::size_t below(std::size_t limit) { return random_() % std::max<std::size_t>(limit, 1); }

  void check_place(const GatheredTensor& tensor, std::size_t at) {
    const Place place = tensor.place(at);
    const auto number = std::ranges::find_if(
        pieces_, [&](const TensorPiece& other) { return other.source->name() == place.name; });
    ASSERT_NE(number, pieces_.end());
    EXPECT_EQ(read_all(*number->source, place.offset, 1), whole_.substr(at, 1));
  }

  void split(std::vector<std::int64_t> offsets, std::vector<std::int64_t> sizes, int depth) {
    const std::size_t dimension = below(sizes.size());
    if (sizes.empty() || depth == 0 || sizes[dimension] == 1 || below(4) == 0)
      return add(std::move(offsets), std::move(sizes));
    const auto at =
        1 + static_cast<std::int64_t>(below(static_cast<std::size_t>(sizes[dimension] - 1)));
    auto first = sizes;
    first[dimension] = at;
    split(offsets, first, depth - 1);
    offsets[dimension] += at;
    sizes[dimension] -= at;
    split(std::move(offsets), std::move(sizes), depth - 1);
  }

  void add(std::vector<std::int64_t> offsets, std::vector<std::int64_t> sizes) {
    std::string bytes = bytes_of(offsets, sizes);
    const std::uint32_t sum = format::crc32(format::as_bytes(bytes));
    const std::size_t begin = below(5);
    auto source = named(std::string(begin, '?') + bytes, std::to_string(pieces_.size()));
    pieces_.push_back({std::move(offsets), std::move(sizes), std::move(source), begin, sum});
  }

  std::string bytes_of(const std::vector<std::int64_t>& offsets,
                       const std::vector<std::int64_t>& sizes) const {
    std::string out;
    std::size_t count = 1;
    for (const std::int64_t x : sizes) count *= static_cast<std::size_t>(x);
    for (std::size_t i = 0; i < count; ++i) {
      std::size_t left = i, stride = 1, place = 0;
      for (std::size_t d = sizes.size(); d-- > 0;) {
        const auto size = static_cast<std::size_t>(sizes[d]);
        place += (static_cast<std::size_t>(offsets[d]) + left % size) * stride;
        left /= size;
        stride *= static_cast<std::size_t>(shape_[d]);
      }
      out += whole_.substr(place * itemsize_, itemsize_);
    }
    return out;
  }

  std::mt19937 random_;
  std::size_t itemsize_ = 1;
  std::vector<std::int64_t> shape_;
  std::string whole_;
  std::vector<TensorPiece> pieces_;
};

// PERDURE_CUTS says how many; one of them again: PERDURE_CUT=17 engine_test
// --gtest_filter=Gathered*
TEST(GatheredTensor, IsWholeHoweverItWasCut) {
  if (const char* seed = std::getenv("PERDURE_CUT"))
    return Cut(static_cast<unsigned>(std::stoul(seed))).check();
  const char* cuts = std::getenv("PERDURE_CUTS");
  const unsigned long count = cuts ? std::stoul(cuts) : 300;
  for (unsigned seed = 0; seed < count && !HasFailure(); ++seed) {
    SCOPED_TRACE("PERDURE_CUT=" + std::to_string(seed));
    Cut(seed).check();
  }
}

TEST(GatheredTensor, ComparesWhatItGivesOut) {
  const auto piece = [](std::int64_t at, std::string bytes, std::uint32_t sum) {
    return TensorPiece{{0, at}, {2, 1}, named(std::move(bytes), "f" + std::to_string(at)), 0, sum};
  };
  const std::uint32_t good = format::crc32(format::as_bytes("ac"));
  const GatheredTensor tensor("'x'", 1, {2, 2}, {piece(0, "ac", good), piece(1, "bd", 1)});
  EXPECT_EQ(read_all(tensor, 0, 1), "a");
  EXPECT_ERROR(corrupt, "f1: a piece of 'x' is damaged: 2 bytes at offset 0",
               read_all(tensor, 1, 1));
  EXPECT_ERROR(corrupt, "is damaged", read_all(tensor, 0, 4));
}

TEST(StridedSource, GivesElementsInOrder) {
  const std::string bytes = "a0b1c2d3e4f5";
  CheckpointFile::Record record{.name = "data/0", .offset = 1, .size = 12, .crc32 = 0};
  record.crc32 = format::crc32(format::as_bytes(bytes));
  Tensor tensor;
  tensor.dtype = DType::int16;
  tensor.shape = {3, 2};
  tensor.strides = {1, 3};
  const auto last = std::make_shared<LastLoaded>();
  const StridedSource source(named("?" + bytes, "file"), record, true, tensor, last, &tensor);
  EXPECT_EQ(read_all(source, 0, 12), "a0d3b1e4c2f5");
  EXPECT_EQ(read_all(source, 3, 4), "3b1e");
  const StridedSource damaged(named("!" + bytes.substr(1) + "!", "file"), record, true, tensor,
                              last, &bytes);
  EXPECT_ERROR(corrupt, "file: 12 bytes at offset 1 do not have the checksum",
               read_all(damaged, 0, 1));
}

TEST(LastLoaded, KeepsAllPiecesOfOneTensorAndOfNoOther) {
  LastLoaded last;
  int loads = 0;
  const int tensors[2] = {}, pieces[3] = {};
  const auto get = [&](int tensor, int piece) {
    const auto bytes = last.get(&tensors[tensor], &pieces[piece], [&] {
      ++loads;
      return std::vector<std::byte>(1, static_cast<std::byte>(piece));
    });
    return static_cast<int>(bytes->at(0));
  };
  for (int round = 0; round < 2; ++round)
    for (int piece = 0; piece < 2; ++piece) EXPECT_EQ(get(0, piece), piece);
  EXPECT_EQ(loads, 2);
  EXPECT_EQ(get(1, 2), 2);  // and the others are let go
  EXPECT_EQ(get(0, 0), 0);
  EXPECT_EQ(loads, 4);
  last.forget(&pieces[0]);
  EXPECT_EQ(get(0, 0), 0);
  EXPECT_EQ(loads, 5);
  EXPECT_THROW(last.get(&tensors[0], &pieces[1],
                        []() -> std::vector<std::byte> { throw std::runtime_error("no"); }),
               std::runtime_error);
  EXPECT_EQ(get(0, 1), 1);
}

}  // namespace
}  // namespace perdure::test
