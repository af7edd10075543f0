#include "terminal.hpp"

#include <fmt/format.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <cstdlib>

#include "text.hpp"

namespace perdure::cli {

bool shows_color(int descriptor) {
  const char* refused = std::getenv("NO_COLOR");
  const char* term = std::getenv("TERM");
  if (refused != nullptr && *refused != '\0') return false;
  return ::isatty(descriptor) == 1 && term != nullptr && std::string_view(term) != "dumb";
}

std::string styled(std::string_view text, Style style) {
  if (style == Style::plain || text.empty() || !shows_color(STDOUT_FILENO))
    return std::string(text);
  return fmt::format("\x1b[{}m{}\x1b[0m", static_cast<int>(style), text);
}

std::optional<std::size_t> output_columns() {
  if (::isatty(STDOUT_FILENO) != 1) return std::nullopt;
  return terminal_columns(STDOUT_FILENO);
}

std::string indented(std::string_view text, std::size_t spaces) {
  const std::string space(spaces, ' ');
  const auto columns = output_columns();
  return space + (columns ? fill_line(text, spaces, *columns) : std::string(text)) + '\n';
}

std::size_t terminal_columns(int descriptor) {
  winsize size{};
  return ::ioctl(descriptor, TIOCGWINSZ, &size) == 0 && size.ws_col > 0 ? size.ws_col : 80;
}

}  // namespace perdure::cli
