// torch::nn modules. Part of perdure/torch.hpp: include that.
#pragma once

#include <torch/nn/module.h>
#include <torch/nn/modules/batchnorm.h>
#include <torch/nn/modules/instancenorm.h>

#include <cstdint>
#include <memory>
#include <perdure/torch/tensor.hpp>
#include <string>
#include <unordered_map>
#include <vector>

namespace perdure {

namespace detail {

template <class T>
struct IsModulePointer : std::false_type {};
template <std::derived_from<torch::nn::Module> T>
struct IsModulePointer<std::shared_ptr<T>> : std::true_type {};

// A module, a holder such as torch::nn::Linear, or a shared_ptr to a module.
template <class T>
concept ModuleLike = std::derived_from<T, torch::nn::Module> ||
                     torch::detail::is_module_holder<T>::value || IsModulePointer<T>::value;

// The module itself; const only where x is a module and const.
template <class T>
  requires ModuleLike<std::remove_const_t<T>>
auto& module_of(T& x) {
  if constexpr (std::derived_from<T, torch::nn::Module>) {
    return x;
  } else if constexpr (IsModulePointer<std::remove_const_t<T>>::value) {
    if (x == nullptr) throw Error(ErrorCode::invalid, "the pointer to a module is null");
    return *x;
  } else {
    return *x.ptr();
  }
}

// Calls f(key, tensor, is_parameter) in the order of Python's state_dict: a module's own
// parameters, its own buffers, then its children. What is registered twice is there twice.
template <class F>
void for_each_tensor(const torch::nn::Module& module, const std::string& prefix, const F& f) {
  for (const auto& item : module.named_parameters(/*recurse=*/false))
    f(prefix + item.key(), item.value(), true);
  for (const auto& item : module.named_buffers(/*recurse=*/false))
    f(prefix + item.key(), item.value(), false);
  for (const auto& item : module.named_children())
    if (item.value() != nullptr) for_each_tensor(*item.value(), prefix + item.key() + ".", f);
}

template <class... M>
bool is_any_of(const torch::nn::Module& module) {
  return ((dynamic_cast<const M*>(&module) != nullptr) || ...);
}

// The _version of the Python class. The norms with running statistics are at 2: below that,
// Python's load_state_dict would take the file for one from before num_batches_tracked.
inline std::int64_t module_version(const torch::nn::Module& module) {
  namespace nn = torch::nn;
  return is_any_of<nn::BatchNorm1dImpl, nn::BatchNorm2dImpl, nn::BatchNorm3dImpl,
                   nn::InstanceNorm1dImpl, nn::InstanceNorm2dImpl, nn::InstanceNorm3dImpl>(module)
             ? 2
             : 1;
}

inline void collect_metadata(const torch::nn::Module& module, const std::string& prefix,
                             Dict& metadata) {
  metadata.set(prefix, Dict{{"version", module_version(module)}});
  for (const auto& item : module.named_children())
    if (item.value() != nullptr)
      collect_metadata(*item.value(), prefix.empty() ? item.key() : prefix + "." + item.key(),
                       metadata);
}

inline Value tensor_entry(const std::string& key, const at::Tensor& tensor) {
  try {
    return live_value(tensor);
  } catch (const Error& error) {
    throw Error(error.code(), "\"" + key + "\": " + error.what());
  }
}

// One tensor of a module and what the file has for it.
struct ModuleTarget {
  std::string key;
  at::Tensor live;
  Tensor file;
  at::Tensor source;  // on the host; undefined where the bytes are still in the file
};

inline std::pair<const char*, const char*> byte_bounds(const at::Tensor& tensor) {
  std::int64_t last = 0;
  for (std::int64_t i = 0; i < tensor.dim(); ++i) last += (tensor.size(i) - 1) * tensor.stride(i);
  const char* first = static_cast<const char*>(tensor.const_data_ptr());
  return {first, tensor.numel() == 0
                     ? first
                     : first + (last + 1) * static_cast<std::int64_t>(tensor.element_size())};
}

inline bool overlap(const at::Tensor& a, const at::Tensor& b) {
  const auto x = byte_bounds(a), y = byte_bounds(b);
  return x.first < y.second && y.first < x.second;
}

// Where in live memory the file's storage lies, if the tensor is its part of it.
inline const char* storage_begin(const ModuleTarget& target) {
  return static_cast<const char*>(target.live.const_data_ptr()) -
         target.file.storage_offset * static_cast<std::int64_t>(itemsize(target.file.dtype));
}

// Whether writing b's value after a's would leave something else in a: tried out on a copy of their
// storage.
inline bool contradict(const ModuleTarget& a, const ModuleTarget& b) {
  // One thing in the file as it is one here. What is not is there to be looked at.
  if (a.file.storage == b.file.storage && storage_begin(a) == storage_begin(b) &&
      a.live.strides() == c10::IntArrayRef(a.file.strides) &&
      b.live.strides() == c10::IntArrayRef(b.file.strides))
    return false;
  if (!a.source.defined() || !b.source.defined()) return false;
  if (a.live.is_same(b.live) ||
      (a.live.const_data_ptr() == b.live.const_data_ptr() && a.live.sizes() == b.live.sizes() &&
       a.live.strides() == b.live.strides()))
    return !same_bits(a.source, b.source);
  const c10::Storage scratch = bytes_of(a.live.storage()).clone().storage();
  const auto view = [&](const at::Tensor& live) {
    at::Tensor result = at::empty({0}, live.options().requires_grad(false));
    return result.set_(scratch, live.storage_offset(), live.sizes(), live.strides());
  };
  view(a.live).copy_(a.source);
  view(b.live).copy_(b.source);
  return !same_bits(view(a.live), a.source);
}

// A file may hold two tensors where the model ties them to one; then they must be equal.
inline void check_ties(const std::vector<ModuleTarget>& targets, Problems& problems) {
  std::unordered_map<const c10::StorageImpl*, std::vector<const ModuleTarget*>> by_storage;
  for (const ModuleTarget& target : targets) {
    if (target.live.is_meta()) continue;
    auto& others = by_storage[target.live.storage().unsafeGetStorageImpl()];
    for (const ModuleTarget* other : others)
      if (overlap(other->live, target.live) && contradict(*other, target))
        problems.push_back("\"" + other->key + "\" and \"" + target.key +
                           "\" are tied in the module, but the file gives them different values");
    others.push_back(&target);
  }
}

// What a load looks for: see TrainingState::Entry::structure.
inline Value structure_of(const torch::nn::Module& module) {
  const auto nowhere = std::make_shared<TensorStorage>();
  nowhere->device = "meta";
  Dict structure;
  for_each_tensor(module, "", [&](const std::string& key, const at::Tensor& live, bool) {
    const auto dtype = live.defined() ? dtype_of(live.scalar_type()) : std::nullopt;
    if (!dtype) return void(structure.set(key, nullptr));
    Tensor tensor;
    tensor.storage = nowhere;
    tensor.dtype = *dtype;
    tensor.shape = live.sizes().vec();
    structure.set(key, Value(std::move(tensor)));
  });
  return structure;
}

// A tensor of the file as the module has it: another dtype (MatchOptions::cast) is converted.
inline at::Tensor source_for(const at::Tensor& live, const Tensor& file) {
  return has_data(file) ? present_tensor(file).to(live.scalar_type()) : at::Tensor();
}

// Pairs those tensors of a module that a matched state_dict has with what it has for them.
inline std::vector<ModuleTarget> pair_up(const torch::nn::Module& module, const Value& matched,
                                         Problems& problems) {
  std::vector<ModuleTarget> targets;
  for_each_tensor(module, "", [&](const std::string& key, const at::Tensor& live, bool) {
    const Value* entry = matched.as_dict().find(key);
    if (entry == nullptr) return;
    const Tensor& file = entry->as_tensor();
    targets.push_back({key, live, file, source_for(live, file)});
  });
  check_ties(targets, problems);
  return targets;
}

// Copies what a matched state_dict has into the live tensors, on whatever device they are.
inline void copy_into(const torch::nn::Module& module, const Value& matched) {
  Problems problems;
  const auto targets = pair_up(module, matched, problems);
  for (const auto& target : targets)
    if (!target.source.defined())
      problems.push_back("\"" + target.key +
                         "\": the tensor in the file has no data (loaded to \"meta\"?)");
  throw_if_any(problems, "the module");
  const at::NoGradGuard no_grad;
  for (const auto& target : targets)  // what a restore has read straight into it is there already
    if (!is_same_memory(target.live, target.source)) at::Tensor(target.live).copy_(target.source);
}

// Every name of every parameter: a tied one has several.
inline std::vector<ParameterName> parameter_names(const torch::nn::Module& module) {
  std::vector<ParameterName> names;
  for_each_tensor(module, "",
                  [&](const std::string& key, const at::Tensor& tensor, bool is_parameter) {
                    if (is_parameter) names.push_back({tensor.unsafeGetTensorImpl(), key});
                  });
  return names;
}

}  // namespace detail

// What Python's module.state_dict() gives: an OrderedDict of detached tensors, with the same keys
// in the same order where the modules are registered under the same names in the same order, and
// its _metadata.
inline Value state_dict(const torch::nn::Module& module) {
  const SharedStorages shared;
  Dict result(Kind::ordered_dict);
  detail::for_each_tensor(module, "", [&](const std::string& key, const at::Tensor& tensor, bool) {
    result.set(key, detail::tensor_entry(key, tensor));
  });
  Dict metadata(Kind::ordered_dict);
  detail::collect_metadata(module, "", metadata);
  result.set_attributes(std::make_shared<Dict>(Dict{{"_metadata", std::move(metadata)}}));
  return result;
}
template <detail::ModuleLike T>
  requires(!std::derived_from<T, torch::nn::Module>)
Value state_dict(const T& module) {
  return state_dict(static_cast<const torch::nn::Module&>(detail::module_of(module)));
}

// Copies every tensor into the live one of the same name, on whatever device that is. Names, shapes
// and dtypes must be the same, but for the prefixes of wrappers ("module.", "_orig_mod.") in the
// names; and what the module ties must be equal in the file.
inline void load_state_dict(torch::nn::Module& module, const Value& value) {
  detail::copy_into(module,
                    detail::match_state_dict(value, detail::structure_of(module), "the module"));
}
template <detail::ModuleLike T>
  requires(!std::derived_from<T, torch::nn::Module>)
void load_state_dict(const T& module, const Value& value) {
  load_state_dict(static_cast<torch::nn::Module&>(detail::module_of(module)), value);
}

namespace detail {

// The state_dict for a restore to read into. None where some of it is not in the memory of the CPU:
// state_dict() would copy that.
inline Value live_state(const torch::nn::Module& module) {
  bool on_cpu = true;
  for_each_tensor(module, "", [&](const std::string&, const at::Tensor& tensor, bool) {
    on_cpu = on_cpu && tensor.defined() && tensor.is_cpu();
  });
  return on_cpu ? state_dict(module) : Value();
}

}  // namespace detail

// perdure::Dict{{"model", model}} is a mistake that is easy to make; the compiler says what to
// write instead.
template <detail::ModuleLike T>
struct ToValue<T> {
  static Value convert(const T&) {
    static_assert(!detail::ModuleLike<T>,
                  "save perdure::state_dict(module), not the module itself");
    return {};
  }
};

}  // namespace perdure
