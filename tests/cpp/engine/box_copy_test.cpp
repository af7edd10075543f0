// From one box of a tensor into another one, against a loop over all elements.
#include "engine/box_copy.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <random>

namespace perdure::test {
namespace {

using engine::BoxCopy;
using engine::TensorBox;

std::size_t elements(const TensorBox& box) {
  std::size_t count = 1;
  for (const auto size : box.sizes) count *= static_cast<std::size_t>(size);
  return count;
}

// Where the element `number` of the box is in the tensor.
std::vector<std::int64_t> place_of(const TensorBox& box, std::size_t number) {
  std::vector<std::int64_t> place(box.sizes.size());
  for (std::size_t d = place.size(); d-- > 0;) {
    const auto size = static_cast<std::size_t>(box.sizes[d]);
    place[d] = box.offsets[d] + static_cast<std::int64_t>(number % size);
    number /= size;
  }
  return place;
}

bool is_in(const TensorBox& box, const std::vector<std::int64_t>& place) {
  for (std::size_t d = 0; d < place.size(); ++d)
    if (place[d] < box.offsets[d] || place[d] >= box.offsets[d] + box.sizes[d]) return false;
  return true;
}

std::size_t number_of(const TensorBox& box, const std::vector<std::int64_t>& place) {
  std::size_t number = 0;
  for (std::size_t d = 0; d < place.size(); ++d)
    number = number * static_cast<std::size_t>(box.sizes[d]) +
             static_cast<std::size_t>(place[d] - box.offsets[d]);
  return number;
}

struct Copied {
  std::vector<std::byte> bytes;
  std::size_t elements = 0;
};

constexpr std::byte kUntouched{0xEE};

Copied by_a_loop(const TensorBox& from, const TensorBox& to, std::size_t itemsize,
                 const std::vector<std::byte>& bytes) {
  Copied copied{std::vector<std::byte>(elements(to) * itemsize, kUntouched)};
  for (std::size_t i = 0; i < elements(from); ++i) {
    const auto place = place_of(from, i);
    if (!is_in(to, place)) continue;
    ++copied.elements;
    std::copy_n(
        bytes.begin() + static_cast<std::ptrdiff_t>(i * itemsize), itemsize,
        copied.bytes.begin() + static_cast<std::ptrdiff_t>(number_of(to, place) * itemsize));
  }
  return copied;
}

class Boxes {
 public:
  explicit Boxes(unsigned seed) : random_(seed) {}

  std::size_t up_to(std::size_t most) { return random_() % (most + 1); }
  TensorBox box(const std::vector<std::int64_t>& shape) {
    TensorBox box;
    for (const std::int64_t size : shape) {
      // Often all of it: what joins dimensions.
      const bool whole = up_to(2) == 0;
      const auto begin = whole ? 0 : static_cast<std::int64_t>(up_to(static_cast<size_t>(size)));
      box.offsets.push_back(begin);
      box.sizes.push_back(
          whole ? size : static_cast<std::int64_t>(up_to(static_cast<size_t>(size - begin))));
    }
    return box;
  }
  std::vector<std::int64_t> shape(std::size_t dimensions) {
    std::vector<std::int64_t> shape;
    for (std::size_t d = 0; d < dimensions; ++d)
      shape.push_back(static_cast<std::int64_t>(1 + up_to(6)));
    return shape;
  }
  std::vector<std::byte> bytes(std::size_t count) {
    std::vector<std::byte> bytes(count);
    for (std::byte& byte : bytes) byte = static_cast<std::byte>(random_() % 0xEE);
    return bytes;
  }

 private:
  std::mt19937 random_;
};

TEST(BoxCopyTest, GivesWhatALoopOverAllElementsGives) {
  int empty = 0, in_one_run = 0;
  for (unsigned seed = 0; seed < 6000; ++seed) {
    SCOPED_TRACE(seed);
    Boxes boxes(seed);
    const auto shape = boxes.shape(seed % 5);  // 0: a scalar
    const TensorBox from = boxes.box(shape), to = boxes.box(shape);
    const std::size_t itemsize = std::size_t{1} << boxes.up_to(4);
    const auto bytes = boxes.bytes(elements(from) * itemsize);
    const Copied expected = by_a_loop(from, to, itemsize, bytes);

    const BoxCopy copy(from, to, itemsize);
    EXPECT_EQ(copy.empty(), expected.elements == 0);
    empty += copy.empty();
    std::vector<std::byte> got(expected.bytes.size(), kUntouched);
    // In runs of odd lengths, as they come from a disk in no order: here, the last one first.
    std::vector<std::pair<std::size_t, std::size_t>> runs;
    for (std::size_t at = 0; at < bytes.size();) {
      const std::size_t length = std::min(1 + boxes.up_to(bytes.size() / 3 + 1), bytes.size() - at);
      runs.emplace_back(at, length);
      at += length;
    }
    std::ranges::reverse(runs);
    for (const auto& [at, length] : runs)
      copy.take(at, ConstBytes(bytes).subspan(at, length), got.data());
    copy.take(bytes.size(), {}, got.data());
    EXPECT_EQ(got, expected.bytes);

    if (const auto begin = copy.one_run()) {
      ++in_one_run;
      ASSERT_EQ(expected.elements, elements(from));
      ASSERT_LE(*begin + bytes.size(), got.size());
      std::vector<std::byte> alone(expected.bytes.size(), kUntouched);
      std::ranges::copy(bytes, alone.begin() + static_cast<std::ptrdiff_t>(*begin));
      EXPECT_EQ(alone, expected.bytes);
    }
    if (testing::Test::HasFailure()) return;
  }
  EXPECT_GT(empty, 500);
  EXPECT_GT(in_one_run, 500);
}

TEST(BoxCopyTest, KnowsWhatLiesInOneRun) {
  const auto begin = [](TensorBox from, TensorBox to) { return BoxCopy(from, to, 4).one_run(); };
  EXPECT_EQ(begin({{}, {}}, {{}, {}}), 0U);
  EXPECT_EQ(begin({{2, 0}, {3, 5}}, {{0, 0}, {8, 5}}), 2 * 5 * 4U);    // rows of all
  EXPECT_EQ(begin({{4, 1}, {1, 3}}, {{3, 0}, {2, 5}}), (5 + 1) * 4U);  // a part of one row
  EXPECT_EQ(begin({{2, 0}, {3, 5}}, {{2, 0}, {2, 5}}), std::nullopt);  // not all of it
  EXPECT_EQ(begin({{2, 0}, {3, 4}}, {{0, 0}, {8, 5}}), std::nullopt);  // with gaps
  EXPECT_EQ(begin({{2, 0}, {0, 5}}, {{0, 0}, {8, 5}}), std::nullopt);  // nothing
}

}  // namespace
}  // namespace perdure::test
