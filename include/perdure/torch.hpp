// The LibTorch adapter: torch's tensors, modules, optimizers, schedulers and generators in a
// checkpoint.
//
// Header-only; link perdure::torch and your own LibTorch. What it writes has the form that Python's
// objects give and take: a state_dict made here goes into Python's load_state_dict, and the other
// way round.
//
//   perdure::Value v = tensor;             // any strided at::Tensor is a Value
//   at::Tensor t = perdure::to_tensor(v);  // and comes back
//
//   perdure::Value v = perdure::state_dict(x);  // a module, an optimizer, a scheduler, a generator
//   perdure::load_state_dict(x, v);
//
//   state.add("model", model);  // a TrainingState takes all of them, and the RNG with them
//
// The optimizers are SGD, Adam, AdamW, RMSprop, Adagrad and LBFGS. Of LibTorch's schedulers, StepLR
// can be saved; perdure::StepLR and perdure::ReduceLROnPlateau (torch/schedulers.hpp) are Python's.
// perdure::ResumableLoader (torch/loader.hpp) goes on in the middle of an epoch.
//
// A state_dict looks into the live tensors, it copies none: save it before the next step. A
// load_state_dict checks everything first; where anything does not fit, Error(invalid) lists every
// line and nothing has changed. Nothing here is synchronised: call it from the thread that trains.
#pragma once

#include <cstdint>
#include <limits>
#include <perdure/torch/loader.hpp>
#include <perdure/torch/module.hpp>
#include <perdure/torch/optimizer.hpp>
#include <perdure/torch/optimizer_names.hpp>
#include <perdure/torch/rng.hpp>
#include <perdure/torch/schedulers.hpp>
#include <perdure/torch/tensor.hpp>
#include <string>
#include <vector>

namespace perdure {

namespace detail {

// --- LibTorch's own StepLR ---
//
// LibTorch's schedulers have neither accessors nor serialization. C++ waives access checks for the
// names in an explicit instantiation ([temp.spec.general]), so a template instantiated with a
// pointer to the private member may hand it on through a friend. `extern` makes it a declaration,
// which any number of files may repeat.
template <class Tag, auto Member>
struct Reveal {
  friend constexpr auto reveal(Tag) { return Member; }
};
struct StepSizeTag {
  friend constexpr auto reveal(StepSizeTag);
};
struct GammaTag {
  friend constexpr auto reveal(GammaTag);
};
extern template struct Reveal<StepSizeTag, &torch::optim::StepLR::step_size_>;
extern template struct Reveal<GammaTag, &torch::optim::StepLR::gamma_>;

// Protected members are open to a derived class by name.
struct SchedulerMembers : torch::optim::LRScheduler {
  static constexpr auto step_count() { return &SchedulerMembers::step_count_; }
  static constexpr auto learning_rates() { return &SchedulerMembers::get_current_lrs; }
};

inline void check_step_lr(const torch::optim::StepLR& scheduler, const Value& value,
                          Problems& problems) {
  if (!value.contains("step_size") || !value.contains("last_epoch") || !value.contains("gamma")) {
    problems.push_back("not the state of a StepLR: it has step_size, gamma and last_epoch");
    return;
  }
  const std::int64_t step_size = scheduler.*reveal(StepSizeTag{});
  const double gamma = scheduler.*reveal(GammaTag{});
  if (value["step_size"].as_int() != step_size)
    problems.push_back("step_size " + repr(value["step_size"]) + " in the file, " +
                       std::to_string(step_size) +
                       " here: construct the StepLR with that of the file");
  if (value["gamma"].as_double() != gamma)
    problems.push_back("gamma " + repr(value["gamma"]) + " in the file, " + repr(Value(gamma)) +
                       " here: construct the StepLR with that of the file");
  const std::int64_t epoch = value["last_epoch"].as_int();
  if (epoch < -1 || epoch >= std::numeric_limits<unsigned>::max())
    problems.push_back("last_epoch " + std::to_string(epoch) + " is out of range");
}

}  // namespace detail

// The state of Python's StepLR but what LibTorch does not know (base_lrs), which Python's keeps as
// it is. Python's scheduler makes a first step when it is constructed and LibTorch's does not, so
// that LibTorch's learning rate falls one step later. Its count of steps is therefore Python's
// _step_count, last_epoch + 1: whoever takes over goes on with the schedule that the run began
// with.
inline Value state_dict(const torch::optim::StepLR& scheduler) {
  const std::int64_t count = scheduler.*detail::SchedulerMembers::step_count();
  Value::Items rates;
  for (double rate : (scheduler.*detail::SchedulerMembers::learning_rates())())
    rates.emplace_back(rate);
  return Dict{{"step_size", static_cast<std::int64_t>(scheduler.*reveal(detail::StepSizeTag{}))},
              {"gamma", scheduler.*reveal(detail::GammaTag{})},
              {"last_epoch", count - 1},
              {"_step_count", count},
              {"_last_lr", Value::list(std::move(rates))}};
}

// The learning rates themselves are the optimizer's and come back with it.
inline void load_state_dict(torch::optim::StepLR& scheduler, const Value& value) {
  Problems problems;
  detail::check_step_lr(scheduler, value, problems);
  detail::throw_if_any(problems, "the StepLR");
  scheduler.*detail::SchedulerMembers::step_count() =
      static_cast<unsigned>(value["last_epoch"].as_int() + 1);
}

// --- How they take part in a TrainingState ---

template <detail::ModuleLike T>
struct Adapter<T> {
  static constexpr Role role = Role::module;
  static Value state_dict(const T& x) { return perdure::state_dict(x); }
  static void load_state_dict(T& x, const Value& value) {
    detail::copy_into(detail::module_of(x), value);
  }
  static Value structure(const T& x) { return detail::structure_of(detail::module_of(x)); }
  static void check(const T& x, const Value& value, Problems& problems) {
    detail::pair_up(detail::module_of(x), value, problems);
  }
  static Value live(const T& x) { return detail::live_state(detail::module_of(x)); }
  static std::vector<ParameterName> parameters(const T& x) {
    return detail::parameter_names(detail::module_of(x));
  }
  static void attach(TrainingState& state) { detail::attach_torch(state); }
};

template <std::derived_from<torch::optim::Optimizer> T>
struct Adapter<T> {
  static constexpr Role role = Role::optimizer;
  static Value state_dict(const T& x) { return perdure::state_dict(x); }
  static void load_state_dict(T& x, const Value& value) { perdure::load_state_dict(x, value); }
  static void check(const T& x, const Value& value, Problems& problems) {
    detail::check_optimizer(x, value, problems, detail::Bytes::later);
  }
  // On a GPU, state_dict() would copy it.
  static Value live(const T& x) { return detail::is_on_cpu(x) ? state_dict(x) : Value(); }
  static CheckpointInfo::Optimizer describe(const T& x, const std::vector<ParameterName>& names) {
    return detail::describe_optimizer(x, names);
  }
  static Value align(const T& x, const Value& value, const Alignment& alignment) {
    return detail::align_optimizer(x, value, alignment);
  }
  static std::vector<std::uint64_t> versions(const T& x) { return detail::step_versions(x); }
  static std::string version_name(const T& x, std::size_t place) {
    return detail::stepped_name(x, place);
  }
  static std::vector<const void*> stepped(const T& x) { return detail::stepped_storages(x); }
  static void attach(TrainingState& state) { detail::attach_torch(state); }
};

template <>
struct Adapter<torch::optim::StepLR> {
  using T = torch::optim::StepLR;
  static constexpr Role role = Role::other;
  static Value state_dict(const T& x) { return perdure::state_dict(x); }
  static void load_state_dict(T& x, const Value& value) { perdure::load_state_dict(x, value); }
  static void check(const T& x, const Value& value, Problems& problems) {
    detail::check_step_lr(x, value, problems);
  }
  static void attach(TrainingState& state) { detail::attach_torch(state); }
};

template <>
struct Adapter<at::Generator> {
  static constexpr Role role = Role::other;
  static Value state_dict(const at::Generator& x) { return perdure::state_dict(x); }
  static void load_state_dict(at::Generator& x, const Value& value) {
    perdure::load_state_dict(x, value);
  }
  static void check(const at::Generator& x, const Value& value, Problems& problems) {
    detail::check_generator(x, value, problems);
  }
  static void attach(TrainingState& state) { detail::attach_torch(state); }
};

// A tensor by itself: an exponential average, a learned temperature. Its bytes come back into the
// same tensor.
template <>
struct Adapter<at::Tensor> {
  static constexpr Role role = Role::other;
  static Value state_dict(const at::Tensor& x) { return Value(x); }
  static void load_state_dict(at::Tensor& x, const Value& value) {
    Problems problems;
    check(x, value, problems);
    detail::throw_if_any(problems, "the tensor");
    const at::NoGradGuard no_grad;
    const at::Tensor loaded = detail::present_tensor(value.as_tensor());
    if (!detail::is_same_memory(x, loaded)) x.copy_(loaded);
  }
  static Value live(const at::Tensor& x) {
    return x.defined() && x.is_cpu() ? detail::live_value(x) : Value();
  }
  static void check(const at::Tensor& x, const Value& value, Problems& problems) {
    if (const std::string problem = detail::compare_tensor(value, x, detail::Bytes::later);
        !problem.empty())
      problems.push_back(problem);
  }
  static std::vector<ParameterName> parameters(const at::Tensor& x) {
    return {{x.unsafeGetTensorImpl(), ""}};
  }
  static void attach(TrainingState& state) { detail::attach_torch(state); }
};

}  // namespace perdure
