#include "engine/strided_elements.hpp"

namespace perdure::engine {

StridedElements::StridedElements(const Tensor& tensor) {
  const auto [first_byte, last_byte] = tensor.byte_range();
  offset_ = first_byte / itemsize(tensor.dtype);
  empty_ = first_byte == last_byte;
  if (empty_) return;
  std::uint64_t runs = 1;
  for (std::size_t i = 0; i < tensor.shape.size(); ++i) {
    const auto count = static_cast<std::uint64_t>(tensor.shape[i]);
    const auto stride = static_cast<std::uint64_t>(tensor.strides[i]);
    if (stride == 0)
      repeats_ *= count;
    else if (count > 1)
      loops_.push_back({count, stride});
  }
  std::ranges::sort(loops_, [](const Loop& a, const Loop& b) { return a.stride > b.stride; });
  for (std::size_t i = loops_.size(); i-- > 1;) {
    Loop& outer = loops_[i - 1];
    if (outer.stride != loops_[i].count * loops_[i].stride) continue;
    loops_[i].count *= outer.count;
    loops_.erase(loops_.begin() + static_cast<std::ptrdiff_t>(i) - 1);
  }
  // unfold() with a kernel of 16 x 16 repeats each element 256 times.
  constexpr std::uint64_t kMostRepeats = 1024;
  constexpr std::uint64_t kFew = std::uint64_t{1} << 26;
  for (const Loop& loop : loops_) runs *= loop.count;
  if (runs > kFew && runs / kMostRepeats > (last_byte - first_byte) / itemsize(tensor.dtype))
    throw Error(ErrorCode::unsupported,
                "a tensor whose strides let its elements overlap a thousand times and more");
}

}  // namespace perdure::engine
