#include "engine/tally.hpp"

#include <algorithm>
#include <array>

#include "format/crc32.hpp"

namespace perdure::engine {
namespace {

using format::kBlockSize;

// A shorter run of elements is gathered with others.
constexpr std::uint64_t kWorthARun = 64;

// Elements that lie apart, side by side.
class Gathered {
 public:
  Gathered(DType dtype, Moments& into) : dtype_(dtype), size_(itemsize(dtype)), into_(into) {}
  void add(const std::byte* from, std::uint64_t count, std::uint64_t stride) {
    for (std::uint64_t i = 0; i < count; ++i) {
      std::copy_n(from + i * stride * size_, size_, buffer_.data() + used_);
      used_ += size_;
      if (used_ == buffer_.size()) flush();
    }
  }
  void flush() {
    if (used_ > 0) into_.add(dtype_, buffer_.data(), used_ / size_);
    used_ = 0;
  }

 private:
  DType dtype_;
  std::size_t size_, used_ = 0;
  Moments& into_;
  std::array<std::byte, 8192> buffer_;  // a multiple of every size of an element
};

}  // namespace

Tally::Tally(const Tensor& tensor)
    : dtype_(tensor.dtype), size_(itemsize(tensor.dtype)), elements_(tensor) {
  if (elements_.empty()) return;
  first_part_ = elements_.begin() * size_ / kBlockSize;
  parts_.resize((elements_.end() * size_ - 1) / kBlockSize - first_part_ + 1);
}

void Tally::take(std::uint64_t at, ConstBytes bytes) {
  const std::uint64_t first = at / size_;
  const std::uint64_t last = first + bytes.size() / size_;
  if (elements_.empty() || first >= elements_.end() || last <= elements_.begin()) return;
  Moments& part = parts_[at / kBlockSize - first_part_];
  Gathered gathered(dtype_, part);
  elements_.runs(first, last, [&](std::uint64_t place, std::uint64_t count, std::uint64_t stride) {
    const std::byte* from = bytes.data() + (place - first) * size_;
    if (stride == 1 && count >= kWorthARun)
      part.add(dtype_, from, count);
    else
      gathered.add(from, count, stride);
  });
  gathered.flush();
}

Moments Tally::total() const {
  Moments out;
  for (const Moments& part : parts_) out.add(part);
  out.multiply(elements_.repeats());
  return out;
}

}  // namespace perdure::engine
