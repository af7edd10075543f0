#include "engine/renaming.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <memory>

#include "engine/name_selection.hpp"

namespace perdure::engine {
namespace {

const Value kMetadata("_metadata");

std::string text_of(const Value& key) {
  return key.kind() == Kind::string ? key.as_string() : repr(key);
}

std::string below(const std::string& path, const std::string& key) {
  return path.empty() ? key : path + "." + key;
}

std::size_t size_of(const Value& container) {
  return container.is_mapping() ? container.as_dict().size() : container.as_items().size();
}

const Value* metadata_of(const Dict& dict) {
  const Value* found = dict.attributes() ? dict.attributes()->find(kMetadata) : nullptr;
  return found != nullptr && found->is_mapping() ? found : nullptr;
}

}  // namespace

// What has moved on its way to its new place.
class Renaming::Placing {
 public:
  Placing(Dict tree, const std::vector<std::string>& entries)
      : tree_(std::move(tree)), entries_(entries) {}

  void place(const Moved& moved) {
    const auto [at, fresh] = origin_.try_emplace(moved.to, moved.from);
    const auto [entry, key] = split(moved.to);
    const bool taken = key.empty() ? tree_.find(entry) != nullptr || parts_.contains(entry)
                                   : part(entry).find(key) != nullptr;
    if (!fresh || taken)
      throw Error(ErrorCode::invalid,
                  fmt::format("rename gives \"{}\" the name \"{}\", which {} in the file has, too",
                              moved.from, moved.to,
                              fresh ? "something else" : fmt::format("\"{}\"", at->second)));
    if (key.empty())
      tree_.set(entry, moved.value);
    else
      part(entry).set(key, moved.value);
  }

  void place_metadata(const Moved& moved) {
    const auto [entry, key] = split(moved.to);
    if (!parts_.contains(entry)) return;
    const auto [at, fresh] = metadata_.try_emplace(entry, Kind::ordered_dict);
    at->second.set(key, moved.value);
  }

  Dict finish() {
    for (auto& [entry, part] : parts_) {
      if (const auto found = metadata_.find(entry); found != metadata_.end()) {
        Dict all = found->second;
        if (const Value* own = metadata_of(part))
          for (const auto& [path, item] : own->as_dict()) all.set(path, item);
        part.set_attributes(std::make_shared<Dict>(Dict{{kMetadata, std::move(all)}}));
      }
      tree_.set(entry, std::move(part));
    }
    return std::move(tree_);
  }

 private:
  std::pair<std::string, std::string> split(const std::string& name) const {
    std::size_t end = std::min(name.find('.'), name.size());
    for (const std::string& entry : entries_)
      if (name.starts_with(entry) && (name.size() == entry.size() || name[entry.size()] == '.'))
        end = entry.size();
    return {name.substr(0, end), end < name.size() ? name.substr(end + 1) : ""};
  }

  // The entry's dict, as a copy that may be changed.
  Dict& part(const std::string& entry) {
    if (const auto found = parts_.find(entry); found != parts_.end()) return found->second;
    const Value* there = tree_.find(Value(entry));
    if (there != nullptr && !there->is_mapping())
      throw Error(ErrorCode::invalid,
                  fmt::format("rename puts something below \"{}\", which is a {} in the file",
                              entry, kind_name(there->kind())));
    Dict fresh = there != nullptr ? there->as_dict() : Dict(Kind::ordered_dict);
    return parts_.emplace(entry, std::move(fresh)).first->second;
  }

  Dict tree_;
  const std::vector<std::string>& entries_;
  std::map<std::string, Dict> parts_;     // by entry: what something moved to
  std::map<std::string, Dict> metadata_;  // by entry
  std::map<std::string, std::string> origin_;
};

Renaming::Renaming(const RenameRules& rules) {
  for (const auto& [from, to] : rules) rules_.push_back({NameRule(from, to)});
}

std::string Renaming::rename(const std::string& name) const {
  for (const Rule& rule : rules_)
    if (auto renamed = rule.rule.rename(name)) return *renamed;
  return name;
}

Dict Renaming::apply(const Dict& file, const std::vector<std::string>& entries) {
  if (rules_.empty()) return file;
  Placing placing(walk(file, ""), entries);
  require_used(file);
  for (const Moved& moved : moved_) placing.place(moved);
  for (const Moved& moved : metadata_) placing.place_metadata(moved);
  return placing.finish();
}

// Whether something in `value` is for one of the first `count` rules.
bool Renaming::any_below(const std::string& name, const Value& value, std::size_t count) const {
  const auto is_for = [&](const std::string& inner, const Value& item) {
    return std::any_of(rules_.begin(), rules_.begin() + static_cast<std::ptrdiff_t>(count),
                       [&](const Rule& rule) { return rule.rule.rename(inner).has_value(); }) ||
           any_below(inner, item, count);
  };
  if (count == 0) return false;
  if (value.is_mapping())
    return std::ranges::any_of(value.as_dict(), [&](const Dict::Entry& entry) {
      return is_for(below(name, text_of(entry.first)), entry.second);
    });
  if (value.kind() != Kind::list && value.kind() != Kind::tuple) return false;
  const Value::Items& items = value.as_items();
  for (std::size_t i = 0; i < items.size(); ++i)
    if (is_for(below(name, std::to_string(i)), items[i])) return true;
  return false;
}

bool Renaming::move(const std::string& name, const Value& value) {
  for (std::size_t i = 0; i < rules_.size(); ++i) {
    auto renamed = rules_[i].rule.rename(name);
    if (!renamed) continue;
    rules_[i].used = true;
    if (any_below(name, value, i)) return false;
    moved_.push_back({name, std::move(*renamed), value});
    return true;
  }
  return false;
}

Dict Renaming::walk(const Dict& dict, const std::string& path) {
  Dict left(dict.kind());
  left.set_attributes(dict.attributes());
  for (const auto& [key, item] : dict) {
    Value rest = item;
    if (left_of(below(path, text_of(key)), rest)) left.set(key, std::move(rest));
  }
  if (left.size() != dict.size()) move_metadata(dict, path);
  return left;
}

Value Renaming::walk_items(const Value& sequence, const std::string& path) {
  Value::Items left;
  for (std::size_t i = 0; i < sequence.as_items().size(); ++i) {
    Value rest = sequence.as_items()[i];
    if (left_of(below(path, std::to_string(i)), rest)) left.push_back(std::move(rest));
  }
  return left.size() == sequence.as_items().size() ? sequence : Value::list(std::move(left));
}

bool Renaming::left_of(const std::string& name, Value& value) {
  if (move(name, value)) return false;
  const bool is_dict = value.is_mapping();
  if (!is_dict && value.kind() != Kind::list && value.kind() != Kind::tuple) return true;
  const std::size_t moved = moved_.size(), size = size_of(value);
  Value left = is_dict ? Value(walk(value.as_dict(), name)) : walk_items(value, name);
  if (moved_.size() != moved) value = std::move(left);
  return size == 0 || size_of(value) != 0;
}

void Renaming::move_metadata(const Dict& dict, const std::string& path) {
  const Value* metadata = metadata_of(dict);
  if (metadata == nullptr) return;
  for (const auto& [module, item] : metadata->as_dict()) {
    // As the name of something in the module, of which the last part is empty.
    const std::string key = text_of(module);
    const std::string name = (key.empty() ? path : below(path, key)) + ".";
    std::string renamed = rename(name);
    if (renamed == name) continue;
    renamed.pop_back();
    metadata_.push_back({name, std::move(renamed), item});
  }
}

void Renaming::require_used(const Dict& file) const {
  for (const Rule& rule : rules_)
    if (!rule.used)
      throw Error(ErrorCode::invalid,
                  fmt::format("rename: nothing in the file has the name \"{}\"{}", rule.rule.from(),
                              what_there_is(rule.rule.from(), names_in(file))));
}

std::vector<std::string> names_in(const Dict& file) {
  std::vector<std::string> names;
  for (const auto& [key, value] : file) names.push_back(text_of(key));
  for (const auto& [key, value] : file) {
    if (!value.is_mapping()) continue;
    for (const auto& [inner, item] : value.as_dict())
      names.push_back(text_of(key) + "." + text_of(inner));
  }
  return names;
}

}  // namespace perdure::engine
