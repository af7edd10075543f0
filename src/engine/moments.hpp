// The figures of many numbers, added up in any order: what statistics are made of.
#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>
#include <perdure/stats.hpp>
#include <perdure/value.hpp>

namespace perdure::engine {

// min, max and the sums are of the numbers that are finite; of complex ones, min and max are of
// their magnitudes. The sums are in more than double precision, and in more than its range.
struct Moments {
  __extension__ using Wide = __int128;

  std::uint64_t elements = 0, nan = 0, pos_inf = 0, neg_inf = 0, zeros = 0;
  std::uint64_t finite = 0;
  double min = std::numeric_limits<double>::infinity();
  double max = -std::numeric_limits<double>::infinity();
  long double sum = 0, sum_imag = 0, sum_of_squares = 0;
  // Of int64 and uint64, exactly.
  Wide wide_min = 0, wide_max = 0, wide_sum = 0;

  void add(DType dtype, const std::byte* elements, std::size_t count);
  void add(const Moments& other);
  void multiply(std::uint64_t times);  // each element stands there so often
  void negate(DType dtype);
  void conjugate() { sum_imag = -sum_imag; }

 private:
  void add_real(const double* numbers, std::size_t count);
  void add_real_one_by_one(const double* numbers, std::size_t count);
  void add_complex(const double* numbers, std::size_t count);
  void add_wide(const std::byte* numbers, std::size_t count, bool is_unsigned);
};

// Of a tensor.
Figures figures_of(const Moments& moments, DType dtype);
// Of tensors of any dtypes together.
Figures figures_of(const Moments& moments);

}  // namespace perdure::engine
