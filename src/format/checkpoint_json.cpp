#include "format/checkpoint_json.hpp"

#include <fmt/format.h>

#include <cstdint>
#include <limits>
#include <utility>

#include "format/json.hpp"

namespace perdure::format {
namespace {

constexpr const char* kWhat = ".perdure/checkpoint.json";
constexpr std::size_t kMaxDepth = 64;

double read_number(const Value& value) {
  if (value.kind() != Kind::string) return value.as_double();
  constexpr double kInfinity = std::numeric_limits<double>::infinity();
  if (value.as_string() == "nan") return std::numeric_limits<double>::quiet_NaN();
  if (value.as_string() == "inf") return kInfinity;
  if (value.as_string() == "-inf") return -kInfinity;
  throw Error(ErrorCode::corrupt, fmt::format("{}: {} is no number", kWhat, repr(value)));
}

// Never cut: that could make a newer version an old one.
template <class T>
T read_integer(const Value& json, const char* name) {
  const Value& value = json[name];
  if (const auto number = as_unsigned(value)) {
    if (std::in_range<T>(*number)) return static_cast<T>(*number);
  } else if (value.kind() == Kind::integer && value.as_big_int() == nullptr) {
    if (std::in_range<T>(value.as_int())) return static_cast<T>(value.as_int());
  }
  throw Error(ErrorCode::corrupt, fmt::format("{}: {} is no integer that fits", kWhat, name));
}

const std::string& read_string(const Value& value) {
  if (value.kind() != Kind::string)
    throw Error(ErrorCode::corrupt, fmt::format("{}: {} is no string", kWhat, repr(value)));
  return value.as_string();
}

const Dict& object(const Value& json, const char* name) {
  const Value& value = json[name];
  if (!value.is_mapping())
    throw Error(ErrorCode::corrupt, fmt::format("{}: {} is no object", kWhat, name));
  return value.as_dict();
}

CheckpointInfo::Optimizer read_optimizer(const Value& json) {
  CheckpointInfo::Optimizer info{read_string(json["class"]), {}};
  for (const Value& group : json["param_names"].as_items()) {
    info.param_names.emplace_back();
    for (const Value& name : group.as_items()) info.param_names.back().push_back(read_string(name));
  }
  return info;
}

CheckpointInfo read_fields(const Value& json) {
  CheckpointInfo info;
  const auto version = read_integer<std::uint64_t>(json, "format_version");
  if (version > kFormatVersion)
    throw Error(ErrorCode::unsupported,
                fmt::format("{}: format version {}, this perdure reads up to version {}; update "
                            "perdure",
                            kWhat, version, kFormatVersion));
  if (version == 0) throw Error(ErrorCode::corrupt, fmt::format("{}: format version 0", kWhat));
  info.format_version = static_cast<int>(version);
  info.step = read_integer<std::int64_t>(json, "step");
  info.generation = read_integer<std::uint64_t>(json, "generation");
  info.parent = read_integer<std::uint64_t>(json, "parent");
  for (const auto& [name, value] : object(json, "metrics"))
    info.metrics[name.as_string()] = read_number(value);
  info.created = json["created"].as_double();
  info.reason = read_string(json["reason"]);
  info.writer = read_string(json["writer"]);
  for (const auto& [name, value] : object(json, "libraries"))
    info.libraries[name.as_string()] = read_string(value);
  for (const auto& [name, value] : object(json, "optimizers"))
    info.optimizers[name.as_string()] = read_optimizer(value);
  if (json.contains("metadata"))
    for (const auto& [name, value] : object(json, "metadata"))
      info.metadata[name.as_string()] = read_string(value);
  if (json.contains("ranks")) info.ranks = read_integer<std::size_t>(json, "ranks");
  return info;
}

template <class Map, class Write>
Value write_object(const Map& map, Write&& write) {
  Dict out;
  for (const auto& [name, value] : map) out.set(name, write(value));
  return out;
}

Value write_optimizer(const CheckpointInfo::Optimizer& info) {
  Value::Items groups;
  for (const auto& names : info.param_names)
    groups.push_back(Value::list(Value::Items(names.begin(), names.end())));
  return Dict{{"class", info.class_name}, {"param_names", Value::list(std::move(groups))}};
}

}  // namespace

std::string write_checkpoint_json(const CheckpointInfo& info) {
  const auto as_it_is = [](const auto& value) { return Value(value); };
  Dict json{{"format_version", info.format_version},
            {"step", info.step},
            {"generation", info.generation},
            {"parent", info.parent},
            {"metrics", write_object(info.metrics, as_it_is)},
            {"created", info.created},
            {"reason", info.reason},
            {"writer", info.writer},
            {"libraries", write_object(info.libraries, as_it_is)},
            {"optimizers", write_object(info.optimizers, write_optimizer)}};
  if (!info.metadata.empty()) json.set("metadata", write_object(info.metadata, as_it_is));
  if (info.ranks != 1) json.set("ranks", info.ranks);
  return write_json(json, 1) + "\n";
}

CheckpointInfo read_checkpoint_json(std::string_view text) {
  try {
    return read_fields(read_json(text, kWhat, kMaxDepth));
  } catch (const Error& error) {
    if (error.code() == ErrorCode::corrupt || error.code() == ErrorCode::unsupported) throw;
    throw Error(ErrorCode::corrupt, fmt::format("{}: {}", kWhat, error.what()));
  }
}

}  // namespace perdure::format
