#include <cstdint>
#include <perdure/state.hpp>

#include "engine/key_prefix.hpp"
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
  static void check(const test::Model& model, const Value& value, Problems& problems) {
    if (!value.contains(model.prefix + "weight"))
      problems.push_back(model.prefix + "weight: missing");
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
  for (const char* line :
       {"model: weight: missing", "optimizer: registered, but not in the file",
        "epoch: ", "best: registered", "scheduler: in the file", "step: ", "strict=false"})
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
  state.load_state_dict(Dict{{"epoch", 9}, {"scheduler", 1}}, {}, false);
  EXPECT_EQ(epoch, 9);
  EXPECT_EQ(model.weight, 5);
  EXPECT_ERROR(invalid, "epoch", state.load_state_dict(Dict{{"epoch", "nine"}}, {}, false));
}

TEST_F(TrainingStateTest, WithoutStepOrRngTheFileIsOfNoTrainingState) {
  Dict file;
  for (const auto& [key, value] : state.state_dict())
    if (key.as_string() != "step" && key.as_string() != "rng") file.set(key, value);
  const std::string text = error_of([&] { state.load_state_dict(file); }).what();
  EXPECT_NE(text.find("step: the file has none"), std::string::npos) << text;
  EXPECT_NE(text.find("rng: the file has no"), std::string::npos) << text;
  state.load_state_dict(file, {}, false);
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
  EXPECT_THROW(state.load_state_dict(saved), std::runtime_error);
  EXPECT_TRUE(state.broken());
  EXPECT_ERROR(invalid, "half way", state.state_dict());
  model.throws = false;
  state.load_state_dict(saved);
  EXPECT_FALSE(state.broken());
  state.state_dict();
}

TEST_F(TrainingStateTest, RefusesWhatIsNoDict) {
  EXPECT_ERROR(invalid, "list", state.load_state_dict(Value::list({1, 2})));
}

TEST_F(TrainingStateTest, KnowsTheStateDictOfASingleModule) {
  Dict file;
  file.set("fc.weight", state_of_step(1).at("weight"));
  EXPECT_ERROR(invalid, "single module", state.load_state_dict(file));
}

TEST_F(TrainingStateTest, HintsAtPrefixesOfWrappers) {
  const auto with_model = [&](const char* key) {
    Dict file = state.state_dict();
    file.set("model", Dict{{key, 1}});
    return file;
  };
  EXPECT_ERROR(invalid, "DistributedDataParallel",
               state.load_state_dict(with_model("module.weight")));
  EXPECT_ERROR(invalid, "torch.compile", state.load_state_dict(with_model("_orig_mod.weight")));
  const Dict plain = with_model("weight");
  model.prefix = "module.";
  EXPECT_ERROR(invalid, "register the one inside", state.load_state_dict(plain));
}

TEST(KeyPrefixTest, HintsOnlyWhereThePrefixIsAllThatDiffers) {
  const auto keys = [](std::initializer_list<const char*> names) {
    Dict dict;
    for (const char* name : names) dict.set(name, 0);
    return Value(dict);
  };
  using engine::prefix_hint;
  EXPECT_NE(prefix_hint(keys({"a._orig_mod.weight", "b.bias"}), keys({"a.weight", "b.bias"})), "");
  EXPECT_NE(prefix_hint(keys({"module.submodule.weight"}), keys({"submodule.weight"})), "");
  EXPECT_EQ(prefix_hint(keys({"module.weight"}), keys({"bias"})), "");
  EXPECT_EQ(prefix_hint(keys({"submodule.weight"}), keys({"subweight"})), "");
  EXPECT_EQ(prefix_hint(keys({"weight"}), keys({"weight"})), "");
  EXPECT_EQ(prefix_hint(Value(3), keys({"weight"})), "");
}

}  // namespace
}  // namespace perdure::test
