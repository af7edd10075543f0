// Parameter names: an optimizer's state goes to the parameters that it belongs to, whatever their
// order. Part of perdure/torch.hpp: include that.
#pragma once

#include <algorithm>
#include <optional>
#include <perdure/torch/optimizer.hpp>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

namespace perdure::detail {

inline std::string class_name(const torch::optim::Optimizer& optimizer) {
  return with_optimizer(optimizer,
                        []<class O>(const O&) { return std::string(OptimizerTraits<O>::name); });
}

// The class, and per group the first name of each parameter. No names at all where one parameter
// has none.
inline CheckpointInfo::Optimizer describe_optimizer(const torch::optim::Optimizer& optimizer,
                                                    const std::vector<ParameterName>& names) {
  std::unordered_map<const void*, std::string> known;
  for (const ParameterName& name : names) known.try_emplace(name.identity, name.name);
  CheckpointInfo::Optimizer result{class_name(optimizer), {}};
  for (const auto& group : optimizer.param_groups()) {
    auto& out = result.param_names.emplace_back();
    for (const at::Tensor& param : group.params()) {
      const auto found = known.find(param.unsafeGetTensorImpl());
      if (found == known.end()) return {result.class_name, {}};
      out.push_back(found->second);
    }
  }
  return result;
}

// The parameter names of each group in a file: those that perdure recorded, or those that Python's
// optimizer had from model.named_parameters(). Empty where they are not known.
inline std::vector<std::vector<std::string>> names_in_file(
    const Value::Items& groups, const CheckpointInfo::Optimizer& recorded) {
  std::vector<std::vector<std::string>> names = recorded.param_names;
  if (names.empty())
    for (const Value& group : groups) {
      if (!group.contains("param_names")) return {};
      auto& out = names.emplace_back();
      for (const Value& name : group["param_names"].as_items()) out.push_back(name.as_string());
    }
  bool complete = names.size() == groups.size();
  for (std::size_t i = 0; complete && i < names.size(); ++i)
    complete = names[i].size() == groups[i]["params"].as_items().size();
  return complete ? names : std::vector<std::vector<std::string>>{};
}

// Which group and place a parameter name belongs to.
struct ParameterPlace {
  std::size_t group = 0, index = 0;
};
using ParameterPlaces = std::unordered_map<std::string, ParameterPlace>;

// Every name of every parameter of the optimizer. `without_entry`: also without the module's own
// name in front, as Python's named_parameters() gives them.
inline ParameterPlaces places_of(const torch::optim::Optimizer& optimizer,
                                 const std::vector<ParameterName>& names, bool without_entry) {
  std::unordered_map<const void*, ParameterPlace> by_identity;
  for (std::size_t g = 0; g < optimizer.param_groups().size(); ++g) {
    const auto& params = optimizer.param_groups()[g].params();
    for (std::size_t i = 0; i < params.size(); ++i)
      by_identity[params[i].unsafeGetTensorImpl()] = {g, i};
  }
  ParameterPlaces places;
  for (const ParameterName& name : names) {
    const auto found = by_identity.find(name.identity);
    if (found == by_identity.end()) continue;
    places[name.name] = found->second;
    const std::size_t dot = name.name.find('.');
    if (without_entry && dot != std::string::npos)
      places.try_emplace(name.name.substr(dot + 1), found->second);
  }
  return places;
}

// One line per parameter that is not on both sides in the same group.
inline std::string table_of_names(const torch::optim::Optimizer& optimizer, const Value& value,
                                  const std::vector<std::vector<std::string>>& file_names,
                                  const std::vector<std::vector<std::string>>& own_names) {
  struct Row {
    std::string file = "-", here = "-";
  };
  std::vector<std::pair<std::string, Row>> rows;
  std::unordered_map<std::string, std::size_t> index;
  const auto row = [&](const std::string& name) -> Row& {
    const auto [at, fresh] = index.try_emplace(name, rows.size());
    if (fresh) rows.emplace_back(name, Row{});
    return rows[at->second].second;
  };
  const auto& groups = value["param_groups"].as_items();
  for (std::size_t g = 0; g < file_names.size(); ++g)
    for (std::size_t i = 0; i < file_names[g].size(); ++i)
      row(file_names[g][i]).file = "group " + std::to_string(g) + " " +
                                   shape_in_file(value, groups[g]["params"].as_items()[i]);
  for (std::size_t g = 0; g < own_names.size(); ++g)
    for (std::size_t i = 0; i < own_names[g].size(); ++i)
      row(own_names[g][i]).here = "group " + std::to_string(g) + " " +
                                  format_shape(optimizer.param_groups()[g].params()[i].sizes());
  std::erase_if(rows, [](const auto& r) {
    return r.second.file.substr(0, r.second.file.find('[')) ==
           r.second.here.substr(0, r.second.here.find('['));
  });
  std::size_t name_width = 9, file_width = 11;
  for (const auto& [name, r] : rows) {
    name_width = std::max(name_width, name.size());
    file_width = std::max(file_width, r.file.size());
  }
  const auto pad = [](std::string text, std::size_t width) {
    text.resize(std::max(width, text.size()), ' ');
    return text + "  ";
  };
  std::string table = "the optimizer's parameters are not those of the file:\n    " +
                      pad("parameter", name_width) + pad("in the file", file_width) + "here";
  for (const auto& [name, r] : rows)
    table += "\n    " + pad(name, name_width) + pad(r.file, file_width) + r.here;
  return table;
}

// For each group of the optimizer, which group of the file it is and which of its parameters each
// of its own is.
struct Alignment {
  std::vector<std::size_t> group;
  std::vector<std::vector<std::size_t>> index;
};

inline std::optional<Alignment> find_alignment(
    const torch::optim::Optimizer& optimizer,
    const std::vector<std::vector<std::string>>& file_names, const ParameterPlaces& places) {
  constexpr std::size_t kNone = static_cast<std::size_t>(-1);
  const auto& own = optimizer.param_groups();
  if (own.size() != file_names.size()) return std::nullopt;
  Alignment result{std::vector<std::size_t>(own.size(), kNone), {}};
  for (const auto& group : own) result.index.emplace_back(group.params().size(), kNone);
  for (std::size_t g = 0; g < file_names.size(); ++g)
    for (std::size_t i = 0; i < file_names[g].size(); ++i) {
      const auto found = places.find(file_names[g][i]);
      if (found == places.end()) return std::nullopt;
      const ParameterPlace place = found->second;
      std::size_t& from_group = result.group[place.group];
      std::size_t& from_index = result.index[place.group][place.index];
      if ((from_group != kNone && from_group != g) || from_index != kNone) return std::nullopt;
      from_group = g;
      from_index = i;
    }
  for (const auto& indices : result.index)
    if (std::find(indices.begin(), indices.end(), kNone) != indices.end()) return std::nullopt;
  for (std::size_t g = 0; g < own.size(); ++g)
    if (result.group[g] == kNone) result.group[g] = g;  // a group without parameters
  return result;
}

// The state_dict with its groups, and the parameters in them, in the optimizer's order. Only the
// lists of ids move: the state goes by the ids.
inline Value rearrange(const Value& value, const Alignment& alignment) {
  const auto& groups = value["param_groups"].as_items();
  Value::Items arranged;
  for (std::size_t g = 0; g < alignment.group.size(); ++g) {
    Dict group = groups[alignment.group[g]].as_dict();
    for (const char* key : {"params", "param_names"}) {
      const Value* list = group.find(key);
      if (list == nullptr) continue;
      Value::Items items;
      for (const std::size_t i : alignment.index[g]) items.push_back(list->as_items().at(i));
      group.set(key, Value::list(std::move(items)));
    }
    arranged.emplace_back(std::move(group));
  }
  Dict result = value.as_dict();
  result.set("param_groups", Value::list(std::move(arranged)));
  return result;
}

inline Value align_optimizer(const torch::optim::Optimizer& optimizer, const Value& value,
                             const CheckpointInfo::Optimizer& recorded,
                             const std::vector<ParameterName>& names, Problems& problems) {
  const std::string own_class = class_name(optimizer);
  const Value::Items* groups = groups_of(value, problems);
  if (groups == nullptr) return value;
  // Python's Adam with decoupled_weight_decay=True is AdamW under another name.
  const std::string found = groups->empty() ? "" : class_from_keys(groups->front());
  const bool adam_as_adamw =
      recorded.class_name == "Adam" && found == "AdamW" && own_class == "AdamW";
  if (!recorded.class_name.empty() && recorded.class_name != own_class && !adam_as_adamw) {
    problems.push_back("the file holds the state of " + recorded.class_name +
                       ", the optimizer here is " + own_class +
                       ": they do not go on in the same way");
    return value;
  }
  const auto file_names = names_in_file(*groups, recorded);
  const auto own = describe_optimizer(optimizer, names);
  if (file_names.empty() || own.param_names.empty()) return value;  // by position, as Python does
  const auto alignment = find_alignment(optimizer, file_names,
                                        places_of(optimizer, names, recorded.param_names.empty()));
  if (alignment) return rearrange(value, *alignment);
  problems.push_back(table_of_names(optimizer, value, file_names, own.param_names));
  return value;
}

}  // namespace perdure::detail
