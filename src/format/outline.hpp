// The structure of a state as a text that is equal for states of equal structure (see layout.hpp),
// and what may differ between them. Made in one quick walk, which goes into no kept tree.
#pragma once

#include <optional>
#include <perdure/value.hpp>
#include <string>
#include <vector>

namespace perdure::format {

struct Outline {
  std::string text;
  std::vector<const Value*> numbers;           // outside of kept trees, in the order of the pickle
  std::vector<const TensorStorage*> memories;  // of tensors outside of kept trees, each once
};

// Nothing for what is nested so deeply that no file can hold it, and for what is more text and
// numbers than are worth being compared.
std::optional<Outline> outline_of(const Value& state);

}  // namespace perdure::format
