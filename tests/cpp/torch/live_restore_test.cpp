// A restore reads straight into a module's parameters and buffers and an optimizer's state.
#include <gtest/gtest.h>
#include <torch/torch.h>

#include <algorithm>
#include <map>
#include <perdure/perdure.hpp>
#include <perdure/torch.hpp>
#include <string>

#include "expect_error.hpp"
#include "format/memory_source.hpp"
#include "storage/temporary_directory.hpp"

namespace perdure::test {
namespace {

namespace nn = torch::nn;
namespace optim = torch::optim;

struct TiedImpl : nn::Module {
  at::Tensor embedding, head;
  nn::BatchNorm1d norm{11};
  nn::Conv2d conv{nn::Conv2dOptions(3, 4, 3)};
  explicit TiedImpl(bool tied = true) {
    embedding = register_parameter("embedding", torch::randn({11, 5}));
    head = register_parameter("head", tied ? embedding : torch::randn({11, 5}));
    register_module("norm", norm);
    conv->weight.set_data(conv->weight.contiguous(at::MemoryFormat::ChannelsLast));
    register_module("conv", conv);
  }
};
TORCH_MODULE(Tied);

std::string saved(const TrainingState& state) { return file_of(state.state_dict()); }
void restore(TrainingState& state, const std::string& file) {
  state.restore(CheckpointFile::open(source_of(file)));
}

std::map<std::string, const void*> places(const nn::Module& module) {
  std::map<std::string, const void*> out;
  detail::for_each_tensor(module, "", [&](const std::string& key, const at::Tensor& x, bool) {
    out[key] = x.const_data_ptr();
  });
  return out;
}
bool same(const nn::Module& a, const nn::Module& b) {
  std::map<std::string, at::Tensor> theirs;
  detail::for_each_tensor(
      b, "", [&](const std::string& key, const at::Tensor& x, bool) { theirs[key] = x; });
  bool equal = true;
  detail::for_each_tensor(a, "", [&](const std::string& key, const at::Tensor& x, bool) {
    equal = equal && detail::same_bits(x, theirs.at(key));
  });
  return equal;
}

TEST(LiveRestore, AModuleKeepsItsTensors) {
  torch::manual_seed(1);
  Tied a, b;
  TrainingState from, to;
  from.add("model", a), from.add("optimizer", nullptr);
  to.add("model", b), to.add("optimizer", nullptr);
  ASSERT_FALSE(same(*a, *b));
  const auto before = places(*b);
  const auto version = b->conv->weight._version();
  restore(to, saved(from));
  EXPECT_TRUE(same(*a, *b));
  EXPECT_EQ(places(*b), before);
  EXPECT_EQ(b->conv->weight._version(), version);  // nothing was copied
  EXPECT_TRUE(b->embedding.requires_grad() && b->embedding.is_leaf());
}

TEST(LiveRestore, TwoValuesForOneTiedWeightAreSeenBeforeAnythingChanges) {
  Tied apart(std::make_shared<TiedImpl>(false)), tied, untouched;
  TrainingState from, to;
  from.add("model", apart), from.add("optimizer", nullptr);
  to.add("model", tied), to.add("optimizer", nullptr);
  {
    const at::NoGradGuard no_grad;
    torch::manual_seed(7);
    tied->norm->weight.normal_();
  }
  const at::Tensor before = tied->norm->weight.detach().clone();
  EXPECT_ERROR(invalid, "tied", restore(to, saved(from)));
  EXPECT_TRUE(detail::same_bits(tied->norm->weight, before));
  // Equal values are as good as one.
  const at::NoGradGuard no_grad;
  apart->head.copy_(apart->embedding);
  restore(to, saved(from));
  EXPECT_TRUE(same(*apart, *tied));
}

TEST(LiveRestore, WhatDoesNotFitIsListedAndNothingChanges) {
  nn::Sequential a(nn::Linear(3, 4), nn::Linear(4, 5)), b(nn::Linear(3, 4), nn::Linear(4, 6));
  TrainingState from, to;
  from.add("model", a), from.add("optimizer", nullptr);
  to.add("model", b), to.add("optimizer", nullptr);
  const at::Tensor before = b->parameters()[0].detach().clone();
  EXPECT_ERROR(invalid, "model.1.weight  wrong shape  float32 [5, 4]  float32 [6, 4]",
               restore(to, saved(from)));
  EXPECT_TRUE(detail::same_bits(b->parameters()[0], before));
}

// A module with a Linear(2, 3) under each name.
struct NamedImpl : nn::Module {
  explicit NamedImpl(const std::vector<std::string>& names) {
    for (const std::string& name : names) register_module(name, nn::Linear(2, 3));
  }
  at::Tensor weight(const std::string& name) const { return named_parameters()[name + ".weight"]; }
};
TORCH_MODULE(Named);

// What the error of a restore says of these options.
std::string refused(TrainingState& state, const std::string& file, const MatchOptions& options) {
  return error_of([&] { state.restore(CheckpointFile::open(source_of(file)), options); }).what();
}
void restore(TrainingState& state, const std::string& file, const MatchOptions& options) {
  state.restore(CheckpointFile::open(source_of(file)), options);
}
void expect_in(const std::string& part, const std::string& text) {
  EXPECT_NE(text.find(part), std::string::npos) << part << "\nnot in\n" << text;
}

// A state with one module, and an epoch.
struct Registered {
  Named model;
  std::int64_t epoch = 0;
  TrainingState state;
  explicit Registered(const std::vector<std::string>& names) : model(names) {
    state.add("model", model);
    state.add("optimizer", nullptr);
    state.add("epoch", epoch);
  }
};

TEST(ChangedModule, WhatOnlyOneSideHasIsSkippedWhereThatIsAskedFor) {
  Registered from({"a", "gone"}), to({"a", "mine"});
  const at::Tensor mine = to.model->weight("mine").detach().clone();
  expect_in("strict=False", refused(to.state, saved(from.state), {}));
  restore(to.state, saved(from.state), {.strict = false});
  ASSERT_EQ(to.state.notes().size(), 1U);
  expect_in("model.mine.weight  missing", to.state.notes()[0]);
  expect_in("model.gone.weight  unexpected", to.state.notes()[0]);
  EXPECT_TRUE(to.model->weight("a").equal(from.model->weight("a")));
  EXPECT_TRUE(to.model->weight("mine").equal(mine));
}

TEST(ChangedModule, OnlySomeOfItUnderOtherNames) {
  Registered from({"old", "b"}), to({"new", "b"});
  from.epoch = 4;
  const std::string file = saved(from.state);
  expect_in(R"(rename={"model.old.*": "model.new.*"})", refused(to.state, file, {}));
  const at::Tensor b = to.model->weight("b").detach().clone();
  restore(to.state, file, {.only = {"model.new"}, .rename = {{"model.old.*", "model.new.*"}}});
  EXPECT_TRUE(to.model->weight("new").equal(from.model->weight("old")));
  EXPECT_TRUE(to.model->weight("b").equal(b));
  EXPECT_EQ(to.epoch, 0);
  expect_in("did you mean \"epoch\"?", refused(to.state, file, {.only = {"epohc"}}));
}

TEST(ChangedModule, DtypesAreConvertedWhereThatIsAskedFor) {
  Registered from({"a"});
  from.model->to(torch::kDouble);
  const std::string file = saved(from.state);
  for (const auto dtype : {torch::kFloat, torch::kHalf, torch::kBFloat16}) {
    Registered to({"a"});
    to.model->to(dtype);
    expect_in("cast=True", refused(to.state, file, {}));
    restore(to.state, file, {.cast = true});
    EXPECT_TRUE(to.model->weight("a").equal(from.model->weight("a").to(dtype)));
  }
  Registered integers({"a"});
  {
    const at::NoGradGuard no_grad;
    for (at::Tensor& parameter : integers.model->parameters())
      parameter.set_requires_grad(false).set_data(parameter.to(torch::kLong));
  }
  expect_in("wrong dtype", refused(integers.state, file, {.cast = true}));
}

TEST(ChangedModule, TiedTensorsAreComparedAsTheyWereSaved) {
  Tied from, to;
  from->to(torch::kDouble);
  // LibTorch has converted the counter, too.
  from->norm->num_batches_tracked.set_data(to->norm->num_batches_tracked.clone());
  TrainingState there, here;
  there.add("model", from), there.add("optimizer", nullptr);
  here.add("model", to), here.add("optimizer", nullptr);
  restore(here, saved(there), {.cast = true});
  EXPECT_TRUE(to->head.equal(from->embedding.to(torch::kFloat)));
}

TEST(ChangedModule, AnExceptionOfAnObjectsOwnGetsItsName) {
  Registered from({"a"}), to({"a"});
  TrainingState::Entry entry;
  entry.name = "sampler";
  entry.state_dict = [] { return Value(1); };
  entry.load_state_dict = [](const Value&) { throw Error(ErrorCode::io, "the disk is gone"); };
  from.state.add_entry(entry), to.state.add_entry(entry);
  const Error error = error_of([&] { restore(to.state, saved(from.state)); });
  EXPECT_EQ(error.code(), ErrorCode::io);
  expect_in("\"sampler\" could not take its state from the file: the disk is gone", error.what());
  EXPECT_TRUE(to.state.broken());
}

TEST(LiveRestore, ATensorByItselfIsReadInPlace) {
  at::Tensor a = torch::randn({30, 40}), b = torch::zeros({30, 40});
  TrainingState from, to;
  from.add("average", a);
  to.add("average", b);
  const void* place = b.data_ptr();
  const auto version = b._version();
  restore(to, saved(from));
  EXPECT_TRUE(detail::same_bits(a, b));
  EXPECT_EQ(b.data_ptr(), place);
  EXPECT_EQ(b._version(), version);
}

template <class O>
class LiveRestoreOf : public testing::Test {
 protected:
  static O make(const nn::Linear& model) {
    if constexpr (std::is_same_v<O, optim::SGD>)
      return O(model->parameters(), optim::SGDOptions(0.1).momentum(0.9));
    else if constexpr (std::is_same_v<O, optim::RMSprop>)
      return O(model->parameters(), optim::RMSpropOptions(0.1).momentum(0.5).centered(true));
    else if constexpr (std::is_same_v<O, optim::LBFGS>)
      return O(model->parameters(), optim::LBFGSOptions(0.1).max_iter(3).history_size(2));
    else
      return O(model->parameters());
  }
  static void train(nn::Linear& model, O& optimizer, int steps, unsigned seed) {
    torch::manual_seed(seed);
    for (int i = 0; i < steps; ++i) {
      const at::Tensor x = torch::randn({4, 30});
      optimizer.step([&] {
        optimizer.zero_grad();
        const at::Tensor loss = model->forward(x).square().mean();
        loss.backward();
        return loss;
      });
    }
  }
  static std::vector<const void*> moments(const O& optimizer) {
    std::vector<const void*> out;
    const Value whole = state_dict(optimizer);
    for (const auto& [number, state] : whole["state"].as_dict())
      for (const auto& [key, item] : state.as_dict()) collect_live(item, out);
    return out;
  }
  static void collect_live(const Value& item, std::vector<const void*>& out) {
    if (item.kind() == Kind::list)
      for (const Value& each : item.as_items()) collect_live(each, out);
    else if (item.kind() == Kind::tensor && item.as_tensor().liveness == Liveness::live)
      out.push_back(item.as_tensor().storage->data);
  }
};

using Optimizers = testing::Types<optim::SGD, optim::Adam, optim::AdamW, optim::RMSprop,
                                  optim::Adagrad, optim::LBFGS>;
TYPED_TEST_SUITE(LiveRestoreOf, Optimizers);

TYPED_TEST(LiveRestoreOf, StateThatIsThereIsReadInPlaceAndFreshStateIsKept) {
  for (const bool fresh : {false, true}) {
    torch::manual_seed(1);
    nn::Linear a(30, 50), b(30, 50);
    TypeParam from_optimizer = this->make(a), to_optimizer = this->make(b);
    TrainingState from, to;
    from.add("model", a), from.add("optimizer", from_optimizer);
    to.add("model", b), to.add("optimizer", to_optimizer);
    this->train(a, from_optimizer, 3, 1);
    const std::string file = file_of(from.state_dict());
    this->train(a, from_optimizer, 3, 2);

    if (!fresh) this->train(b, to_optimizer, 2, 3);
    const auto before = this->moments(to_optimizer);
    restore(to, file);
    if (!before.empty()) {
      EXPECT_EQ(this->moments(to_optimizer), before);
    }
    this->train(b, to_optimizer, 3, 2);
    EXPECT_TRUE(same(*a, *b));
  }
}

// The file is gone when the optimizer goes on, and no two states share what it kept.
TEST(LiveRestore, OneLoadedStateForTwoOptimizersIsTwo) {
  nn::Linear a(3, 4), b(3, 4), c(3, 4);
  optim::Adam first(a->parameters()), second(b->parameters()), third(c->parameters());
  first.zero_grad();
  a->forward(torch::randn({2, 3})).sum().backward();
  first.step();
  const Value loaded = load_bytes(file_of(state_dict(first)));
  load_state_dict(second, loaded);
  load_state_dict(third, loaded);
  const auto moment = [](optim::Adam& optimizer) {
    return state_dict(optimizer)["state"][0]["exp_avg"].as_tensor().storage->data;
  };
  EXPECT_NE(moment(second), moment(third));
}

// --- Optimizers whose parameters are not those of the file ---

struct ChainImpl : nn::Module {
  std::vector<nn::Linear> layers;
  ChainImpl() {
    for (const char* name : {"a", "b", "c"})
      layers.push_back(register_module(name, nn::Linear(3, 3)));
  }
  torch::Tensor forward(torch::Tensor x) {
    for (auto& layer : layers) x = torch::tanh(layer(x));
    return x;
  }
};
TORCH_MODULE(Chain);

using Groups = std::vector<std::vector<std::string>>;  // names of parameters

struct Training {
  Chain model;
  std::map<std::string, torch::Tensor> params;
  Groups groups;
  std::unique_ptr<optim::Optimizer> optimizer;
  TrainingState state;

  Training(const std::string& kind, Groups names) : groups(std::move(names)) {
    for (const auto& item : model->named_parameters()) params[item.key()] = item.value();
    std::vector<optim::OptimizerParamGroup> made;
    for (const auto& group : groups) {
      auto& tensors = made.emplace_back(std::vector<torch::Tensor>{}).params();
      for (const std::string& name : group) tensors.push_back(params.at(name));
    }
    optimizer = make_named(kind, made);
    state.add("model", model);
    state.add("optimizer", *optimizer);
  }
  static std::unique_ptr<optim::Optimizer> make_named(
      const std::string& kind, const std::vector<optim::OptimizerParamGroup>& made) {
    if (kind == "SGD")
      return std::make_unique<optim::SGD>(made, optim::SGDOptions(0.1).momentum(0.9));
    if (kind == "Adam") return std::make_unique<optim::Adam>(made);
    if (kind == "AdamW") return std::make_unique<optim::AdamW>(made);
    if (kind == "RMSprop")
      return std::make_unique<optim::RMSprop>(made, optim::RMSpropOptions(0.1).momentum(0.9));
    return std::make_unique<optim::Adagrad>(made);
  }
  void train(int steps) {
    for (int i = 0; i < steps; ++i) {
      optimizer->zero_grad();
      model(torch::randn({4, 3})).sum().backward();
      optimizer->step();
    }
  }
  // By name and key, a copy of what it is now; names without state are not there.
  std::map<std::string, std::map<std::string, at::Tensor>> momentum() const {
    const Value now = state_dict(*optimizer)["state"];
    std::map<std::string, std::map<std::string, at::Tensor>> out;
    std::int64_t number = -1;
    for (const auto& group : groups)
      for (const std::string& name : group)
        if (const Value* found = now.as_dict().find(++number))
          for (const auto& [key, x] : found->as_dict())
            out[name][key.as_string()] = to_tensor(x).clone();
    return out;
  }
  std::string saved() const {
    CheckpointInfo info;
    info.optimizers = state.optimizers();
    return file_of(state.state_dict(), info);
  }
  void restore(const std::string& file, bool strict) {
    state.restore(CheckpointFile::open(source_of(file)), {.strict = strict});
  }
};

struct Surgery {
  const char* name;
  Groups file, here;
  bool strict;        // whether it fits a strict restore
  const char* table;  // what it says otherwise, of an optimizer without state of its own
};
const Groups kAB = {{"a.weight", "a.bias", "b.weight", "b.bias"}};
const Groups kABC = {{"a.weight", "a.bias", "b.weight", "b.bias", "c.weight", "c.bias"}};
const Groups kApart = {{"a.weight", "a.bias"}, {"b.weight", "b.bias", "c.weight", "c.bias"}};
const Surgery kSurgeries[] = {
    {"Reorder",
     kApart,
     {{"c.bias", "b.bias", "b.weight", "c.weight"}, {"a.bias", "a.weight"}},
     true,
     ""},
    {"Add", kAB, kABC, false, R"(
    parameter       in the file  here            what happened
    model.c.weight  -            group 0 [3, 3]  new: starts without momentum
    model.c.bias    -            group 0 [3]     new: starts without momentum
    and 4 others keep their momentum)"},
    {"Remove", kABC, kAB, false, R"(
    parameter       in the file     here  what happened
    model.c.weight  group 0 [3, 3]  -     not here: its momentum is dropped
    model.c.bias    group 0 [3]     -     not here: its momentum is dropped
    and 4 others keep their momentum)"},
    {"Split", kABC, kApart, false, R"(
    parameter       in the file     here            what happened
    model.a.weight  group 0 [3, 3]  group 0 [3, 3]  split off from group 0: keeps its momentum
    model.a.bias    group 0 [3]     group 0 [3]     split off from group 0: keeps its momentum
    and 4 others keep their momentum
    group 0: its options are those of this program, but lr is that of group 0 in the file
    group 1: its options are those of this program, but lr is that of group 0 in the file)"},
    {"Move",
     kApart,
     {{"a.weight", "a.bias", "c.bias"}, {"b.weight", "b.bias", "c.weight"}},
     false,
     R"(
    parameter     in the file  here         what happened
    model.c.bias  group 1 [3]  group 0 [3]  moved from group 1 to 0: keeps its momentum
    and 5 others keep their momentum)"},
};
const char* const kKinds[] = {"SGD", "Adam", "AdamW", "RMSprop", "Adagrad"};

class OptimizerSurgery : public testing::TestWithParam<std::tuple<Surgery, const char*>> {};

void expect_survivors_kept(const Training& from, const Training& to) {
  const auto ours = to.momentum();
  std::size_t survivors = 0;
  for (const auto& [name, state] : from.momentum()) {
    const bool is_here = std::ranges::any_of(to.groups, [&](const auto& group) {
      return std::ranges::find(group, name) != group.end();
    });
    if (!is_here) continue;
    ++survivors;
    ASSERT_TRUE(ours.contains(name)) << name;
    ASSERT_EQ(ours.at(name).size(), state.size()) << name;
    for (const auto& [key, x] : state)
      EXPECT_TRUE(detail::same_bits(x, ours.at(name).at(key))) << name << " " << key;
  }
  EXPECT_GE(survivors, 4U);
}

TEST_P(OptimizerSurgery, SurvivorsKeepEveryBit) {
  const auto& [surgery, kind] = GetParam();
  for (const int steps_before : {0, 2}) {  // into fresh state, and over that of other steps
    Training from(kind, surgery.file), to(kind, surgery.here);
    from.train(3);
    to.train(steps_before);
    const std::string file = from.saved();
    if (!surgery.strict) {
      EXPECT_ERROR(invalid,
                   "optimizer: its parameters are not those of the file:", to.restore(file, true));
      EXPECT_ERROR(invalid, "strict=False", to.restore(file, true));
    }
    to.restore(file, surgery.strict);
    expect_survivors_kept(from, to);
    EXPECT_EQ(to.state.notes().size(), surgery.strict ? 0U : 1U);
    const bool has_state = steps_before > 0 || std::string(kind) == "Adagrad";
    if (!surgery.strict && !(has_state && std::string(surgery.name) == "Add")) {
      EXPECT_EQ(to.state.notes().at(0),
                "optimizer: its parameters are not those of the file (strict=False):" +
                    std::string(surgery.table));
    }
    to.train(1);
  }
}
INSTANTIATE_TEST_SUITE_P(All, OptimizerSurgery,
                         testing::Combine(testing::ValuesIn(kSurgeries), testing::ValuesIn(kKinds)),
                         [](const auto& made) {
                           return std::string(std::get<0>(made.param).name) +
                                  std::get<1>(made.param);
                         });

TEST(OptimizerSurgery, NewParametersKeepWhatTheyHaveHere) {
  Training from("Adagrad", kAB), to("Adagrad", kABC);
  from.train(3), to.train(1);
  const at::Tensor before = to.momentum().at("c.bias").at("sum");
  to.restore(from.saved(), false);
  EXPECT_TRUE(detail::same_bits(before, to.momentum().at("c.bias").at("sum")));
  EXPECT_NE(to.state.notes().at(0).find("new: keeps the state it has here"), std::string::npos);
}

TEST(OptimizerSurgery, OptionsAreTheFilesWhereAGroupBecameAGroup) {
  Training from("SGD", {{"a.weight", "a.bias"}, {"b.weight", "b.bias", "c.weight"}});
  Training to("SGD", {{"a.bias", "a.weight"}, {"b.weight", "b.bias"}, {"c.weight", "c.bias"}});
  const auto group = [](Training& training, std::size_t i) -> optim::SGDOptions& {
    return static_cast<optim::SGDOptions&>(training.optimizer->param_groups()[i].options());
  };
  group(from, 0).lr(0.5).weight_decay(0.5);
  group(from, 1).lr(0.25).weight_decay(0.25);
  to.restore(from.saved(), false);
  EXPECT_EQ(group(to, 0).lr(), 0.5);
  EXPECT_EQ(group(to, 0).weight_decay(), 0.5);
  for (const std::size_t i : {1, 2}) {  // split
    EXPECT_EQ(group(to, i).lr(), 0.25);
    EXPECT_EQ(group(to, i).weight_decay(), 0);
  }
}

TEST(OptimizerSurgery, LbfgsTakesTheSameParametersInTheSameOrder) {
  Chain a, b;
  auto params = b->parameters();
  std::ranges::reverse(params);
  optim::LBFGS first(a->parameters()), reversed(params), second(b->parameters());
  const auto state_of = [](Chain& model, optim::LBFGS& optimizer) {
    TrainingState state;
    state.add("model", model), state.add("optimizer", optimizer);
    return state;
  };
  const TrainingState from = state_of(a, first);
  TrainingState wrong = state_of(b, reversed), right = state_of(b, second);
  for (const bool strict : {true, false})
    EXPECT_ERROR(invalid, "LBFGS has one history for all its parameters together",
                 wrong.load_state_dict(from.state_dict(), from.optimizers(), {.strict = strict}));
  right.load_state_dict(from.state_dict(), from.optimizers());
}

TEST(OptimizerSurgery, AManagerWarnsOfIt) {
  const TemporaryDirectory directory;
  std::vector<std::string> warnings;
  CheckpointManager checkpoints(
      directory.path(), {.warning = [&](const std::string& text) { warnings.push_back(text); }});
  Training from("Adam", kAB), to("Adam", kABC);
  from.train(1);
  checkpoints.save(from.state).wait();
  checkpoints.restore(to.state, {.strict = false});
  EXPECT_EQ(warnings, to.state.notes());
  checkpoints.restore(from.state);
  EXPECT_EQ(warnings.size(), 1U);
}

}  // namespace
}  // namespace perdure::test
