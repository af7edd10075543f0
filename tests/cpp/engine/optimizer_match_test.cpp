// Which state of a file goes to which parameter of an optimizer, and what is said of the rest.
#include <gtest/gtest.h>

#include <chrono>
#include <perdure/optimizer_match.hpp>
#include <string>

#include "expect_error.hpp"

namespace perdure::test {
namespace {

using Shape = std::vector<std::int64_t>;
struct Parameter {
  std::string name;
  Shape shape = {2};
};
using Group = std::vector<Parameter>;

Value moment(Shape shape) {
  Tensor tensor = Tensor::over(nullptr, DType::float32, std::move(shape));
  return Dict{{"step", 3.0}, {"exp_avg", std::move(tensor)}};
}

// An optimizer's state_dict, the parameters numbered from 100, and who they are.
struct File {
  Value value;
  CheckpointInfo::Optimizer recorded{"Adam", {}};
  std::map<std::string, Value> states;  // by name

  explicit File(const std::vector<Group>& groups) {
    Dict state;
    Value::Items made;
    std::int64_t id = 100;
    for (const Group& group : groups) {
      Value::Items ids;
      auto& names = recorded.param_names.emplace_back();
      for (const auto& [name, shape] : group) {
        names.push_back(name);
        states[name] = moment(shape);
        state.set(id, states[name]);
        ids.emplace_back(id++);
      }
      const double rate = static_cast<double>(made.size() + 1);
      made.push_back(Dict{{"lr", rate}, {"decay", rate}, {"params", Value::list(ids)}});
    }
    value = Dict{{"state", state}, {"param_groups", Value::list(made)}};
  }
  // As PyTorch would have written it.
  void make_foreign(std::size_t cut) {
    for (std::size_t g = 0; g < recorded.param_names.size(); ++g) {
      Value::Items names;
      for (const std::string& name : recorded.param_names[g]) names.emplace_back(name.substr(cut));
      value.as_dict()
          .find("param_groups")
          ->as_items()[g]
          .as_dict()
          .set("param_names", Value::list(names));
    }
    recorded = {};
  }
};

OptimizerOutline outline(const std::vector<Group>& groups) {
  OptimizerOutline own{.class_name = "Adam", .groups = {}, .state = {}};
  for (const Group& group : groups) {
    auto& out = own.groups.emplace_back();
    out.options = Dict{{"lr", -1.0}, {"decay", -1.0}};
    for (const auto& [name, shape] : group)
      out.params.push_back(
          {name.empty() ? std::vector<std::string>{} : std::vector{name}, "", shape});
  }
  return own;
}

struct Result {
  Value value;
  Problems problems, notes;
  const Value& state(std::int64_t number) const { return value["state"].as_dict().at(number); }
  bool has_state(std::int64_t number) const {
    return value["state"].as_dict().find(number) != nullptr;
  }
  double option(int group, const char* key) const {
    return value["param_groups"][group][key].as_double();
  }
};
Result match_own(const OptimizerOutline& own, const File& file, bool strict = true) {
  Result result;
  result.value =
      match_optimizer(own, file.value, {file.recorded, {}, strict, result.problems, result.notes});
  return result;
}
Result match(const std::vector<Group>& own, const File& file, bool strict = true) {
  return match_own(outline(own), file, strict);
}

void expect_is(const Value& a, const Value& b) { EXPECT_EQ(a.identity(), b.identity()); }

TEST(OptimizerMatch, AnyOrderFits) {
  const File file({{{"m.a"}, {"m.b"}}, {{"m.c"}, {"m.d"}}});
  const Result result = match({{{"m.d"}, {"m.c"}}, {{"m.b"}, {"m.a"}}}, file);
  ASSERT_TRUE(result.problems.empty() && result.notes.empty());
  const char* const order[] = {"m.d", "m.c", "m.b", "m.a"};
  for (std::int64_t i = 0; i < 4; ++i) expect_is(result.state(i), file.states.at(order[i]));
  EXPECT_EQ(result.option(0, "decay"), 2);
  EXPECT_EQ(result.option(1, "decay"), 1);
  EXPECT_EQ(result.value["param_groups"][1]["params"][0].as_int(), 2);
  EXPECT_EQ(result.value["state"].as_dict().size(), 4U);
}

TEST(OptimizerMatch, WhatDiffersIsOneTable) {
  const File file(
      {{{"m.a", {3, 4}}, {"m.gone.long"}, {"m.c"}, {"m.d"}}, {{"m.e"}, {"m.longer.name"}}});
  const std::vector<Group> own = {{{"m.a", {3, 5}}, {"m.new"}, {"m.c"}, {"m.d"}, {"m.e"}},
                                  {{"m.longer.name"}}};
  const std::string rows = R"(
    m.a          group 0 [3, 4]  group 0 [3, 5]  shape [3, 4] in the file, [3, 5] here: starts without momentum
    m.new        -               group 0 [2]     new: starts without momentum
    m.e          group 1 [2]     group 0 [2]     moved from group 1 to 0: keeps its momentum
    m.gone.long  group 0 [2]     -               not here: its momentum is dropped
    and 3 others keep their momentum)";
  const Result strict = match(own, file);
  ASSERT_EQ(strict.problems.size(), 1U);
  EXPECT_EQ(strict.problems[0],
            "its parameters are not those of the file:\n"
            "    parameter    in the file     here            what would happen" +
                rows + "\n  strict=False does what the last column says.");
  const Result done = match(own, file, false);
  EXPECT_TRUE(done.problems.empty());
  ASSERT_EQ(done.notes.size(), 1U);
  EXPECT_EQ(done.notes[0],
            "its parameters are not those of the file (strict=False):\n"
            "    parameter    in the file     here            what happened" +
                rows);
  EXPECT_FALSE(done.has_state(0) || done.has_state(1));
  expect_is(done.state(2), file.states.at("m.c"));
  expect_is(done.state(4), file.states.at("m.e"));
  expect_is(done.state(5), file.states.at("m.longer.name"));
  EXPECT_EQ(done.value["state"].as_dict().size(), 4U);
  EXPECT_EQ(done.option(0, "decay"), 1);  // the groups are still the same two
  EXPECT_EQ(done.option(1, "decay"), 2);
}

TEST(OptimizerMatch, SplitAndMergedGroupsKeepTheirOptionsButTheRate) {
  const File file({{{"m.a"}, {"m.b"}, {"m.c"}}, {{"m.d"}}, {{"m.e"}}});
  const Result result =
      match({{{"m.a"}}, {{"m.b"}, {"m.c"}}, {{"m.d"}, {"m.e"}}, {{"m.new"}}}, file, false);
  for (const auto& [group, rate] : std::map<int, double>{{0, 1}, {1, 1}, {2, 2}, {3, -1}}) {
    EXPECT_EQ(result.option(group, "lr"), rate) << group;
    EXPECT_EQ(result.option(group, "decay"), -1) << group;
  }
  ASSERT_EQ(result.notes.size(), 1U);
  for (const char* line :
       {"m.a        group 0 [2]  group 0 [2]  split off from group 0: keeps its momentum",
        "m.e        group 2 [2]  group 2 [2]  moved from the file's group 2: keeps its momentum",
        "group 0: its options are those of this program, but lr is that of group 0 in the file",
        "group 2: its options are those of this program, but lr is that of group 1 in the file",
        "group 3: its options are those of this program"})
    EXPECT_NE(result.notes[0].find(line), std::string::npos) << line << result.notes[0];
}

TEST(OptimizerMatch, WhereAParameterMovedToABiggerGroupBothGoOn) {
  const File file({{{"m.a"}, {"m.b"}, {"m.c"}}, {{"m.d"}}});
  const Result result = match({{{"m.c"}, {"m.d"}}, {{"m.a"}, {"m.b"}}}, file, false);
  EXPECT_EQ(result.option(0, "decay"), 2);
  EXPECT_EQ(result.option(1, "decay"), 1);
}

TEST(OptimizerMatch, NothingInCommonIsAnError) {
  const File file({{{"m.a"}}});
  for (const bool strict : {true, false}) {
    const Result result = match({{{"n.a"}}}, file, strict);
    ASSERT_EQ(result.problems.size(), 1U);
    EXPECT_NE(result.problems[0].find("none of its parameters is in the file"), std::string::npos);
    EXPECT_NE(result.problems[0].find("here         what would happen\n    n.a  "),
              std::string::npos);
  }
}

TEST(OptimizerMatch, EveryNameOfAParameterLeadsToIt) {
  const File file({{{"m.tied"}, {"m.module.a"}, {"m._orig_mod.b"}, {"m.c"}}});
  OptimizerOutline own = outline({{{"m.b"}, {"m.x"}, {"m.a"}, {"m.module.c"}}});
  own.groups[0].params[1].names = {"m.x", "m.tied"};
  const Result result = match_own(own, file);
  ASSERT_TRUE(result.problems.empty()) << result.problems[0];
  const char* const order[] = {"m._orig_mod.b", "m.tied", "m.module.a", "m.c"};
  for (std::int64_t i = 0; i < 4; ++i) expect_is(result.state(i), file.states.at(order[i]));
}

TEST(OptimizerMatch, PyTorchsOwnNamesWillDo) {
  File file({{{"m.a.w"}, {"m.b.w"}}});
  file.make_foreign(2);
  Result result = match({{{"m.b.w"}, {"m.a.w"}}}, file);
  ASSERT_TRUE(result.problems.empty());
  expect_is(result.state(0), file.states.at("m.b.w"));
  EXPECT_FALSE(result.value["param_groups"][0].contains("param_names"));
  // The optimizer's own: also where it is of no registered module.
  OptimizerOutline own = outline({{{""}, {""}}});
  own.groups[0].params[0].own_name = "b.w";
  own.groups[0].params[1].own_name = "module.a.w";
  own.groups[0].options.set("param_names", Value::list({"b.w", "module.a.w"}));
  result = match_own(own, file);
  ASSERT_TRUE(result.problems.empty());
  expect_is(result.state(1), file.states.at("m.a.w"));
  EXPECT_EQ(result.value["param_groups"][0]["param_names"][1].as_string(), "module.a.w");
}

TEST(OptimizerMatch, ANameThatFitsTwoLeadsNowhere) {
  File file({{{"m.w"}, {"m.b"}}});
  file.make_foreign(2);
  const Result result = match({{{"m.w"}, {"n.w"}, {"m.b"}}}, file);
  ASSERT_EQ(result.problems.size(), 1U);
  EXPECT_NE(result.problems[0].find("and 1 other keeps its momentum"), std::string::npos);
}

TEST(OptimizerMatch, WithoutNamesThePositionsMustFit) {
  File file({{{"m.a", {3}}, {"m.b", {4}}}});
  file.recorded = {};
  EXPECT_TRUE(match({{{"", {3}}, {"", {4}}}}, file).problems.empty());
  Result result = match({{{"", {3}}, {"", {5}}}}, file, false);
  ASSERT_EQ(result.problems.size(), 1U);
  EXPECT_EQ(result.problems[0],
            R"(its parameters have no names to go by, and by position they do not fit:
                 in the file  here
    parameter 1  [4]          [5]
  Register the modules that they belong to, in the run that saves and in this one: then they go by name.)");
  result = match({{{"", {3}}}, {{"", {4}}}}, file, false);
  ASSERT_EQ(result.problems.size(), 1U);
  EXPECT_NE(result.problems[0].find("group 0  2 parameters [3] [4]  1 parameter [3]"),
            std::string::npos);
  EXPECT_NE(result.problems[0].find("group 1  -                     1 parameter [4]"),
            std::string::npos);
}

TEST(OptimizerMatch, ParametersWithoutANameAreNewWhereOthersHaveOne) {
  const File file({{{"m.a"}, {"m.b"}}});
  const Result result = match({{{"m.b"}, {""}}}, file);
  ASSERT_EQ(result.problems.size(), 1U);
  EXPECT_NE(result.problems[0].find("parameter 1  -            group 0 [2]  new"),
            std::string::npos)
      << result.problems[0];
}

TEST(OptimizerMatch, LbfgsTakesTheSameParametersInTheSameOrder) {
  const File file({{{"m.a"}, {"m.b"}}});
  OptimizerOutline own = outline({{{"m.a"}, {"m.b"}}});
  own.class_name = "LBFGS";
  EXPECT_TRUE(match_own(own, file).problems.empty());
  for (const std::vector<Group>& others :
       {std::vector<Group>{{{"m.b"}, {"m.a"}}}, {{{"m.a"}}}, {{{"m.a"}, {"m.b"}, {"m.c"}}}})
    for (const bool strict : {true, false}) {
      own = outline(others);
      own.class_name = "LBFGS";
      const Result result = match_own(own, file, strict);
      ASSERT_EQ(result.problems.size(), 1U);
      EXPECT_NE(result.problems[0].find("LBFGS has one history for all its parameters"),
                std::string::npos);
    }
}

TEST(OptimizerMatch, WhatTheFileLacksStaysAsItIsHere) {
  const File file({{{"m.a"}}});
  OptimizerOutline own = outline({{{"m.a"}, {"m.b"}}});
  const Value fresh = moment({2});
  own.state = [&](std::size_t number) {
    EXPECT_EQ(number, 1U);  // asked for no other
    return fresh;
  };
  const Result result = match_own(own, file, false);
  expect_is(result.state(1), fresh);
  EXPECT_NE(result.notes.at(0).find("new: keeps the state it has here"), std::string::npos);
}

TEST(OptimizerMatch, StateOfNoParameterAndGroupsWithoutAnyGoAlong) {
  File file({{}, {{"m.a"}}});
  file.value.as_dict().find("state")->as_dict().set("shared", 7);
  const Result result = match({{{"m.a"}}, {}}, file);
  ASSERT_TRUE(result.problems.empty());
  EXPECT_EQ(result.value["state"]["shared"].as_int(), 7);
  EXPECT_EQ(result.option(0, "decay"), 2);
  EXPECT_EQ(result.option(1, "decay"), 1);
}

TEST(OptimizerMatch, WhatIsNoStateOfAnOptimizerIsAnError) {
  for (const Value& value : {Value(7), Value(Dict{{"state", 1}}),
                             Value(Dict{{"state", Dict{}}, {"param_groups", Value::list({1})}})}) {
    Problems problems;
    const CheckpointInfo::Optimizer recorded;
    EXPECT_ERROR(
        invalid, "not the state_dict of an optimizer",
        match_optimizer(outline({{{"m.a"}}}), value, {recorded, {}, true, problems, problems}));
  }
}

TEST(OptimizerMatch, ManyParametersTakeNoLongerThanTheyMust) {
  constexpr int kCount = 100'000;
  std::vector<Group> theirs(kCount / 2), ours(kCount / 2);
  for (int i = 0; i < kCount; ++i) {
    theirs[static_cast<std::size_t>(i / 2)].push_back(
        {"m.layers." + std::to_string(i) + ".weight"});
    ours[static_cast<std::size_t>((kCount - 1 - i) / 2)].push_back(
        {"m.layers." + std::to_string(i + kCount / 2) + ".weight"});
  }
  const File file(theirs);
  const OptimizerOutline own = outline(ours);
  const auto begin = std::chrono::steady_clock::now();
  const Result result = match_own(own, file, false);
  const std::chrono::duration<double> took = std::chrono::steady_clock::now() - begin;
  EXPECT_EQ(result.value["state"].as_dict().size(), kCount / 2U);
  EXPECT_LT(took.count(), 10) << "quadratic would be minutes";
  EXPECT_LT(result.notes.at(0).size(), 20'000U);
}

}  // namespace
}  // namespace perdure::test
