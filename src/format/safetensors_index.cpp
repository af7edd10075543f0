#include <fmt/format.h>

#include "format/json.hpp"
#include "format/safetensors.hpp"

namespace perdure::format {
namespace {

constexpr std::string_view kWhat = "the index of safetensors files";
constexpr std::size_t kMaxDepth = 8;
constexpr std::size_t kMaxName = 255;  // of a file, on Linux

[[noreturn]] void damaged(const std::string& what) {
  throw Error(ErrorCode::corrupt, fmt::format("{}: {}", kWhat, what));
}

const std::string& checked_file(const Value& tensor, const Value& file) {
  if (file.kind() != Kind::string)
    damaged(fmt::format("the tensor {} is in {}, which is no file name", repr(tensor), repr(file)));
  const std::string& name = file.as_string();
  if (name.size() > kMaxName)
    damaged(fmt::format("the tensor {} is in {}, and no file has a name of {} bytes", repr(tensor),
                        repr(file), name.size()));
  if (name.empty() || name == "." || name == ".." ||
      name.find_first_of(std::string_view("/\\\0", 3)) != name.npos)
    throw Error(ErrorCode::invalid,
                fmt::format("{}: the tensor {} is in {}, which is no name of a file beside the "
                            "index; what leaves its folder is never read",
                            kWhat, repr(tensor), repr(file)));
  return name;
}

void take_weight_map(SafetensorsIndex& index, const Value& json) {
  if (!json.contains("weight_map") || !json["weight_map"].is_mapping())
    damaged("it has no weight_map");
  std::map<std::string, std::size_t, std::less<>> numbers;
  for (const auto& [tensor, file] : json["weight_map"].as_dict()) {
    const std::string& name = checked_file(tensor, file);
    const auto [it, fresh] = numbers.try_emplace(name, index.files.size());
    if (fresh) index.files.push_back(name);
    index.places[tensor.as_string()] = it->second;
  }
}

void take_metadata(SafetensorsIndex& index, const Value& json) {
  if (!json.contains("metadata")) return;
  const Value& metadata = json["metadata"];
  if (!metadata.is_mapping()) damaged("its metadata is no object");
  for (const auto& [key, value] : metadata.as_dict()) {
    if (key.as_string() == "total_size") continue;  // readers differ on what it counts
    index.metadata[key.as_string()] =
        value.kind() == Kind::string ? value.as_string() : write_json(value);
  }
}

}  // namespace

bool is_safetensors_index(std::string_view head) noexcept {
  const std::size_t first = head.find_first_not_of(" \t\r\n");
  if (first == head.npos || head[first] != '{') return false;
  const std::size_t next = head.find_first_not_of(" \t\r\n", first + 1);
  return next != head.npos && head[next] == '"';
}

SafetensorsIndex parse_safetensors_index(std::string_view text) {
  const Value json = read_json(text, kWhat, kMaxDepth);
  if (!json.is_mapping()) damaged("it is no JSON object");
  SafetensorsIndex index;
  take_weight_map(index, json);
  take_metadata(index, json);
  return index;
}

std::string write_safetensors_index(const SafetensorsIndex& index, std::uint64_t total_size) {
  Dict metadata{{"total_size", total_size}};
  for (const auto& [key, value] : index.metadata) metadata.set(key, value);
  Dict places;
  for (const auto& [tensor, file] : index.places) places.set(tensor, index.files[file]);
  return write_json(Dict{{"metadata", std::move(metadata)}, {"weight_map", std::move(places)}}, 2) +
         "\n";
}

}  // namespace perdure::format
