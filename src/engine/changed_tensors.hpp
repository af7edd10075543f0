// Tensors that are written otherwise than they lie: their bytes are made when they are asked for.
#pragma once

#include <perdure/value.hpp>

namespace perdure::engine {

bool is_contiguous(const Tensor& tensor) noexcept;
// Whether its dtype is one that `in_dtype` changes.
bool is_real(DType dtype) noexcept;

// The tensor in C order, over a storage of its own; the very same where it lies so. While it is
// copied, it is in memory whole.
Tensor in_c_order(const Tensor& tensor);

// `state` with every tensor of a floating-point dtype in another: float64, float32, float16,
// bfloat16; rounded to the nearest, ties to even. Storages that are shared stay so. Error(invalid)
// where two dtypes share one.
Value in_dtype(const Value& state, DType dtype);

}  // namespace perdure::engine
