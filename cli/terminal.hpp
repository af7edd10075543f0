// Colour and width, where the output is read by a person.
#pragma once

#include <cstddef>
#include <optional>
#include <string>
#include <string_view>

namespace perdure::cli {

enum class Style { plain = 0, bold = 1, dim = 2, red = 31, green = 32, yellow = 33 };

// Whether what is written to this descriptor is seen in colour: on a terminal that is not dumb, and
// not with NO_COLOR in the environment (https://no-color.org).
bool shows_color(int descriptor);

// The text as standard output shows it in this style: as it is where no colour is shown. It must
// have been escaped.
std::string styled(std::string_view text, Style style);

// Of the terminal that standard output is; nothing where it is none, so that lines may be as long
// as they like.
std::optional<std::size_t> output_columns();

// A line of text (escaped), behind so many spaces, on a terminal filled between words.
std::string indented(std::string_view text, std::size_t spaces);

// Of the terminal behind a descriptor; 80 where that does not say.
std::size_t terminal_columns(int descriptor);

}  // namespace perdure::cli
