// torch::optim optimizers in the form of Python's optimizer.state_dict(). Part of
// perdure/torch.hpp: include that.
//
//   {"state": {0: {"step": tensor(3.), "exp_avg": ..., ...}, ...},
//    "param_groups": [{"lr": 0.001, ..., "params": [0, 1, ...]}]}
//
// The keys are those of Python's class in torch 2.13. Of the options that LibTorch lacks, those
// that only choose an implementation (foreach, fused) are written as None and ignored when read;
// those that change what is computed (maximize, capturable, differentiable) are written as False,
// and True is refused.
#pragma once

#include <torch/optim.h>

#include <algorithm>
#include <cstdint>
#include <memory>
#include <perdure/torch/optimizer_visitors.hpp>
#include <string>
#include <vector>

namespace perdure {

namespace detail {

// --- Writing ---

template <class O>
Value write_optimizer(const O& optimizer) {
  const SharedStorages shared;
  Dict states;
  Value::Items groups;
  std::int64_t number = 0;
  for (const auto& group : optimizer.param_groups()) {
    const auto& options = static_cast<const OptionsOf<O>&>(group.options());
    Dict written;
    OptimizerTraits<O>::options(options, OptionWriter{written});
    Value::Items params;
    for (const at::Tensor& param : group.params()) {
      const auto found = optimizer.state().find(param.unsafeGetTensorImpl());
      Dict state;
      if (found != optimizer.state().end() && found->second != nullptr)
        OptimizerTraits<O>::state(static_cast<const StateOf<O>&>(*found->second), options,
                                  StateWriter{state});
      if (!state.empty()) states.set(number, std::move(state));
      params.emplace_back(number++);
    }
    written.set("params", Value::list(std::move(params)));
    groups.emplace_back(std::move(written));
  }
  return Dict{{"state", std::move(states)}, {"param_groups", Value::list(std::move(groups))}};
}

// --- Reading ---

// What a file has for an optimizer, in the optimizer's order. The tensors still look into the
// loaded memory.
template <class O>
struct LoadedOptimizer {
  std::vector<OptionsOf<O>> options;  // per group
  std::vector<std::pair<at::Tensor, std::unique_ptr<StateOf<O>>>>
      states;  // per parameter; null: none
  KeptTensors kept{};
};

// The class whose options these are, "" where none of those that C++ has.
inline std::string class_from_keys(const Value& group) {
  if (group.contains("line_search_fn")) return "LBFGS";
  if (group.contains("lr_decay")) return "Adagrad";
  if (group.contains("alpha") && group.contains("centered")) return "RMSprop";
  if (group.contains("dampening")) return "SGD";
  if (!group.contains("betas") || !group.contains("amsgrad") ||
      !group.contains("decoupled_weight_decay"))
    return "";
  const Value& decoupled = group["decoupled_weight_decay"];
  return decoupled.kind() == Kind::boolean && decoupled.as_bool() ? "AdamW" : "Adam";
}

// The groups of an optimizer's state_dict, after a look at its form. Null, with a problem, where it
// has none.
inline const Value::Items* groups_of(const Value& value, Problems& problems) {
  if (value.contains("state") && value.contains("param_groups") && value["state"].is_mapping() &&
      value["param_groups"].is_sequence()) {
    const auto& groups = value["param_groups"].as_items();
    const auto is_group = [](const Value& x) {
      return x.contains("params") && x["params"].is_sequence();
    };
    if (std::all_of(groups.begin(), groups.end(), is_group)) return &groups;
  }
  problems.push_back(
      "not the state_dict of an optimizer: that is a dict of \"state\" and \"param_groups\"");
  return nullptr;
}

// The shape of a parameter as its state in the file shows it; "" where the file has no state for
// it, or one for all of them (LBFGS).
inline std::string shape_in_file(const Value& value, const Value& id) {
  const Value* state = value["state"].as_dict().find(id);
  if (state == nullptr || !state->is_mapping() || state->contains("prev_flat_grad")) return "";
  for (const auto& [key, entry] : state->as_dict())
    if (entry.kind() == Kind::tensor && !(key.kind() == Kind::string && key.as_string() == "step"))
      return format_shape(entry.as_tensor().shape);
  return "";
}

inline void compare_group_sizes(const torch::optim::Optimizer& optimizer, const Value& value,
                                const Value::Items& groups, Problems& problems) {
  const auto& own = optimizer.param_groups();
  bool same = own.size() == groups.size();
  for (std::size_t i = 0; same && i < own.size(); ++i)
    same = own[i].params().size() == groups[i]["params"].as_items().size();
  if (same) return;
  problems.push_back("the parameter groups are not those of the file:");
  for (std::size_t i = 0; i < std::max(own.size(), groups.size()); ++i) {
    std::string file = "-", here = "-";
    if (i < groups.size()) {
      const auto& ids = groups[i]["params"].as_items();
      file = std::to_string(ids.size()) + " parameters";
      for (const Value& id : ids)
        file += " " + (shape_in_file(value, id).empty() ? "?" : shape_in_file(value, id));
    }
    if (i < own.size()) {
      here = std::to_string(own[i].params().size()) + " parameters";
      for (const at::Tensor& param : own[i].params()) here += " " + format_shape(param.sizes());
    }
    problems.push_back("  group " + std::to_string(i) + ": in the file " + file);
    problems.push_back("  group " + std::to_string(i) + ": here        " + here);
  }
}

// The tensors in the history of an LBFGS belong together.
inline void check_history(const torch::optim::LBFGSParamState& state,
                          const torch::optim::LBFGSOptions& options, StateReader& reader) {
  const auto size = state.old_dirs().size(),
             limit = static_cast<std::size_t>(options.history_size());
  if (state.old_stps().size() != size || state.ro().size() != size || size > limit)
    reader.problem("\"old_dirs\", \"old_stps\" and \"ro\" have " + std::to_string(size) + ", " +
                   std::to_string(state.old_stps().size()) + " and " +
                   std::to_string(state.ro().size()) + " tensors: not a history of at most " +
                   std::to_string(limit) + " steps");
  for (const auto* list : {&state.old_dirs(), &state.old_stps(), &state.ro()})
    for (const at::Tensor& tensor : *list)
      if (!tensor.defined()) return reader.problem("None stands in the history");
  if (state.al() && state.al()->size() < limit)
    reader.problem("\"al\" has " + std::to_string(state.al()->size()) +
                   " places, the history_size is " + std::to_string(limit));
}

// LBFGS keeps what it knows of all parameters, in their order, as that of the first one.
inline void require_order(const Value::Items& ids, const Value& value, Problems& problems) {
  for (std::size_t k = 0; k < ids.size(); ++k) {
    if (repr(ids[k]) != std::to_string(k))
      return problems.push_back(
          "the parameters have another order in the file, and the history of LBFGS is over all of "
          "them in a row: give the optimizer here its parameters in the order of the file");
    if (k != 0 && value["state"].as_dict().find(ids[k]) != nullptr)
      problems.push_back("state[" + repr(ids[k]) +
                         "]: LBFGS has state for its first parameter only");
  }
}

template <class O>
void read_state(const Value& value, const Value& id, const torch::optim::OptimizerParamGroup& group,
                const at::Tensor& param, LoadedOptimizer<O>& loaded, Problems& problems,
                Bytes bytes) {
  auto& [target, state] = loaded.states.emplace_back(param, nullptr);
  const OptionsOf<O>& options = loaded.options.back();
  const Value* entry = value["state"].as_dict().find(id);
  const std::string where = "state[" + repr(id) + "]";
  if (entry != nullptr && !entry->is_mapping()) {
    problems.push_back(where + ": " + describe_value(*entry) + ", not a dict");
  } else if (entry != nullptr && !entry->as_dict().empty()) {
    state = std::make_unique<StateOf<O>>();
    const std::size_t before = problems.size();
    constexpr bool is_flat = std::is_same_v<O, torch::optim::LBFGS>;
    std::int64_t flat = 0;
    if constexpr (is_flat)
      for (const at::Tensor& each : group.params()) flat += each.numel();
    StateReader reader{{entry->as_dict(), where, problems},
                       is_flat ? c10::IntArrayRef(flat) : param.sizes(),
                       is_flat ? "the parameters here have together " : "the parameter here has ",
                       bytes,
                       loaded.kept};
    OptimizerTraits<O>::state(*state, options, reader);
    reader.refuse_unknown(OptimizerTraits<O>::name);
    if constexpr (is_flat)
      if (problems.size() == before) check_history(*state, options, reader);
    // An SGD that has made no step with momentum yet: None, or nothing, where the buffer will be.
    if constexpr (std::is_same_v<O, torch::optim::SGD>)
      if (!state->momentum_buffer().defined()) state = nullptr;
  } else if (std::is_same_v<O, torch::optim::Adagrad>) {
    problems.push_back(where + " is missing: Adagrad has state for every parameter from the start");
  }
}

inline void refuse_foreign_states(const Value& value, const Value::Items& groups,
                                  Problems& problems) {
  Dict ids;
  for (const Value& group : groups)
    for (const Value& id : group["params"].as_items()) ids.set(id, true);
  for (const auto& [key, state] : value["state"].as_dict())
    if (ids.find(key) == nullptr)
      problems.push_back("state[" + repr(key) + "]: belongs to none of the parameters");
}

// Reads a state_dict for `optimizer`; every line that does not fit is a problem.
template <class O>
LoadedOptimizer<O> read_optimizer(const O& optimizer, const Value& value, Problems& problems,
                                  Bytes bytes = Bytes::there) {
  LoadedOptimizer<O> loaded;
  const Value::Items* groups = groups_of(value, problems);
  if (groups == nullptr) return loaded;
  const std::string found = groups->empty() ? "" : class_from_keys(groups->front());
  if (!found.empty() && found != OptimizerTraits<O>::name) {
    problems.push_back("the file holds the state of " + found + ", the optimizer here is " +
                       std::string(OptimizerTraits<O>::name) +
                       ": they do not go on in the same way");
    return loaded;
  }
  const std::size_t before = problems.size();
  compare_group_sizes(optimizer, value, *groups, problems);
  if (problems.size() != before) return loaded;
  for (std::size_t i = 0; i < groups->size(); ++i) {
    const auto& own = optimizer.param_groups()[i];
    auto& options = loaded.options.emplace_back(static_cast<const OptionsOf<O>&>(own.options()));
    OptionReader reader{
        {(*groups)[i].as_dict(), "param_groups[" + std::to_string(i) + "]", problems}};
    // initial_lr is a scheduler's note to itself.
    for (const char* key : {"params", "param_names", "initial_lr"}) reader.find(key);
    OptimizerTraits<O>::options(options, reader);
    reader.refuse_unknown(OptimizerTraits<O>::name);
    const auto& ids = (*groups)[i]["params"].as_items();
    if constexpr (std::is_same_v<O, torch::optim::LBFGS>) require_order(ids, value, problems);
    for (std::size_t k = 0; k < ids.size(); ++k)
      read_state<O>(value, ids[k], own, own.params()[k], loaded, problems, bytes);
  }
  refuse_foreign_states(value, *groups, problems);
  return loaded;
}

// --- Putting it in place ---

template <class O>
void place(O& optimizer, LoadedOptimizer<O> loaded) {
  const at::NoGradGuard no_grad;
  for (std::size_t i = 0; i < loaded.options.size(); ++i)
    static_cast<OptionsOf<O>&>(optimizer.param_groups()[i].options()) = loaded.options[i];
  for (auto& [param, state] : loaded.states) {
    auto& states = optimizer.state();
    const auto found = states.find(param.unsafeGetTensorImpl());
    if (state == nullptr) {
      if (found != states.end()) states.erase(found);
      continue;
    }
    const OptionsOf<O>& any_options = loaded.options.front();
    StatePlacer placer{param.device(), loaded.kept};
    if (found != states.end() && found->second != nullptr)
      OptimizerTraits<O>::state(static_cast<const StateOf<O>&>(*found->second), any_options,
                                StateTensors{placer.live});
    OptimizerTraits<O>::state(*state, any_options, placer);
    states[param.unsafeGetTensorImpl()] = std::move(state);
  }
}

// --- What its step changes ---

// Calls f(number of the parameter, tensor) for each parameter and the tensors of its state.
template <class F>
void for_each_stepped(const torch::optim::Optimizer& optimizer, const F& f) {
  with_optimizer(optimizer, [&]<class O>(const O& o) {
    std::size_t number = 0;
    for (const auto& group : o.param_groups()) {
      for (const at::Tensor& param : group.params()) {
        f(number, param);
        const auto found = o.state().find(param.unsafeGetTensorImpl());
        std::vector<StateTensor> state;
        if (found != o.state().end() && found->second != nullptr)
          OptimizerTraits<O>::state(static_cast<const StateOf<O>&>(*found->second),
                                    static_cast<const OptionsOf<O>&>(group.options()),
                                    StateTensors{state});
        for (const StateTensor& x : state)
          if (x.tensor.defined()) f(number, x.tensor);
        ++number;
      }
    }
  });
}

inline std::vector<std::uint64_t> step_versions(const torch::optim::Optimizer& optimizer) {
  std::vector<std::uint64_t> versions;
  for_each_stepped(optimizer, [&](std::size_t, const at::Tensor& tensor) {
    versions.push_back(static_cast<std::uint64_t>(tensor._version()));
  });
  return versions;
}

inline std::string stepped_name(const torch::optim::Optimizer& optimizer, std::size_t place) {
  std::string name;
  std::size_t at = 0;
  for_each_stepped(optimizer, [&](std::size_t number, const at::Tensor&) {
    if (at++ == place) name = "parameter " + std::to_string(number) + " or its state";
  });
  return name;
}

inline std::vector<const void*> stepped_storages(const torch::optim::Optimizer& optimizer) {
  std::vector<const void*> storages;
  for (const auto& group : optimizer.param_groups())
    for (const at::Tensor& param : group.params())
      if (!param.is_meta()) storages.push_back(param.storage().data());
  return storages;
}

inline void check_optimizer(const torch::optim::Optimizer& optimizer, const Value& value,
                            Problems& problems, Bytes bytes = Bytes::there) {
  with_optimizer(optimizer,
                 [&]<class O>(const O& o) { read_optimizer<O>(o, value, problems, bytes); });
}

inline bool is_on_cpu(const torch::optim::Optimizer& optimizer) {
  for (const auto& group : optimizer.param_groups())
    for (const at::Tensor& param : group.params())
      if (!param.is_cpu()) return false;
  return true;
}

}  // namespace detail

// What Python's optimizer.state_dict() gives for the same optimizer after the same steps.
// Error(unsupported) for other classes than SGD, Adam, AdamW, RMSprop, Adagrad and LBFGS;
// Error(invalid) for a step count that Python's float32 cannot hold (above 2^24).
inline Value state_dict(const torch::optim::Optimizer& optimizer) {
  return detail::with_optimizer(optimizer,
                                []<class O>(const O& o) { return detail::write_optimizer<O>(o); });
}

// Takes what state_dict gives, here or in Python. Parameters go by position, as in Python; in a
// TrainingState they go by name. Error(invalid) for another class, other groups or shapes, and
// values that LibTorch cannot represent (maximize=True).
inline void load_state_dict(torch::optim::Optimizer& optimizer, const Value& value) {
  detail::with_optimizer(optimizer, [&]<class O>(const O& o) {
    Problems problems;
    auto loaded = detail::read_optimizer<O>(o, value, problems);
    detail::throw_if_any(problems,
                         std::string("the optimizer (") + detail::OptimizerTraits<O>::name + ")");
    detail::place<O>(static_cast<O&>(optimizer), std::move(loaded));
  });
}

// perdure::Dict{{"optimizer", optimizer}} is a mistake that is easy to make; the compiler says what
// to write instead.
template <std::derived_from<torch::optim::Optimizer> T>
struct ToValue<T> {
  static Value convert(const T&) {
    static_assert(!std::derived_from<T, torch::optim::Optimizer>,
                  "save perdure::state_dict(optimizer), not the optimizer itself");
    return {};
  }
};

}  // namespace perdure
