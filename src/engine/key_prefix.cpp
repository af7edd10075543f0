#include "engine/key_prefix.hpp"

#include <fmt/format.h>

#include <array>
#include <optional>
#include <set>

namespace perdure::engine {
namespace {

struct Wrapper {
  std::string_view prefix;
  std::string_view origin;
  std::string_view inner;  // how one gets at the wrapped module
};
constexpr std::array kWrappers = {
    Wrapper{"module.", "DistributedDataParallel or DataParallel", "model.module"},
    Wrapper{"_orig_mod.", "torch.compile", "model._orig_mod"},
};

using Keys = std::set<std::string>;

std::optional<Keys> string_keys(const Value& value) {
  if (!value.is_mapping()) return std::nullopt;
  Keys keys;
  for (const auto& [key, item] : value.as_dict())
    if (key.kind() == Kind::string) keys.insert(key.as_string());
  return keys;
}

// Takes `part` out wherever a name of the dotted key begins with it.
std::string without(std::string key, std::string_view part) {
  for (std::size_t at = key.find(part); at != std::string::npos; at = key.find(part, at)) {
    if (at == 0 || key[at - 1] == '.')
      key.erase(at, part.size());
    else
      ++at;
  }
  return key;
}

Keys without(const Keys& keys, std::string_view part) {
  Keys stripped;
  for (const std::string& key : keys) stripped.insert(without(key, part));
  return stripped;
}

}  // namespace

std::string without_wrappers(std::string key) {
  for (const Wrapper& wrapper : kWrappers) key = without(std::move(key), wrapper.prefix);
  return key;
}

std::string prefix_hint(const Value& in_file, const Value& own) {
  const auto theirs = string_keys(in_file);
  const auto ours = string_keys(own);
  if (!theirs || !ours || *theirs == *ours) return "";
  for (const Wrapper& wrapper : kWrappers) {
    if (without(*theirs, wrapper.prefix) != without(*ours, wrapper.prefix)) continue;
    const bool in_theirs = without(*theirs, wrapper.prefix) != *theirs;
    return in_theirs ? fmt::format(
                           "the keys in the file have the prefix '{}' of {}: register the wrapped "
                           "model, or save "
                           "the one inside ({})",
                           wrapper.prefix, wrapper.origin, wrapper.inner)
                     : fmt::format(
                           "the registered model has the prefix '{}' of {} in its keys and the "
                           "file has not: "
                           "register the one inside ({})",
                           wrapper.prefix, wrapper.origin, wrapper.inner);
  }
  return "";
}

}  // namespace perdure::engine
