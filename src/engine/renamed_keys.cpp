#include "engine/renamed_keys.hpp"

#include <fmt/ranges.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <map>
#include <string_view>
#include <unordered_map>
#include <unordered_set>

namespace perdure::engine {
namespace {

using Parts = std::vector<std::string_view>;

Parts parts_of(std::string_view name) {
  Parts parts;
  for (std::size_t dot; (dot = name.find('.')) != name.npos; name.remove_prefix(dot + 1))
    parts.push_back(name.substr(0, dot));
  parts.push_back(name);
  return parts;
}

std::string without_part(const Parts& parts, std::size_t place) {
  std::string text;
  for (std::size_t i = 0; i < parts.size(); ++i)
    if (i != place) text.append(text.empty() ? "" : ".").append(parts[i]);
  return text;
}

// Names by traces that they share with names like them: themselves, themselves without any one of
// their parts, and every end of theirs. A trace that many leave leads nowhere.
class Traces {
 public:
  explicit Traces(const std::vector<Misfit>& misfits) : misfits_(misfits) {
    for (std::size_t i = 0; i < misfits.size(); ++i)
      if (misfits[i].what == Mismatch::missing)
        for_each_trace(i, [&](const std::string& trace) {
          add(trace, i);
          return false;
        });
  }

  // The place of the missing one that is most like the unexpected one at `place`.
  std::size_t most_like(std::size_t place) {
    std::size_t found = kNone;
    for_each_trace(place, [&](const std::string& trace) {
      const auto at = by_trace_.find(trace);
      if (at == by_trace_.end()) return false;
      found = only_free(at->second, place);
      return found != kNone;
    });
    if (found != kNone) used_.insert(found);
    return found;
  }
  static constexpr std::size_t kNone = static_cast<std::size_t>(-1);

 private:
  static constexpr std::size_t kEnough = 8;
  static constexpr std::size_t kMaxParts = 32;

  // From the most telling to the least, until `f` says that it is enough.
  template <class F>
  void for_each_trace(std::size_t place, const F& f) {
    const std::string& name = misfits_[place].name;
    const Parts parts = parts_of(name);
    if (parts.size() > kMaxParts) return;
    if (f(name)) return;
    for (std::size_t i = 0; i < parts.size() && parts.size() > 1; ++i)
      if (f(without_part(parts, i))) return;
    std::string_view end = name;
    for (std::size_t i = 0; i + 1 < parts.size(); ++i) {
      end.remove_prefix(parts[i].size() + 1);
      if (f("." + std::string(end))) return;
    }
  }

  void add(const std::string& trace, std::size_t place) {
    auto& places = by_trace_[trace];
    if (places.size() <= kEnough) places.push_back(place);
  }

  std::size_t only_free(const std::vector<std::size_t>& places, std::size_t wanted) const {
    std::size_t found = kNone;
    if (places.size() > kEnough) return kNone;
    for (const std::size_t place : places) {
      if (used_.contains(place) || !may_be(misfits_[wanted], misfits_[place])) continue;
      if (found != kNone) return kNone;
      found = place;
    }
    return found;
  }

  // Of two names that differ in the last part ("weight", "bias") the parts must be alike.
  static bool may_be(const Misfit& in_file, const Misfit& here) {
    if (in_file.shape != here.shape || in_file.shape == kNoTensor) return false;
    const std::string a(parts_of(in_file.name).back()), b(parts_of(here.name).back());
    return a == b || !similar_names(a, {b}).empty();
  }

  const std::vector<Misfit>& misfits_;
  std::unordered_map<std::string, std::vector<std::size_t>> by_trace_;
  std::unordered_set<std::size_t> used_;
};

bool is_number(std::string_view part) {
  return !part.empty() && std::ranges::all_of(part, [](char c) { return c >= '0' && c <= '9'; });
}

std::string joined(const Parts& parts) { return fmt::format("{}", fmt::join(parts, ".")); }

// What two names have in common, at the front and at the end, becomes "*" as far as it varies.
struct Change {
  Parts front, from, to;
  bool has_end = false;

  explicit Change(const RenamedKey& renamed) {
    const Parts a = parts_of(renamed.in_file), b = parts_of(renamed.here);
    const std::size_t least = std::min(a.size(), b.size());
    std::size_t end = 0, begin = 0;
    // The entry's own name stays in front; it is no part of what the ends have in common.
    while (end + 1 < least && a[a.size() - 1 - end] == b[b.size() - 1 - end]) ++end;
    while (begin + end < least && a[begin] == b[begin]) ++begin;
    front.assign(a.begin(), a.begin() + static_cast<std::ptrdiff_t>(begin));
    from.assign(a.begin() + static_cast<std::ptrdiff_t>(begin),
                a.end() - static_cast<std::ptrdiff_t>(end));
    to.assign(b.begin() + static_cast<std::ptrdiff_t>(begin),
              b.end() - static_cast<std::ptrdiff_t>(end));
    has_end = end > 0;
  }

  std::pair<std::string, std::string> rule(bool any_number) const {
    Parts left = front;
    if (any_number) std::ranges::replace_if(left, is_number, "*");
    Parts right = left;
    left.insert(left.end(), from.begin(), from.end());
    right.insert(right.end(), to.begin(), to.end());
    if (has_end) left.push_back("*"), right.push_back("*");
    return {joined(left), joined(right)};
  }
};

using Rule = std::pair<std::string, std::string>;

constexpr std::size_t kMaxTries = 16;  // of rules, each of which is held against all names
constexpr std::size_t kMaxRules = 8;   // that a person will read

// Whether a rule gives all that it fits the names that were found for them.
bool is_true(const Rule& rule, const std::vector<RenamedKey>& renamed,
             const std::vector<Misfit>& misfits, const std::vector<std::string>& fitting) {
  const NameRule named(rule.first, rule.second);
  std::ptrdiff_t right = 0;
  for (const RenamedKey& key : renamed) {
    const auto name = named.rename(key.in_file);
    if (name && *name != key.here) return false;
    if (name) ++right;
  }
  const auto fits = [&](const Misfit& misfit) {
    return misfit.what == Mismatch::unexpected && named.rename(misfit.name).has_value();
  };
  return right == std::ranges::count_if(misfits, fits) &&
         std::ranges::none_of(
             fitting, [&](const std::string& name) { return named.rename(name).has_value(); });
}

}  // namespace

std::vector<RenamedKey> find_renamed(const std::vector<Misfit>& misfits) {
  Traces traces(misfits);
  std::vector<RenamedKey> renamed;
  for (std::size_t i = 0; i < misfits.size(); ++i) {
    if (misfits[i].what != Mismatch::unexpected) continue;
    if (const std::size_t found = traces.most_like(i); found != Traces::kNone)
      renamed.push_back({misfits[i].name, misfits[found].name});
  }
  return renamed;
}

RenameRules rules_for(const std::vector<RenamedKey>& renamed, const std::vector<Misfit>& misfits,
                      const std::vector<std::string>& fitting) {
  std::map<Rule, std::map<Rule, std::vector<const RenamedKey*>>> groups;
  for (const RenamedKey& key : renamed) {
    const Change change(key);
    groups[change.rule(true)][change.rule(false)].push_back(&key);
  }
  RenameRules rules;
  std::size_t tries = 0;
  const auto try_rule = [&](const Rule& rule) {
    if (++tries > kMaxTries || rules.size() >= kMaxRules ||
        !is_true(rule, renamed, misfits, fitting))
      return false;
    rules.push_back(rule);
    return true;
  };
  for (const auto& [general, members] : groups) {
    if (members.size() > 1 && try_rule(general)) continue;
    for (const auto& [literal, keys] : members) {
      if (keys.size() > 1 && try_rule(literal)) continue;
      for (const RenamedKey* key : keys)
        if (rules.size() < kMaxRules) rules.emplace_back(key->in_file, key->here);
    }
  }
  return rules;
}

}  // namespace perdure::engine
