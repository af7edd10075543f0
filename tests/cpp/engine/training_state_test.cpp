#include <cstdint>
#include <perdure/state.hpp>

#include "engine/run_fixture.hpp"

namespace perdure::test {

// A "model" and its "optimizer", as an adapter of a user's own would see them.
struct Model {
  std::int64_t weight = 0;
  std::string prefix;
  bool throws = false;
};
struct Optimizer {
  Model* model = nullptr;
  std::int64_t momentum = 0;
};

}  // namespace perdure::test

namespace perdure {

template <>
struct Adapter<test::Model> {
  static constexpr Role role = Role::module;
  static Value state_dict(const test::Model& model) {
    return Dict{{model.prefix + "weight", model.weight}};
  }
  static void load_state_dict(test::Model& model, const Value& value) {
    if (model.throws) throw std::runtime_error("no memory");
    model.weight = value[model.prefix + "weight"].as_int();
  }
  static Value structure(const test::Model& model) {
    return Dict{{model.prefix + "weight", nullptr}};
  }
  static std::vector<ParameterName> parameters(const test::Model& model) {
    return {{&model.weight, "weight"}};
  }
  static void attach(TrainingState& state) {
    state.add_rng(
        {"toy", [] { return Value(seed); }, [](const Value& value) { seed = value.as_int(); }});
  }
  static inline std::int64_t seed = 0;
};

template <>
struct Adapter<test::Optimizer> {
  static constexpr Role role = Role::optimizer;
  static Value state_dict(const test::Optimizer& optimizer) {
    return Dict{{"momentum", optimizer.momentum}};
  }
  static void load_state_dict(test::Optimizer& optimizer, const Value& value) {
    optimizer.momentum = value["momentum"].as_int();
  }
  static CheckpointInfo::Optimizer describe(const test::Optimizer& optimizer,
                                            const std::vector<ParameterName>& names) {
    CheckpointInfo::Optimizer description{"Toy", {{}}};
    for (const ParameterName& name : names)
      if (name.identity == &optimizer.model->weight)
        description.param_names[0].push_back(name.name);
    return description;
  }
  // "File order to own order": what it gives back is what must be loaded.
  static Value align(const test::Optimizer&, const Value& value, const Alignment& alignment) {
    const std::string& class_name = alignment.recorded.class_name;
    if (class_name == "Other") alignment.problems.push_back("is of class Other in the file");
    if (class_name.empty()) return value;
    return Dict{{"momentum", value["momentum"].as_int() + 1000}};
  }
};

}  // namespace perdure

namespace perdure::test {
namespace {

class TrainingStateTest : public testing::Test {
 protected:
  TrainingStateTest() {
    Adapter<Model>::seed = 7;
    optimizer.model = &model;
    state.add("model", model);
    state.add("optimizer", optimizer);
    state.add("epoch", epoch);
    state.add("best", best);
  }

  Model model{5, "", false};
  Optimizer optimizer{nullptr, 6};
  std::int64_t epoch = 3;
  double best = 0.5;
  TrainingState state;
};

TEST_F(TrainingStateTest, HoldsAllItWasGivenAndStepAndRng) {
  state.step = 42;
  const Value dict = state.state_dict();
  EXPECT_EQ(dict["model"]["weight"].as_int(), 5);
  EXPECT_EQ(dict["optimizer"]["momentum"].as_int(), 6);
  EXPECT_EQ(dict["epoch"].as_int(), 3);
  EXPECT_EQ(dict["best"].as_double(), 0.5);
  EXPECT_EQ(dict["step"].as_int(), 42);
  EXPECT_EQ(dict["rng"]["toy"].as_int(), 7);
  EXPECT_EQ(state.optimizers().at("optimizer").param_names[0],
            std::vector<std::string>{"model.weight"});
}

TEST_F(TrainingStateTest, AnEntryThatIsAParameterIsNamedAsTheEntry) {
  TrainingState::Entry entry;
  entry.name = "temperature";
  entry.state_dict = [] { return Value(1); };
  entry.load_state_dict = [](const Value&) {};
  entry.parameters = [this] { return std::vector<ParameterName>{{&model.weight, ""}}; };
  state.add_entry(entry);
  const auto names = state.optimizers().at("optimizer").param_names[0];
  EXPECT_EQ(names, (std::vector<std::string>{"model.weight", "temperature"}));
}

TEST_F(TrainingStateTest, GetsAllOfItBack) {
  state.step = 42;
  const Value saved = state.state_dict();
  state.step = 0;
  model.weight = epoch = Adapter<Model>::seed = optimizer.momentum = 0;
  best = 0;
  state.load_state_dict(saved);
  EXPECT_EQ(model.weight, 5);
  EXPECT_EQ(optimizer.momentum, 6);
  EXPECT_EQ(epoch, 3);
  EXPECT_EQ(best, 0.5);
  EXPECT_EQ(state.step, 42);
  EXPECT_EQ(Adapter<Model>::seed, 7);
}

TEST_F(TrainingStateTest, WhatAlignGivesIsWhatIsLoaded) {
  state.load_state_dict(state.state_dict(), state.optimizers());
  EXPECT_EQ(optimizer.momentum, 1006);
}

TEST_F(TrainingStateTest, RefusesNamesThatAreTakenOrItsOwn) {
  for (const char* name : {"step", "rng"}) EXPECT_ERROR(invalid, name, state.add(name, epoch));
  EXPECT_ERROR(invalid, "step", state.add("step", nullptr));
  EXPECT_ERROR(invalid, "epoch", state.add("epoch", best));
  EXPECT_ERROR(invalid, "empty", state.add("", best));
}

TEST_F(TrainingStateTest, AModuleWithoutOptimizerMustBeMeant) {
  TrainingState alone;
  alone.add("model", model);
  EXPECT_ERROR(invalid, "no optimizer", alone.state_dict());
  EXPECT_ERROR(invalid, "no optimizer", alone.load_state_dict(state.state_dict()));
  alone.add("optimizer", nullptr);
  EXPECT_EQ(alone.state_dict().size(), 3U);
}

TEST_F(TrainingStateTest, ListsEverythingThatDoesNotFitAndChangesNothing) {
  Dict file = state.state_dict();
  Dict wrong{{"model", Dict{{"bias", 1}}},
             {"epoch", "three"},
             {"scheduler", Dict{}},
             {"step", "x"},
             {"rng", Dict{}}};
  const Error error = error_of([&] { state.load_state_dict(wrong); });
  EXPECT_EQ(error.code(), ErrorCode::invalid);
  const std::string text = error.what();
  for (const char* line : {"\n  model.weight  missing", "\n  model.bias    unexpected  a int",
                           "\n  optimizer     missing", "\n  epoch: ", "\n  best          missing",
                           "\n  scheduler     unexpected", "\n  step: ", "strict=False"})
    EXPECT_NE(text.find(line), std::string::npos) << line << " in\n" << text;
  EXPECT_EQ(model.weight, 5);
  EXPECT_EQ(epoch, 3);
  EXPECT_FALSE(state.broken());
  EXPECT_EQ(state.state_dict().size(), file.size());
}

TEST_F(TrainingStateTest, TheClassOfAnOptimizerIsChecked) {
  EXPECT_ERROR(invalid, "optimizer: is of class Other",
               state.load_state_dict(state.state_dict(), {{"optimizer", {"Other", {}}}}));
}

TEST_F(TrainingStateTest, NotStrictSkipsWhatOneSideHasButNotWhatDoesNotFit) {
  state.load_state_dict(Dict{{"epoch", 9}, {"scheduler", 1}}, {}, {.strict = false});
  EXPECT_EQ(epoch, 9);
  EXPECT_EQ(model.weight, 5);
  EXPECT_ERROR(invalid, "epoch",
               state.load_state_dict(Dict{{"epoch", "nine"}}, {}, {.strict = false}));
}

TEST_F(TrainingStateTest, WithoutStepOrRngTheFileIsOfNoTrainingState) {
  Dict file;
  for (const auto& [key, value] : state.state_dict())
    if (key.as_string() != "step" && key.as_string() != "rng") file.set(key, value);
  const std::string text = error_of([&] { state.load_state_dict(file); }).what();
  EXPECT_NE(text.find("\n  step  missing"), std::string::npos) << text;
  EXPECT_NE(text.find("\n  rng   missing"), std::string::npos) << text;
  state.load_state_dict(file, {}, {.strict = false});
}

TEST_F(TrainingStateTest, GeneratorsOfAnotherLanguageAreKept) {
  Dict file = state.state_dict();
  file.set("rng", Dict{{"python", Value::tuple({3, 4})}, {"numpy", "state"}});
  state.load_state_dict(file);
  EXPECT_EQ(Adapter<Model>::seed, 7);  // the file has none for it: as it was
  const Value again = state.state_dict();
  EXPECT_EQ(again["rng"]["python"][1].as_int(), 4);
  EXPECT_EQ(again["rng"]["numpy"].as_string(), "state");
  EXPECT_EQ(again["rng"]["toy"].as_int(), 7);
  file.set("rng", "nonsense");
  EXPECT_ERROR(invalid, "rng: a str", state.load_state_dict(file));
}

TEST_F(TrainingStateTest, GeneratorsAreRestoredLast) {
  TrainingState::Entry entry;
  entry.name = "drawing";
  entry.state_dict = [] { return Value(0); };
  entry.load_state_dict = [](const Value&) { Adapter<Model>::seed = 99; };
  state.add_entry(entry);
  state.load_state_dict(state.state_dict());
  EXPECT_EQ(Adapter<Model>::seed, 7);
}

TEST_F(TrainingStateTest, AMixtureIsBrokenUntilALoadSucceeds) {
  const Value saved = state.state_dict();
  model.throws = true;
  EXPECT_ERROR(invalid, "\"model\" could not take its state from the file: no memory",
               state.load_state_dict(saved));
  EXPECT_TRUE(state.broken());
  EXPECT_ERROR(invalid, "half way", state.state_dict());
  model.throws = false;
  state.load_state_dict(saved);
  EXPECT_FALSE(state.broken());
  state.state_dict();
}

TEST_F(TrainingStateTest, AnOptimizerThatIsNotAllThereDoesNotMendAMixture) {
  TrainingState::Entry entry;
  entry.name = "momentum";
  entry.state_dict = [] { return Value(0); };
  entry.load_state_dict = [](const Value&) {};
  entry.align = [](const Value& value, const Alignment& alignment) {
    if (!alignment.strict) alignment.notes.emplace_back("fc.weight is new");
    return value;
  };
  state.add_entry(entry);
  const Value saved = state.state_dict();
  model.throws = true;
  EXPECT_ERROR(invalid, "no memory", state.load_state_dict(saved));
  model.throws = false;
  state.load_state_dict(saved, {}, {.strict = false});
  EXPECT_TRUE(state.broken());
  state.load_state_dict(saved);
  EXPECT_FALSE(state.broken());
}

TEST_F(TrainingStateTest, RefusesWhatIsNoDict) {
  EXPECT_ERROR(invalid, "list", state.load_state_dict(Value::list({1, 2})));
}

TEST_F(TrainingStateTest, TakesThePrefixesOfWrappersOnEitherSide) {
  const auto with_model = [&](const char* key, int weight) {
    Dict file = state.state_dict();
    file.set("model", Dict{{key, weight}});
    return file;
  };
  const Dict plain = with_model("weight", 11);
  for (const char* key : {"module.weight", "_orig_mod.weight", "module._orig_mod.weight"}) {
    model.weight = 0;
    state.load_state_dict(with_model(key, 12));
    EXPECT_EQ(model.weight, 12) << key;
  }
  model.prefix = "module.";
  state.load_state_dict(plain);
  EXPECT_EQ(model.weight, 11);
}

}  // namespace
}  // namespace perdure::test
