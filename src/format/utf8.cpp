#include "format/utf8.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cstdint>
#include <cstring>

namespace perdure::format {
namespace {

std::size_t sequence_length(unsigned char first) {
  if (first < 0x80) return 1;
  if (first >= 0xC2 && first < 0xE0) return 2;
  if (first >= 0xE0 && first < 0xF0) return 3;
  return first >= 0xF0 && first < 0xF5 ? 4 : 0;
}

}  // namespace

CodePoint code_point(std::string_view text, std::size_t at) noexcept {
  const auto first = static_cast<unsigned char>(text[at]);
  const std::size_t length = sequence_length(first);
  if (length == 0 || length > text.size() - at) return {};
  std::uint32_t value = length == 1 ? first : first & (0x7Fu >> length);
  for (std::size_t i = 1; i < length; ++i) {
    const auto next = static_cast<unsigned char>(text[at + i]);
    if ((next & 0xC0) != 0x80) return {};
    value = (value << 6) | (next & 0x3Fu);
  }
  const bool overlong = (length == 3 && value < 0x800) || (length == 4 && value < 0x10000);
  if (overlong || value > 0x10FFFF) return {};
  return {value, length};
}

bool is_utf8(std::string_view text) noexcept {
  // Nearly all text is ASCII, which eight bytes at a time can tell.
  std::size_t at = 0;
  for (; at + 8 <= text.size(); at += 8) {
    std::uint64_t word = 0;
    std::memcpy(&word, text.data() + at, 8);
    if ((word & 0x8080808080808080u) != 0) break;
  }
  while (at < text.size()) {
    const std::size_t length = code_point(text, at).length;
    if (length == 0) return false;
    at += length;
  }
  return true;
}

// A surrogate is ED A0..BF and one byte more; ED begins nothing else above ED 9F.
bool is_strict_utf8(std::string_view text) noexcept {
  for (std::size_t at = 0; (at = text.find('\xED', at)) != std::string_view::npos; ++at)
    if (at + 1 < text.size() && static_cast<unsigned char>(text[at + 1]) >= 0xA0) return false;
  return is_utf8(text);
}

bool is_invisible(std::uint32_t c) noexcept {
  return (c >= 0x200B && c <= 0x200F) || (c >= 0x2028 && c <= 0x202E) ||
         (c >= 0x2060 && c <= 0x206F) || c == 0xFEFF;
}

std::string printable(std::string_view text) {
  std::string out;
  for (std::size_t at = 0; at < text.size();) {
    const CodePoint point = code_point(text, at);
    const std::size_t length = std::max<std::size_t>(point.length, 1);
    const std::uint32_t c = point.value;
    const bool control = (c < 0x20 && c != '\n') || (c >= 0x7F && c < 0xA0);
    if (point.length == 0 || control)
      out += fmt::format("\\x{:02x}", point.length == 0 ? static_cast<unsigned char>(text[at]) : c);
    else if (point.is_surrogate() || is_invisible(c))
      out += fmt::format("\\u{:04x}", c);
    else
      out += text.substr(at, length);
    at += length;
  }
  return out;
}

}  // namespace perdure::format
