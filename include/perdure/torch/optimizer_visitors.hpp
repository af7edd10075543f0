// What walks the traits of an optimizer: visitors that write its options and state, read them, and
// put them in place. Part of perdure/torch.hpp: include that.
#pragma once

#include <cmath>
#include <cstdint>
#include <deque>
#include <optional>
#include <perdure/torch/optimizer_traits.hpp>
#include <perdure/torch/tensor.hpp>
#include <string>
#include <string_view>
#include <tuple>
#include <unordered_set>
#include <vector>

namespace perdure::detail {

// --- Writing ---

struct OptionWriter {
  Dict& group;
  void option(const char* key, double x) { group.set(key, x); }
  void option(const char* key, bool x) { group.set(key, x); }
  void option(const char* key, std::int64_t x) { group.set(key, x); }
  void option(const char* key, const std::optional<std::string>& x) {
    group.set(key, x ? Value(*x) : Value());
  }
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
  void count(const char* key, std::int64_t x) { state.set(key, x); }
  void number(const char* key, double x) { state.set(key, x); }
  // LibTorch makes a tensor of the 1 that Python's H_diag begins with.
  void scalar(const char* key, const at::Tensor& x) {
    if (x.defined() && !x.is_floating_point())
      state.set(key, x.item<std::int64_t>());
    else
      tensor(key, x, true);
  }
  template <class List>
  void tensors(const char* key, const List& list) {
    Value::Items items;
    for (const at::Tensor& x : list) items.push_back(x.defined() ? live_value(x) : Value());
    state.set(key, Value::list(std::move(items)));
  }
  void scalars(const char* key, const std::deque<at::Tensor>& list) { tensors(key, list); }
  void scalars(const char* key, const std::optional<std::vector<at::Tensor>>& list) {
    if (list) tensors(key, *list);
  }
};

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
  const Value* find_required(const char* key) {
    const Value* value = find(key);
    if (value == nullptr) problem("\"" + std::string(key) + "\" is missing");
    return value;
  }
  // The value converted by `convert`, whose Error becomes a problem.
  template <class T, class F>
  void read(const std::string& key, const Value& value, T& slot, const F& convert) {
    try {
      slot = convert(value);
    } catch (const Error& error) {
      problem("\"" + key + "\": " + error.what());
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
  void option(const char* key, double& slot) {
    if (const Value* value = find_required(key)) read(key, *value, slot, read_double);
  }
  void option(const char* key, std::tuple<double, double>& slot) {
    if (const Value* value = find_required(key)) read(key, *value, slot, read_pair);
  }
  void option(const char* key, std::int64_t& slot) {
    if (const Value* value = find_required(key))
      read(key, *value, slot, [](const Value& x) { return x.as_int(); });
  }
  void option(const char* key, std::optional<std::string>& slot) {
    if (const Value* value = find_required(key))
      read(key, *value, slot, [](const Value& x) {
        return x.is_none() ? std::nullopt : std::optional(x.as_string());
      });
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
  c10::IntArrayRef shape;  // of the tensors; a scalar has none
  const char* owner;       // of such a shape, for messages
  Bytes bytes;
  KeptTensors& kept;

  void step(const char* key, std::int64_t& slot) {
    if (const Value* value = find_required(key)) read(key, *value, slot, read_step);
  }
  void tensor(const char* key, at::Tensor& slot, bool required) {
    const Value* value = find(key);
    if (value != nullptr && !value->is_none())
      slot = read_tensor(key, *value, shape);
    else if (required)
      problem("\"" + std::string(key) + "\" is missing");
  }
  void count(const char* key, std::int64_t& slot) { step(key, slot); }
  void number(const char* key, double& slot) {
    if (const Value* value = find_required(key)) read(key, *value, slot, read_double);
  }
  void scalar(const char* key, at::Tensor& slot) {
    const Value* value = find_required(key);
    if (value == nullptr) return;
    slot = value->kind() == Kind::integer ? torch::scalar_tensor(value->as_int(), c10::kLong)
                                          : read_tensor(key, *value, {});
  }
  void tensors(const char* key, std::deque<at::Tensor>& list) { read_list(key, list, shape); }
  void scalars(const char* key, std::deque<at::Tensor>& list) { read_list(key, list, {}); }
  void scalars(const char* key, std::optional<std::vector<at::Tensor>>& list) {
    if (find(key) != nullptr) read_list(key, list.emplace(), {});
  }

 private:
  // The tensor of this shape that `value` is; undefined, with a problem, where it is none.
  at::Tensor read_tensor(const std::string& key, const Value& value, c10::IntArrayRef wanted) {
    at::Tensor tensor;
    if (value.kind() != Kind::tensor) {
      problem("\"" + key + "\" is " + describe_value(value) + ", not a tensor");
    } else if (c10::IntArrayRef(value.as_tensor().shape) != wanted) {
      problem("\"" + key + "\": shape " + format_shape(value.as_tensor().shape) + " in the file, " +
              (wanted == shape ? owner : "one number here has ") + format_shape(wanted));
    } else if (bytes == Bytes::there || has_data(value.as_tensor())) {
      read(key, value, tensor, [](const Value& x) { return present_tensor(x.as_tensor()); });
      if (tensor.defined()) kept.add(value.as_tensor(), tensor);
    } else {
      tensor = at::empty(wanted, at::TensorOptions(c10::kMeta));  // there is one
    }
    return tensor;
  }
  // None stands for an undefined tensor.
  template <class List>
  void read_list(const char* key, List& list, c10::IntArrayRef wanted) {
    const Value* value = find_required(key);
    if (value == nullptr) return;
    if (value->kind() != Kind::list)
      return problem("\"" + std::string(key) + "\" is " + describe_value(*value) +
                     ", not a list of tensors");
    for (const Value& item : value->as_items()) {
      const std::string name = std::string(key) + "[" + std::to_string(list.size()) + "]";
      list.push_back(item.is_none() ? at::Tensor() : read_tensor(name, item, wanted));
    }
  }
};

// --- Putting it in place ---

// A tensor of a state, or of one of its lists.
struct StateTensor {
  std::string_view key;
  std::size_t index;
  at::Tensor tensor;
};

// Makes the tensors of a state, which look into the loaded memory, the optimizer's own: copied into
// the memory of the live state where that has the same form (and they are not there already), into
// new tensors on the parameter's device otherwise, but for those that it may keep. Dtypes stay
// those of the file, whatever the parameter's: an fp32 moment of a bf16 parameter keeps its bits.
struct StatePlacer {
  at::Device device;
  const KeptTensors& kept;
  std::vector<StateTensor> live{};

  void step(const char*, std::int64_t) {}
  void count(const char*, std::int64_t) {}
  void number(const char*, double) {}
  void tensor(const char* key, at::Tensor& slot, bool) { place(key, 0, slot); }
  void scalar(const char* key, at::Tensor& slot) { place(key, 0, slot); }
  void tensors(const char* key, auto& list) {
    for (std::size_t i = 0; i < list.size(); ++i) place(key, i, list[i]);
  }
  void scalars(const char* key, std::deque<at::Tensor>& list) { tensors(key, list); }
  void scalars(const char* key, std::optional<std::vector<at::Tensor>>& list) {
    if (list) tensors(key, *list);
  }

 private:
  void place(std::string_view key, std::size_t index, at::Tensor& slot) {
    if (!slot.defined()) return;
    const at::Tensor old = live_tensor(key, index);
    const bool fits = old.defined() && old.scalar_type() == slot.scalar_type() &&
                      old.sizes() == slot.sizes() && old.strides() == slot.strides() &&
                      old.device() == device;
    if (fits)
      slot = is_same_memory(old, slot) ? old.detach() : old.detach().copy_(slot);
    else if (!device.is_cpu() || !kept.tensors.contains(slot.unsafeGetTensorImpl()))
      slot = slot.clone().to(device);
  }
  at::Tensor live_tensor(std::string_view key, std::size_t index) const {
    for (const StateTensor& x : live)
      if (x.index == index && x.key == key) return x.tensor;
    return {};
  }
};

// Collects the tensors of a state in order.
struct StateTensors {
  std::vector<StateTensor>& out;
  void step(const char*, std::int64_t) {}
  void count(const char*, std::int64_t) {}
  void number(const char*, double) {}
  void tensor(const char* key, const at::Tensor& x, bool) { out.push_back({key, 0, x}); }
  void scalar(const char* key, const at::Tensor& x) { out.push_back({key, 0, x}); }
  void tensors(const char* key, const auto& list) {
    for (std::size_t i = 0; i < list.size(); ++i) out.push_back({key, i, list[i]});
  }
  void scalars(const char* key, const std::deque<at::Tensor>& list) { tensors(key, list); }
  void scalars(const char* key, const std::optional<std::vector<at::Tensor>>& list) {
    if (list) tensors(key, *list);
  }
};

}  // namespace perdure::detail
