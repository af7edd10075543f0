// How far two tensors are apart, added up from runs of their elements.
#pragma once

#include <cstddef>
#include <perdure/diff.hpp>
#include <perdure/value.hpp>

namespace perdure::engine {

// The elements of one side; where a lazily negated or conjugated tensor is meant, its numbers are.
struct Side {
  DType dtype = DType::float32;
  bool conj = false, neg = false;
};

class Distances {
 public:
  Distances(Side a, Side b, double atol, double rtol) : a_(a), b_(b), atol_(atol), rtol_(rtol) {}
  // Whether elements of the two dtypes can be compared.
  static bool are_comparable(DType a, DType b);

  void add(const std::byte* a, const std::byte* b, std::size_t count);
  void add(const Distances& other);
  Distance result() const;

 private:
  void add_chunk(const std::byte* a, const std::byte* b, std::size_t count);
  void add_equal(const double* numbers, std::size_t count);
  void add_one_by_one(const double* a, const double* b, std::size_t count);
  bool by_bits() const;

  Side a_, b_;
  double atol_, rtol_;
  Distance out_;
  long double dot_ = 0, squares_a_ = 0, squares_b_ = 0;
};

}  // namespace perdure::engine
