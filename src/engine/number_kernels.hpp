// Arithmetic over many elements, of any dtype: what statistics and comparisons spend their time in.
//
// Everything is computed in double, into which every dtype but the 64-bit integers widens exactly.
// The same code is compiled for several levels of the processor; kernels() is the best one here.
#pragma once

#include <cstddef>
#include <cstdint>
#include <perdure/value.hpp>

namespace perdure::engine {

// How many numbers an element is: 2 where it is complex, and of float4, which packs two in a byte.
std::size_t numbers_in(DType dtype) noexcept;
bool is_complex(DType dtype) noexcept;
bool is_bits(DType dtype) noexcept;          // bits without a meaning as numbers
bool is_wide_integer(DType dtype) noexcept;  // int64, uint64
bool is_integer(DType dtype) noexcept;       // bool too

// So many numbers are widened at one go: small enough to stay in the nearest cache.
inline constexpr std::size_t kChunk = 1024;

// Of a chunk. Where a number is not finite, sum_of_squares is not either, and the rest means
// nothing.
struct ChunkSums {
  double sum = 0, sum_of_squares = 0, min = 0, max = 0;
  std::uint64_t zeros = 0;
};

// Of a chunk of int64, or of uint64 less 2^63.
struct WideSums {
  std::int64_t sum_of_high = 0, sum_of_low = 0;  // of x >> 32, and of the 32 bits below
  std::int64_t min = 0, max = 0;
  double sum_of_squares = 0;  // of the true values
  std::uint64_t zeros = 0;
};

// Of two chunks, number by number. Where one is not finite, `finite` is false, and the rest means
// nothing.
struct ChunkDistance {
  bool finite = true;
  double max_absolute = 0;
  double max_relative = 0;  // |a - b| / max(|a|, |b|)
  double dot = 0, squares_a = 0, squares_b = 0;
  std::uint64_t beyond = 0;   // |a - b| > atol + rtol |b|
  std::uint64_t unequal = 0;  // a != b
};

// Of elements of one dtype, by their bits.
struct BitDistance {
  std::uint64_t changed = 0;
  std::uint64_t max_steps = 0;  // values of the dtype between two; NaN does not count
};

struct NumberKernels {
  const char* name;
  // `count` elements to numbers_in(dtype) numbers each. bool: 0 and 1; bits: as unsigned integers.
  void (*widen)(DType dtype, const std::byte* from, std::size_t count, double* to);
  // 1 to kChunk numbers each.
  void (*sum)(const double* from, std::size_t count, ChunkSums& out);
  void (*sum_wide)(const std::byte* from, std::size_t count, bool is_unsigned, WideSums& out);
  void (*compare)(const double* a, const double* b, std::size_t count, double atol, double rtol,
                  ChunkDistance& out);
  // Any number of elements.
  void (*compare_bits)(DType dtype, const std::byte* a, const std::byte* b, std::size_t count,
                       BitDistance& out);
};

const NumberKernels& kernels() noexcept;
// All that run on this processor, the portable ones first.
std::size_t kernel_levels() noexcept;
const NumberKernels& kernels_of_level(std::size_t level) noexcept;

}  // namespace perdure::engine
