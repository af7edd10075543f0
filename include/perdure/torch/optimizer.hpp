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
#include <cmath>
#include <cstdint>
#include <memory>
#include <perdure/torch/optimizer_traits.hpp>
#include <perdure/torch/tensor.hpp>
#include <string>
#include <tuple>
#include <unordered_map>
#include <unordered_set>
#include <vector>

namespace perdure {

namespace detail {

// --- Writing ---

struct OptionWriter {
  Dict& group;
  void option(const char* key, double x) { group.set(key, x); }
  void option(const char* key, bool x) { group.set(key, x); }
  void option(const char* key, const std::tuple<double, double>& x) {
    group.set(key, Value::tuple({std::get<0>(x), std::get<1>(x)}));
  }
  void fixed(const char* key, bool x) { group.set(key, x); }
  void ignored(const char* key) { group.set(key, nullptr); }
};

// Python counts steps in a float tensor: float32, or float64 where that is the default dtype.
inline at::Tensor step_tensor(std::int64_t step) {
  const bool is_double = torch::get_default_dtype_as_scalartype() == c10::kDouble;
  const std::int64_t limit = std::int64_t{1} << (is_double ? 53 : 24);
  if (step > limit)
    throw Error(ErrorCode::invalid, "a step count of " + std::to_string(step) +
                                        " does not fit the " + (is_double ? "float64" : "float32") +
                                        " tensor in which Python's optimizers count: beyond " +
                                        std::to_string(limit) + " it would lose count");
  return torch::scalar_tensor(static_cast<double>(step), is_double ? c10::kDouble : c10::kFloat);
}

struct StateWriter {
  Dict& state;
  void step(const char* key, std::int64_t x) { state.set(key, step_tensor(x)); }
  void tensor(const char* key, const at::Tensor& x, bool) {
    if (x.defined()) state.set(key, live_value(x));
  }
};

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

// What the readers have in common: the dict that is read, where it is, and which of its keys were
// asked for.
struct DictReader {
  const Dict& dict;
  std::string where;
  Problems& problems;
  Dict asked{};

  void problem(const std::string& what) { problems.push_back(where + ": " + what); }
  const Value* find(const char* key) {
    asked.set(key, true);
    return dict.find(key);
  }
  // The value converted by `convert`, whose Error becomes a problem.
  template <class T, class F>
  void read(const char* key, const Value& value, T& slot, const F& convert) {
    try {
      slot = convert(value);
    } catch (const Error& error) {
      problem("\"" + std::string(key) + "\": " + error.what());
    }
  }
  void refuse_unknown(const char* owner) {
    for (const auto& [key, value] : dict)
      if (asked.find(key) == nullptr)
        problem(quote(key) + " is nothing that a C++ " + owner + " has");
  }
};

// A float, or the tensor of one element that Python allows for lr.
inline double read_double(const Value& value) {
  if (value.kind() != Kind::tensor) return value.as_double();
  const at::Tensor tensor = present_tensor(value.as_tensor());
  if (tensor.numel() != 1 || tensor.is_complex())
    throw Error(ErrorCode::invalid,
                "a tensor of shape " + format_shape(tensor.sizes()) + " is not one number");
  return tensor.item<double>();
}

inline std::tuple<double, double> read_pair(const Value& value) {
  if (!value.is_sequence() || value.as_items().size() != 2)
    throw Error(ErrorCode::invalid, describe_value(value) + " is not a pair of numbers");
  return {read_double(value.as_items()[0]), read_double(value.as_items()[1])};
}

inline std::int64_t read_step(const Value& value) {
  if (value.kind() == Kind::integer && value.as_int() >= 0) return value.as_int();
  const double step = read_double(value);
  if (!(step >= 0 && step <= 0x1p53) || step != std::floor(step))
    throw Error(ErrorCode::invalid, repr(Value(step)) + " is not a count of steps");
  return static_cast<std::int64_t>(step);
}

struct OptionReader : DictReader {
  const Value* find_required(const char* key) {
    const Value* value = find(key);
    if (value == nullptr) problem("\"" + std::string(key) + "\" is missing");
    return value;
  }
  void option(const char* key, double& slot) {
    if (const Value* value = find_required(key)) read(key, *value, slot, read_double);
  }
  void option(const char* key, std::tuple<double, double>& slot) {
    if (const Value* value = find_required(key)) read(key, *value, slot, read_pair);
  }
  // The switches (nesterov, amsgrad, centered) are younger than their classes: where a file has
  // none, it means False.
  void option(const char* key, bool& slot) {
    slot = false;
    if (const Value* value = find(key))
      read(key, *value, slot, [](const Value& x) { return x.as_bool(); });
  }
  void fixed(const char* key, bool expected) {
    const Value* value = find(key);
    if (value == nullptr || (value->kind() == Kind::boolean && value->as_bool() == expected))
      return;
    problem("\"" + std::string(key) + "\" is " + repr(*value) +
            ", which LibTorch's optimizer cannot do (it is always " +
            (expected ? "True" : "False") + " there)");
  }
  void ignored(const char* key) { find(key); }
};

// Tensors over memory that nobody else needs, each of all of it: an optimizer may keep them.
struct KeptTensors {
  std::unordered_set<const c10::TensorImpl*> tensors{};
  std::unordered_set<const TensorStorage*> storages{};

  void add(const Tensor& file, const at::Tensor& tensor) {
    const TensorStorage& storage = *file.storage;
    if (storage.may_be_kept && tensor.nbytes() == storage.size && tensor.is_contiguous() &&
        !tensor.is_conj() && !tensor.is_neg() && storages.insert(&storage).second)
      tensors.insert(tensor.unsafeGetTensorImpl());
  }
};

struct StateReader : DictReader {
  const at::Tensor& param;
  Bytes bytes;
  KeptTensors& kept;

  void step(const char* key, std::int64_t& slot) {
    if (const Value* value = find(key)) return read(key, *value, slot, read_step);
    problem("\"" + std::string(key) + "\" is missing");
  }
  void tensor(const char* key, at::Tensor& slot, bool required) {
    const Value* value = find(key);
    if (value == nullptr || value->is_none()) {
      if (required) problem("\"" + std::string(key) + "\" is missing");
    } else if (value->kind() != Kind::tensor) {
      problem("\"" + std::string(key) + "\" is " + describe_value(*value) + ", not a tensor");
    } else if (c10::IntArrayRef(value->as_tensor().shape) != param.sizes()) {
      problem("\"" + std::string(key) + "\": shape " + format_shape(value->as_tensor().shape) +
              " in the file, the parameter here has " + format_shape(param.sizes()));
    } else if (bytes == Bytes::there || has_data(value->as_tensor())) {
      read(key, *value, slot, [](const Value& x) { return present_tensor(x.as_tensor()); });
      if (slot.defined()) kept.add(value->as_tensor(), slot);
    } else {
      slot = at::empty(param.sizes(), at::TensorOptions(c10::kMeta));  // there is one
    }
  }
};

// What a file has for an optimizer, in the optimizer's order. The tensors still look into the
// loaded memory.
template <class O>
struct LoadedOptimizer {
  std::vector<OptionsOf<O>> options;  // per group
  std::vector<std::pair<at::Tensor, std::unique_ptr<StateOf<O>>>>
      states;  // per parameter; null: none
  KeptTensors kept{};
};

// The class whose options these are, "" where none of the five.
inline std::string class_from_keys(const Value& group) {
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
// it.
inline std::string shape_in_file(const Value& value, const Value& id) {
  const Value* state = value["state"].as_dict().find(id);
  if (state == nullptr || !state->is_mapping()) return "";
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

template <class O>
void read_state(const Value& value, const Value& id, const at::Tensor& param,
                const OptionsOf<O>& options, LoadedOptimizer<O>& loaded, Problems& problems,
                Bytes bytes) {
  auto& [target, state] = loaded.states.emplace_back(param, nullptr);
  const Value* entry = value["state"].as_dict().find(id);
  const std::string where = "state[" + repr(id) + "]";
  if (entry != nullptr && !entry->is_mapping()) {
    problems.push_back(where + ": " + describe_value(*entry) + ", not a dict");
  } else if (entry != nullptr && !entry->as_dict().empty()) {
    state = std::make_unique<StateOf<O>>();
    StateReader reader{{entry->as_dict(), where, problems}, param, bytes, loaded.kept};
    OptimizerTraits<O>::state(*state, options, reader);
    reader.refuse_unknown(OptimizerTraits<O>::name);
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
    for (std::size_t k = 0; k < ids.size(); ++k)
      read_state<O>(value, ids[k], own.params()[k], options, loaded, problems, bytes);
  }
  refuse_foreign_states(value, *groups, problems);
  return loaded;
}

// --- Putting it in place ---

// Makes the tensors of a state, which look into the loaded memory, the optimizer's own: copied into
// the memory of the live state where that has the same form (and they are not there already), into
// new tensors on the parameter's device otherwise, but for those that it may keep. Dtypes stay
// those of the file, whatever the parameter's: an fp32 moment of a bf16 parameter keeps its bits.
struct StatePlacer {
  at::Device device;
  const KeptTensors& kept;
  std::vector<at::Tensor> live{};
  std::size_t next = 0;

  void step(const char*, std::int64_t) {}
  void tensor(const char*, at::Tensor& slot, bool) {
    const at::Tensor old = next < live.size() ? live[next] : at::Tensor();
    ++next;
    if (!slot.defined()) return;
    const bool fits = old.defined() && old.scalar_type() == slot.scalar_type() &&
                      old.sizes() == slot.sizes() && old.strides() == slot.strides() &&
                      old.device() == device;
    if (fits)
      slot = is_same_memory(old, slot) ? old.detach() : old.detach().copy_(slot);
    else if (!device.is_cpu() || !kept.tensors.contains(slot.unsafeGetTensorImpl()))
      slot = slot.clone().to(device);
  }
};

// Collects the tensors of a state in order.
struct StateTensors {
  std::vector<at::Tensor>& out;
  void step(const char*, std::int64_t) {}
  void tensor(const char*, const at::Tensor& x, bool) { out.push_back(x); }
};

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
        std::vector<at::Tensor> state;
        if (found != o.state().end() && found->second != nullptr)
          OptimizerTraits<O>::state(static_cast<const StateOf<O>&>(*found->second),
                                    static_cast<const OptionsOf<O>&>(group.options()),
                                    StateTensors{state});
        for (const at::Tensor& tensor : state)
          if (tensor.defined()) f(number, tensor);
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
// Error(unsupported) for other classes than SGD, Adam, AdamW, RMSprop and Adagrad; Error(invalid)
// for a step count that Python's float32 cannot hold (above 2^24).
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
