// What a manager keeps: pins, keep_every, the plan and its carrying out.
#include <cstdint>
#include <perdure/checkpoint_manager.hpp>

#include "engine/run_fixture.hpp"

namespace perdure::test {
namespace {

namespace fs = std::filesystem;
using KeepTest = RunFixture;
using Steps = std::vector<std::int64_t>;

Steps kept(const std::vector<PlannedCheckpoint>& plan) {
  Steps steps;
  for (const PlannedCheckpoint& item : plan)
    if (item.kept()) steps.push_back(item.checkpoint.step());
  return steps;
}

TEST_F(KeepTest, KeepsEverySoManySteps) {
  auto manager = open({.keep_last = 1, .keep_every = {.steps = 100}});
  for (int step = 40; step <= 400; step += 40) save(manager, step);
  EXPECT_EQ(manager.all_steps(), (Steps{120, 200, 320, 400}));
}

TEST_F(KeepTest, APinnedOneStaysUntilItIsUnpinned) {
  auto manager = open({.keep_last = 1});
  save(manager, 1);
  manager.pin(1, "for the paper");
  for (int step = 2; step <= 4; ++step) save(manager, step);
  EXPECT_EQ(manager.all_steps(), (Steps{1, 4}));
  const auto plan = manager.retention_plan();
  EXPECT_EQ(plan[1].reasons, (std::vector<std::string>{"pinned: for the paper"}));
  manager.unpin(1);
  save(manager, 5);
  EXPECT_EQ(manager.all_steps(), (Steps{5}));
  EXPECT_EQ(checkpoint_names().size(), 1U);  // no pin is left behind
}

TEST_F(KeepTest, PinsSurviveARestartAndMayBeMadeByHand) {
  {
    auto manager = open({.keep_last = 5});
    for (int step = 1; step <= 3; ++step) save(manager, step);
    manager.pin(2);
  }
  std::string by_hand = file(1, 1).string() + ".pin";
  TemporaryDirectory::write(by_hand, "");
  auto manager = open({.keep_last = 1});
  save(manager, 4);
  EXPECT_EQ(manager.all_steps(), (Steps{1, 2, 4}));
  EXPECT_EQ(manager.retention_plan()[2].reasons, (std::vector<std::string>{"pinned"}));
  const auto listed = list_checkpoints(path);
  EXPECT_EQ(listed[0].pin, std::nullopt);
  EXPECT_EQ(listed[1].pin, "");
}

TEST_F(KeepTest, PinsThatCannotBe) {
  auto manager = open();
  EXPECT_ERROR(not_found, "there is none at all", manager.pin(1));
  save(manager, 5);
  EXPECT_ERROR(not_found, "there are 5", manager.pin(1));
  EXPECT_ERROR(not_found, "there are 5", manager.unpin(1));
  EXPECT_ERROR(invalid, "one line", manager.pin(5, "two\nlines"));
  EXPECT_ERROR(invalid, "1000 bytes", manager.pin(5, std::string(1001, 'x')));
  manager.unpin(5);  // is not pinned: nothing to do
}

TEST_F(KeepTest, APinIsOfTheNewestOfItsStep) {
  auto manager = open({.keep_last = 1});
  save(manager, 1);
  save(manager, 1);
  manager.pin(1);
  save(manager, 2);
  ASSERT_EQ(manager.checkpoints().size(), 2U);
  EXPECT_EQ(manager.checkpoints()[1].generation(), 2U);
}

TEST_F(KeepTest, AReasonThatCannotBeReadIsStillAPin) {
  auto manager = open({.keep_last = 1});
  save(manager, 1);
  fs::create_symlink("/nowhere", file(1, 1).string() + ".pin");  // no file: no pin
  save(manager, 2);
  EXPECT_EQ(manager.all_steps(), (Steps{2}));
  TemporaryDirectory::write(file(2, 2).string() + ".pin", std::string(5000, '\xff'));
  save(manager, 3);
  EXPECT_EQ(manager.all_steps(), (Steps{2, 3}));
  EXPECT_EQ(list_checkpoints(path)[1].pin, "");
}

TEST_F(KeepTest, ThePlanIsWhatPruneDoes) {
  {
    auto manager = open({.keep_last = 100});
    for (int step = 1; step <= 6; ++step) save(manager, step, {{"loss", step == 2 ? 0.0 : 1.0}});
  }
  const ManagerOptions options{.keep_last = 2, .keep_best = {{"loss", Mode::min, 1}}};
  EXPECT_EQ(kept(retention_plan(path, options)), (Steps{6, 5, 2}));
  EXPECT_EQ(checkpoint_names().size(), 6U);  // showing it did nothing
  auto manager = open(options);
  EXPECT_EQ(kept(retention_plan(path, options)), (Steps{6, 5, 2}));  // beside its owner, too
  EXPECT_EQ(kept(manager.retention_plan()), (Steps{6, 5, 2}));
  EXPECT_EQ(manager.all_steps().size(), 6U);
  EXPECT_EQ(kept(manager.prune()), (Steps{6, 5, 2}));
  EXPECT_EQ(manager.all_steps(), (Steps{2, 5, 6}));
}

TEST_F(KeepTest, WhatItWasRestoredFromStays) {
  {
    auto manager = open({.keep_last = 10});
    for (int step = 1; step <= 4; ++step) save(manager, step);
  }
  auto manager = open({.keep_last = 1});
  EXPECT_EQ(restore(manager, {.step = 2}), 2);
  save(manager, 3);
  EXPECT_EQ(manager.all_steps(), (Steps{2, 3}));
  EXPECT_EQ(manager.retention_plan()[1].reasons, (std::vector<std::string>{"restored from"}));
}

TEST_F(KeepTest, RefusesRulesThatMakeNoSense) {
  EXPECT_ERROR(invalid, "keep_every is every -1 steps", open({.keep_every = {.steps = -1}}));
  EXPECT_ERROR(invalid, "save_every",
               open({.save_every = {.time = std::chrono::duration<double>(NAN)}}));
  EXPECT_ERROR(invalid, "overhead is 2", open({.overhead = 2}));
  EXPECT_ERROR(invalid, "grace", open({.grace = std::chrono::seconds(-1)}));
}

}  // namespace
}  // namespace perdure::test
