#include "node_json.hpp"

#include <map>

#include "command.hpp"
#include "node_text.hpp"
#include "text.hpp"

namespace perdure::cli {
namespace {

constexpr std::size_t kMaxText = 1000;  // bytes of a string; the rest is cut
constexpr std::size_t kMaxItems =
    1000;  // of a sequence of scalars; "length" says how many there are

Json scalar_json(const Value& value) {
  switch (value.kind()) {
    case Kind::none:
      return nullptr;
    case Kind::boolean:
      return value.as_bool();
    case Kind::integer:
      return value.as_big_int() == nullptr ? Json(value.as_int()) : Json(repr(value, kMaxText));
    case Kind::real:
      return number_json(value.as_double());
    case Kind::string:
      return shorten(value.as_string(), kMaxText);
    default:
      return repr(value, kMaxText);
  }
}

Json key_json(const Value& key) {
  return key.kind() == Kind::integer || key.kind() == Kind::string ? scalar_json(key)
                                                                   : Json(repr(key, kMaxText));
}

// The keys one by one, where that stays small: a name with dots in its keys is ambiguous.
Json path_json(const TreeNode& node) {
  if (node.name.size() >= kMaxText) return nullptr;
  Json path = Json::array();
  for (const Value& key : node.path) path.push_back(key_json(key));
  return path;
}

void add_tensor(Json& json, const Tensor& tensor, const Summary& summary) {
  const StorageUse& use = summary.storages.at(tensor.storage.get());
  json["dtype"] = dtype_name(tensor.dtype);
  json["shape"] = tensor.shape;
  json["strides"] = tensor.strides;
  json["bytes"] = tensor.numel() * itemsize(tensor.dtype);
  json["requires_grad"] = tensor.requires_grad;
  json["parameter"] = tensor.parameter;
  if (tensor.conj) json["conj"] = true;
  if (tensor.neg) json["neg"] = true;
  json["storage"] = {{"record", tensor.storage->record < 0 ? Json() : Json(tensor.storage->record)},
                     {"size", tensor.storage->size},
                     {"offset", tensor.storage_offset},
                     {"device", shorten(tensor.storage->device, kMaxText)},
                     {"tensors", use.tensors},
                     {"first", use.first}};
}

void add_opaque(Json& json, const Opaque& opaque) {
  json["module"] = shorten(opaque.module, kMaxText);
  json["class"] = shorten(opaque.name, kMaxText);
  json["refused_by_load"] = true;
}

void add_items(Json& json, const Value& value) {
  const std::size_t length = value.is_mapping() ? value.as_dict().size() : value.as_items().size();
  json["length"] = length;
  if (!is_flat(value)) return;
  Json items = Json::array();
  for (std::size_t i = 0; i < std::min(length, kMaxItems); ++i)
    items.push_back(scalar_json(value.as_items()[i]));
  json["value"] = std::move(items);
}

Json entry_json(const TreeNode& node, const Summary& summary) {
  Json json = {
      {"key", node.name}, {"path", path_json(node)}, {"kind", kind_name(node.value.kind())}};
  if (!node.same_as.empty()) json["same_as"] = node.same_as;
  if (node.value.kind() == Kind::tensor)
    add_tensor(json, node.value.as_tensor(), summary);
  else if (node.value.kind() == Kind::opaque)
    add_opaque(json, node.value.as_opaque());
  else if (!is_container(node.value))
    json["value"] = scalar_json(node.value);
  else if (node.same_as.empty())
    add_items(json, node.value);
  return json;
}

Json optimizers_json(const CheckpointInfo& info) {
  std::map<std::string, Json> optimizers;
  for (const auto& [name, optimizer] : info.optimizers)
    optimizers[name] = {{"class", optimizer.class_name}, {"param_names", optimizer.param_names}};
  return optimizers;
}

Json info_json(const CheckpointInfo& info) {
  return {{"format_version", info.format_version},
          {"step", info.step},
          {"generation", info.generation},
          {"parent", info.parent},
          {"reason", info.reason},
          {"created", number_json(info.created)},
          {"metrics", metrics_json(info.metrics)},
          {"writer", info.writer},
          {"libraries", info.libraries},
          {"optimizers", optimizers_json(info)},
          {"ranks", info.ranks}};
}

Json total_json(const DTypeTotal& total) {
  return {{"tensors", total.tensors}, {"elements", total.elements}, {"bytes", total.bytes}};
}

Json totals_json(const Summary& summary) {
  Json totals = Json::object();
  for (const auto& [dtype, total] : summary.dtypes)
    totals[std::string(dtype_name(dtype))] = total_json(total);
  return totals;
}

// By way of a map: an ordered object compares each new key with all before it.
Json key_totals_json(const Summary& summary) {
  std::map<std::string, Json> totals;
  for (const auto& [key, total] : summary.keys) totals.emplace(key, total_json(total));
  return totals;
}

std::string checksums(const CheckpointFile& file) {
  if (file.has_block_checksums()) return "blocks";
  return file.has_checksums() ? "records" : "none";
}

Json head_json(const CheckpointFile& file, const Summary& summary) {
  return {{"path", file.name()},
          {"format", file.format()},
          {"size", file.size()},
          {"checksums", checksums(file)},
          {"info", file.info() ? info_json(*file.info()) : Json()},
          {"metadata", file.metadata()},
          {"kind", kind_name(file.value().kind())},
          {"storages", summary.storages.size()},
          {"opaque", summary.opaque_count},
          {"totals", totals_json(summary)},
          {"key_totals", key_totals_json(summary)}};
}

}  // namespace

void print_file_json(const CheckpointFile& file, const std::string& key, const Summary& summary) {
  std::string head = to_text(head_json(file, summary));
  head.pop_back();  // the brace: the entries go inside, one at a time
  print(head + ",\"entries\":[");
  bool first = true;
  walk_tree(file.value(), key, [&](const TreeNode& node) {
    print(first ? "\n" : ",\n");
    first = false;
    print(to_text(entry_json(node, summary)));
  });
  print("]}\n");
}

}  // namespace perdure::cli
