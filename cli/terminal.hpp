// Colour, where the output is read by a person.
#pragma once

#include <map>
#include <string>
#include <string_view>

namespace perdure::cli {

enum class Color { red = 31, green = 32, yellow = 33 };

// Whether standard output is a terminal that shows colours: not with NO_COLOR in the environment
// (https://no-color.org), nor on a dumb one.
bool shows_color();

// Each line that begins with one of these in its color; as it is where none is shown. The text must
// have been escaped.
std::string color_lines(std::string_view text, const std::map<char, Color>& colors);

}  // namespace perdure::cli
