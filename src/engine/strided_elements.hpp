// Which places of a storage the elements of a strided tensor are at.
#pragma once

#include <algorithm>
#include <cstdint>
#include <perdure/value.hpp>
#include <vector>

namespace perdure::engine {

// The elements in the order of the storage, as runs of equal strides. In which order the tensor has
// them is forgotten, and with it every difference between a tensor and its transpose.
class StridedElements {
 public:
  // Error(invalid) for what Tensor::byte_range() refuses; Error(unsupported) where elements overlap
  // so much that going through them would not end.
  explicit StridedElements(const Tensor& tensor);

  bool empty() const noexcept { return empty_; }
  // Places in the storage, counted in elements: the first, and one past the last.
  std::uint64_t begin() const noexcept { return offset_; }
  std::uint64_t end() const noexcept { return empty_ ? offset_ : offset_ + extent(0) + 1; }
  // How often each run stands there, by strides of 0.
  std::uint64_t repeats() const noexcept { return repeats_; }
  bool operator==(const StridedElements&) const = default;
  auto operator<=>(const StridedElements&) const = default;

  // take(first place, count, stride) for all runs that lie at the places from `first` on and before
  // `last`, each cut to them.
  template <class Take>
  void runs(std::uint64_t first, std::uint64_t last, Take&& take) const {
    if (!empty_ && first < end() && last > begin()) visit(0, offset_, first, last, take);
  }

 private:
  struct Loop {
    std::uint64_t count = 0, stride = 0;
    auto operator<=>(const Loop&) const = default;
  };

  // From the first to the last place of the loops from `depth` on.
  std::uint64_t extent(std::size_t depth) const noexcept {
    std::uint64_t out = 0;
    for (std::size_t i = depth; i < loops_.size(); ++i)
      out += (loops_[i].count - 1) * loops_[i].stride;
    return out;
  }

  template <class Take>
  void visit(std::size_t depth, std::uint64_t place, std::uint64_t first, std::uint64_t last,
             Take& take) const {
    if (depth == loops_.size()) {  // a single element
      if (place >= first && place < last) take(place, std::uint64_t{1}, std::uint64_t{1});
      return;
    }
    const Loop& loop = loops_[depth];
    if (place >= last) return;
    const std::uint64_t inner = extent(depth + 1);
    // The turns of this loop that reach to `first` or beyond, and begin before `last`.
    const std::uint64_t from =
        place + inner >= first ? 0 : (first - place - inner + loop.stride - 1) / loop.stride;
    const std::uint64_t to = std::min(loop.count, (last - 1 - place) / loop.stride + 1);
    if (from >= to) return;
    if (depth + 1 == loops_.size()) return take(place + from * loop.stride, to - from, loop.stride);
    for (std::uint64_t i = from; i < to; ++i)
      visit(depth + 1, place + i * loop.stride, first, last, take);
  }

  std::vector<Loop> loops_;  // the largest stride first, none of 0
  std::uint64_t offset_ = 0;
  std::uint64_t repeats_ = 1;
  bool empty_ = false;
};

}  // namespace perdure::engine
