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

void require_key(const Dict& dict, const Value& key, const KeyPath& at) {
  try {
    dict.at(key);
  } catch (const Error& error) {
    throw Error(ErrorCode::invalid, fmt::format("keys: in {}: {}", format_path(at), error.what()));
  }
}

Value select_below(const Value& state, const std::vector<KeyPath>& keys, KeyPath& at) {
  if (wanted_whole(keys)) return state;
  if (!state.is_mapping() || state.kind() == Kind::composite)
    throw Error(ErrorCode::invalid,
                fmt::format("keys: {} is a {}, not a dict: only dicts can be taken apart",
                            format_path(at), kind_name(state.kind())));
  const Dict& dict = state.as_dict();
  Dict places;  // key -> place in `below`; compares keys as a dict does
  std::vector<std::vector<KeyPath>> below;
  for (const KeyPath& path : keys) {
    require_key(dict, path[0], at);
    if (places.find(path[0]) == nullptr) {
      places.set(path[0], below.size());
      below.emplace_back();
    }
    const auto place = static_cast<std::size_t>(places.find(path[0])->as_int());
    below[place].emplace_back(path.begin() + 1, path.end());
  }
  Dict out(dict.kind());
  out.set_attributes(dict.attributes());
  for (const auto& [key, value] : dict) {
    const Value* place = places.find(key);
    if (place == nullptr) continue;
    at.push_back(key);
    out.set(key, select_below(value, below[static_cast<std::size_t>(place->as_int())], at));
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
