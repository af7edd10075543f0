// What a state holds, as a flat list of names.
#pragma once

#include <cstdint>
#include <perdure/value.hpp>
#include <string>
#include <string_view>
#include <vector>

namespace perdure::engine {

// A tensor, a plain value, an object that is no plain data, a container without items, or a
// sequence of plain values, which is one value of its own.
struct Leaf {
  std::string
      name;  // keys joined with dots, ints as they are printed; cut where it passes 1,000 bytes
  KeyPath path;
  const Value* value = nullptr;  // belongs to the state
};

// In the order of the state. Of the attributes of an OrderedDict only tensors. What stands in
// several places is in the list for each. Error(unsupported) where a state shares so much that the
// list would not end.
std::vector<Leaf> leaves_of(const Value& state);

std::string key_name(const Value& key);  // of one key: "weight", "0", "(1, 2)"

// Whether `pattern` matches the name as a whole, or up to a dot; * stands for any characters, ? for
// one. "" matches all.
bool selects(std::string_view pattern, std::string_view name);

}  // namespace perdure::engine
