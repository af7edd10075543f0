#include "engine/sieve.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cstdint>

#include "engine/file_records.hpp"

namespace perdure::engine {
namespace {

bool is_container(const Value& value) { return value.is_mapping() || value.is_sequence(); }

}  // namespace

std::optional<Value> Sieve::sift(const Value& value) {
  if (value.kind() == Kind::tensor) return sift_tensor(value.as_tensor(), value);
  if (value.kind() == Kind::opaque) return sift_opaque(value);
  if (tensors_alone_ && !has_tensors(value)) {
    lose(fmt::format("a {}, and no tensor: only data.pkl had it", kind_name(value.kind())));
    return std::nullopt;
  }
  if (const Tensor* array = array_in(value)) return sift_tensor(*array, value);
  if (!is_container(value)) {
    ++scalars_;
    return value;
  }
  if (const auto it = done_.find(value.identity()); it != done_.end()) return it->second;
  Value out = value.is_mapping() ? sift_dict(value.as_dict()) : sift_items(value);
  // Without one of its parts, the others mean nothing; which one it is, is told.
  if (value.kind() == Kind::composite && out.as_dict().size() < value.as_dict().size())
    return std::nullopt;
  return done_.emplace(value.identity(), std::move(out)).first->second;
}

std::optional<Value> Sieve::sift_at(const Value& key, const Value& value) {
  path_.push_back(key);
  std::optional<Value> out = sift(value);
  path_.pop_back();
  return out;
}

std::optional<Value> Sieve::sift_tensor(const Tensor& tensor, const Value& whole) {
  std::string why = judge_(tensor);
  if (why.empty()) {
    ++tensors_;
    return whole;
  }
  lost_.push_back(
      {format_path(path_), std::string(dtype_name(tensor.dtype)), tensor.shape, std::move(why)});
  return std::nullopt;
}

std::optional<Value> Sieve::sift_opaque(const Value& value) {
  std::uint64_t tensors = 0;
  for_each_tensor(value, [&](const KeyPath&, const Tensor&) { ++tensors; });
  lose(fmt::format("{}, which is not plain data: perdure never runs code from a file{}",
                   repr(value), tensors == 0 ? "" : fmt::format(" ({} tensors in it)", tensors)));
  return std::nullopt;
}

Value Sieve::sift_dict(const Dict& dict) {
  Dict out(dict.kind());
  fill(out, dict);
  if (dict.attributes()) {
    auto attributes = std::make_shared<Dict>(dict.attributes()->kind());
    fill(*attributes, *dict.attributes());
    if (!attributes->empty() || dict.attributes()->empty()) out.set_attributes(attributes);
  }
  return Value(std::move(out));
}

void Sieve::fill(Dict& out, const Dict& dict) {
  for (const auto& [key, value] : dict)
    if (auto kept = sift_at(key, value)) out.set(key, std::move(*kept));
}

Value Sieve::sift_items(const Value& value) {
  if (value.kind() != Kind::list && value.kind() != Kind::tuple) {
    ++scalars_;
    return value;  // a set or torch.Size, which hold no tensors
  }
  Value::Items out;
  const Value::Items& items = value.as_items();
  for (std::size_t i = 0; i < items.size(); ++i)
    out.push_back(sift_at(Value(i), items[i]).value_or(Value()));
  return value.kind() == Kind::list ? Value::list(std::move(out)) : Value::tuple(std::move(out));
}

// Each container is looked through once, however often it is asked for.
bool Sieve::has_tensors(const Value& value) {
  if (value.kind() == Kind::tensor || value.kind() == Kind::opaque) return true;
  if (!is_container(value)) return false;
  const auto it = has_tensors_.find(value.identity());
  if (it != has_tensors_.end()) return it->second;
  const bool found = finds_tensors(value);
  return has_tensors_[value.identity()] = found;
}

bool Sieve::finds_tensors(const Value& value) {
  if (value.is_sequence())
    return std::ranges::any_of(value.as_items(),
                               [&](const Value& item) { return has_tensors(item); });
  const auto any = [&](const Dict& dict) {
    return std::ranges::any_of(dict, [&](const auto& entry) { return has_tensors(entry.second); });
  };
  const auto& attributes = value.as_dict().attributes();
  return any(value.as_dict()) || (attributes && any(*attributes));
}

}  // namespace perdure::engine
