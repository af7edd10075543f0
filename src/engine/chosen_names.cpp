#include "engine/chosen_names.hpp"

#include <fmt/format.h>

#include <functional>
#include <optional>
#include <unordered_set>

#include "engine/name_pattern.hpp"
#include "engine/name_selection.hpp"

namespace perdure::engine {
namespace {

std::string text_of(const Value& key) {
  return key.kind() == Kind::string ? key.as_string() : repr(key, 1000);
}
std::string below(const std::string& name, const Value& key) {
  return name.empty() ? text_of(key) : name + "." + text_of(key);
}

// A composite is one tensor, whatever it is made of.
bool has_names(const Value& value) {
  return value.is_mapping() && value.kind() != Kind::composite && !value.as_dict().empty();
}

// Walks the dicts of a state. `keep` says what becomes of a value: it stays, it goes, or nullopt:
// what is in it is looked at. A dict of which nothing stays goes, too.
using Keep = std::function<std::optional<bool>(const std::string& name, const Value& value)>;

std::optional<Value> filtered(const Value& value, const std::string& name, const Keep& keep,
                              bool otherwise) {
  if (!has_names(value)) return otherwise ? std::optional(value) : std::nullopt;
  const Dict& dict = value.as_dict();
  Dict out(dict.kind());
  out.set_attributes(dict.attributes());
  for (const auto& [key, item] : dict) {
    const std::string inner = below(name, key);
    if (const auto answer = keep(inner, item)) {
      if (*answer) out.set(key, item);
    } else if (auto rest = filtered(item, inner, keep, otherwise)) {
      out.set(key, std::move(*rest));
    }
  }
  if (out.size() == dict.size() && otherwise) {
    bool same = true;
    for (std::size_t i = 0; i < out.size() && same; ++i)
      same = out.entries()[i].second.identity() == dict.entries()[i].second.identity();
    if (same) return value;  // what is shared stays so
  }
  if (out.empty()) return std::nullopt;
  return Value(std::move(out));
}

std::vector<std::string> names_of(const Value& state) {
  std::vector<std::string> names;
  for (const auto& [key, item] : state.as_dict()) {
    const std::string name = text_of(key);
    names.push_back(name);
    if (!has_names(item)) continue;
    for (const auto& entry : item.as_dict()) names.push_back(below(name, entry.first));
  }
  return names;
}

void require_dict(const Value& state, const char* what) {
  if (state.is_mapping()) return;
  throw Error(ErrorCode::invalid, fmt::format("{}: the file holds a {}, and only what is in a dict "
                                              "has a name",
                                              what, kind_name(state.kind())));
}

}  // namespace

Value choose(const Value& state, const std::vector<std::string>& patterns) {
  require_dict(state, "only");
  std::vector<std::pair<NamePattern, bool>> choices;
  for (const std::string& pattern : patterns) choices.emplace_back(NamePattern(pattern), false);
  const auto keep = [&](const std::string& name, const Value&) -> std::optional<bool> {
    bool found = false;
    for (auto& [pattern, used] : choices)
      if (pattern.match(name)) found = used = true;
    return found ? std::optional(true) : std::nullopt;
  };
  auto out = filtered(state, "", keep, false);
  for (const auto& [pattern, used] : choices)
    if (!used)
      throw Error(ErrorCode::invalid,
                  fmt::format("only: nothing in the file has the name \"{}\"{}", pattern.text(),
                              what_there_is(pattern.text(), names_of(state))));
  return out.value_or(Value(Dict()));
}

namespace {

class Moving {
 public:
  explicit Moving(const std::vector<std::pair<std::string, std::string>>& rules) {
    for (const auto& [from, to] : rules) rules_.push_back({NameRule(from, to), from, false});
  }

  Value move(const Value& state) {
    const auto keep = [this](const std::string& name, const Value& value) {
      return taken(name, value) ? std::optional(false) : std::nullopt;
    };
    Value out = filtered(state, "", keep, true).value_or(Value(Dict()));
    if (moved_.empty()) return out;
    Dict top(out.as_dict().kind());
    top.set_attributes(out.as_dict().attributes());
    for (const auto& [key, item] : out.as_dict()) top.set(key, item);
    for (auto& [name, value] : moved_) place(top, name, std::move(value));
    return Value(std::move(top));
  }
  void require_used(const Value& state) const {
    for (const Rule& rule : rules_)
      if (!rule.used)
        throw Error(ErrorCode::invalid,
                    fmt::format("rename: nothing in the file has the name \"{}\"{}", rule.from,
                                what_there_is(rule.from, names_of(state))));
  }

 private:
  struct Rule {
    NameRule rule;
    std::string from;
    bool used = false;
  };

  bool taken(const std::string& name, const Value& value) {
    for (Rule& rule : rules_) {
      const auto renamed = rule.rule.rename(name);
      if (!renamed) continue;
      rule.used = true;
      moved_.emplace_back(*renamed, value);
      return true;
    }
    return false;
  }
  void place(Dict& top, const std::string& name, Value value) {
    for (std::size_t dot = name.rfind('.'); dot != name.npos && dot > 0;
         dot = name.rfind('.', dot - 1)) {
      Value* entry = top.find(Value(name.substr(0, dot)));
      if (entry == nullptr || !entry->is_mapping() || entry->kind() == Kind::composite) continue;
      if (!own_.contains(entry->identity())) {  // the file's is left as it is
        *entry = Value(Dict(entry->as_dict()));
        own_.insert(entry->identity());
      }
      put(entry->as_dict(), name.substr(dot + 1), std::move(value), name);
      return;
    }
    put(top, name, std::move(value), name);
  }
  static void put(Dict& dict, const std::string& key, Value value, const std::string& name) {
    if (key.empty() || dict.find(Value(key)) != nullptr)
      throw Error(ErrorCode::invalid,
                  fmt::format("rename: two values would have the name \"{}\"", name));
    dict.set(Value(key), std::move(value));
  }

  std::vector<Rule> rules_;
  std::vector<std::pair<std::string, Value>> moved_;
  std::unordered_set<const void*> own_;  // dicts that were made here
};

bool is_optimizer(const Value& value) {
  return value.contains("state") && value.contains("param_groups");
}

}  // namespace

Value move_names(const Value& state,
                 const std::vector<std::pair<std::string, std::string>>& rules) {
  require_dict(state, "rename");
  Moving moving(rules);
  Value out = moving.move(state);
  moving.require_used(state);
  return out;
}

Value without_optimizers(const Value& state, std::vector<std::string>& left_out) {
  if (!state.is_mapping()) return state;
  const auto keep = [&](const std::string& name, const Value& value) -> std::optional<bool> {
    if (!is_optimizer(value)) return std::nullopt;
    left_out.push_back(name);
    return false;
  };
  return filtered(state, "", keep, true).value_or(Value(Dict()));
}

}  // namespace perdure::engine
