// What each rank gets of a checkpoint that several have saved.
#include "engine/rank_view.hpp"

#include "engine/owned_tensor.hpp"
#include "expect_error.hpp"

namespace perdure::test {
namespace {

using engine::rank_view;
using engine::with_shared;

Value stands_for(const std::string& name) {
  return Dict{{"__perdure__", "tensor"}, {"name", name}};
}

const void* memory_of(const Value& value) { return value.as_tensor().storage->data; }

Value saved_by_three() {
  const Value weight(owned({1, 2, 3}));
  const auto of = [](std::int64_t rank) {
    return Dict{{"model", Dict{{"w", stands_for("model.w")}, {"tied", stands_for("model.w")}}},
                {"position", rank},
                {"rng", Dict{{"toy", 100 + rank}}}};
  };
  return Dict{{"model", Dict{{"w", weight}, {"tied", weight}}},
              {"position", 0},
              {"rng", Dict{{"toy", 100}}},
              {"ranks", Dict{{"1", of(1)}, {"2", of(2)}}}};
}

TEST(RankViewTest, GivesEachWhatItHasSaved) {
  const Value all = saved_by_three();
  for (std::size_t rank = 0; rank < 3; ++rank) {
    const Value view = rank_view(all, 3, rank);
    EXPECT_FALSE(view.contains("ranks"));
    EXPECT_EQ(view["position"].as_int(), static_cast<std::int64_t>(rank));
    EXPECT_EQ(view["rng"]["toy"].as_int(), 100 + static_cast<std::int64_t>(rank));
    EXPECT_EQ(memory_of(view["model"]["w"]), memory_of(all["model"]["w"]));
    EXPECT_EQ(memory_of(view["model"]["tied"]), memory_of(all["model"]["w"]));
  }
  EXPECT_TRUE(all.contains("ranks"));
}

TEST(RankViewTest, GivesOneThatWasNotThereWhatRank0HasWithoutItsRandomNumbers) {
  const Value view = rank_view(saved_by_three(), 3, 3);
  EXPECT_EQ(view["position"].as_int(), 0);
  EXPECT_TRUE(view["rng"].as_dict().empty());
  EXPECT_EQ(view["model"]["w"].kind(), Kind::tensor);
  EXPECT_FALSE(rank_view(Dict{{"ranks", Dict{}}, {"a", 1}}, 2, 5).contains("rng"));
}

TEST(RankViewTest, OfAFileOfOneProcessOnlyRank0TakesTheRandomNumbers) {
  const Value state = Dict{{"a", 1}, {"rng", Dict{{"toy", 1}}}};
  EXPECT_EQ(rank_view(state, 1, 0)["rng"]["toy"].as_int(), 1);
  EXPECT_EQ(rank_view(state, 1, 3)["a"].as_int(), 1);
  EXPECT_TRUE(rank_view(state, 1, 3)["rng"].as_dict().empty());
  EXPECT_EQ(state["rng"].as_dict().size(), 1U);
}

TEST(RankViewTest, LeavesAloneWhatIsNotPerdures) {
  EXPECT_EQ(rank_view(Value(3), 1, 1).as_int(), 3);
  for (const Value& state : {Value(Dict{{"ranks", 4}}), Value(Dict{{"rng", 4}})})
    EXPECT_EQ(rank_view(state, 1, 1).identity(), state.identity());
}

TEST(RankViewTest, ARecordThatNamesWhatIsNotThereIsDamage) {
  const Value value =
      Dict{{"ranks", Dict{{"1", Dict{{"model", Dict{{"w", stands_for("model.other")}}}}}}},
           {"model", Dict{{"w", owned({1})}}}};
  EXPECT_ERROR(corrupt, "model.other", rank_view(value, 2, 1));
}

TEST(WithSharedTest, FillsInWhereverANameStands) {
  const Value tensor(owned({1, 2}));
  Dict ordered(Kind::ordered_dict);
  ordered.set("deep", Value::list({1, stands_for("t"), Dict{{"x", stands_for("t")}}}));
  ordered.set_attributes(std::make_shared<Dict>(Dict{{"_metadata", 5}}));
  const Value shared(Dict{{"in", "two places"}});
  const Value tree = Dict{{"a", Value(ordered)},
                          {"b", Value::tuple({1})},
                          {"one", shared},
                          {"two", shared},
                          // None of these is a name of perdure's.
                          {"c", Dict{{"__perdure__", "tensor"}}},
                          {"d", Dict{{"__perdure__", "other"}, {"name", "t"}}},
                          {"e", Dict{{"__perdure__", "tensor"}, {"name", 7}}}};
  std::vector<std::string> asked;
  const Value out = with_shared(tree, [&](const std::string& name) {
    asked.push_back(name);
    return &tensor;
  });
  EXPECT_EQ(asked, (std::vector<std::string>{"t", "t"}));
  EXPECT_EQ(out["a"].kind(), Kind::ordered_dict);
  EXPECT_EQ(out["a"].as_dict().attributes()->at("_metadata").as_int(), 5);
  EXPECT_EQ(memory_of(out["a"]["deep"][1]), memory_of(tensor));
  EXPECT_EQ(memory_of(out["a"]["deep"][2]["x"]), memory_of(tensor));
  EXPECT_EQ(out["one"].identity(), out["two"].identity());
  EXPECT_EQ(out["e"]["name"].as_int(), 7);
}

}  // namespace
}  // namespace perdure::test
