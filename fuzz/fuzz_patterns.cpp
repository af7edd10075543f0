// Patterns of names, those of a restore and those of the command, compared with the plain way to
// match: a table of which part of one fits which part of the other. The input is pattern, name and
// replacement, one a line.
#include <algorithm>
#include <vector>

#include "engine/name_pattern.hpp"
#include "engine/name_selection.hpp"
#include "perdure/error.hpp"
#include "require.hpp"
#include "text.hpp"
#include "tree.hpp"

namespace {

using namespace perdure;

// `any`: stands for any one character; 0 for none.
bool fits(std::string_view pattern, std::string_view name, char any) {
  std::vector<bool> row(name.size() + 1);
  row[0] = true;
  for (const char p : pattern) {
    std::vector<bool> next(row.size());
    next[0] = p == '*' && row[0];
    for (std::size_t i = 1; i < row.size(); ++i)
      next[i] = p == '*' ? row[i] || next[i - 1]
                         : row[i - 1] && (p == name[i - 1] || (any != 0 && p == any));
    row = std::move(next);
  }
  return row.back();
}

bool is_selected(std::string_view pattern, std::string_view name) {
  if (pattern.find('*') != pattern.npos) return fits(pattern, name, 0);
  return name.starts_with(pattern) &&
         (name.size() == pattern.size() || name[pattern.size()] == '.');
}

void check_captures(const engine::NamePattern& pattern, std::string_view name,
                    const std::vector<std::string_view>& captures) {
  std::string again;
  std::size_t next = 0;
  for (const char c : pattern.text())
    if (c == '*')
      again += captures.at(next++);
    else
      again += c;
  if (pattern.stars() == 0) again += captures.at(next++);
  fuzz::require(again == name && next == captures.size(), "captures that do not make up the name");
}

void check_rule(const std::string& from, const std::string& to, const std::string& name) {
  try {
    const auto renamed = engine::NameRule(from, to).rename(name);
    fuzz::require(renamed.has_value() == is_selected(from, name), "a rule that fits otherwise");
    const auto same = engine::NameRule(from, from).rename(name);
    fuzz::require(!same || *same == name, "a rule that changes nothing changes the name");
  } catch (const Error& error) {
    fuzz::require(error.code() == ErrorCode::invalid, error.what());
    fuzz::require(
        from.empty() || std::ranges::count(from, '*') != std::ranges::count(to, '*') || to.empty(),
        std::string("a good rule is refused: ") + error.what());
  }
}

void check_selection(const std::string& from, const std::string& name) {
  engine::NameSelection selection({from});
  fuzz::require(selection.takes(name, engine::Side::here) == is_selected(from, name),
                "a selection of something else");
  engine::what_there_is(from, {name, from, name + from});
}

void check_text(const std::string& text) {
  const std::string shown = cli::escape(text);
  const auto is_odd = [](char c) { return static_cast<unsigned char>(c) < 0x20 || c == 0x7F; };
  fuzz::require(std::ranges::none_of(shown, is_odd), "a control character gets through");
  fuzz::require(cli::escape(shown) == shown, "what is escaped is escaped again");
  for (const std::size_t limit : {std::size_t{4}, std::size_t{10}, text.size()})
    fuzz::require(cli::shorten(text, limit).size() <= std::max(limit, text.size()), "longer");
  fuzz::require(cli::shorten(text, 10).size() <= 10, "not as short as asked for");
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  std::vector<std::string> lines(1);
  for (const char c : fuzz::text_of(data, std::min<std::size_t>(size, 600)))
    if (c == '\n' && lines.size() < 3)
      lines.emplace_back();
    else
      lines.back() += c;
  lines.resize(3);
  const auto& [pattern, name, to] = std::tie(lines[0], lines[1], lines[2]);
  fuzz::require(cli::matches(pattern, name) == fits(pattern, name, '?'), "the command's match");
  check_text(name);
  check_rule(pattern, to, name);
  if (pattern.empty()) return 0;
  const engine::NamePattern named(pattern);
  const auto captures = named.match(name);
  fuzz::require(captures.has_value() == is_selected(pattern, name), "the match of a restore");
  if (captures) check_captures(named, name, *captures);
  check_selection(pattern, name);
  return 0;
}
