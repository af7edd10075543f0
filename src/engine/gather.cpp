#include "engine/gather.hpp"

#include <algorithm>
#include <cstring>

namespace perdure::engine {

struct Gather::Run {
  std::uint64_t first = 0, last = 0;  // places
  const std::byte* bytes = nullptr;
};

Gather::Gather(const Tensor& tensor, std::uint64_t first, std::uint64_t last, std::byte* into)
    : size_(itemsize(tensor.dtype)),
      offset_(static_cast<std::uint64_t>(tensor.storage_offset)),
      first_(first),
      last_(last),
      into_(into) {
  std::uint64_t step = 1;
  for (std::size_t i = tensor.shape.size(); i-- > 0;) {
    const auto count = static_cast<std::uint64_t>(tensor.shape[i]);
    if (count > 1) loops_.push_back({count, static_cast<std::uint64_t>(tensor.strides[i]), step});
    step *= count;
  }
  if (loops_.empty()) loops_.push_back({1, 1, 1});
  std::ranges::stable_sort(loops_,
                           [](const Loop& a, const Loop& b) { return a.stride > b.stride; });
  for (std::size_t i = loops_.size(); i-- > 1;) {
    Loop& outer = loops_[i - 1];
    const Loop& inner = loops_[i];
    if (outer.stride != inner.count * inner.stride || outer.step != inner.count * inner.step)
      continue;
    loops_[i].count *= outer.count;
    loops_.erase(loops_.begin() + static_cast<std::ptrdiff_t>(i) - 1);
  }
  extents_.resize(loops_.size() + 1);
  for (std::size_t i = loops_.size(); i-- > 0;)
    extents_[i] = extents_[i + 1] + (loops_[i].count - 1) * loops_[i].stride;
}

void Gather::take(std::uint64_t at, ConstBytes bytes) const {
  const Run run{at / size_, at / size_ + bytes.size() / size_, bytes.data()};
  if (offset_ < run.last && offset_ + extents_[0] >= run.first) visit(0, offset_, 0, run);
}

void Gather::visit(std::size_t depth, std::uint64_t place, std::uint64_t number,
                   const Run& run) const {
  const Loop& loop = loops_[depth];
  if (place >= run.last) return;
  const std::uint64_t inner = extents_[depth + 1];
  std::uint64_t from = 0;
  std::uint64_t to = loop.count;
  if (loop.stride > 0) {
    if (place + inner < run.first)
      from = (run.first - place - inner + loop.stride - 1) / loop.stride;
    to = std::min(to, (run.last - 1 - place) / loop.stride + 1);
  } else if (place + inner < run.first) {
    return;
  }
  if (depth + 1 == loops_.size()) return copy(loop, place, number, from, to, run);
  for (std::uint64_t i = from; i < to; ++i)
    visit(depth + 1, place + i * loop.stride, number + i * loop.step, run);
}

void Gather::copy(const Loop& loop, std::uint64_t place, std::uint64_t number, std::uint64_t from,
                  std::uint64_t to, const Run& run) const {
  if (number < first_) from = std::max(from, (first_ - number + loop.step - 1) / loop.step);
  if (number >= last_) return;
  to = std::min(to, (last_ - 1 - number) / loop.step + 1);
  if (from >= to) return;
  const std::byte* source = run.bytes + (place + from * loop.stride - run.first) * size_;
  std::byte* target = into_ + (number + from * loop.step - first_) * size_;
  if (loop.stride == 1 && loop.step == 1) {
    std::memcpy(target, source, (to - from) * size_);
    return;
  }
  for (std::uint64_t i = from; i < to; ++i) {
    std::memcpy(target, source, size_);
    source += loop.stride * size_;
    target += loop.step * size_;
  }
}

}  // namespace perdure::engine
