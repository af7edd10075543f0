#include "format/checkpoint_json.hpp"

#include <fmt/format.h>

#include <cmath>
#include <cstdint>
#include <limits>
#include <nlohmann/json.hpp>
#include <utility>

namespace perdure::format {
namespace {

using Json = nlohmann::ordered_json;

// JSON has no NaN and no infinity; they stand there as strings.
Json write_number(double x) {
  if (std::isnan(x)) return "nan";
  if (std::isinf(x)) return x > 0 ? "inf" : "-inf";
  return x;
}

double read_number(const Json& json) {
  if (json.is_number()) return json.get<double>();
  const std::string text = json.get<std::string>();
  constexpr double kInfinity = std::numeric_limits<double>::infinity();
  if (text == "nan") return std::numeric_limits<double>::quiet_NaN();
  if (text == "inf") return kInfinity;
  if (text == "-inf") return -kInfinity;
  throw Error(ErrorCode::corrupt, fmt::format(".perdure/checkpoint.json: '{}' is no number", text));
}

// nlohmann's get() cuts what does not fit, which would make a newer version an old one.
template <class T>
T read_integer(const Json& json, const char* name) {
  const Json& number = json.at(name);
  if (number.is_number_unsigned() && std::in_range<T>(number.get<std::uint64_t>()))
    return number.get<T>();
  if (number.is_number_integer() && !number.is_number_unsigned() &&
      std::in_range<T>(number.get<std::int64_t>()))
    return number.get<T>();
  throw Error(ErrorCode::corrupt,
              fmt::format(".perdure/checkpoint.json: {} is no integer that fits", name));
}

Json write_optimizers(const CheckpointInfo& info) {
  Json out = Json::object();
  for (const auto& [name, optimizer] : info.optimizers) {
    out[name]["class"] = optimizer.class_name;
    out[name]["param_names"] = optimizer.param_names;
  }
  return out;
}

const Json& object(const Json& json, const char* name) {
  const Json& out = json.at(name);
  if (!out.is_object())
    throw Error(ErrorCode::corrupt, fmt::format(".perdure/checkpoint.json: {} is no object", name));
  return out;
}

CheckpointInfo read_fields(const Json& json) {
  CheckpointInfo info;
  const auto version = read_integer<std::uint64_t>(json, "format_version");
  if (version > kFormatVersion)
    throw Error(ErrorCode::unsupported,
                fmt::format(".perdure/checkpoint.json: format version {}, this perdure reads up to "
                            "version {}; update perdure",
                            version, kFormatVersion));
  if (version == 0) throw Error(ErrorCode::corrupt, ".perdure/checkpoint.json: format version 0");
  info.format_version = static_cast<int>(version);
  info.step = read_integer<std::int64_t>(json, "step");
  info.generation = read_integer<std::uint64_t>(json, "generation");
  info.parent = read_integer<std::uint64_t>(json, "parent");
  for (const auto& [name, value] : object(json, "metrics").items())
    info.metrics[name] = read_number(value);
  info.created = json.at("created").get<double>();
  info.reason = json.at("reason").get<std::string>();
  info.writer = json.at("writer").get<std::string>();
  info.libraries = json.at("libraries").get<std::map<std::string, std::string>>();
  for (const auto& [name, value] : object(json, "optimizers").items())
    info.optimizers[name] = {value.at("class").get<std::string>(),
                             value.at("param_names").get<std::vector<std::vector<std::string>>>()};
  return info;
}

}  // namespace

std::string write_checkpoint_json(const CheckpointInfo& info) {
  Json json;
  json["format_version"] = info.format_version;
  json["step"] = info.step;
  json["generation"] = info.generation;
  json["parent"] = info.parent;
  json["metrics"] = Json::object();
  for (const auto& [name, value] : info.metrics) json["metrics"][name] = write_number(value);
  json["created"] = info.created;
  json["reason"] = info.reason;
  json["writer"] = info.writer;
  json["libraries"] = info.libraries;
  json["optimizers"] = write_optimizers(info);
  // Names that are no UTF-8 are bent rather than made a reason to lose a checkpoint.
  return json.dump(1, ' ', true, Json::error_handler_t::replace) + "\n";
}

CheckpointInfo read_checkpoint_json(std::string_view text) {
  try {
    return read_fields(Json::parse(text));
  } catch (const nlohmann::json::exception& error) {
    throw Error(ErrorCode::corrupt, fmt::format(".perdure/checkpoint.json: {}", error.what()));
  }
}

}  // namespace perdure::format
