#include <fmt/format.h>

#include "engine/file_records.hpp"
#include "format/encoder.hpp"

namespace perdure {
namespace {

bool wanted_whole(const std::vector<KeyPath>& keys) {
  for (const KeyPath& path : keys)
    if (path.empty()) return true;
  return false;
}

Value select_below(const Value& state, const std::vector<KeyPath>& keys, KeyPath& at) {
  if (wanted_whole(keys)) return state;
  if (!state.is_mapping())
    throw Error(ErrorCode::invalid,
                fmt::format("keys: {} is a {}, not a dict: only dicts can be taken apart",
                            format_path(at), kind_name(state.kind())));
  const Dict& dict = state.as_dict();
  for (const KeyPath& path : keys) {
    try {
      dict.at(path[0]);
    } catch (const Error& error) {
      throw Error(ErrorCode::invalid,
                  fmt::format("keys: in {}: {}", format_path(at), error.what()));
    }
  }
  Dict out(dict.kind());
  out.set_attributes(dict.attributes());
  for (const auto& [key, value] : dict) {
    std::vector<KeyPath> below;
    Dict probe{{key, Value()}};  // compares keys as a dict does
    for (const KeyPath& path : keys)
      if (probe.find(path[0]) != nullptr) below.emplace_back(path.begin() + 1, path.end());
    if (below.empty()) continue;
    at.push_back(key);
    out.set(key, select_below(value, below, at));
    at.pop_back();
  }
  return Value(std::move(out));
}

}  // namespace

Value select(const Value& state, const std::vector<KeyPath>& keys) {
  KeyPath at;
  return select_below(state, keys, at);
}

Value load(const std::filesystem::path& path, const LoadOptions& options) {
  const CheckpointFile file = CheckpointFile::open(path);
  Value value = options.keys.empty() ? file.value() : select(file.value(), options.keys);
  if (!options.map_location.empty())
    for (const auto& storage : file.storages()) storage->device = options.map_location;
  if (options.mmap)
    file.map_all(value, options.verify);
  else
    file.read_all(value);
  return value;
}

void write_to(const std::function<void(ConstBytes)>& sink, const Value& state,
              const CheckpointInfo& info) {
  format::Encoder(state, info).write(sink);
}

}  // namespace perdure
