#include "engine/rank_view.hpp"

#include <fmt/format.h>

#include <unordered_map>

#include "engine/flat_state.hpp"
#include "engine/rank_plan.hpp"
#include "engine/state_loading.hpp"

namespace perdure::engine {
namespace {

// The name that a dict stands for, or null.
const std::string* name_in(const Value& value) {
  if (value.kind() != Kind::dict || value.as_dict().size() != 2) return nullptr;
  const Value* form = value.as_dict().find(Value("__perdure__"));
  const Value* name = value.as_dict().find(Value("name"));
  if (form == nullptr || name == nullptr || form->kind() != Kind::string ||
      form->as_string() != kStandsForTensor || name->kind() != Kind::string)
    return nullptr;
  return &name->as_string();
}

class Filling {
 public:
  explicit Filling(const std::function<const Value*(const std::string&)>& find) : find_(find) {}

  Value fill(const Value& value) {
    if (const std::string* name = name_in(value)) {
      const Value* tensor = find_(*name);
      if (tensor == nullptr)
        throw Error(ErrorCode::corrupt,
                    fmt::format("the record of a rank names the tensor {}, which is not there",
                                repr(Value(*name))));
      return *tensor;
    }
    if (value.kind() == Kind::composite || (!value.is_mapping() && value.kind() != Kind::list))
      return value;
    const auto known = filled_.find(value.identity());
    if (known != filled_.end()) return known->second;
    Value out = value.is_mapping() ? fill_dict(value.as_dict()) : fill_list(value.as_items());
    filled_.emplace(value.identity(), out);
    return out;
  }

 private:
  Value fill_dict(const Dict& dict) {
    Dict out(dict.kind());
    out.set_attributes(dict.attributes());
    for (const auto& [key, item] : dict) out.set(key, fill(item));
    return Value(std::move(out));
  }
  Value fill_list(const Value::Items& items) {
    Value::Items out;
    for (const Value& item : items) out.push_back(fill(item));
    return Value::list(std::move(out));
  }

  const std::function<const Value*(const std::string&)>& find_;
  std::unordered_map<const void*, Value> filled_;
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

Value with_shared(const Value& tree, const std::function<const Value*(const std::string&)>& find) {
  return Filling(find).fill(tree);
}

Value rank_view(const Value& value, std::size_t rank) {
  if (!value.is_mapping() || !value.contains(kRanksKey) || !value[kRanksKey].is_mapping())
    return value;
  const Dict& others = value[kRanksKey].as_dict();
  const Value shared = without(value, kRanksKey);
  if (rank == 0) return shared;
  const Value* own = others.find(Value(std::to_string(rank)));
  if (own != nullptr) {
    std::unordered_map<std::string, Value> tensors;
    for (FlatEntry& entry : flatten(shared))
      if (entry.value.kind() == Kind::tensor) tensors.emplace(entry.name, entry.value);
    return with_shared(*own, [&](const std::string& name) {
      const auto found = tensors.find(name);
      return found == tensors.end() ? nullptr : &found->second;
    });
  }
  Value out = without(shared, kRng);
  if (shared.contains(kRng)) out.as_dict().set(Value(kRng), Value(Dict{}));
  return out;
}

}  // namespace perdure::engine
