#include "engine/explanation.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <iterator>
#include <perdure/state.hpp>
#include <unordered_map>
#include <unordered_set>

#include "engine/key_match.hpp"
#include "engine/renamed_keys.hpp"
#include "format/utf8.hpp"

namespace perdure::engine {
namespace {

bool has(const std::vector<Misfit>& misfits, Mismatch what) {
  return std::ranges::any_of(misfits, [&](const Misfit& misfit) { return misfit.what == what; });
}

// One row for what seems to be one thing with two names.
void merge(std::vector<Misfit>& misfits, const std::vector<RenamedKey>& renamed) {
  std::unordered_map<std::string, std::string> by_here;
  std::unordered_set<std::string> in_file;
  for (const RenamedKey& key : renamed) {
    by_here.emplace(key.here, key.in_file);
    in_file.insert(key.in_file);
  }
  std::erase_if(misfits, [&](const Misfit& misfit) {
    return misfit.what == Mismatch::unexpected && in_file.contains(misfit.name);
  });
  for (Misfit& misfit : misfits) {
    const auto found = by_here.find(misfit.name);
    if (misfit.what == Mismatch::missing && found != by_here.end())
      misfit.in_file = fmt::format("did you mean {}?", found->second);
  }
}

std::string rename_advice(const RenameRules& rules) {
  std::string list;
  for (const auto& [from, to] : rules)
    list += fmt::format("{}\"{}\": \"{}\"", list.empty() ? "" : ", ", from, to);
  return fmt::format("rename={{{}}}", list);
}

// Where the file has nothing for some of what is registered, the rest by itself may be wanted.
std::string only_advice(const RenameRules& entry_rules, const std::vector<Misfit>& misfits) {
  std::string list;
  std::unordered_set<std::string> found;
  for (const auto& [from, to] : entry_rules) {
    const std::string entry = to.substr(0, to.find(".*"));
    list += fmt::format("{}\"{}\"", list.empty() ? "" : ", ", entry);
    found.insert(entry);
  }
  const bool others = std::ranges::any_of(misfits, [&](const Misfit& misfit) {
    return misfit.what == Mismatch::missing && !found.contains(misfit.name);
  });
  return list.empty() || !others ? "" : fmt::format(", only=[{}]", list);
}

std::string register_advice(const std::vector<Misfit>& misfits) {
  std::string calls;
  for (const Misfit& misfit : misfits)
    if (misfit.what == Mismatch::unexpected && misfit.here == kNotRegistered && calls.size() < 80)
      calls += fmt::format("{}state.add(\"{}\", ...)", calls.empty() ? "" : ", ", misfit.name);
  return calls;
}

std::string dtype_advice(const std::vector<Misfit>& misfits, bool cast) {
  const bool castable = std::ranges::any_of(misfits, [](const Misfit& misfit) {
    return misfit.what == Mismatch::dtype && misfit.castable;
  });
  if (castable && !cast) return "\n  cast=True converts the dtype of a module's tensors";
  return "\n  convert the module first, model.to(dtype): cast=True keeps to one kind of number, "
         "and "
         "does not narrow integers";
}

std::string advice(const std::vector<Misfit>& misfits, const RenameRules& rules,
                   const Circumstances& circumstances) {
  std::string text;
  if (!rules.empty())
    text += fmt::format("\n  {}{} takes what has another name in the file", rename_advice(rules),
                        only_advice(circumstances.entry_rules, misfits));
  if (has(misfits, Mismatch::dtype)) text += dtype_advice(misfits, circumstances.cast);
  if (const std::string calls = register_advice(misfits); !calls.empty())
    text += fmt::format("\n  {} registers what the file has and this state has not", calls);
  if (has(misfits, Mismatch::missing) || has(misfits, Mismatch::unexpected))
    text +=
        "\n  strict=False skips what only one side has, only=[\"name\", ...] restores nothing but "
        "what it names";
  return text.empty() ? "" : "\nWhat can be done:" + text;
}

// How many keys of `dict` are keys of the module when `prefix` is taken from them.
std::size_t count_fitting(const std::unordered_set<std::string>& own, const Dict& dict,
                          const std::string& prefix) {
  std::size_t count = 0;
  for (const auto& [key, value] : dict)
    if (key.kind() == Kind::string && key.as_string().starts_with(prefix))
      count +=
          own.contains(without_wrappers(std::string_view(key.as_string()).substr(prefix.size())));
  return count;
}

// The prefix that makes at least half of a module out of the dict.
std::optional<std::string> fitting_prefix(const std::unordered_set<std::string>& own,
                                          const Dict& dict) {
  if (dict.empty() || own.empty()) return std::nullopt;
  std::vector<std::string> prefixes = {""};
  const std::string first = name_of("", dict.begin()->first);
  if (const std::size_t dot = first.find('.'); dot != first.npos)
    prefixes.push_back(first.substr(0, dot + 1));
  for (const std::string& prefix : prefixes)
    if (2 * count_fitting(own, dict, prefix) >= own.size()) return prefix;
  return std::nullopt;
}

}  // namespace

std::string explain(std::vector<Misfit> misfits, const Circumstances& circumstances) {
  const auto renamed = find_renamed(misfits);
  RenameRules rules = circumstances.entry_rules;
  std::ranges::copy(rules_for(renamed, misfits, circumstances.fitting), std::back_inserter(rules));
  merge(misfits, renamed);
  std::string text = misfits.empty() ? "" : table_of(misfits);
  for (const std::string& line : circumstances.lines) text += "\n  " + line;
  if (circumstances.options) text += advice(misfits, rules, circumstances);
  return format::printable(text);  // names are the file's, and may be anything
}

std::optional<std::pair<std::string, std::string>> rule_for_entry(const std::string& entry,
                                                                  const Dict& own,
                                                                  const Dict& file) {
  std::unordered_set<std::string> keys;
  for (const auto& [key, value] : own) keys.insert(without_wrappers(name_of("", key)));
  if (const auto prefix = fitting_prefix(keys, file)) return {{*prefix + "*", entry + ".*"}};
  for (const auto& [key, value] : file) {
    if (!value.is_mapping()) continue;
    const auto prefix = fitting_prefix(keys, value.as_dict());
    const std::string name = name_of("", key);
    if (prefix && prefix->empty()) return {{name, entry}};
    if (prefix) return {{name + "." + *prefix + "*", entry + ".*"}};
  }
  return std::nullopt;
}

}  // namespace perdure::engine

namespace perdure::detail {

Value match_state_dict(const Value& in_file, const Value& own, const std::string& what) {
  const std::string front = "the state does not fit " + what + "; nothing was changed:";
  if (!in_file.is_mapping())
    throw Error(ErrorCode::invalid, fmt::format("{}\n  {} in the file, a state_dict is wanted",
                                                front, engine::describe(in_file)));
  engine::NameSelection all({});
  engine::KeyMatch match = engine::match_keys("", in_file.as_dict(), own.as_dict(), false, all);
  if (match.misfits.empty()) return std::move(match.value);
  throw Error(ErrorCode::invalid,
              front + engine::explain(std::move(match.misfits), {.options = false}));
}

}  // namespace perdure::detail
