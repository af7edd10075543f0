#include "engine/key_match.hpp"

#include <algorithm>
#include <array>
#include <cstdint>
#include <memory>
#include <optional>
#include <unordered_map>

namespace perdure::engine {
namespace {

constexpr std::array<std::string_view, 2> kWrappers = {"module", "_orig_mod"};

std::string text_of(const Value& key) {
  return key.kind() == Kind::string ? key.as_string() : repr(key);
}

// The keys here by what is left of them without wrappers; "" for what several have in common.
using Unwrapped = std::unordered_map<std::string, std::string>;

Unwrapped unwrapped_keys(const Dict& own) {
  Unwrapped keys;
  for (const auto& [key, value] : own) {
    const auto [at, fresh] = keys.try_emplace(without_wrappers(text_of(key)), text_of(key));
    if (!fresh) at->second.clear();
  }
  return keys;
}

// The key here of a key in the file; "" where there is none.
std::string place_of(const std::string& key, const Dict& in_file, const Dict& own,
                     const Unwrapped& unwrapped) {
  if (own.find(Value(key)) != nullptr) return key;
  const auto found = unwrapped.find(without_wrappers(key));
  if (found == unwrapped.end() || found->second.empty()) return "";
  return in_file.find(Value(found->second)) == nullptr ? found->second : "";
}

enum class Number { real, complex, integer, other };

Number number_of(DType dtype) {
  const std::string_view name = dtype_name(dtype);
  if (name.starts_with("complex")) return Number::complex;
  if (name.starts_with("int") || name.starts_with("uint") || name == "bool") return Number::integer;
  if (name.ends_with("_x2")) return Number::other;  // two numbers in one element
  return name.starts_with("float") || name.starts_with("bfloat") ? Number::real : Number::other;
}

bool is_unsigned(DType dtype) {
  return dtype == DType::boolean || dtype_name(dtype).starts_with("uint");
}

std::string describe_own(const Value& own) { return own.is_none() ? "anything" : describe(own); }

std::optional<Misfit> compare(const std::string& name, const Value& in_file, const Value& own,
                              bool cast) {
  if (own.kind() != Kind::tensor) return std::nullopt;
  Misfit misfit{Mismatch::dtype, name, describe(in_file), describe(own)};
  if (in_file.kind() != Kind::tensor) return misfit;
  const Tensor &theirs = in_file.as_tensor(), &ours = own.as_tensor();
  misfit.castable = is_castable(theirs.dtype, ours.dtype);
  if (theirs.shape != ours.shape)
    misfit.what = Mismatch::shape;
  else if (theirs.dtype == ours.dtype || (cast && misfit.castable))
    return std::nullopt;
  return misfit;
}

std::vector<std::int64_t> shape_of(const Value& value) {
  return value.kind() == Kind::tensor ? value.as_tensor().shape : kNoTensor;
}

// _metadata of the modules, whose paths are keys too, but for the last part.
std::shared_ptr<Dict> unwrapped_attributes(const Dict& in_file) {
  const auto& attributes = in_file.attributes();
  const Value* metadata = attributes ? attributes->find(Value("_metadata")) : nullptr;
  if (metadata == nullptr || !metadata->is_mapping()) return attributes;
  Dict renamed(metadata->kind());
  for (const auto& [path, item] : metadata->as_dict()) {
    std::string key = path.kind() == Kind::string ? path.as_string() : repr(path);
    if (!key.empty()) key = without_wrappers(key + ".");
    if (key.ends_with('.')) key.pop_back();
    renamed.set(key, item);
  }
  auto result = std::make_shared<Dict>(*attributes);
  result->set("_metadata", std::move(renamed));
  return result;
}

}  // namespace

std::string without_wrappers(std::string_view key) {
  std::string result;
  for (std::size_t dot; (dot = key.find('.')) != key.npos; key.remove_prefix(dot + 1))
    if (std::ranges::find(kWrappers, key.substr(0, dot)) == kWrappers.end())
      result += key.substr(0, dot + 1);
  return result.append(key);
}

bool is_castable(DType from, DType to) {
  const Number kind = number_of(from);
  if (kind == Number::other || kind != number_of(to)) return false;
  if (kind != Number::integer || from == to) return true;
  if (to == DType::boolean || (is_unsigned(to) && !is_unsigned(from))) return false;
  return from == DType::boolean || itemsize(from) < itemsize(to);
}

std::string name_of(const std::string& entry, const Value& key) {
  return entry.empty() ? text_of(key) : entry + "." + text_of(key);
}

KeyMatch match_keys(const std::string& entry, const Dict& in_file, const Dict& own, bool cast,
                    NameSelection& selection) {
  KeyMatch result;
  Dict taken(in_file.kind());
  bool wrapped = false;
  const Unwrapped unwrapped = unwrapped_keys(own);
  for (const auto& [key, value] : in_file) {
    const std::string place = place_of(text_of(key), in_file, own, unwrapped);
    const bool fits = !place.empty() && taken.find(Value(place)) == nullptr;
    const std::string name = name_of(entry, fits ? Value(place) : key);
    if (!selection.takes(name, Side::file)) continue;
    if (!fits) {
      result.misfits.push_back({Mismatch::unexpected, name, describe(value), "-", shape_of(value)});
      continue;
    }
    wrapped = wrapped || place != text_of(key);
    if (auto misfit = compare(name, value, *own.find(Value(place)), cast))
      result.misfits.push_back(std::move(*misfit));
    taken.set(place, value);
  }
  for (const auto& [key, value] : own)
    if (const std::string name = name_of(entry, key);
        selection.takes(name, Side::here) && taken.find(key) == nullptr)
      result.misfits.push_back(
          {Mismatch::missing, name, "-", describe_own(value), shape_of(value)});
  result.matched = taken.size();
  taken.set_attributes(wrapped ? unwrapped_attributes(in_file) : in_file.attributes());
  result.value = std::move(taken);
  return result;
}

}  // namespace perdure::engine
