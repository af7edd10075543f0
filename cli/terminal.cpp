#include "terminal.hpp"

#include <fmt/format.h>
#include <unistd.h>

#include <cstdlib>

namespace perdure::cli {

bool shows_color() {
  const char* refused = std::getenv("NO_COLOR");
  const char* term = std::getenv("TERM");
  if (refused != nullptr && *refused != '\0') return false;
  return ::isatty(STDOUT_FILENO) == 1 && term != nullptr && std::string_view(term) != "dumb";
}

std::string color_lines(std::string_view text, const std::map<char, Color>& colors) {
  if (!shows_color()) return std::string(text);
  std::string out;
  while (!text.empty()) {
    const std::string_view line = text.substr(0, text.find('\n'));
    const auto it = line.empty() ? colors.end() : colors.find(line.front());
    if (it == colors.end())
      out += line;
    else
      out += fmt::format("\x1b[{}m{}\x1b[0m", static_cast<int>(it->second), line);
    out += '\n';
    text.remove_prefix(std::min(line.size() + 1, text.size()));
  }
  return out;
}

}  // namespace perdure::cli
