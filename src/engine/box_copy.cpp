#include "engine/box_copy.hpp"

#include <algorithm>
#include <cstring>

namespace perdure::engine {

BoxCopy::BoxCopy(const TensorBox& from, const TensorBox& to, std::size_t itemsize) {
  std::uint64_t from_stride = itemsize, to_stride = itemsize;
  run_ = itemsize;
  bool whole = true;  // the dimensions behind this one are all of both boxes
  std::uint64_t rows = 1;
  for (std::size_t d = from.sizes.size(); d-- > 0;) {
    const std::int64_t begin = std::max(from.offsets[d], to.offsets[d]);
    const std::int64_t end = std::min(from.offsets[d] + from.sizes[d], to.offsets[d] + to.sizes[d]);
    const auto count = static_cast<std::uint64_t>(std::max<std::int64_t>(0, end - begin));
    if (whole) {
      run_ *= count;
    } else {
      loops_.insert(loops_.begin(), {count, from_stride, to_stride});
      rows *= count;
    }
    from_ += static_cast<std::uint64_t>(std::max<std::int64_t>(0, begin - from.offsets[d])) *
             from_stride;
    to_ += static_cast<std::uint64_t>(std::max<std::int64_t>(0, begin - to.offsets[d])) * to_stride;
    whole = whole && count == static_cast<std::uint64_t>(from.sizes[d]) &&
            count == static_cast<std::uint64_t>(to.sizes[d]);
    from_stride *= static_cast<std::uint64_t>(from.sizes[d]);
    to_stride *= static_cast<std::uint64_t>(to.sizes[d]);
  }
  from_size_ = from_stride;
  rows_ = run_ == 0 ? 0 : rows;
}

std::optional<std::uint64_t> BoxCopy::one_run() const {
  if (rows_ == 1 && run_ == from_size_) return to_;
  return std::nullopt;
}

std::uint64_t BoxCopy::place(std::uint64_t row, std::uint64_t Loop::* side) const {
  std::uint64_t offset = 0;
  for (std::size_t i = loops_.size(); i-- > 0;) {
    offset += row % loops_[i].count * (loops_[i].*side);
    row /= loops_[i].count;
  }
  return offset;
}

// The rows lie in the same order on both sides.
void BoxCopy::take(std::uint64_t at, ConstBytes bytes, std::byte* into) const {
  const std::uint64_t end = at + bytes.size();
  std::uint64_t low = 0, high = rows_;
  while (low < high) {  // the first row that ends behind `at`
    const std::uint64_t middle = low + (high - low) / 2;
    if (from_ + place(middle, &Loop::from) + run_ <= at)
      low = middle + 1;
    else
      high = middle;
  }
  for (std::uint64_t row = low; row < rows_; ++row) {
    const std::uint64_t begin = from_ + place(row, &Loop::from);
    if (begin >= end) return;
    const std::uint64_t first = std::max(begin, at), last = std::min(begin + run_, end);
    std::memcpy(into + to_ + place(row, &Loop::to) + (first - begin), bytes.data() + (first - at),
                last - first);
  }
}

}  // namespace perdure::engine
