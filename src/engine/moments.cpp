#include "engine/moments.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <complex>

#include "engine/number_kernels.hpp"

namespace perdure::engine {
namespace {

constexpr double kHighest = std::numeric_limits<double>::max();
// Squares between these are neither cut off at the bottom nor too large.
constexpr double kLowestSquare = 1e-290;
constexpr double kHighestSquare = 1e290;
constexpr std::uint64_t kTop = std::uint64_t{1} << 63;

Value wide_value(Moments::Wide x) {
  return x < 0 ? Value(static_cast<std::int64_t>(x)) : Value(static_cast<std::uint64_t>(x));
}

Figures counts_of(const Moments& moments) {
  Figures out;
  out.elements = moments.elements;
  out.nan = moments.nan;
  out.pos_inf = moments.pos_inf;
  out.neg_inf = moments.neg_inf;
  out.zeros = moments.zeros;
  return out;
}

}  // namespace

void Moments::add(DType dtype, const std::byte* from, std::size_t count) {
  const std::size_t numbers = numbers_in(dtype);
  elements += is_complex(dtype) ? count : count * numbers;
  std::array<double, kChunk> buffer;
  const std::size_t step = kChunk / numbers;
  for (std::size_t done = 0; done < count; done += step) {
    const std::size_t part = std::min(step, count - done);
    const std::byte* at = from + done * itemsize(dtype);
    if (is_wide_integer(dtype)) {
      add_wide(at, part, dtype == DType::uint64);
      continue;
    }
    kernels().widen(dtype, at, part, buffer.data());
    if (is_complex(dtype))
      add_complex(buffer.data(), part);
    else
      add_real(buffer.data(), part * numbers);
  }
}

void Moments::add_real(const double* numbers, std::size_t count) {
  ChunkSums sums;
  kernels().sum(numbers, count, sums);
  const double largest = std::max(std::abs(sums.min), std::abs(sums.max));
  const bool in_range = largest == 0 || largest * largest >= kLowestSquare;
  if (!(sums.sum_of_squares <= kHighestSquare) || !in_range)
    return add_real_one_by_one(numbers, count);
  finite += count;
  zeros += sums.zeros;
  min = std::min(min, sums.min);
  max = std::max(max, sums.max);
  sum += sums.sum;
  sum_of_squares += sums.sum_of_squares;
}

void Moments::add_real_one_by_one(const double* numbers, std::size_t count) {
  for (std::size_t i = 0; i < count; ++i) {
    const double x = numbers[i];
    if (std::isnan(x)) {
      ++nan;
    } else if (std::isinf(x)) {
      ++(x > 0 ? pos_inf : neg_inf);
    } else {
      ++finite;
      zeros += x == 0 ? 1 : 0;
      min = std::min(min, x);
      max = std::max(max, x);
      sum += x;
      sum_of_squares += static_cast<long double>(x) * x;
    }
  }
}

void Moments::add_complex(const double* numbers, std::size_t count) {
  for (std::size_t i = 0; i < count; ++i) {
    const double re = numbers[2 * i];
    const double im = numbers[2 * i + 1];
    if (!(std::abs(re) <= kHighest && std::abs(im) <= kHighest)) {
      nan += std::isnan(re) || std::isnan(im) ? 1 : 0;
      pos_inf += std::isinf(re) || std::isinf(im) ? 1 : 0;
      continue;
    }
    ++finite;
    zeros += re == 0 && im == 0 ? 1 : 0;
    const double square = re * re + im * im;
    const bool in_range = square >= kLowestSquare && square <= kHighestSquare;
    const double magnitude = in_range ? std::sqrt(square) : std::hypot(re, im);
    min = std::min(min, magnitude);
    max = std::max(max, magnitude);
    sum += re;
    sum_imag += im;
    sum_of_squares += in_range ? static_cast<long double>(square)
                               : static_cast<long double>(magnitude) * magnitude;
  }
}

void Moments::add_wide(const std::byte* from, std::size_t count, bool is_unsigned) {
  WideSums sums;
  kernels().sum_wide(from, count, is_unsigned, sums);
  const Wide shift = is_unsigned ? Wide{kTop} : Wide{0};
  const Wide lowest = sums.min + shift;
  const Wide highest = sums.max + shift;
  wide_min = finite == 0 ? lowest : std::min(wide_min, lowest);
  wide_max = finite == 0 ? highest : std::max(wide_max, highest);
  const Wide total = (Wide{sums.sum_of_high} << 32) + sums.sum_of_low + shift * Wide(count);
  wide_sum += total;
  finite += count;
  zeros += sums.zeros;
  min = std::min(min, static_cast<double>(lowest));
  max = std::max(max, static_cast<double>(highest));
  sum += static_cast<long double>(total);
  sum_of_squares += sums.sum_of_squares;
}

void Moments::add(const Moments& other) {
  if (other.finite > 0) {
    wide_min = finite == 0 ? other.wide_min : std::min(wide_min, other.wide_min);
    wide_max = finite == 0 ? other.wide_max : std::max(wide_max, other.wide_max);
  }
  elements += other.elements;
  nan += other.nan;
  pos_inf += other.pos_inf;
  neg_inf += other.neg_inf;
  zeros += other.zeros;
  finite += other.finite;
  min = std::min(min, other.min);
  max = std::max(max, other.max);
  sum += other.sum;
  sum_imag += other.sum_imag;
  sum_of_squares += other.sum_of_squares;
  wide_sum += other.wide_sum;
}

void Moments::multiply(std::uint64_t times) {
  for (std::uint64_t* count : {&elements, &nan, &pos_inf, &neg_inf, &zeros, &finite})
    *count *= times;
  for (long double* total : {&sum, &sum_imag, &sum_of_squares})
    *total *= static_cast<long double>(times);
  wide_sum *= Wide{times};
}

void Moments::negate(DType dtype) {
  if (!is_complex(dtype)) {  // of which they are magnitudes
    std::swap(pos_inf, neg_inf);
    std::swap(min, max);
    min = -min;
    max = -max;
  }
  std::swap(wide_min, wide_max);
  wide_min = -wide_min;
  wide_max = -wide_max;
  wide_sum = -wide_sum;
  sum = -sum;
  sum_imag = -sum_imag;
}

Figures figures_of(const Moments& moments) {
  Figures out = counts_of(moments);
  if (moments.finite == 0) return out;
  const auto count = static_cast<long double>(moments.finite);
  out.min = moments.min;
  out.max = moments.max;
  out.mean = static_cast<double>(moments.sum / count);
  out.rms = static_cast<double>(std::sqrt(moments.sum_of_squares / count));
  out.norm = static_cast<double>(std::sqrt(moments.sum_of_squares));
  return out;
}

Figures figures_of(const Moments& moments, DType dtype) {
  if (is_bits(dtype)) return counts_of(moments);
  Figures out = figures_of(moments);
  if (moments.finite == 0) return out;
  const auto count = static_cast<long double>(moments.finite);
  if (is_complex(dtype)) {
    out.mean = std::complex<double>(static_cast<double>(moments.sum / count),
                                    static_cast<double>(moments.sum_imag / count));
  } else if (is_wide_integer(dtype)) {
    out.min = wide_value(moments.wide_min);
    out.max = wide_value(moments.wide_max);
    out.mean = static_cast<double>(static_cast<long double>(moments.wide_sum) / count);
  } else if (is_integer(dtype)) {
    out.min = static_cast<std::int64_t>(moments.min);
    out.max = static_cast<std::int64_t>(moments.max);
  }
  return out;
}

}  // namespace perdure::engine
