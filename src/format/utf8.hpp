// UTF-8 as Python's 'surrogatepass' takes it: no overlong forms, nothing above U+10FFFF, lone
// surrogates kept.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

namespace perdure::format {

struct CodePoint {
  std::uint32_t value = 0;
  std::size_t length = 0;  // bytes; 0 where there is no well-formed sequence
  bool is_surrogate() const { return value >= 0xD800 && value < 0xE000; }
};

// The code point that begins at `at`, which must be inside of `text`.
CodePoint code_point(std::string_view text, std::size_t at) noexcept;
bool is_utf8(std::string_view text) noexcept;

}  // namespace perdure::format
