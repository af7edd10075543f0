#include "engine/rank_view.hpp"

#include <fmt/format.h>

#include <optional>
#include <unordered_map>

#include "engine/flat_state.hpp"
#include "engine/state_loading.hpp"

namespace perdure::engine {
namespace {

constexpr const char* kForm = "__perdure__";
constexpr const char* kStandsForTensor = "tensor";

Value stand_in(const std::string& name, const Tensor& tensor, Traits traits) {
  Dict out{{kForm, kStandsForTensor}, {"name", name}};
  if (traits == Traits::leave_out) return Value(std::move(out));
  if (tensor.storage->device != "cpu") out.set("device", tensor.storage->device);
  if (tensor.parameter) out.set("parameter", true);
  if (tensor.requires_grad) out.set("requires_grad", true);
  return Value(std::move(out));
}

// The name that a dict stands for, or null.
const std::string* name_in(const Value& value) {
  if (value.kind() != Kind::dict) return nullptr;
  const Value* form = value.as_dict().find(Value(kForm));
  const Value* name = value.as_dict().find(Value("name"));
  if (form == nullptr || name == nullptr || form->kind() != Kind::string ||
      form->as_string() != kStandsForTensor || name->kind() != Kind::string)
    return nullptr;
  return &name->as_string();
}

// `tensor`, as what stands for it has it.
Value with_traits(const Value& tensor, const Dict& stands_for) {
  const auto is_true = [&](const char* trait) {
    const Value* found = stands_for.find(Value(trait));
    return found != nullptr && found->kind() == Kind::boolean && found->as_bool();
  };
  Tensor out = tensor.as_tensor();
  const Value* device = stands_for.find(Value("device"));
  if (device != nullptr && device->kind() == Kind::string)
    out.storage->device = device->as_string();
  out.parameter = out.parameter || is_true("parameter");
  out.requires_grad = out.requires_grad || is_true("requires_grad");
  return Value(std::move(out));
}

// A copy of a state, as far as something in it becomes something else; what has none of that stays
// the same value.
class Rebuilding {
 public:
  using Replace = std::function<std::optional<Value>(const Value& value, const KeyPath& path)>;
  explicit Rebuilding(Replace replace) : replace_(std::move(replace)) {}

  Value rebuild(const Value& value) {
    if (std::optional<Value> other = replace_(value, path_)) return std::move(*other);
    if (value.kind() == Kind::composite || (!value.is_mapping() && value.kind() != Kind::list))
      return value;
    const auto known = rebuilt_.find(value.identity());
    if (known != rebuilt_.end()) return known->second;
    Value out = value.is_mapping() ? rebuilt_dict(value) : rebuilt_list(value);
    rebuilt_.emplace(value.identity(), out);
    return out;
  }

 private:
  Value rebuilt_dict(const Value& value) {
    const Dict& dict = value.as_dict();
    Dict out(dict.kind());
    out.set_attributes(dict.attributes());
    bool same = true;
    for (const auto& [key, item] : dict) {
      Value part = rebuilt_at(key, item);
      same = same && part.identity() == item.identity();
      out.set(key, std::move(part));
    }
    return same ? value : Value(std::move(out));
  }
  Value rebuilt_list(const Value& value) {
    Value::Items out;
    bool same = true;
    for (const Value& item : value.as_items()) {
      out.push_back(rebuilt_at(Value(out.size()), item));
      same = same && out.back().identity() == item.identity();
    }
    return same ? value : Value::list(std::move(out));
  }
  Value rebuilt_at(const Value& key, const Value& item) {
    path_.push_back(key);
    Value out = rebuild(item);
    path_.pop_back();
    return out;
  }

  Replace replace_;
  KeyPath path_;
  std::unordered_map<const void*, Value> rebuilt_;
};

Value without(const Value& value, std::string_view key) {
  const Dict& dict = value.as_dict();
  Dict out(dict.kind());
  out.set_attributes(dict.attributes());
  for (const auto& [name, item] : dict)
    if (name.kind() != Kind::string || name.as_string() != key) out.set(name, item);
  return Value(std::move(out));
}

}  // namespace

Value without_shared(const Value& state, const IsShared& is_shared, Traits traits) {
  const auto replace = [&](const Value& value, const KeyPath& path) -> std::optional<Value> {
    if (value.kind() != Kind::tensor) return std::nullopt;
    const std::string name = flat_name(path);
    if (!is_shared(name)) return std::nullopt;
    return stand_in(name, value.as_tensor(), traits);
  };
  return Rebuilding(replace).rebuild(state);
}

Value with_shared(const Value& record, const FindShared& find) {
  const auto replace = [&](const Value& value, const KeyPath&) -> std::optional<Value> {
    const std::string* name = name_in(value);
    if (name == nullptr) return std::nullopt;
    const Value* tensor = find(*name);
    if (tensor == nullptr || tensor->kind() != Kind::tensor)
      throw Error(ErrorCode::corrupt,
                  fmt::format("the record of a rank names the tensor {}, which is not there",
                              repr(Value(*name))));
    return with_traits(*tensor, value.as_dict());
  };
  return Rebuilding(replace).rebuild(record);
}

Value without_ranks(const Value& value) { return without(value, kRanksKey); }

Value rank_view(const Value& value, std::size_t ranks, std::size_t rank) {
  if (!value.is_mapping() || value.kind() == Kind::composite) return value;
  const Value shared = ranks > 1 ? without_ranks(value) : value;
  if (rank == 0) return shared;
  const Value* others = ranks > 1 ? value.as_dict().find(Value(kRanksKey)) : nullptr;
  if (others != nullptr && others->is_mapping() && others->contains(std::to_string(rank))) {
    std::unordered_map<std::string, Value> tensors;
    for (FlatEntry& entry : flatten(shared))
      if (entry.value.kind() == Kind::tensor) tensors.emplace(entry.name, entry.value);
    return with_shared((*others)[std::to_string(rank)], [&](const std::string& name) {
      const auto found = tensors.find(name);
      return found == tensors.end() ? nullptr : &found->second;
    });
  }
  if (!shared.contains(kRng) || !shared[kRng].is_mapping()) return shared;
  Value out = without(shared, kRng);
  out.as_dict().set(Value(kRng), Value(Dict{}));
  return out;
}

}  // namespace perdure::engine
