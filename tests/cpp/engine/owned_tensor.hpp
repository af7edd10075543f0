// A tensor that owns its numbers, as those that a program saves do.
#pragma once

#include <cstdint>
#include <memory>
#include <perdure/value.hpp>
#include <utility>
#include <vector>

namespace perdure::test {

inline Tensor owned(std::vector<float> numbers) {
  const auto data = std::make_shared<std::vector<float>>(std::move(numbers));
  Tensor tensor =
      Tensor::over(data->data(), DType::float32, {static_cast<std::int64_t>(data->size())});
  tensor.storage->owner = data;
  return tensor;
}

}  // namespace perdure::test
