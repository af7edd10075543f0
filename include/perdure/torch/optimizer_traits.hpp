// What each optimizer of torch::optim has, under the names and in the order of Python's class in
// torch 2.13. Part of perdure/torch.hpp: include that.
//
// The traits are walked by visitors, which write and read. They call, for the options:
// option(key, value), fixed(key, value) for what LibTorch always does, and ignored(key) for what
// only chooses an implementation; for the state of a parameter: step(key, count), a tensor in
// Python, and tensor(key, tensor, required), of the parameter's shape. LBFGS has more: count(key,
// count), number(key, double), scalar(key, tensor) of no dimension, and the lists tensors(key,
// list) and scalars(key, list).
#pragma once

#include <torch/optim.h>

#include <cstdint>
#include <perdure/error.hpp>
#include <string>
#include <type_traits>
#include <typeinfo>

namespace perdure::detail {

template <class O>
struct OptimizerTraits;

template <>
struct OptimizerTraits<torch::optim::SGD> {
  using Options = torch::optim::SGDOptions;
  using State = torch::optim::SGDParamState;
  static constexpr const char* name = "SGD";
  static void options(auto& o, auto&& v) {
    v.option("lr", o.lr());
    v.option("momentum", o.momentum());
    v.option("dampening", o.dampening());
    v.option("weight_decay", o.weight_decay());
    v.option("nesterov", o.nesterov());
    v.fixed("maximize", false);
    v.ignored("foreach");
    v.fixed("differentiable", false);
    v.ignored("fused");
  }
  static void state(auto& s, const Options&, auto&& v) {
    v.tensor("momentum_buffer", s.momentum_buffer(), false);
  }
};

// Adam and AdamW have the same options and state.
template <class AnyOptions, class AnyState, bool Decoupled>
struct AdamTraits {
  using Options = AnyOptions;
  using State = AnyState;
  static void options(auto& o, auto&& v) {
    v.option("lr", o.lr());
    v.option("betas", o.betas());
    v.option("eps", o.eps());
    v.option("weight_decay", o.weight_decay());
    v.option("amsgrad", o.amsgrad());
    v.fixed("maximize", false);
    v.ignored("foreach");
    v.fixed("capturable", false);
    v.fixed("differentiable", false);
    v.ignored("fused");
    v.fixed("decoupled_weight_decay", Decoupled);
  }
  static void state(auto& s, const Options& o, auto&& v) {
    v.step("step", s.step());
    v.tensor("exp_avg", s.exp_avg(), true);
    v.tensor("exp_avg_sq", s.exp_avg_sq(), true);
    v.tensor("max_exp_avg_sq", s.max_exp_avg_sq(), o.amsgrad());
  }
};
template <>
struct OptimizerTraits<torch::optim::Adam>
    : AdamTraits<torch::optim::AdamOptions, torch::optim::AdamParamState, false> {
  static constexpr const char* name = "Adam";
};
template <>
struct OptimizerTraits<torch::optim::AdamW>
    : AdamTraits<torch::optim::AdamWOptions, torch::optim::AdamWParamState, true> {
  static constexpr const char* name = "AdamW";
};

template <>
struct OptimizerTraits<torch::optim::RMSprop> {
  using Options = torch::optim::RMSpropOptions;
  using State = torch::optim::RMSpropParamState;
  static constexpr const char* name = "RMSprop";
  static void options(auto& o, auto&& v) {
    v.option("lr", o.lr());
    v.option("momentum", o.momentum());
    v.option("alpha", o.alpha());
    v.option("eps", o.eps());
    v.option("centered", o.centered());
    v.option("weight_decay", o.weight_decay());
    v.fixed("capturable", false);
    v.ignored("foreach");
    v.fixed("maximize", false);
    v.fixed("differentiable", false);
  }
  static void state(auto& s, const Options& o, auto&& v) {
    v.step("step", s.step());
    v.tensor("square_avg", s.square_avg(), true);
    v.tensor("momentum_buffer", s.momentum_buffer(), o.momentum() > 0);
    v.tensor("grad_avg", s.grad_avg(), o.centered());
  }
};

template <>
struct OptimizerTraits<torch::optim::Adagrad> {
  using Options = torch::optim::AdagradOptions;
  using State = torch::optim::AdagradParamState;
  static constexpr const char* name = "Adagrad";
  static void options(auto& o, auto&& v) {
    v.option("lr", o.lr());
    v.option("lr_decay", o.lr_decay());
    v.option("eps", o.eps());
    v.option("weight_decay", o.weight_decay());
    v.option("initial_accumulator_value", o.initial_accumulator_value());
    v.ignored("foreach");
    v.fixed("maximize", false);
    v.fixed("differentiable", false);
    v.ignored("fused");
  }
  static void state(auto& s, const Options&, auto&& v) {
    v.step("step", s.step());
    v.tensor("sum", s.sum(), true);
  }
};

// LBFGS has one state for all of its parameters, kept for the first of them. Its tensors are flat:
// the elements of all parameters in a row. Python has the keys after n_iter once an iteration has
// been made, "al" once a second one has.
template <>
struct OptimizerTraits<torch::optim::LBFGS> {
  using Options = torch::optim::LBFGSOptions;
  using State = torch::optim::LBFGSParamState;
  static constexpr const char* name = "LBFGS";
  template <class AnyOptions>
  static void options(AnyOptions& o, auto&& v) {
    v.option("lr", o.lr());
    v.option("max_iter", o.max_iter());
    std::int64_t max_eval = o.max_eval().value_or(o.max_iter() * 5 / 4);
    v.option("max_eval", max_eval);
    if constexpr (!std::is_const_v<AnyOptions>) o.max_eval(max_eval);
    v.option("tolerance_grad", o.tolerance_grad());
    v.option("tolerance_change", o.tolerance_change());
    v.option("history_size", o.history_size());
    v.option("line_search_fn", o.line_search_fn());
  }
  static void state(auto& s, const Options&, auto&& v) {
    v.count("func_evals", s.func_evals());
    v.count("n_iter", s.n_iter());
    if (s.n_iter() == 0) return;
    v.scalars("al", s.al());
    v.tensor("d", s.d(), true);
    v.number("t", s.t());
    v.tensors("old_dirs", s.old_dirs());
    v.tensors("old_stps", s.old_stps());
    v.scalars("ro", s.ro());
    v.scalar("H_diag", s.H_diag());
    v.tensor("prev_flat_grad", s.prev_flat_grad(), true);
    v.number("prev_loss", s.prev_loss());
  }
};

// Calls f with the optimizer as what it is.
template <class F>
decltype(auto) with_optimizer(const torch::optim::Optimizer& optimizer, F&& f) {
  namespace optim = torch::optim;
  if (auto* o = dynamic_cast<const optim::SGD*>(&optimizer)) return f(*o);
  if (auto* o = dynamic_cast<const optim::Adam*>(&optimizer)) return f(*o);
  if (auto* o = dynamic_cast<const optim::AdamW*>(&optimizer)) return f(*o);
  if (auto* o = dynamic_cast<const optim::RMSprop*>(&optimizer)) return f(*o);
  if (auto* o = dynamic_cast<const optim::Adagrad*>(&optimizer)) return f(*o);
  if (auto* o = dynamic_cast<const optim::LBFGS*>(&optimizer)) return f(*o);
  throw Error(ErrorCode::unsupported,
              "the optimizer is a " + c10::demangle(typeid(optimizer).name()) +
                  "; SGD, Adam, AdamW, RMSprop, Adagrad and LBFGS can be saved and loaded");
}

template <class O>
using OptionsOf = typename OptimizerTraits<O>::Options;
template <class O>
using StateOf = typename OptimizerTraits<O>::State;

}  // namespace perdure::detail
