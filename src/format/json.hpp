// JSON text and the Values that it stands for: objects are dicts in order, arrays lists. What JSON
// has no number for, NaN and the infinities, is the string "nan", "inf" or "-inf".
//
// Reading goes through the events of nlohmann's parser, and writing is our own: the library's own
// tree allocates in its destructor, and so ends the process where memory is short.
#pragma once

#include <cstdint>
#include <optional>
#include <perdure/value.hpp>
#include <string>
#include <string_view>

namespace perdure::format {

// Error(corrupt), whose text begins with `what`: no JSON, a name that an object has twice (of which
// readers may take either), or more than `max_depth` levels of objects and arrays.
Value read_json(std::string_view text, std::string_view what, std::size_t max_depth);

// Of None, bools, ints, floats, strings, lists, tuples, and dicts with strings for keys; ASCII
// alone, and what is no UTF-8 bent. `indent` is the blanks for a level; without it all is one line.
std::string write_json(const Value& value, std::optional<std::size_t> indent = std::nullopt);

// An integer that is not negative, up to 2^64 - 1; null for everything else.
std::optional<std::uint64_t> as_unsigned(const Value& value);

}  // namespace perdure::format
