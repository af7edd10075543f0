// What a restore makes of a file that is not what is registered.
#include <chrono>
#include <cstdint>
#include <map>
#include <perdure/state.hpp>

#include "engine/explanation.hpp"
#include "engine/key_match.hpp"
#include "engine/name_pattern.hpp"
#include "engine/renamed_keys.hpp"
#include "engine/renaming.hpp"
#include "engine/run_fixture.hpp"

namespace perdure::test {
namespace {

using engine::NamePattern;
using engine::NameRule;

Tensor tensor(std::vector<std::int64_t> shape, DType dtype = DType::float32) {
  Tensor result;
  result.storage = std::make_shared<TensorStorage>();
  result.storage->device = "meta";
  result.dtype = dtype;
  result.shape = std::move(shape);
  return result;
}

Dict tensors(const std::vector<std::string>& keys) {
  Dict dict;
  for (const std::string& key : keys) dict.set(key, Value(tensor({2, 3})));
  return dict;
}

std::vector<std::string> keys_of(const Value& value) {
  std::vector<std::string> keys;
  for (const auto& [key, item] : value.as_dict()) keys.push_back(key.as_string());
  return keys;
}

TEST(NamePatternTest, ANameStandsForAllBelowIt) {
  const NamePattern name("model.fc");
  EXPECT_TRUE(name.match("model.fc") && name.match("model.fc.weight"));
  EXPECT_FALSE(name.match("model.fc1.weight") || name.match("model") || name.match("a.model.fc"));
}

TEST(NamePatternTest, StarsStandForAnyRunOfCharacters) {
  const NamePattern pattern("model.*.attn.*");
  using Captures = std::vector<std::string_view>;
  EXPECT_EQ(pattern.match("model.layers.3.attn.q.weight"), (Captures{"layers.3", "q.weight"}));
  EXPECT_EQ(pattern.match("model.a.attn.b.attn.c"), (Captures{"a", "b.attn.c"}));
  EXPECT_FALSE(pattern.match("model.attn.weight") || pattern.match("model.a.attn"));
  EXPECT_TRUE(NamePattern("*").match("anything.at.all"));
  EXPECT_TRUE(NamePattern("*.bias").match("model.fc.bias"));
  EXPECT_FALSE(NamePattern("a*a").match("a"));
  EXPECT_ERROR(invalid, "empty", NamePattern(""));
}

TEST(NamePatternTest, RulesCarryOverWhatTheStarsStandFor) {
  EXPECT_EQ(NameRule("net", "model").rename("net.fc.weight"), "model.fc.weight");
  EXPECT_EQ(NameRule("net", "model").rename("network"), std::nullopt);
  EXPECT_EQ(NameRule("m.*.a.*", "m.*.b.*").rename("m.3.a.w"), "m.3.b.w");
  EXPECT_EQ(NameRule("m.*_v", "n.*").rename("m.x_v"), "n.x");
  EXPECT_ERROR(invalid, "as many *", NameRule("a.*", "b"));
  EXPECT_ERROR(invalid, "as many *", NameRule("a", ""));
}

TEST(NamePatternTest, SimilarNames) {
  const std::vector<std::string> names = {"model", "optimizer", "scheduler", "step"};
  EXPECT_EQ(engine::similar_names("modle", names), std::vector<std::string>{"model"});
  EXPECT_EQ(engine::similar_names("optim", names), std::vector<std::string>{"optimizer"});
  EXPECT_TRUE(engine::similar_names("x", names).empty());
}

TEST(RenamingTest, MovesWholeEntriesSingleKeysAndItemsOfLists) {
  const Dict file{{"net", tensors({"fc.weight"})},
                  {"states", Value::list({Dict{{"lr", 1}}, Dict{{"lr", 2}}})},
                  {"extra", tensors({"a", "b"})}};
  engine::Renaming renaming({{"net", "model"}, {"states.0", "optimizer"}, {"extra.a", "model.x"}});
  const Value renamed = renaming.apply(file, {"model", "optimizer"});
  EXPECT_EQ(keys_of(renamed["model"]), (std::vector<std::string>{"fc.weight", "x"}));
  EXPECT_EQ(renamed["optimizer"]["lr"].as_int(), 1);
  EXPECT_EQ(renamed["states"].as_items().size(), 1U);
  EXPECT_EQ(keys_of(renamed["extra"]), std::vector<std::string>{"b"});
  EXPECT_EQ(keys_of(file.at("net")), std::vector<std::string>{"fc.weight"});  // as it was
}

TEST(RenamingTest, AContainerThatAllHasMovedOutOfIsGone) {
  engine::Renaming renaming(engine::RenameRules{{"net.old.*", "model.*"}});
  const Value renamed = renaming.apply(Dict{{"net", tensors({"old.a", "old.b"})}}, {"model"});
  EXPECT_EQ(keys_of(renamed), std::vector<std::string>{"model"});
}

TEST(RenamingTest, AnEarlierRuleReachesIntoWhatALaterOneMoves) {
  const Dict file{{"net", tensors({"old.a", "b"})}, {"opt", Dict{{"state", Dict{{"0", 1}}}}}};
  engine::Renaming renaming({{"net.old", "model.new"}, {"net", "model"}, {"opt", "optimizer"}});
  const Value renamed = renaming.apply(file, {"model", "optimizer"});
  EXPECT_EQ(keys_of(renamed["model"]), (std::vector<std::string>{"new.a", "b"}));
  EXPECT_EQ(renamed["optimizer"]["state"]["0"].as_int(), 1);
}

TEST(RenamingTest, TwoThatBecomeOneAreAnError) {
  const Dict file{{"model", tensors({"a", "b"})}, {"n", 1}};
  const auto apply = [&](engine::RenameRules rules) {
    return error_of([&] { engine::Renaming(rules).apply(file, {"model"}); });
  };
  for (const auto& rules : {engine::RenameRules{{"model.a", "model.b"}},
                            {{"model.a", "model.c"}, {"model.b", "model.c"}},
                            {{"n", "model"}}})
    EXPECT_NE(std::string(apply(rules).what()).find("the name \"model"), std::string::npos)
        << apply(rules).what();
  EXPECT_NE(std::string(apply({{"model.a", "n.a"}}).what()).find("a int"), std::string::npos);
}

// What PyTorch keeps of a module's version moves with the module.
TEST(RenamingTest, MetadataOfModulesMovesToo) {
  const auto with_metadata = [](const std::vector<std::string>& keys, Dict metadata) {
    Dict dict = tensors(keys);
    dict.set_attributes(std::make_shared<Dict>(Dict{{"_metadata", std::move(metadata)}}));
    return dict;
  };
  const Dict file{{"net", with_metadata({"fc.w", "bn.w"}, {{"", 1}, {"fc", 2}, {"bn", 3}})},
                  {"model", with_metadata({"own.w"}, {{"own", 4}})}};
  engine::Renaming renaming(engine::RenameRules{{"net.fc.*", "model.head.*"}});
  const Value renamed = renaming.apply(file, {"model"});
  EXPECT_EQ(keys_of(renamed["model"]), (std::vector<std::string>{"own.w", "head.w"}));
  const Value& metadata = *renamed["model"].as_dict().attributes()->find("_metadata");
  EXPECT_EQ(metadata["own"].as_int(), 4);
  EXPECT_EQ(metadata["head"].as_int(), 2);
  EXPECT_FALSE(metadata.contains("bn"));
}

TEST(RenamingTest, ReachesIntoLists) {
  const Dict file{{"states", Value::list({Dict{{"lr", 1}, {"m", 2}}, 3})}};
  engine::Renaming renaming({{"states.0.lr", "rate"}, {"states", "old"}});
  const Value renamed = renaming.apply(file, {});
  EXPECT_EQ(renamed["rate"].as_int(), 1);
  EXPECT_EQ(keys_of(renamed["old"]), (std::vector<std::string>{"0.m", "1"}));
}

TEST(RenamingTest, NamesThatAreNotThereAreAnError) {
  engine::Renaming renaming(engine::RenameRules{{"modle.*", "net.*"}});
  const std::string text =
      error_of([&] { renaming.apply(Dict{{"model", tensors({"a"})}}, {}); }).what();
  EXPECT_NE(text.find("did you mean \"model"), std::string::npos) << text;
}

TEST(NameSelectionTest, WhatIsOnOneSideOnly) {
  engine::NameSelection selection({"model.a"});
  EXPECT_TRUE(selection.takes("model.a", engine::Side::here));
  EXPECT_FALSE(selection.takes("model.b", engine::Side::file));
  const auto refused = [&](const std::vector<std::string>& in_file) {
    return std::string(error_of([&] { selection.require_found(in_file, {"model.a"}); }).what());
  };
  EXPECT_NE(refused({"model.b"}).find("nothing in the file has such a name"), std::string::npos);
  EXPECT_NE(refused({}).find("There is: nothing"), std::string::npos);
  EXPECT_NE(refused(std::vector<std::string>(23, "x")).find("and 3 more"), std::string::npos);
}

TEST(NameSelectionTest, WhatIsRestoredWhole) {
  engine::NameSelection selection({"optimizer.state"});
  EXPECT_ERROR(invalid, "write only=[\"optimizer\"]",
               selection.takes_whole("optimizer", engine::Side::here));
  EXPECT_FALSE(selection.takes_whole("model", engine::Side::here));
}

TEST(KeyMatchTest, TakesPrefixesOfWrappersOutWhereverTheyAre) {
  EXPECT_EQ(engine::without_wrappers("module._orig_mod.a._orig_mod.b"), "a.b");
  EXPECT_EQ(engine::without_wrappers("submodule.weight"), "submodule.weight");
  EXPECT_EQ(engine::without_wrappers("a.module"), "a.module");
  engine::NameSelection all({});
  const auto matched = [&](const std::vector<std::string>& file,
                           const std::vector<std::string>& own) {
    return engine::match_keys("m", tensors(file), tensors(own), false, all);
  };
  EXPECT_EQ(keys_of(matched({"module.a._orig_mod.b"}, {"a.b"}).value),
            std::vector<std::string>{"a.b"});
  EXPECT_EQ(keys_of(matched({"a.b"}, {"_orig_mod.a.module.b"}).value),
            std::vector<std::string>{"_orig_mod.a.module.b"});
  // A submodule that happens to have such a name is one all the same.
  const auto both = matched({"module.a", "a"}, {"module.a", "a"});
  EXPECT_EQ(both.matched, 2U);
  EXPECT_TRUE(both.misfits.empty());
  // What is there as it is comes before what would be there without its prefix.
  const auto twice = matched({"module.a", "a"}, {"a"});
  ASSERT_EQ(twice.misfits.size(), 1U);
  EXPECT_EQ(twice.misfits[0].name, "m.module.a");
}

TEST(KeyMatchTest, WhatMayBeCast) {
  using enum DType;
  for (const auto& [from, to] : {std::pair{float32, bfloat16},
                                 {float8_e5m2, float64},
                                 {int8, int64},
                                 {uint8, int16},
                                 {boolean, uint8},
                                 {complex128, complex64}})
    EXPECT_TRUE(engine::is_castable(from, to)) << dtype_name(from) << " " << dtype_name(to);
  for (const auto& [from, to] : {std::pair{float32, int64},
                                 {int64, float32},
                                 {int64, int32},
                                 {int8, uint16},
                                 {uint8, int8},
                                 {complex64, float32},
                                 {float32, complex64},
                                 {uint8, boolean},
                                 {bits8, uint8}})
    EXPECT_FALSE(engine::is_castable(from, to)) << dtype_name(from) << " " << dtype_name(to);
}

// "old -> new" of every tensor that seems to be another one's under another name.
std::vector<std::string> renamed(const std::vector<std::string>& file,
                                 const std::vector<std::string>& own) {
  engine::NameSelection all({});
  const auto match = engine::match_keys("m", tensors(file), tensors(own), false, all);
  std::vector<std::string> found;
  for (const auto& [in_file, here] : engine::find_renamed(match.misfits))
    found.push_back(in_file + " -> " + here);
  return found;
}

TEST(RenamedKeysTest, FindsWhatDiffersInOnePartOrInItsFront) {
  using Found = std::vector<std::string>;
  EXPECT_EQ(renamed({"a.old.w"}, {"a.new.w"}), Found{"m.a.old.w -> m.a.new.w"});
  EXPECT_EQ(renamed({"model.a.w"}, {"a.w"}), Found{"m.model.a.w -> m.a.w"});
  EXPECT_EQ(renamed({"a.w"}, {"a.inner.w"}), Found{"m.a.w -> m.a.inner.w"});
  EXPECT_EQ(renamed({"x.y.a.w"}, {"p.q.r.a.w"}), Found{"m.x.y.a.w -> m.p.q.r.a.w"});
  EXPECT_EQ(renamed({"a.weigth"}, {"a.weight"}), Found{"m.a.weigth -> m.a.weight"});
  EXPECT_EQ(renamed({"a.bias"}, {"a.weight"}), Found{});
  EXPECT_EQ(renamed({"x.a"}, {"y.b"}), Found{});
}

TEST(RenamedKeysTest, ShapesMustBeTheSame) {
  engine::NameSelection all({});
  const Dict file{{"old.w", Value(tensor({3}))}}, own{{"new.w", Value(tensor({4}))}};
  EXPECT_TRUE(engine::find_renamed(engine::match_keys("m", file, own, false, all).misfits).empty());
}

// The text for a module "m" with the keys `own` and a file with the keys `file`.
std::string explained(const std::vector<std::string>& file, const std::vector<std::string>& own) {
  engine::NameSelection all({});
  auto match = engine::match_keys("m", tensors(file), tensors(own), false, all);
  std::vector<std::string> fitting;
  for (const std::string& key : keys_of(match.value)) fitting.push_back("m." + key);
  return engine::explain(std::move(match.misfits), {.fitting = std::move(fitting)});
}

TEST(ExplanationTest, AdvisesARuleForAGroupOfNames) {
  const auto advises = [](const std::string& text, const std::string& rule) {
    return text.find("rename={" + rule + "}") != std::string::npos ? "" : text;
  };
  EXPECT_EQ(advises(explained({"model.a", "model.b.c"}, {"a", "b.c"}), R"("m.model.*": "m.*")"),
            "");
  EXPECT_EQ(advises(explained({"old.a", "old.b", "x"}, {"new.a", "new.b", "x"}),
                    R"("m.old.*": "m.new.*")"),
            "");
  EXPECT_EQ(advises(explained({"l.0.p.a", "l.1.p.a", "l.1.b"}, {"l.0.q.a", "l.1.q.a", "l.1.b"}),
                    R"("m.l.*.p.*": "m.l.*.q.*")"),
            "");
  EXPECT_EQ(advises(explained({"a.wieght"}, {"a.weight"}), R"("m.a.wieght": "m.a.weight")"), "");
  // "m.*": "m.inner.*" would take "m.x" along, which fits as it is.
  EXPECT_EQ(advises(explained({"a.w", "b.w", "x"}, {"inner.a.w", "inner.b.w", "x"}),
                    R"("m.a.w": "m.inner.a.w", "m.b.w": "m.inner.b.w")"),
            "");
}

TEST(ExplanationTest, AHundredThousandRenamedKeysTakeSeconds) {
  std::vector<std::string> file, own;
  for (int i = 0; i < 25000; ++i)
    for (const char* key : {"q.weight", "k.weight", "v.weight", "o.weight"}) {
      file.push_back("layers." + std::to_string(i) + ".attn." + key);
      own.push_back("layers." + std::to_string(i) + ".attention." + key);
    }
  const auto begin = std::chrono::steady_clock::now();
  const std::string text = explained(file, own);
  EXPECT_NE(text.find(R"(rename={"m.layers.*.attn.*": "m.layers.*.attention.*"})"),
            std::string::npos)
      << text;
  // Some tenths of a second; were it quadratic, it would be hours.
  EXPECT_LT(std::chrono::steady_clock::now() - begin, std::chrono::seconds(60));
}

// A state with a module of these keys, each a tensor of two numbers.
class Weights {
 public:
  explicit Weights(const std::vector<std::string>& keys, float first = 0) {
    for (const std::string& key : keys) numbers_[key] = {first, first + 1};
  }
  TrainingState::Entry entry(const std::string& name) {
    TrainingState::Entry entry;
    entry.name = name;
    entry.state_dict = [this] { return dict(); };
    entry.structure = [this] { return dict(); };
    entry.load_state_dict = [this](const Value& value) {
      for (const auto& [key, item] : value.as_dict()) {
        const auto* data = reinterpret_cast<const float*>(item.as_tensor().storage->data);
        numbers_.at(key.as_string()).assign(data, data + 2);
      }
    };
    return entry;
  }
  float first(const std::string& key) const { return numbers_.at(key)[0]; }

 private:
  Dict dict() {
    Dict dict;
    for (auto& [key, data] : numbers_)
      dict.set(key, Value(Tensor::over(data.data(), DType::float32, {2})));
    return dict;
  }
  std::map<std::string, std::vector<float>> numbers_;
};

class MatchingTest : public RunFixture {
 protected:
  void save(const std::vector<std::string>& keys) {
    Weights weights(keys, 5);
    TrainingState state;
    std::int64_t epoch = 9;
    state.add_entry(weights.entry("model"));
    state.add("epoch", epoch);
    state.step = 7;
    auto manager = open();
    manager.save(state).wait();
  }
  std::string refused(const RestoreOptions& options) {
    auto manager = open();
    return error_of([&] { manager.restore(state_, options); }).what();
  }
  void restore(const RestoreOptions& options) {
    auto manager = open();
    manager.restore(state_, options);
  }
  void registered(const std::vector<std::string>& keys) {
    weights_ = Weights(keys);
    state_.add_entry(weights_.entry("model"));
    state_.add("epoch", epoch_);
  }

  std::int64_t epoch_ = 0;
  Weights weights_{{}};
  TrainingState state_;
};

TEST_F(MatchingTest, OnlyWhatIsNamed) {
  save({"a.w", "b.w", "gone"});
  registered({"a.w", "b.w", "new"});
  restore({.only = {"model.a.*"}});
  EXPECT_EQ(weights_.first("a.w"), 5);
  EXPECT_EQ(weights_.first("b.w"), 0);
  EXPECT_EQ(epoch_, 0);
  EXPECT_EQ(state_.step, 0);
  restore({.only = {"epoch", "step"}});
  EXPECT_EQ(epoch_, 9);
  EXPECT_EQ(state_.step, 7);
  EXPECT_NE(refused({.only = {"modle"}}).find("did you mean \"model\"?"), std::string::npos);
}

TEST_F(MatchingTest, AllOptionsAtOnce) {
  save({"encoder.w", "aux"});
  weights_ = Weights({"backbone.w", "head"});
  TrainingState state;
  TrainingState::Entry entry = weights_.entry("model");
  entry.structure = [] {
    return Value(
        Dict{{"backbone.w", Value(tensor({2}, DType::float64))}, {"head", Value(tensor({3}))}});
  };
  state.add_entry(entry);
  state.add("epoch", epoch_);
  auto checkpoints = open();
  // As in docs/restoring.md.
  checkpoints.restore(state, {.only = {"model.backbone", "epoch"},
                              .rename = {{"model.encoder.*", "model.backbone.*"}},
                              .cast = true});
  EXPECT_EQ(weights_.first("backbone.w"), 5);
  EXPECT_EQ(weights_.first("head"), 0);
  EXPECT_EQ(epoch_, 9);
}

TEST_F(MatchingTest, AForgottenOptimizerIsNamed) {
  Weights weights({"w"});
  TrainingState from;
  from.add_entry(weights.entry("model"));
  std::int64_t momentum = 3;
  from.add("optimizer", momentum);
  open().save(from).wait();
  registered({"w"});
  const std::string text = refused({});
  for (const char* part : {"\n  optimizer  unexpected  a int", "\n  epoch      missing",
                           "state.add(\"optimizer\", ...)", "strict=False", "only=["})
    EXPECT_NE(text.find(part), std::string::npos) << part << "\nnot in\n" << text;
}

TEST_F(MatchingTest, RenamedAndSkipped) {
  save({"old.a", "old.b", "gone"});
  registered({"new.a", "new.b", "mine"});
  EXPECT_NE(refused({}).find("rename={\"model.old.*\": \"model.new.*\"}"), std::string::npos);
  restore({.strict = false, .rename = {{"model.old.*", "model.new.*"}}});
  EXPECT_EQ(weights_.first("new.b"), 5);
  EXPECT_EQ(weights_.first("mine"), 0);
  ASSERT_EQ(warnings.size(), 1U);
  for (const char* row : {"model.mine  missing", "model.gone  unexpected"})
    EXPECT_NE(warnings[0].find(row), std::string::npos) << warnings[0];
}

TEST_F(MatchingTest, NoKeyInCommonIsAnErrorAlsoWhereItIsLenient) {
  save({"a"});
  registered({"b"});
  EXPECT_NE(refused({.strict = false}).find("model: none of its keys is in the file"),
            std::string::npos);
}

}  // namespace
}  // namespace perdure::test
