#include "text.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <ctime>
#include <span>

namespace perdure::cli {
namespace {

struct CodePoint {
  char32_t value = 0;
  std::size_t length = 0;  // 0: no valid UTF-8 starts here
};

constexpr bool is_continuation(char c) noexcept {
  return (static_cast<unsigned char>(c) & 0xC0U) == 0x80U;
}

// Bytes that a lead byte announces; 0 for a byte that cannot lead.
std::size_t announced_length(unsigned char lead) noexcept {
  if (lead < 0x80) return 1;
  if (lead >= 0xC2 && lead < 0xE0) return 2;
  if (lead >= 0xE0 && lead < 0xF0) return 3;
  if (lead >= 0xF0 && lead < 0xF5) return 4;
  return 0;
}

bool is_allowed(char32_t value, std::size_t length) noexcept {
  constexpr std::array<char32_t, 5> kSmallest = {0, 0, 0x80, 0x800, 0x10000};
  return value >= kSmallest[length] && value <= 0x10FFFF && (value < 0xD800 || value > 0xDFFF);
}

CodePoint decode(std::string_view text) noexcept {
  const auto lead = static_cast<unsigned char>(text.front());
  const std::size_t length = announced_length(lead);
  if (length == 0 || length > text.size()) return {};
  if (length == 1) return {lead, 1};
  char32_t value = lead & (0x7FU >> length);
  for (std::size_t i = 1; i < length; ++i) {
    if (!is_continuation(text[i])) return {};
    value = (value << 6U) | (static_cast<unsigned char>(text[i]) & 0x3FU);
  }
  return is_allowed(value, length) ? CodePoint{value, length} : CodePoint{};
}

struct Range {
  char32_t first, last;
};
// Controls, and the invisible characters that reorder or hide text around them.
constexpr std::array<Range, 10> kUnsafe = {{{0x00, 0x1F},
                                            {0x7F, 0x9F},
                                            {0xAD, 0xAD},
                                            {0x61C, 0x61C},
                                            {0x200B, 0x200F},
                                            {0x2028, 0x202E},
                                            {0x2060, 0x206F},
                                            {0xFEFF, 0xFEFF},
                                            {0xFFF0, 0xFFFB},
                                            {0xE0000, 0xE0FFF}}};

// East Asian characters and emoji, which take two columns.
constexpr std::array<Range, 9> kWide = {{{0x1100, 0x115F},
                                         {0x2E80, 0xA4CF},
                                         {0xAC00, 0xD7A3},
                                         {0xF900, 0xFAFF},
                                         {0xFE30, 0xFE6F},
                                         {0xFF00, 0xFF60},
                                         {0x1F300, 0x1F64F},
                                         {0x1F900, 0x1F9FF},
                                         {0x20000, 0x3FFFD}}};

bool is_in(std::span<const Range> ranges, char32_t value) noexcept {
  return std::ranges::any_of(
      ranges, [&](const Range& range) { return value >= range.first && value <= range.last; });
}
bool is_unsafe(char32_t value) noexcept { return is_in(kUnsafe, value); }
bool is_wide(char32_t value) noexcept { return is_in(kWide, value); }

std::string escape_code_point(char32_t value) {
  const auto number = static_cast<std::uint32_t>(value);
  if (value == U'\n') return "\\n";
  if (value == U'\t') return "\\t";
  if (value == U'\r') return "\\r";
  if (value < 0x100) return fmt::format("\\x{:02x}", number);
  return value < 0x10000 ? fmt::format("\\u{:04x}", number) : fmt::format("\\U{:08x}", number);
}

}  // namespace

std::string escape(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  while (!text.empty()) {
    const CodePoint point = decode(text);
    const std::size_t length = point.length == 0 ? 1 : point.length;
    if (point.length == 0)
      out += fmt::format("\\x{:02x}", static_cast<unsigned char>(text.front()));
    else if (is_unsafe(point.value))
      out += escape_code_point(point.value);
    else
      out += text.substr(0, length);
    text.remove_prefix(length);
  }
  return out;
}

std::string shorten(std::string_view text, std::size_t limit) {
  constexpr std::string_view kGap = "...";
  if (text.size() <= limit || limit <= kGap.size()) return std::string(text.substr(0, limit));
  std::size_t head = (limit - kGap.size() + 1) / 2;
  std::size_t tail = text.size() - (limit - kGap.size() - head);
  while (head > 0 && is_continuation(text[head])) --head;
  while (tail < text.size() && is_continuation(text[tail])) ++tail;
  return fmt::format("{}{}{}", text.substr(0, head), kGap, text.substr(tail));
}

std::size_t display_width(std::string_view text) noexcept {
  std::size_t width = 0;
  while (!text.empty()) {
    const CodePoint point = decode(text);
    width += is_wide(point.value) ? 2 : 1;
    text.remove_prefix(std::max<std::size_t>(point.length, 1));
  }
  return width;
}

std::string fill_line(std::string_view line, std::size_t indent, std::size_t columns) {
  std::string out;
  std::size_t used = 0;
  while (!line.empty()) {
    const std::string_view word = line.substr(0, line.find(' '));
    if (used > 0 && indent + used + 1 + display_width(word) > columns) {
      out += '\n' + std::string(indent, ' ');
      used = 0;
    }
    out += used > 0 ? " " : "";
    out += word;
    used += (used > 0 ? 1 : 0) + display_width(word);
    line.remove_prefix(std::min(line.size(), word.size() + 1));
  }
  return out;
}

std::string format_bytes(std::uint64_t bytes) {
  if (bytes < 1000) return fmt::format("{} B", bytes);
  constexpr std::array<std::string_view, 6> kUnits = {"kB", "MB", "GB", "TB", "PB", "EB"};
  double value = static_cast<double>(bytes) / 1000;
  std::size_t unit = 0;
  while (value >= 999.5 && unit + 1 < kUnits.size()) {
    value /= 1000;
    ++unit;
  }
  const int decimals = value < 10 ? 2 : value < 100 ? 1 : 0;
  return fmt::format("{:.{}f} {}", value, decimals, kUnits[unit]);
}

std::string format_count(std::uint64_t count) {
  std::string digits = std::to_string(count);
  for (std::size_t place = digits.size(); place > 3; place -= 3) digits.insert(place - 3, 1, ',');
  return digits;
}

std::string format_number(double value) { return fmt::format("{}", value); }

std::string format_age(double seconds) {
  if (!(seconds > 0)) return "0 s";
  struct Unit {
    double seconds;
    std::string_view name;
  };
  constexpr std::array<Unit, 3> kUnits = {{{86400, "d"}, {3600, "h"}, {60, "min"}}};
  for (const Unit& unit : kUnits)
    if (seconds >= 2 * unit.seconds)
      return fmt::format("{:.0f} {}", std::floor(seconds / unit.seconds), unit.name);
  return fmt::format("{:.0f} s", std::floor(seconds));
}

std::string format_time(double since_1970) {
  constexpr double kYear10000 = 253402300800.0;
  if (!(since_1970 > 0) || since_1970 >= kYear10000) return "";
  const auto seconds = static_cast<std::time_t>(since_1970);
  std::tm parts{};
  std::array<char, 32> text{};
  if (gmtime_r(&seconds, &parts) == nullptr) return "";
  return {text.data(), std::strftime(text.data(), text.size(), "%Y-%m-%d %H:%M:%S UTC", &parts)};
}

std::string plural(std::uint64_t count, std::string_view noun) {
  return fmt::format("{} {}{}", format_count(count), noun, count == 1 ? "" : "s");
}

}  // namespace perdure::cli
