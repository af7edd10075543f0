#include "help.hpp"

#include <fmt/format.h>

#include <string_view>

#include "text.hpp"

namespace perdure::cli {
namespace {

constexpr std::size_t kColumns = 80;
constexpr std::size_t kNames = 26;     // of options
constexpr std::size_t kCommands = 12;  // of subcommands

std::string fill(std::string_view text, std::size_t indent = 0) {
  std::string out;
  while (!text.empty()) {
    const std::string_view line = text.substr(0, text.find('\n'));
    out += line.starts_with(' ') ? std::string(line) : fill_line(line, indent, kColumns);
    out += '\n';
    text.remove_prefix(std::min(text.size(), line.size() + 1));
  }
  return out;
}

std::string entry(const std::string& name, std::string_view text, std::size_t column) {
  const std::string start = "  " + name;
  if (text.empty()) return start + '\n';
  const std::string gap = start.size() + 2 > column ? '\n' + std::string(column, ' ')
                                                    : std::string(column - start.size(), ' ');
  return start + gap + fill(text, column);
}

std::string_view first_sentence(std::string_view text) {
  std::size_t end = text.size();
  for (const std::string_view stop : {". ", ": ", "; "}) end = std::min(end, text.find(stop));
  const std::string_view out = text.substr(0, end);
  return out.ends_with('.') ? out.substr(0, out.size() - 1) : out;
}

class Formatter final : public CLI::Formatter {
 public:
  std::string make_description(const CLI::App* app) const override {
    return fill(app->get_description()) + '\n';
  }
  std::string make_footer(const CLI::App* app) const override { return fill(app->get_footer()); }
  std::string make_subcommand(const CLI::App* command) const override {
    return entry(command->get_name(), first_sentence(command->get_description()), kCommands);
  }
  std::string make_option(const CLI::Option* option, bool is_positional) const override {
    const std::string name =
        make_option_name(option, is_positional) + (is_positional ? "" : make_option_opts(option));
    return entry(name, option->get_description(), kNames);
  }
  std::string make_option_opts(const CLI::Option* option) const override {
    if (option->get_type_size() == 0) return "";
    const std::string preset = option->get_default_str();
    return fmt::format(" {}{}",
                       option->get_type_name().substr(0, option->get_type_name().find(':')),
                       preset.empty() ? "" : " [" + preset + "]");
  }
};

}  // namespace

std::shared_ptr<CLI::FormatterBase> help_formatter() { return std::make_shared<Formatter>(); }

}  // namespace perdure::cli
