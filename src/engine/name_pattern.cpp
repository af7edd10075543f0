#include "engine/name_pattern.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <numeric>
#include <perdure/error.hpp>
#include <utility>

namespace perdure::engine {
namespace {

std::vector<std::string> split_at_stars(std::string_view text) {
  std::vector<std::string> pieces;
  std::size_t begin = 0;
  for (std::size_t star; (star = text.find('*', begin)) != text.npos; begin = star + 1)
    pieces.emplace_back(text.substr(begin, star - begin));
  pieces.emplace_back(text.substr(begin));
  return pieces;
}

// How many characters must be put in, left out, replaced, or exchanged with their neighbour.
std::size_t edit_distance(std::string_view a, std::string_view b) {
  std::vector<std::size_t> before(b.size() + 1), last(b.size() + 1), row(b.size() + 1);
  std::iota(row.begin(), row.end(), 0);
  for (std::size_t i = 1; i <= a.size(); ++i) {
    before = std::exchange(last, row);
    row[0] = i;
    for (std::size_t j = 1; j <= b.size(); ++j) {
      row[j] =
          std::min({last[j - 1] + (a[i - 1] == b[j - 1] ? 0 : 1), last[j] + 1, row[j - 1] + 1});
      if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1])
        row[j] = std::min(row[j], before[j - 2] + 1);
    }
  }
  return row.back();
}

// Looking for what was meant must not take longer than the error is worth.
constexpr std::size_t kMaxCandidates = 2000;
constexpr std::size_t kMaxLength = 100;

}  // namespace

NamePattern::NamePattern(std::string text)
    : text_(std::move(text)), pieces_(split_at_stars(text_)) {
  if (text_.empty()) throw Error(ErrorCode::invalid, "a name or pattern is empty");
}

std::optional<std::vector<std::string_view>> NamePattern::match(std::string_view name) const {
  const std::string& first = pieces_.front();
  if (!name.starts_with(first)) return std::nullopt;
  std::string_view rest = name.substr(first.size());
  if (stars() == 0) {
    if (!rest.empty() && rest.front() != '.') return std::nullopt;
    return std::vector{rest};
  }
  std::vector<std::string_view> captures;
  for (std::size_t i = 1; i + 1 < pieces_.size(); ++i) {
    const std::size_t at = rest.find(pieces_[i]);
    if (at == rest.npos) return std::nullopt;
    captures.push_back(rest.substr(0, at));
    rest.remove_prefix(at + pieces_[i].size());
  }
  if (!rest.ends_with(pieces_.back())) return std::nullopt;
  rest.remove_suffix(pieces_.back().size());
  captures.push_back(rest);
  return captures;
}

NameRule::NameRule(const std::string& from, const std::string& to)
    : from_(from), to_(split_at_stars(to)) {
  if (to.empty() || to_.size() - 1 != from_.stars())
    throw Error(ErrorCode::invalid,
                fmt::format("rename=\"{}\": \"{}\" must have a name and as many * on both sides",
                            from, to));
}

std::optional<std::string> NameRule::rename(std::string_view name) const {
  const auto captures = from_.match(name);
  if (!captures) return std::nullopt;
  std::string renamed = to_.front();
  for (std::size_t i = 0; i < captures->size(); ++i) {
    renamed += (*captures)[i];
    if (i + 1 < to_.size()) renamed += to_[i + 1];
  }
  return renamed;
}

std::vector<std::string> similar_names(std::string_view wanted,
                                       const std::vector<std::string>& candidates) {
  const bool open_end = wanted.find('*') != wanted.npos;
  wanted = wanted.substr(0, std::min(wanted.find('*'), kMaxLength));
  if (wanted.empty()) return {};
  std::vector<std::pair<std::size_t, std::string>> close;
  for (std::size_t i = 0; i < std::min(candidates.size(), kMaxCandidates); ++i) {
    const std::string_view candidate =
        std::string_view(candidates[i]).substr(0, open_end ? wanted.size() : kMaxLength);
    const std::size_t distance = edit_distance(wanted, candidate);
    if (distance <= std::max(wanted.size(), candidate.size()) / 3 ||
        candidate.find(wanted) != candidate.npos)
      close.emplace_back(distance, candidates[i]);
  }
  std::ranges::stable_sort(close, {}, &std::pair<std::size_t, std::string>::first);
  std::vector<std::string> names;
  for (auto& [distance, name] : close)
    if (names.size() < 3) names.push_back(std::move(name));
  return names;
}

}  // namespace perdure::engine
