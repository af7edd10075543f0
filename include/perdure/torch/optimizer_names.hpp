// Parameter names: an optimizer's state goes to the parameters that it belongs to, whatever their
// order. Part of perdure/torch.hpp: include that.
#pragma once

#include <perdure/optimizer_match.hpp>
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

// As write_optimizer writes it; None where there is none.
template <class O>
Value state_of(const O& optimizer, const OptionsOf<O>& options, const void* param) {
  const auto found = optimizer.state().find(const_cast<void*>(param));
  Dict state;
  if (found != optimizer.state().end() && found->second != nullptr)
    OptimizerTraits<O>::state(static_cast<const StateOf<O>&>(*found->second), options,
                              StateWriter{state});
  return state.empty() ? Value() : Value(std::move(state));
}

template <class O>
OptimizerOutline outline_of(const O& optimizer, const std::vector<ParameterName>& names) {
  std::unordered_map<const void*, std::vector<std::string>> known;
  for (const ParameterName& name : names) known[name.identity].push_back(name.name);
  OptimizerOutline outline{.class_name = OptimizerTraits<O>::name, .groups = {}, .state = {}};
  std::vector<std::pair<const OptionsOf<O>*, const void*>> params;
  for (const auto& group : optimizer.param_groups()) {
    const auto& options = static_cast<const OptionsOf<O>&>(group.options());
    auto& out = outline.groups.emplace_back();
    OptimizerTraits<O>::options(options, OptionWriter{out.options});
    for (const at::Tensor& param : group.params()) {
      params.emplace_back(&options, param.unsafeGetTensorImpl());
      out.params.push_back({known[params.back().second], "", param.sizes().vec()});
    }
  }
  outline.state = [&optimizer, params = std::move(params)](std::size_t number) {
    return state_of<O>(optimizer, *params[number].first, params[number].second);
  };
  return outline;
}

// Python's Adam with decoupled_weight_decay=True is AdamW under another name.
inline bool is_of_another_class(const std::string& own, const Value& in_file,
                                const std::string& recorded) {
  if (recorded.empty() || recorded == own) return false;
  return !(recorded == "Adam" && own == "AdamW" && in_file.contains("param_groups") &&
           in_file["param_groups"].is_sequence() && !in_file["param_groups"].as_items().empty() &&
           class_from_keys(in_file["param_groups"][0]) == "AdamW");
}

inline Value align_optimizer(const torch::optim::Optimizer& optimizer, const Value& in_file,
                             const Alignment& alignment) {
  const std::string own = class_name(optimizer);
  const std::string& recorded = alignment.recorded.class_name;
  if (!is_of_another_class(own, in_file, recorded))
    return with_optimizer(optimizer, [&]<class O>(const O& o) {
      return match_optimizer(outline_of<O>(o, alignment.names), in_file, alignment);
    });
  alignment.problems.push_back("the file holds the state of " + recorded +
                               ", the optimizer here is " + own +
                               ": they do not go on in the same way");
  return in_file;
}

}  // namespace perdure::detail
