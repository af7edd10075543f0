#include "engine/distances.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <limits>

#include "engine/number_kernels.hpp"

namespace perdure::engine {
namespace {

using Numbers = std::array<double, kChunk>;

bool has_steps(DType dtype) {
  return !is_integer(dtype) && !is_bits(dtype) && dtype != DType::float4_e2m1fn_x2;
}

void apply(const Side& side, double* numbers, std::size_t count) {
  if (side.neg)
    for (std::size_t i = 0; i < count; ++i) numbers[i] = -numbers[i];
  if (side.conj)
    for (std::size_t i = 1; i < count; i += 2) numbers[i] = -numbers[i];
}

}  // namespace

bool Distances::are_comparable(DType a, DType b) {
  if (a == b) return true;
  return numbers_in(a) == numbers_in(b) && is_complex(a) == is_complex(b) && !is_bits(a) &&
         !is_bits(b);
}

bool Distances::by_bits() const {
  return a_.dtype == b_.dtype && a_.conj == b_.conj && a_.neg == b_.neg;
}

void Distances::add(const std::byte* a, const std::byte* b, std::size_t count) {
  const std::size_t step = kChunk / numbers_in(a_.dtype);
  out_.elements += count;
  for (std::size_t done = 0; done < count; done += step)
    add_chunk(a + done * itemsize(a_.dtype), b + done * itemsize(b_.dtype),
              std::min(step, count - done));
}

void Distances::add_chunk(const std::byte* a, const std::byte* b, std::size_t count) {
  Numbers x;
  Numbers y;
  const std::size_t numbers = count * numbers_in(a_.dtype);
  kernels().widen(a_.dtype, a, count, x.data());
  apply(a_, x.data(), numbers);
  if (by_bits()) {
    if (std::memcmp(a, b, count * itemsize(a_.dtype)) == 0) return add_equal(x.data(), numbers);
    BitDistance bits;
    kernels().compare_bits(a_.dtype, a, b, count, bits);
    out_.changed += bits.changed;
    if (atol_ == 0 && rtol_ == 0) out_.beyond += bits.changed;
    if (has_steps(a_.dtype)) out_.max_ulp = std::max(out_.max_ulp.value_or(0), bits.max_steps);
    if (is_wide_integer(a_.dtype))  // which a double does not hold
      out_.max_absolute = std::max(out_.max_absolute, static_cast<double>(bits.max_steps));
  }
  kernels().widen(b_.dtype, b, count, y.data());
  apply(b_, y.data(), numbers);
  ChunkDistance apart;
  kernels().compare(x.data(), y.data(), numbers, atol_, rtol_, apart);
  if (!apart.finite) return add_one_by_one(x.data(), y.data(), numbers);
  if (!by_bits()) out_.changed += apart.unequal;
  if (!by_bits() || atol_ != 0 || rtol_ != 0) out_.beyond += apart.beyond;
  out_.max_absolute = std::max(out_.max_absolute, apart.max_absolute);
  out_.max_relative = std::max(out_.max_relative, apart.max_relative);
  dot_ += apart.dot;
  squares_a_ += apart.squares_a;
  squares_b_ += apart.squares_b;
}

void Distances::add_equal(const double* numbers, std::size_t count) {
  ChunkSums sums;
  kernels().sum(numbers, count, sums);
  if (!std::isfinite(sums.sum_of_squares)) return add_one_by_one(numbers, numbers, count);
  dot_ += sums.sum_of_squares;
  squares_a_ += sums.sum_of_squares;
  squares_b_ += sums.sum_of_squares;
}

void Distances::add_one_by_one(const double* a, const double* b, std::size_t count) {
  for (std::size_t i = 0; i < count; ++i) {
    const double x = a[i];
    const double y = b[i];
    if (std::isfinite(x) && std::isfinite(y)) {
      dot_ += static_cast<long double>(x) * y;
      squares_a_ += static_cast<long double>(x) * x;
      squares_b_ += static_cast<long double>(y) * y;
    }
    if (x == y || (std::isnan(x) && std::isnan(y))) continue;
    if (!by_bits()) ++out_.changed;
    const double apart = std::abs(x - y);
    const bool close = apart <= atol_ + rtol_ * std::abs(y) && std::isfinite(y);
    if (!close && (!by_bits() || atol_ != 0 || rtol_ != 0)) ++out_.beyond;
    if (std::isnan(apart)) continue;
    out_.max_absolute = std::max(out_.max_absolute, apart);
    const double size = std::max(std::abs(x), std::abs(y));
    out_.max_relative =
        std::max(out_.max_relative,
                 std::isinf(size) ? std::numeric_limits<double>::infinity() : apart / size);
  }
}

void Distances::add(const Distances& other) {
  out_.elements += other.out_.elements;
  out_.changed += other.out_.changed;
  out_.beyond += other.out_.beyond;
  out_.max_absolute = std::max(out_.max_absolute, other.out_.max_absolute);
  out_.max_relative = std::max(out_.max_relative, other.out_.max_relative);
  if (other.out_.max_ulp) out_.max_ulp = std::max(out_.max_ulp.value_or(0), *other.out_.max_ulp);
  dot_ += other.dot_;
  squares_a_ += other.squares_a_;
  squares_b_ += other.squares_b_;
}

Distance Distances::result() const {
  Distance out = out_;
  if (squares_a_ > 0 && squares_b_ > 0)
    out.cosine = static_cast<double>(
        std::clamp(dot_ / (std::sqrt(squares_a_) * std::sqrt(squares_b_)), -1.0L, 1.0L));
  return out;
}

}  // namespace perdure::engine
