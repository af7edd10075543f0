#include "engine/momenta.hpp"

#include <algorithm>
#include <unordered_set>

#include "engine/leaves.hpp"

namespace perdure::engine {
namespace {

using Names = std::vector<std::vector<std::string>>;  // by group

bool is_group(const Value& group) {
  return group.contains("params") && group["params"].is_sequence();
}

bool is_optimizer(const Value& value) {
  return value.contains("state") && value.contains("param_groups") && value["state"].is_mapping() &&
         value["param_groups"].is_sequence() &&
         std::ranges::all_of(value["param_groups"].as_items(), is_group);
}

class Search {
 public:
  explicit Search(const CheckpointFile& file) : file_(file) {}

  // Optimizers are dicts in dicts, or in lists of several.
  void visit(const Value& value, const std::string& name) {
    if (!value.is_mapping() && !value.is_sequence()) return;
    if (!seen_.insert(value.identity()).second) return;
    if (is_optimizer(value)) return add(value, name);
    if (value.is_mapping()) {
      for (const auto& [key, item] : value.as_dict()) visit(item, joined(name, key));
    } else {
      for (std::size_t i = 0; i < value.as_items().size(); ++i)
        visit(value.as_items()[i], joined(name, Value(i)));
    }
  }

  std::vector<ParameterState> found;

 private:
  static std::string joined(const std::string& name, const Value& key) {
    return name.empty() ? key_name(key) : name + "." + key_name(key);
  }

  const Names* recorded_names(const std::string& name) const {
    if (!file_.info()) return nullptr;
    const auto it = file_.info()->optimizers.find(name);
    return it == file_.info()->optimizers.end() || it->second.param_names.empty()
               ? nullptr
               : &it->second.param_names;
  }

  void add(const Value& optimizer, const std::string& name) {
    const Names* recorded = recorded_names(name);
    const auto& groups = optimizer["param_groups"].as_items();
    for (std::size_t g = 0; g < groups.size(); ++g) {
      const auto& ids = groups[g]["params"].as_items();
      for (std::size_t i = 0; i < ids.size(); ++i) {
        std::string parameter;
        if (recorded != nullptr && g < recorded->size() && i < (*recorded)[g].size())
          parameter = (*recorded)[g][i];
        else
          parameter = name_in_file(groups[g], i);
        if (!parameter.empty()) add_state(optimizer["state"].as_dict(), name, ids[i], parameter);
      }
    }
  }

  static std::string name_in_file(const Value& group, std::size_t i) {
    if (group.contains("param_names") && group["param_names"].is_sequence()) {
      const auto& names = group["param_names"].as_items();
      return i < names.size() && names[i].kind() == Kind::string ? names[i].as_string() : "";
    }
    const Value& id = group["params"].as_items()[i];
    return id.kind() == Kind::string ? id.as_string() : "";
  }

  void add_state(const Dict& states, const std::string& optimizer, const Value& id,
                 const std::string& parameter) {
    if (id.identity() != nullptr) return;  // no id of PyTorch's
    const Value* state = states.find(id);
    if (state == nullptr || !state->is_mapping()) return;
    ParameterState out{optimizer, parameter, {}};
    const std::string prefix = joined(joined(optimizer, Value("state")), id);
    for (const auto& [key, value] : state->as_dict())
      if (value.kind() == Kind::tensor && key_name(key) != "step")
        out.states.push_back(joined(prefix, key));
    if (!out.states.empty()) found.push_back(std::move(out));
  }

  const CheckpointFile& file_;
  std::unordered_set<const void*> seen_;
};

}  // namespace

std::vector<ParameterState> parameter_states(const CheckpointFile& file) {
  Search search(file);
  search.visit(file.value(), "");
  return std::move(search.found);
}

ParameterTensors::ParameterTensors(const std::vector<ParameterState>& states,
                                   const std::vector<std::string>& names) {
  std::unordered_set<std::string> of_optimizers;
  for (const ParameterState& state : states) {
    parameters_[state.parameter];
    of_optimizers.insert(state.states.begin(), state.states.end());
  }
  for (std::size_t i = 0; i < names.size(); ++i) {
    const std::string& name = names[i];
    if (of_optimizers.contains(name)) continue;
    for (std::size_t at = 0; at < name.size();
         at = std::min(name.find('.', at), name.size() - 1) + 1) {
      const auto it = parameters_.find(name.substr(at));
      if (it == parameters_.end()) continue;
      if (at == 0) {
        it->second.exact = i;
      } else {
        it->second.ending = i;
        ++it->second.endings;
      }
    }
  }
}

std::optional<std::size_t> ParameterTensors::find(const std::string& parameter) const {
  const Candidates& found = parameters_.at(parameter);
  if (found.exact) return found.exact;
  return found.endings == 1 ? found.ending : std::nullopt;
}

}  // namespace perdure::engine
