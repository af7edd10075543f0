// Text for people: numbers with units, times, and strings of unknown origin made harmless.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace perdure::cli {

// What comes from a file may hold anything: escape sequences that rewrite the terminal, direction
// marks that reorder a line, broken UTF-8. All of that becomes \x1b, \u202e, ...; printable text
// stays.
std::string escape(std::string_view text);
// At most `limit` bytes; where something is cut, "..." stands in the middle. Never splits a code
// point.
std::string shorten(std::string_view text, std::size_t limit);
// Columns that `text` (escaped) takes in a terminal.
std::size_t display_width(std::string_view text) noexcept;
// One line as several that end at `columns`, broken between words; all but the first begin with
// `indent` spaces, and the first will be printed behind so many.
std::string fill_line(std::string_view line, std::size_t indent, std::size_t columns);

std::string format_bytes(std::uint64_t bytes);  // "812 B", "1.49 GB" (decimal units)
std::string format_count(std::uint64_t count);  // "124,439,808"
std::string format_number(double value);        // shortest that reads back equal: "2.31", "nan"
std::string format_age(double seconds);         // "45 s", "3 min", "2 h", "5 d"
std::string format_time(
    double since_1970);  // "2026-01-02 03:04:05 UTC"; "" where it is no sane time
// "1 tensor", "2 tensors".
std::string plural(std::uint64_t count, std::string_view noun);

}  // namespace perdure::cli
