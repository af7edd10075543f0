// Optimizers as values in Python's form and back.
#include <gtest/gtest.h>
#include <torch/torch.h>

#include <cstdint>
#include <functional>
#include <perdure/torch.hpp>

namespace {

using perdure::CheckpointInfo;
using perdure::Dict;
using perdure::Error;
using perdure::ErrorCode;
using perdure::ParameterName;
using perdure::Problems;
using perdure::Value;
namespace optim = torch::optim;

template <class F>
std::string error_of(const F& f, ErrorCode code = ErrorCode::invalid) {
  try {
    f();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), code) << error.what();
    return error.what();
  }
  return "";
}

void expect_says(const std::string& text, std::initializer_list<const char*> parts) {
  for (const char* part : parts)
    EXPECT_NE(text.find(part), std::string::npos) << part << "\nnot in\n" << text;
}

std::vector<std::string> keys_of(const Value& value) {
  std::vector<std::string> keys;
  for (const auto& [key, entry] : value.as_dict()) keys.push_back(key.as_string());
  return keys;
}

// A deep copy, as a save and a load would make.
Value copy_of(const Value& value) {
  if (value.kind() == perdure::Kind::tensor) return Value(perdure::to_tensor(value).clone());
  if (value.is_mapping()) {
    Dict copy(value.kind());
    for (const auto& [key, entry] : value.as_dict()) copy.set(key, copy_of(entry));
    return copy;
  }
  if (!value.is_sequence()) return value;
  Value::Items items;
  for (const Value& item : value.as_items()) items.push_back(copy_of(item));
  return value.kind() == perdure::Kind::tuple ? Value::tuple(items) : Value::list(items);
}

// A copy of an optimizer's state with one option of the first group set.
Value with_option(const Value& state, const char* key, const Value& value) {
  const Value copy = copy_of(state);
  Value group = copy["param_groups"][0];  // shares the dict
  group.as_dict().set(key, value);
  return copy;
}
// The same for an entry of the state of parameter 0.
Value with_state(const Value& state, const char* key, const Value& value) {
  const Value copy = copy_of(state);
  Value entry = copy["state"][0];
  entry.as_dict().set(key, value);
  return copy;
}

// Two parameters under a loss that no optimizer finds trivial.
struct Problem {
  torch::Tensor w, b;
  Problem() {
    w = torch::arange(6, torch::kFloat).reshape({2, 3}).mul(0.1).set_requires_grad(true);
    b = torch::tensor({0.5F, -0.25F}).set_requires_grad(true);
  }
  std::vector<torch::Tensor> params() const { return {w, b}; }
  void step(optim::Optimizer& optimizer, int count) {
    for (int i = 0; i < count; ++i) {
      const auto x = torch::tensor({1.0F, -2.0F, 0.5F}) * (i + 1);
      optimizer.step([&] {
        optimizer.zero_grad();
        const auto loss = torch::square(torch::mv(w, x) + b - 1).sum() + w.pow(4).sum();
        loss.backward();
        return loss;
      });
    }
  }
  void copy_from(const Problem& other) {
    const torch::NoGradGuard no_grad;
    w.copy_(other.w);
    b.copy_(other.b);
  }
};

using Make = std::function<std::unique_ptr<optim::Optimizer>(std::vector<torch::Tensor>)>;
template <class O, class Options>
Make make(Options options) {
  return [options](std::vector<torch::Tensor> params) {
    return std::make_unique<O>(std::move(params), options);
  };
}

struct Case {
  const char* name;
  Make make;
};
const Case kCases[] = {
    {"SGD", make<optim::SGD>(optim::SGDOptions(0.01))},
    {"SGDMomentum",
     make<optim::SGD>(optim::SGDOptions(0.01).momentum(0.9).dampening(0.1).weight_decay(0.01))},
    {"SGDNesterov", make<optim::SGD>(optim::SGDOptions(0.01).momentum(0.9).nesterov(true))},
    {"Adam", make<optim::Adam>(optim::AdamOptions(0.01).weight_decay(0.1))},
    {"AdamAmsgrad", make<optim::Adam>(optim::AdamOptions(0.01).betas({0.8, 0.95}).amsgrad(true))},
    {"AdamW", make<optim::AdamW>(optim::AdamWOptions(0.01).eps(1e-6))},
    {"RMSprop", make<optim::RMSprop>(optim::RMSpropOptions(0.01))},
    {"RMSpropCentered",
     make<optim::RMSprop>(optim::RMSpropOptions(0.01).momentum(0.5).centered(true).alpha(0.9))},
    {"Adagrad",
     make<optim::Adagrad>(optim::AdagradOptions(0.1).lr_decay(0.1).initial_accumulator_value(0.5))},
    {"LBFGS", make<optim::LBFGS>(optim::LBFGSOptions(0.02).max_iter(4).history_size(3))},
    {"LBFGSWolfe",
     make<optim::LBFGS>(
         optim::LBFGSOptions(0.5).max_iter(3).history_size(5).line_search_fn("strong_wolfe"))},
};

class EveryOptimizer : public testing::TestWithParam<Case> {};

TEST_P(EveryOptimizer, GoesOnBitForBit) {
  Problem a, b;
  const auto trained = GetParam().make(a.params());
  const auto resumed = GetParam().make(b.params());
  a.step(*trained, 4);
  b.copy_from(a);
  perdure::load_state_dict(*resumed, copy_of(perdure::state_dict(*trained)));
  a.step(*trained, 5);
  b.step(*resumed, 5);
  EXPECT_TRUE(a.w.equal(b.w));
  EXPECT_TRUE(a.b.equal(b.b));
}

TEST_P(EveryOptimizer, TakesItsStateFromBeforeTheFirstStep) {
  Problem a, b;
  const auto fresh = GetParam().make(a.params());
  const auto trained = GetParam().make(b.params());
  b.step(*trained, 3);
  b.copy_from(a);
  perdure::load_state_dict(*trained, copy_of(perdure::state_dict(*fresh)));
  a.step(*fresh, 3);
  b.step(*trained, 3);
  EXPECT_TRUE(a.w.equal(b.w));
}

TEST_P(EveryOptimizer, TakesOptionsFromTheFile) {
  Problem a, b;
  const auto one = GetParam().make(a.params());
  const auto other = GetParam().make(b.params());
  one->param_groups()[0].options().set_lr(0.125);
  perdure::load_state_dict(*other, perdure::state_dict(*one));
  EXPECT_EQ(other->param_groups()[0].options().get_lr(), 0.125);
}

TEST_P(EveryOptimizer, RefusesWhatLibTorchCannotDo) {
  Problem a;
  const auto optimizer = GetParam().make(a.params());
  a.step(*optimizer, 1);
  const Value state = perdure::state_dict(*optimizer);
  const auto load = [&](const char* key, const Value& value) {
    return error_of([&] { perdure::load_state_dict(*optimizer, with_option(state, key, value)); });
  };
  expect_says(load("lr_scale", 0.5), {"lr_scale"});
  if (state["param_groups"][0].contains("foreach")) {
    expect_says(load("maximize", true), {"param_groups[0]", "\"maximize\" is True"});
    expect_says(load("differentiable", true), {"\"differentiable\" is True"});
    EXPECT_EQ(load("foreach", true), "");
  }
  if (state["param_groups"][0].contains("fused")) {
    EXPECT_EQ(load("fused", true), "");
  }
  EXPECT_EQ(load("initial_lr", 0.1), "");
}

TEST_P(EveryOptimizer, RefusesTheStateOfEveryOtherClass) {
  Problem a, b;
  const auto optimizer = GetParam().make(a.params());
  const std::string own = perdure::detail::class_name(*optimizer);
  for (const Case& other : kCases) {
    const auto foreign = other.make(b.params());
    const std::string theirs = perdure::detail::class_name(*foreign);
    const std::string text =
        error_of([&] { perdure::load_state_dict(*optimizer, perdure::state_dict(*foreign)); });
    if (own == theirs) continue;
    expect_says(text, {theirs.c_str(), own.c_str()});
  }
}
INSTANTIATE_TEST_SUITE_P(All, EveryOptimizer, testing::ValuesIn(kCases),
                         [](const auto& made) { return std::string(made.param.name); });

std::vector<std::string> group_keys(const Make& maker) {
  Problem a;
  return keys_of(perdure::state_dict(*maker(a.params()))["param_groups"][0]);
}

TEST(OptimizerState, HasThePythonClassesKeys) {
  using Keys = std::vector<std::string>;
  EXPECT_EQ(group_keys(kCases[0].make),
            (Keys{"lr", "momentum", "dampening", "weight_decay", "nesterov", "maximize", "foreach",
                  "differentiable", "fused", "params"}));
  const Keys adam{"lr",
                  "betas",
                  "eps",
                  "weight_decay",
                  "amsgrad",
                  "maximize",
                  "foreach",
                  "capturable",
                  "differentiable",
                  "fused",
                  "decoupled_weight_decay",
                  "params"};
  EXPECT_EQ(group_keys(kCases[3].make), adam);
  EXPECT_EQ(group_keys(kCases[5].make), adam);
  EXPECT_EQ(group_keys(kCases[6].make),
            (Keys{"lr", "momentum", "alpha", "eps", "centered", "weight_decay", "capturable",
                  "foreach", "maximize", "differentiable", "params"}));
  EXPECT_EQ(group_keys(kCases[8].make),
            (Keys{"lr", "lr_decay", "eps", "weight_decay", "initial_accumulator_value", "foreach",
                  "maximize", "differentiable", "fused", "params"}));
}

TEST(OptimizerState, CountsStepsAsPythonDoes) {
  Problem a;
  optim::AdamW optimizer(a.params());
  EXPECT_TRUE(perdure::state_dict(optimizer)["state"].as_dict().empty());
  a.step(optimizer, 3);
  const Value state = perdure::state_dict(optimizer);
  EXPECT_EQ(keys_of(state["state"][1]),
            (std::vector<std::string>{"step", "exp_avg", "exp_avg_sq"}));
  const auto step = perdure::to_tensor(state["state"][0]["step"]);
  EXPECT_EQ(step.dim(), 0);
  EXPECT_EQ(step.scalar_type(), torch::kFloat);
  EXPECT_EQ(step.item<float>(), 3);
  EXPECT_EQ(state["param_groups"][0]["decoupled_weight_decay"].as_bool(), true);
  EXPECT_EQ(state["param_groups"][0]["betas"].kind(), perdure::Kind::tuple);
}

TEST(OptimizerState, AdagradHasStateFromTheStart) {
  Problem a;
  optim::Adagrad optimizer(a.params());
  const Value state = perdure::state_dict(optimizer);
  EXPECT_EQ(keys_of(state["state"][0]), (std::vector<std::string>{"step", "sum"}));
  const Dict missing{{"state", Dict{}}, {"param_groups", state["param_groups"]}};
  expect_says(error_of([&] { perdure::load_state_dict(optimizer, missing); }),
              {"state[0] is missing", "Adagrad"});
}

TEST(OptimizerState, RefusesStepCountsThatAreNone) {
  Problem a;
  optim::Adam optimizer(a.params());
  a.step(optimizer, 1);
  const Value state = perdure::state_dict(optimizer);
  const auto load = [&](const Value& step) {
    return error_of([&] { perdure::load_state_dict(optimizer, with_state(state, "step", step)); });
  };
  expect_says(load(torch::tensor(2.5F)), {"state[0]", "\"step\"", "2.5 is not a count"});
  expect_says(load(torch::tensor(-1.0F)), {"not a count"});
  expect_says(load(torch::tensor(std::nanf(""))), {"not a count"});
  expect_says(load(torch::zeros({2})), {"not one number"});
  expect_says(load("three"), {"\"step\""});
  EXPECT_EQ(load(7), "");
  EXPECT_EQ(perdure::to_tensor(perdure::state_dict(optimizer)["state"][0]["step"]).item<float>(),
            7);
  EXPECT_EQ(load(std::int64_t{1} << 24), "");
  perdure::state_dict(optimizer);
  EXPECT_EQ(load((std::int64_t{1} << 24) + 1),
            "");  // a C++ optimizer can count that far, Python's tensor cannot
  expect_says(error_of([&] { perdure::state_dict(optimizer); }), {"16777217", "float32"});
}

TEST(OptimizerState, ListsWhatDoesNotFitAndChangesNothing) {
  Problem a;
  optim::Adam optimizer(a.params(), optim::AdamOptions(0.01).amsgrad(true));
  a.step(optimizer, 2);
  const Value before = copy_of(perdure::state_dict(optimizer));
  Value bad = with_option(with_state(before, "exp_avg", torch::zeros({7})), "lr", 0.5);
  Value state1 = bad["state"][1];
  Value groups = bad["param_groups"][0];
  groups.as_dict().set("eps", "small");
  state1.as_dict().set("extra", 1);
  state1.as_dict().set("max_exp_avg_sq", nullptr);
  const std::string text = error_of([&] { perdure::load_state_dict(optimizer, bad); });
  expect_says(text, {"state[0]: \"exp_avg\": shape [7] in the file, the parameter here has [2, 3]",
                     "state[1]: \"max_exp_avg_sq\" is missing", "\"extra\"", "\"eps\""});
  const Value after = perdure::state_dict(optimizer);
  EXPECT_EQ(after["param_groups"][0]["lr"].as_double(), 0.01);
  EXPECT_TRUE(perdure::to_tensor(after["state"][0]["exp_avg"])
                  .equal(perdure::to_tensor(before["state"][0]["exp_avg"])));
  expect_says(error_of([&] { perdure::load_state_dict(optimizer, Dict{{"state", 1}}); }),
              {"not the state_dict of an optimizer"});
}

TEST(OptimizerState, RefusesOtherGroupsWithATable) {
  Problem a;
  optim::SGD one(a.params(), 0.1);
  optim::SGD two({optim::OptimizerParamGroup({a.w}), optim::OptimizerParamGroup({a.b})}, 0.1);
  expect_says(error_of([&] { perdure::load_state_dict(two, perdure::state_dict(one)); }),
              {"group 0: in the file 2 parameters", "group 0: here        1 parameters [2, 3]",
               "group 1: in the file -"});
}

TEST(OptimizerState, KeepsTheDtypeAndBitsOfTheFile) {
  const auto param = torch::ones({4}, torch::kBFloat16).set_requires_grad(true);
  optim::Adam optimizer({param});
  param.mutable_grad() = torch::ones({4}, torch::kBFloat16);
  optimizer.step();
  const auto moment = torch::tensor({1.0F, 0.1F, 1e-8F, std::nanf("7")});
  perdure::load_state_dict(optimizer,
                           with_state(perdure::state_dict(optimizer), "exp_avg", moment));
  const auto back = perdure::to_tensor(perdure::state_dict(optimizer)["state"][0]["exp_avg"]);
  EXPECT_EQ(back.scalar_type(), torch::kFloat);
  EXPECT_TRUE(perdure::detail::same_bits(back, moment));
  EXPECT_NE(back.const_data_ptr(), moment.const_data_ptr());  // its own memory
}

TEST(OptimizerState, ReadsIntoTheMemoryThatIsThere) {
  Problem a;
  optim::Adam optimizer(a.params());
  a.step(optimizer, 1);
  const auto memory = [&] {
    return perdure::state_dict(optimizer)["state"][0]["exp_avg"].as_tensor().storage->data;
  };
  const void* before = memory();
  perdure::load_state_dict(optimizer, copy_of(perdure::state_dict(optimizer)));
  EXPECT_EQ(memory(), before);
}

TEST(OptimizerState, TakesTensorLearningRatesAndMissingBuffers) {
  Problem a;
  optim::SGD optimizer(a.params(), optim::SGDOptions(0.1).momentum(0.9));
  a.step(optimizer, 1);
  const Value state = with_option(perdure::state_dict(optimizer), "lr", torch::tensor(0.25));
  perdure::load_state_dict(optimizer, with_state(state, "momentum_buffer", nullptr));
  EXPECT_EQ(optimizer.param_groups()[0].options().get_lr(), 0.25);
  EXPECT_EQ(perdure::state_dict(optimizer)["state"].as_dict().size(),
            1U);  // of parameter 0 there is none yet
  a.step(optimizer, 1);
}

TEST(OptimizerState, TakesSwitchesThatAreMissingAsFalse) {
  Problem a;
  optim::SGD optimizer(a.params(), optim::SGDOptions(0.1).momentum(0.9).nesterov(true));
  const Value state = copy_of(perdure::state_dict(optimizer));
  Dict group;
  for (const auto& [key, entry] : state["param_groups"][0].as_dict())
    if (key.as_string() != "nesterov") group.set(key, entry);
  perdure::load_state_dict(optimizer,
                           Dict{{"state", state["state"]}, {"param_groups", Value::list({group})}});
  EXPECT_FALSE(perdure::state_dict(optimizer)["param_groups"][0]["nesterov"].as_bool());
}

struct Own : optim::Optimizer {
  explicit Own(const std::vector<torch::Tensor>& params)
      : Optimizer({optim::OptimizerParamGroup(params)}, std::make_unique<optim::SGDOptions>(0.1)) {}
  torch::Tensor step(LossClosure) override { return {}; }
};

TEST(OptimizerState, RefusesOtherClasses) {
  Problem a;
  Own optimizer(a.params());
  expect_says(error_of([&] { perdure::state_dict(optimizer); }, ErrorCode::unsupported),
              {"Own", "AdamW", "LBFGS"});
}

// --- LBFGS ---

using Keys = std::vector<std::string>;

TEST(Lbfgs, HasStateForTheFirstParameterOnly) {
  Problem a;
  optim::LBFGS optimizer(a.params(), optim::LBFGSOptions(0.02).max_iter(1).history_size(4));
  EXPECT_EQ(keys_of(perdure::state_dict(optimizer)["param_groups"][0]),
            (Keys{"lr", "max_iter", "max_eval", "tolerance_grad", "tolerance_change",
                  "history_size", "line_search_fn", "params"}));
  EXPECT_TRUE(perdure::state_dict(optimizer)["state"].as_dict().empty());
  a.step(optimizer, 1);
  const Value first = perdure::state_dict(optimizer)["state"];
  EXPECT_EQ(first.as_dict().size(), 1U);
  EXPECT_EQ(keys_of(first[0]), (Keys{"func_evals", "n_iter", "d", "t", "old_dirs", "old_stps", "ro",
                                     "H_diag", "prev_flat_grad", "prev_loss"}));
  EXPECT_EQ(first[0]["H_diag"].as_int(), 1);
  EXPECT_EQ(first[0]["n_iter"].as_int(), 1);
  a.step(optimizer, 2);
  const Value third = perdure::state_dict(optimizer)["state"];
  EXPECT_EQ(third[0]["al"].as_items().size(), 4U);
  EXPECT_EQ(third[0]["al"][0].kind(), perdure::Kind::tensor);
  EXPECT_TRUE(third[0]["al"][3].is_none());
  EXPECT_EQ(third[0]["old_dirs"][0].as_tensor().shape, (std::vector<std::int64_t>{8}));
  EXPECT_TRUE(third[0]["ro"][0].as_tensor().shape.empty());
  EXPECT_TRUE(third[0]["H_diag"].as_tensor().shape.empty());
}

TEST(Lbfgs, ThatFoundNothingToDoHasItsCounts) {
  const auto param = torch::ones({3}).set_requires_grad(true);
  optim::LBFGS optimizer({param});
  optimizer.step([&] {
    param.mutable_grad() = torch::zeros({3});
    return torch::zeros({});
  });
  const Value state = perdure::state_dict(optimizer);
  EXPECT_EQ(keys_of(state["state"][0]), (Keys{"func_evals", "n_iter"}));
  EXPECT_EQ(state["state"][0]["func_evals"].as_int(), 1);
  perdure::load_state_dict(optimizer, copy_of(state));
}

TEST(Lbfgs, TakesItsOptionsWithPythonsDefaults) {
  Problem a, b;
  optim::LBFGS one(a.params(), optim::LBFGSOptions(0.5).max_iter(8).line_search_fn("strong_wolfe"));
  optim::LBFGS other(b.params());
  const Value state = perdure::state_dict(one);
  EXPECT_EQ(state["param_groups"][0]["max_eval"].as_int(), 10);
  perdure::load_state_dict(other, state);
  const auto& options = static_cast<const optim::LBFGSOptions&>(other.param_groups()[0].options());
  EXPECT_EQ(options.max_iter(), 8);
  EXPECT_EQ(options.max_eval(), 10);
  EXPECT_EQ(options.line_search_fn(), "strong_wolfe");
  perdure::load_state_dict(other, with_option(state, "line_search_fn", nullptr));
  EXPECT_EQ(options.line_search_fn(), std::nullopt);
  expect_says(
      error_of([&] { perdure::load_state_dict(other, with_option(state, "max_iter", "8")); }),
      {"param_groups[0]: \"max_iter\""});
}

TEST(Lbfgs, RefusesAHistoryThatIsNone) {
  Problem a;
  optim::LBFGS optimizer(a.params(), optim::LBFGSOptions(0.02).max_iter(4).history_size(3));
  a.step(optimizer, 2);
  const Value state = perdure::state_dict(optimizer);
  const auto load = [&](const char* key, const Value& value) {
    return error_of([&] { perdure::load_state_dict(optimizer, with_state(state, key, value)); });
  };
  expect_says(load("d", torch::zeros({7})),
              {"\"d\": shape [7] in the file, the parameters here have together [8]"});
  expect_says(load("ro", Value::list({torch::ones({})})), {"have 3, 3 and 1 tensors"});
  expect_says(load("ro", torch::ones({3})), {"\"ro\"", "not a list of tensors"});
  expect_says(load("old_stps", Value::list({torch::ones({2}), 1})),
              {"\"old_stps[0]\": shape [2]", "\"old_stps[1]\" is"});
  expect_says(load("al", Value::list({Value()})), {"\"al\" has 1 places, the history_size is 3"});
  expect_says(load("ro", Value::list({Value(), Value(), Value()})), {"None stands in the history"});
  expect_says(load("H_diag", torch::ones({2})), {"\"H_diag\": shape [2]", "one number"});
  expect_says(load("momentum", 1), {"momentum"});
  EXPECT_EQ(load("t", torch::tensor(0.25F)), "");  // strong_wolfe leaves a tensor in Python
  EXPECT_EQ(perdure::state_dict(optimizer)["state"][0]["t"].as_double(), 0.25);
}

// Its tensors are all parameters in a row.
TEST(Lbfgs, RefusesAnotherOrderOfTheParameters) {
  Problem a;
  optim::LBFGS file({a.b, a.w}), here(a.params());
  a.step(file, 1);
  const std::vector<ParameterName> names{{a.w.unsafeGetTensorImpl(), "w"},
                                         {a.b.unsafeGetTensorImpl(), "b"}};
  using Adapter = perdure::Adapter<optim::LBFGS>;
  const Value state = copy_of(perdure::state_dict(file));
  Problems problems;
  Adapter::align(here, state, {Adapter::describe(file, names), names, true, problems, problems});
  ASSERT_FALSE(problems.empty());
  expect_says(problems[0], {"LBFGS has one history for all its parameters together"});
  const Value moved = with_option(state, "params", Value::list({1, 0}));
  expect_says(error_of([&] { perdure::load_state_dict(here, moved); }),
              {"another order", "in the order of the file"});
  const Value wrong = copy_of(state);
  Value states = wrong["state"];
  states.as_dict().set(1, Dict{{"func_evals", 1}, {"n_iter", 0}});
  expect_says(error_of([&] { perdure::load_state_dict(here, wrong); }),
              {"state[1]: LBFGS has state for its first parameter only"});
}

// --- Names, through the Adapter ---

using Adapter = perdure::Adapter<optim::SGD>;

std::vector<ParameterName> names_of(const Problem& a) {
  return {{a.w.unsafeGetTensorImpl(), "model.w"},
          {a.b.unsafeGetTensorImpl(), "model.b"},
          {a.b.unsafeGetTensorImpl(), "model.tied"}};
}

TEST(OptimizerNames, AreDescribedPerGroup) {
  Problem a;
  optim::SGD optimizer(a.params(), 0.1);
  const auto described = Adapter::describe(optimizer, names_of(a));
  EXPECT_EQ(described.class_name, "SGD");
  EXPECT_EQ(described.param_names, (std::vector<std::vector<std::string>>{{"model.w", "model.b"}}));
  EXPECT_TRUE(
      Adapter::describe(optimizer, {{a.w.unsafeGetTensorImpl(), "model.w"}}).param_names.empty());
}

// Aligns the state of an optimizer over {first...} with one over {w, b} and returns the momentum of
// w.
struct Aligned {
  std::string problems;
  torch::Tensor momentum_of_w;
};
Aligned align(const std::vector<std::vector<std::string>>& recorded, bool in_groups = false) {
  Problem a;
  optim::SGD file({a.b, a.w}, optim::SGDOptions(0.1).momentum(0.9));
  a.step(file, 1);
  Value state = copy_of(perdure::state_dict(file));
  CheckpointInfo::Optimizer info{"SGD", recorded};
  if (in_groups) {
    Value::Items names;
    for (const std::string& name : recorded[0]) names.emplace_back(name);
    state = with_option(state, "param_names", Value::list(names));
    info = {};
  }
  optim::SGD here(a.params(), optim::SGDOptions(0.1).momentum(0.9));
  Problems problems;
  const Value aligned = Adapter::align(here, state, {info, names_of(a), true, problems, problems});
  if (!problems.empty()) return {problems[0], {}};
  perdure::load_state_dict(here, aligned);
  return {"", perdure::to_tensor(perdure::state_dict(here)["state"][0]["momentum_buffer"])};
}

TEST(OptimizerNames, BringTheParametersIntoOrder) {
  EXPECT_EQ(align({{"model.b", "model.w"}}).momentum_of_w.sizes(),
            (std::vector<std::int64_t>{2, 3}));
  EXPECT_EQ(align({{"model.tied", "model.w"}}).momentum_of_w.dim(), 2);
  EXPECT_EQ(align({{"b", "w"}}, true).momentum_of_w.dim(),
            2);  // model.named_parameters() of Python
}

TEST(OptimizerNames, ThatDoNotMatchGiveATable) {
  EXPECT_EQ(align({{"model.bias", "model.w"}}).problems,
            R"(its parameters are not those of the file:
    parameter   in the file  here         what would happen
    model.b     -            group 0 [2]  new: starts without momentum
    model.bias  group 0 [2]  -            not here: its momentum is dropped
    and 1 other keeps its momentum
  strict=False does what the last column says.)");
}

TEST(OptimizerNames, MoveWholeGroups) {
  Problem a;
  const auto groups = [](const torch::Tensor& first, const torch::Tensor& second) {
    return std::vector<optim::OptimizerParamGroup>{optim::OptimizerParamGroup({first}),
                                                   optim::OptimizerParamGroup({second})};
  };
  optim::SGD file(groups(a.b, a.w), 0.1), here(groups(a.w, a.b), 0.1);
  file.param_groups()[0].options().set_lr(0.5);
  Problems problems;
  const auto names = names_of(a);
  const Value aligned =
      Adapter::align(here, perdure::state_dict(file),
                     {Adapter::describe(file, names), names, true, problems, problems});
  EXPECT_TRUE(problems.empty());
  perdure::load_state_dict(here, aligned);
  EXPECT_EQ(here.param_groups()[1].options().get_lr(), 0.5);
  EXPECT_EQ(here.param_groups()[0].options().get_lr(), 0.1);
}

TEST(OptimizerNames, TheRecordedClassCounts) {
  Problem a;
  optim::AdamW adamw(a.params());
  optim::Adam adam(a.params());
  const auto problems_of = [&](auto& here, const optim::Optimizer& file, const char* recorded) {
    Problems problems;
    perdure::Adapter<std::remove_reference_t<decltype(here)>>::align(
        here, perdure::state_dict(file), {{recorded, {}}, {}, true, problems, problems});
    return problems.size();
  };
  EXPECT_EQ(problems_of(adamw, adam, "Adam"), 1U);
  EXPECT_EQ(problems_of(adamw, adamw, "AdamW"), 0U);
  EXPECT_EQ(problems_of(adamw, adamw, "Adam"), 0U);  // Adam(decoupled_weight_decay=True)
  EXPECT_EQ(problems_of(adamw, adamw, "NAdam"), 1U);
  EXPECT_EQ(problems_of(adam, adamw, "AdamW"), 1U);
}

}  // namespace
