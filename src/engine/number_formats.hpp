// Floating-point numbers from one of PyTorch's dtypes to another.
#pragma once

#include <perdure/value.hpp>

namespace perdure::engine {

// Of real dtypes (see is_real). `from` and `to` hold equally many elements. As PyTorch converts:
// through float32, rounded to the nearest, ties to even. A NaN stays one.
void convert_numbers(DType from_dtype, ConstBytes from, DType to_dtype, MutableBytes to);

}  // namespace perdure::engine
