#include "engine/name_selection.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <perdure/error.hpp>

namespace perdure::engine {
namespace {

constexpr std::size_t kMaxListed = 20;

std::string quoted(const std::vector<std::string>& names) {
  std::string text;
  for (std::size_t i = 0; i < std::min(names.size(), kMaxListed); ++i)
    text += fmt::format("{}\"{}\"", i == 0 ? "" : ", ", names[i]);
  if (names.size() > kMaxListed) text += fmt::format(" and {} more", names.size() - kMaxListed);
  return text;
}

}  // namespace

NameSelection::NameSelection(const std::vector<std::string>& only) {
  for (const std::string& text : only) choices_.push_back({NamePattern(text)});
}

bool NameSelection::takes(std::string_view name, Side side) {
  bool taken = all();
  for (Choice& choice : choices_) {
    if (!choice.pattern.match(name)) continue;
    (side == Side::file ? choice.in_file : choice.here) = true;
    taken = true;
  }
  return taken;
}

bool NameSelection::takes_whole(const std::string& entry, Side side) {
  bool taken = takes(entry, side) || takes(entry + ".", side);
  for (const Choice& choice : choices_)
    if (!taken && choice.pattern.text().starts_with(entry + "."))
      throw Error(ErrorCode::invalid,
                  fmt::format("only=[\"{}\"]: \"{}\" is restored whole or not at all: write "
                              "only=[\"{}\"]",
                              choice.pattern.text(), entry, entry));
  return taken;
}

void NameSelection::require_found(const std::vector<std::string>& in_file,
                                  const std::vector<std::string>& here) const {
  for (const Choice& choice : choices_) {
    const std::string& text = choice.pattern.text();
    if (!choice.here)
      throw Error(ErrorCode::invalid, fmt::format("only=[\"{}\"]: nothing here has such a name{}",
                                                  text, what_there_is(text, here)));
    if (!choice.in_file)
      throw Error(ErrorCode::invalid,
                  fmt::format("only=[\"{}\"]: nothing in the file has such a name{}", text,
                              what_there_is(text, in_file)));
  }
}

std::string what_there_is(std::string_view wanted, const std::vector<std::string>& names) {
  std::string text;
  if (const auto similar = similar_names(wanted, names); !similar.empty())
    text = fmt::format("; did you mean {}?", quoted(similar));
  return text + fmt::format("{} There is: {}", text.empty() ? "." : "",
                            names.empty() ? "nothing" : quoted(names));
}

}  // namespace perdure::engine
