#include "engine/flat_state.hpp"

#include <fmt/format.h>

#include <unordered_map>
#include <unordered_set>

namespace perdure::engine {
namespace {

std::string text_of(const Value& key) {
  return key.kind() == Kind::string ? key.as_string() : repr(key, 1000);
}

class Flattening {
 public:
  std::vector<FlatEntry> take(const Value& state) {
    for (const auto& [key, item] : state.as_dict()) walk_at(key, item);
    return std::move(entries_);
  }

 private:
  void walk_at(const Value& key, const Value& value) {
    path_.push_back(key);
    if (value.kind() == Kind::composite)
      add(value);  // one tensor, whatever it is made of
    else if (value.is_mapping() && !value.as_dict().empty())
      for (const auto& [inner, item] : value.as_dict()) walk_at(inner, item);
    else if (value.kind() == Kind::list && holds_tensors(value))
      for (std::size_t i = 0; i < value.as_items().size(); ++i)
        walk_at(Value(i), value.as_items()[i]);
    else
      add(value);
    path_.pop_back();
  }
  bool holds_tensors(const Value& value) {
    if (value.kind() == Kind::tensor) return true;
    if (!value.is_mapping() && value.kind() != Kind::list) return false;
    if (const auto it = holds_.find(value.identity()); it != holds_.end()) return it->second;
    bool found = false;
    if (value.is_mapping())
      for (const auto& entry : value.as_dict()) found = found || holds_tensors(entry.second);
    else
      for (const Value& item : value.as_items()) found = found || holds_tensors(item);
    return holds_[value.identity()] = found;
  }
  void add(const Value& value) {
    std::string name = flat_name(path_);
    if (!names_.insert(name).second)
      throw Error(
          ErrorCode::invalid,
          fmt::format("{} has the name {} in the format that is written, and so has another "
                      "value; rename one of them",
                      format_path(path_), repr(Value(name))));
    entries_.push_back({std::move(name), path_, value});
  }

  KeyPath path_;
  std::unordered_map<const void*, bool> holds_;
  std::unordered_set<std::string> names_;
  std::vector<FlatEntry> entries_;
};

}  // namespace

std::string flat_name(const KeyPath& path) {
  std::string name;
  for (const Value& key : path) name += (&key == &path[0] ? "" : ".") + text_of(key);
  return name;
}

KeyPath dcp_path(const KeyPath& path, const Value& state) {
  KeyPath out;
  const Value* at = &state;
  for (const Value& key : path) {
    if (at->is_mapping()) {
      out.push_back(key.kind() == Kind::string ? key : Value(repr(key, 1000)));
      at = at->as_dict().find(key);
    } else {
      out.push_back(key);
      at = &at->as_items()[static_cast<std::size_t>(key.as_int())];
    }
  }
  return out;
}

std::vector<FlatEntry> flatten(const Value& state) {
  if (!state.is_mapping() || state.kind() == Kind::composite)
    throw Error(ErrorCode::invalid,
                fmt::format("the state is a {}, and the format that is written holds names: only a "
                            "dict has them",
                            kind_name(state.kind())));
  return Flattening().take(state);
}

}  // namespace perdure::engine
