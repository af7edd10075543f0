#include "engine/optimizer_pairs.hpp"

#include <algorithm>
#include <array>
#include <map>
#include <numeric>
#include <tuple>
#include <unordered_map>

#include "engine/key_match.hpp"

namespace perdure::engine {
namespace {

using Pairs = OptimizerPairs;
constexpr std::size_t kNone = Pairs::kNone;
using Names = std::vector<std::vector<std::string>>;  // by group

// State that has its parameter's shape, in any optimizer that PyTorch has.
constexpr auto kParameterShaped = std::to_array<std::string_view>(
    {"exp_avg", "exp_avg_sq", "max_exp_avg_sq", "exp_inf", "momentum_buffer", "square_avg",
     "grad_avg", "acc_delta", "sum", "ax", "prev", "prev_grad", "step_size"});

const Value::Items& groups_of(const Value& in_file) {
  if (in_file.contains("state") && in_file.contains("param_groups") &&
      in_file["state"].is_mapping() && in_file["param_groups"].is_sequence()) {
    const auto& groups = in_file["param_groups"].as_items();
    if (std::ranges::all_of(groups, [](const Value& group) {
          return group.contains("params") && group["params"].is_sequence();
        }))
      return groups;
  }
  throw Error(ErrorCode::invalid,
              "not the state_dict of an optimizer: that is a dict of \"state\" and "
              "\"param_groups\"");
}

// A tensor without dimensions may be a number for the whole parameter.
std::optional<Pairs::Shape> shape_in(const Dict& states, const Value& id) {
  const Value* state = states.find(id);
  if (state == nullptr || !state->is_mapping()) return std::nullopt;
  for (const auto& [key, entry] : state->as_dict())
    if (entry.kind() == Kind::tensor && !entry.as_tensor().shape.empty() &&
        key.kind() == Kind::string &&
        std::ranges::find(kParameterShaped, key.as_string()) != kParameterShaped.end())
      return entry.as_tensor().shape;
  return std::nullopt;
}

// What PyTorch itself records for an optimizer made from named_parameters(); empty where it did
// not.
Names names_in_groups(const Value::Items& groups) {
  Names names;
  for (const Value& group : groups) {
    if (!group.contains("param_names") || !group["param_names"].is_sequence()) return {};
    auto& out = names.emplace_back();
    for (const Value& name : group["param_names"].as_items()) out.push_back(name.as_string());
  }
  return names;
}

bool complete(const Names& names, const Value::Items& groups) {
  return std::ranges::equal(names, groups, [](const auto& some, const Value& group) {
    return some.size() == group["params"].as_items().size();
  });
}

// What leads to a parameter here, the surer names first. One that fits two parameters leads
// nowhere.
class Index {
 public:
  // `loosely`: the file has no names but those of PyTorch, without the entry's in front.
  Index(const OptimizerOutline& own, bool loosely) {
    add(own, [](const auto& param, const auto& take) {
      for (const std::string& name : param.names) take(name);
    });
    add(own, [](const auto& param, const auto& take) {
      for (const std::string& name : param.names) take(without_wrappers(name));
    });
    if (!loosely) return;
    add(own, [](const auto& param, const auto& take) {
      if (!param.own_name.empty()) take(param.own_name);
      for (const std::string& name : param.names) take(without_entry(name));
    });
    add(own, [](const auto& param, const auto& take) {
      if (!param.own_name.empty()) take(without_wrappers(param.own_name));
      for (const std::string& name : param.names) take(without_wrappers(without_entry(name)));
    });
  }

  std::size_t find(const std::string& name) const {
    const auto found = places_.find(name);
    return found == places_.end() ? kNone : found->second.param;
  }
  bool empty() const { return places_.empty(); }

 private:
  struct Place {
    std::size_t param;
    int level;
  };

  static std::string without_entry(const std::string& name) {
    const std::size_t dot = name.find('.');
    return dot == std::string::npos ? name : name.substr(dot + 1);
  }

  template <class ForEachName>
  void add(const OptimizerOutline& own, const ForEachName& for_each_name) {
    ++level_;
    std::size_t number = 0;
    for (const auto& group : own.groups)
      for (const auto& param : group.params) {
        for_each_name(param, [&](const std::string& name) {
          const auto [at, fresh] = places_.try_emplace(name, Place{number, level_});
          if (!fresh && at->second.level == level_ && at->second.param != number)
            at->second.param = kNone;
        });
        ++number;
      }
  }

  std::unordered_map<std::string, Place> places_;
  int level_ = 0;
};

void list_file(Pairs& pairs, const Value::Items& groups, const Dict& states) {
  for (std::size_t g = 0; g < groups.size(); ++g) {
    const auto& ids = groups[g]["params"].as_items();
    pairs.file.groups.push_back({.size = ids.size()});
    for (const Value& id : ids) {
      pairs.ids.push_back(id);
      pairs.file.params.push_back({.group = g, .shape = shape_in(states, id)});
    }
  }
}

void list_own(Pairs& pairs, const OptimizerOutline& own) {
  for (std::size_t g = 0; g < own.groups.size(); ++g) {
    pairs.own.groups.push_back({.size = own.groups[g].params.size()});
    for (const auto& param : own.groups[g].params)
      pairs.own.params.push_back(
          {.group = g,
           .name = param.names.empty() ? param.own_name : param.names.front(),
           .shape = param.shape});
  }
}

void pair(Pairs& pairs, std::size_t file, std::size_t own) {
  if (own == kNone || pairs.own.params[own].partner != kNone) return;
  pairs.own.params[own].partner = file;
  pairs.file.params[file].partner = own;
}

void pair_by_name(Pairs& pairs, const Index& index) {
  auto& params = pairs.file.params;
  for (std::size_t i = 0; i < params.size(); ++i) pair(pairs, i, index.find(params[i].name));
  for (std::size_t i = 0; i < params.size(); ++i)
    if (params[i].partner == kNone) pair(pairs, i, index.find(without_wrappers(params[i].name)));
}

void pair_by_position(Pairs& pairs) {
  pairs.by_position = true;
  if (!std::ranges::equal(pairs.file.groups, pairs.own.groups, {}, &Pairs::Group::size,
                          &Pairs::Group::size))
    return;
  for (std::size_t i = 0; i < pairs.own.params.size(); ++i) pair(pairs, i, i);
}

// How many parameters two groups have in common.
struct Shared {
  std::size_t own, file, count;
};

std::vector<Shared> shared_by_groups(const Pairs& pairs) {
  std::map<std::pair<std::size_t, std::size_t>, std::size_t> counts;
  for (const auto& param : pairs.own.params)
    if (param.partner != kNone) ++counts[{param.group, pairs.file.params[param.partner].group}];
  std::vector<Shared> shared;
  for (const auto& [groups, count] : counts) shared.push_back({groups.first, groups.second, count});
  return shared;
}

// Groups are counterparts that share most parameters; of those without any, in their order.
void find_counterparts(Pairs& pairs, std::vector<Shared>& shared) {
  auto &own = pairs.own.groups, &file = pairs.file.groups;
  const auto set = [&](std::size_t g, std::size_t f) {
    own[g].counterpart = f;
    file[f].counterpart = g;
  };
  std::ranges::stable_sort(shared, std::ranges::greater(), &Shared::count);
  for (const Shared& both : shared)
    if (own[both.own].counterpart == kNone && file[both.file].counterpart == kNone)
      set(both.own, both.file);
  for (std::size_t g = 0, f = 0; g < own.size(); ++g) {
    if (own[g].size != 0) continue;
    while (f < file.size() && file[f].size != 0) ++f;
    if (f < file.size()) set(g, f++);
  }
}

// Where as many went to another group as to the counterpart, the counterpart it is.
void find_mostly(Pairs& pairs, std::vector<Shared>& shared) {
  auto &own = pairs.own.groups, &file = pairs.file.groups;
  std::ranges::stable_sort(shared, std::ranges::greater(), [&](const Shared& both) {
    return std::pair(both.count, own[both.own].counterpart == both.file);
  });
  for (const Shared& both : shared) {
    if (own[both.own].mostly == kNone) own[both.own].mostly = both.file;
    if (file[both.file].mostly == kNone) file[both.file].mostly = both.own;
  }
}

// One group there became one here where they are counterparts and no other group says that it is
// mostly the same as either.
void find_continued(Pairs& pairs) {
  auto &own = pairs.own.groups, &file = pairs.file.groups;
  std::vector<std::size_t> own_claims(own.size()), file_claims(file.size());
  for (const auto& group : own)
    if (group.mostly != kNone) ++file_claims[group.mostly];
  for (const auto& group : file)
    if (group.mostly != kNone) ++own_claims[group.mostly];
  for (std::size_t g = 0; g < own.size(); ++g) {
    const std::size_t f = own[g].counterpart;
    own[g].continued = f != kNone && file_claims[f] == (own[g].mostly == f ? 1U : 0U) &&
                       own_claims[g] == (file[f].mostly == g ? 1U : 0U);
  }
}

void pair_groups(Pairs& pairs) {
  std::vector<Shared> shared = shared_by_groups(pairs);
  find_counterparts(pairs, shared);
  find_mostly(pairs, shared);
  find_continued(pairs);
}

}  // namespace

bool OptimizerPairs::has_other_shape(const Parameter& param) const {
  if (param.partner == kNone) return false;
  const auto& in_file = file.params[param.partner].shape;
  return in_file && in_file != param.shape;
}

bool OptimizerPairs::keeps_state(const Parameter& param) const {
  return param.partner != kNone && !has_other_shape(param);
}

bool OptimizerPairs::is_moved(const Parameter& param) const {
  return param.partner != kNone &&
         own.groups[param.group].counterpart != file.params[param.partner].group;
}

std::size_t OptimizerPairs::survivors() const {
  return static_cast<std::size_t>(
      std::ranges::count_if(own.params, [](const auto& p) { return p.partner != kNone; }));
}

bool OptimizerPairs::fit() const {
  return own.params.size() == file.params.size() &&
         std::ranges::all_of(own.params,
                             [&](const auto& p) { return keeps_state(p) && !is_moved(p); });
}

OptimizerPairs pair_parameters(const OptimizerOutline& own, const Value& in_file,
                               const CheckpointInfo::Optimizer& recorded) {
  OptimizerPairs pairs;
  const auto& groups = groups_of(in_file);
  list_file(pairs, groups, in_file["state"].as_dict());
  list_own(pairs, own);
  const bool loosely = recorded.param_names.empty();
  const Names names = loosely ? names_in_groups(groups) : recorded.param_names;
  const Index index(own, loosely);
  if (!names.empty() && complete(names, groups) && !index.empty()) {
    std::size_t number = 0;
    for (const auto& group : names)
      for (const std::string& name : group) pairs.file.params[number++].name = name;
    pair_by_name(pairs, index);
  } else {
    pair_by_position(pairs);
  }
  pair_groups(pairs);
  return pairs;
}

}  // namespace perdure::engine
