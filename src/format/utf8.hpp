// UTF-8 as Python's 'surrogatepass' takes it: no overlong forms, nothing above U+10FFFF, lone
// surrogates kept.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
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
// The same without surrogates: what everybody else takes for UTF-8.
bool is_strict_utf8(std::string_view text) noexcept;
// Format and line controls, which can make a terminal show a text as another one.
bool is_invisible(std::uint32_t code_point) noexcept;
// As people may see it: what is no strict UTF-8, is invisible, or would be obeyed by a terminal
// becomes an escape of Python's. Ends of lines stay.
std::string printable(std::string_view text);

}  // namespace perdure::format
