// Saving, generations, retention, on_error, close: the manager's own rules.
#include <cmath>
#include <cstdint>
#include <perdure/checkpoint_manager.hpp>

#include "engine/run_fixture.hpp"
#include "storage/memory_storage.hpp"

namespace perdure::test {
namespace {

namespace fs = std::filesystem;
using CheckpointManagerTest = RunFixture;
using Names = std::vector<std::string>;

TEST_F(CheckpointManagerTest, ANewRunIsEmpty) {
  auto manager = open();
  EXPECT_FALSE(manager.latest());
  EXPECT_EQ(manager.latest_step(), std::nullopt);
  EXPECT_EQ(manager.best_step("loss"), std::nullopt);
  EXPECT_TRUE(manager.all_steps().empty());
  EXPECT_EQ(restore(manager), -2);
  EXPECT_EQ(manager.directory(), path);
}

TEST_F(CheckpointManagerTest, ASaveIsThereWhenItIsDone) {
  auto manager = open();
  const SaveHandle handle = save(manager, 100, {{"loss", 0.5}});
  EXPECT_TRUE(handle.done());
  EXPECT_FALSE(handle.skipped());
  EXPECT_EQ(handle.error(), nullptr);
  EXPECT_TRUE(handle.wait(std::chrono::seconds(0)));
  handle.wait();
  EXPECT_EQ(checkpoint_names(), Names{"step-0000000100-g00000001.pt"});
  const Checkpoint saved = handle.checkpoint().value();
  EXPECT_EQ(saved.path, file(100, 1));
  EXPECT_EQ(saved.size, fs::file_size(file(100, 1)));
  EXPECT_EQ(handle.stats().bytes, saved.size);
  EXPECT_GT(handle.stats().stalled.count(), 0.0);
  // In the order of the thread that writes, which need not wait for the caller to come back.
  EXPECT_GT(handle.stats().written.count(), 0.0);
  EXPECT_GE(handle.stats().durable, handle.stats().written);
  EXPECT_EQ(saved.info.metrics.at("loss"), 0.5);
  EXPECT_EQ(saved.info.reason, "regular");
  EXPECT_EQ(saved.info.writer, "perdure 0.1.0");
  EXPECT_GT(saved.info.created, 1.6e9);
}

TEST_F(CheckpointManagerTest, WhatTheRecordSaysIsInTheFile) {
  auto manager = open();
  save(manager, 7, {{"loss", 0.25}, {"worst", INFINITY}});
  const CheckpointInfo info = CheckpointFile::open(file(7, 1)).info().value();
  EXPECT_EQ(info.step, 7);
  EXPECT_EQ(info.generation, 1U);
  EXPECT_EQ(info.parent, 0U);
  EXPECT_EQ(info.metrics.at("loss"), 0.25);
  EXPECT_EQ(info.metrics.at("worst"), INFINITY);
}

TEST_F(CheckpointManagerTest, GenerationsGoUpAcrossRestartsAndTheParentIsTheOneBefore) {
  {
    auto manager = open();
    save(manager, 1);
    save(manager, 2);
  }
  auto manager = open();
  EXPECT_EQ(restore(manager), 2);
  const Checkpoint third = save(manager, 3).checkpoint().value();
  EXPECT_EQ(third.generation(), 3U);
  EXPECT_EQ(third.info.parent, 2U);
  EXPECT_EQ(save(manager, 4).checkpoint()->info.parent, 3U);
}

TEST_F(CheckpointManagerTest, TheNextGenerationIsAboveEveryNameThereIsOrWas) {
  fs::create_directories(path / ".trash");
  TemporaryDirectory::write(path / "step-0000000001-g00000005.pt.damaged", "x");
  EXPECT_EQ(save(*std::make_unique<CheckpointManager>(path), 1).checkpoint()->generation(), 6U);
  TemporaryDirectory::write(path / ".step-0000000001-g00000010.pt.1-0123456789abcdef.tmp", "x");
  EXPECT_EQ(save(*std::make_unique<CheckpointManager>(path), 2).checkpoint()->generation(), 11U);
  TemporaryDirectory::write(path / ".trash/step-0000000001-g00000020.pt.0123456789abcdef", "x");
  EXPECT_EQ(save(*std::make_unique<CheckpointManager>(path), 3).checkpoint()->generation(), 21U);
}

TEST_F(CheckpointManagerTest, TheNextGenerationIsAboveTheRecordOfARenamedFile) {
  {
    auto manager = open();
    for (int step = 1; step <= 3; ++step) save(manager, step);
    fs::rename(file(3, 3), file(9, 2 + 7));
    fs::rename(file(9, 9),
               path / "step-0000000003-g00000001.pt");  // the record still says generation 3
    fs::remove(file(1, 1));
    fs::remove(file(2, 2));
  }
  auto manager = open();
  EXPECT_EQ(manager.latest()->generation(), 1U);  // the name decides
  EXPECT_EQ(save(manager, 4).checkpoint()->generation(), 4U);
}

TEST_F(CheckpointManagerTest, KeepsTheLastThree) {
  auto manager = open();
  for (int step = 1; step <= 5; ++step) save(manager, step * 10);
  EXPECT_EQ(checkpoint_names(),
            (Names{"step-0000000030-g00000003.pt", "step-0000000040-g00000004.pt",
                   "step-0000000050-g00000005.pt"}));
  EXPECT_TRUE(fs::is_empty(path / ".trash"));
  EXPECT_EQ(manager.all_steps(), (std::vector<std::int64_t>{30, 40, 50}));
  EXPECT_EQ(manager.latest_step(), 50);
}

TEST_F(CheckpointManagerTest, KeepsTheBestToo) {
  ManagerOptions options;
  options.keep_last = 1;
  options.keep_best = {{"loss", Mode::min, 1}, {"accuracy", Mode::max, 1}};
  auto manager = open(options);
  save(manager, 1, {{"loss", 3}, {"accuracy", 0.9}});
  save(manager, 2, {{"loss", NAN}, {"accuracy", 0.1}});
  save(manager, 3, {{"loss", 1}, {"accuracy", 0.2}});
  save(manager, 4, {{"loss", 2}, {"accuracy", NAN}});
  EXPECT_EQ(manager.all_steps(), (std::vector<std::int64_t>{1, 3, 4}));
  EXPECT_EQ(manager.best_step("loss"), 3);
  EXPECT_EQ(manager.best_step("accuracy"), 1);
  EXPECT_EQ(manager.best_step("unknown"), std::nullopt);
}

TEST_F(CheckpointManagerTest, TheBestAreKnownAgainAfterARestart) {
  ManagerOptions options;
  options.keep_last = 1;
  options.keep_best = {{"loss", Mode::min, 1}};
  {
    auto manager = open(options);
    save(manager, 1, {{"loss", 1}});
    save(manager, 2, {{"loss", 2}});
  }
  auto manager = open(options);
  EXPECT_EQ(manager.best_step("loss"), 1);
  save(manager, 3, {{"loss", 3}});
  EXPECT_EQ(manager.all_steps(), (std::vector<std::int64_t>{1, 3}));
}

TEST_F(CheckpointManagerTest, KeepsTheOneItWasRestoredFrom) {
  {
    ManagerOptions options;
    options.keep_last = 10;
    auto manager = open(options);
    for (int step = 1; step <= 4; ++step) save(manager, step);
  }
  ManagerOptions options;
  options.keep_last = 1;
  auto manager = open(options);
  RestoreOptions second;
  second.step = 2;
  EXPECT_EQ(restore(manager, second), 2);
  EXPECT_EQ(save(manager, 3).checkpoint()->info.parent, 2U);
  EXPECT_EQ(checkpoint_names(),
            (Names{"step-0000000002-g00000002.pt", "step-0000000003-g00000005.pt"}));
  EXPECT_EQ(manager.latest_step(), 3);
}

TEST_F(CheckpointManagerTest, AStepSavedTwiceCountsByItsNewer) {
  auto manager = open();
  save(manager, 5, {{"loss", 2}});
  save(manager, 6);
  save(manager, 5, {{"loss", 1}});
  EXPECT_EQ(manager.latest_step(), 5);
  EXPECT_EQ(manager.all_steps(), (std::vector<std::int64_t>{5, 6}));
  const auto checkpoints = manager.checkpoints();
  ASSERT_EQ(checkpoints.size(), 3U);
  EXPECT_EQ(checkpoints[0].generation(), 3U);
  EXPECT_EQ(checkpoints[0].info.metrics.at("loss"), 1);
  EXPECT_EQ(checkpoints[2].generation(), 1U);
}

TEST_F(CheckpointManagerTest, LeavesFilesOfOthersAlone) {
  fs::create_directories(path);
  for (const char* name : {"config.yaml", "best.pt", "step-1.pt"})
    TemporaryDirectory::write(path / name, "mine");
  ManagerOptions options;
  options.keep_last = 1;
  auto manager = open(options);
  for (int step = 1; step <= 3; ++step) save(manager, step);
  EXPECT_EQ(checkpoint_names(),
            (Names{"best.pt", "config.yaml", "step-0000000003-g00000003.pt", "step-1.pt"}));
}

// What cannot be read is not counted and not touched, and does not stop the pruning of the rest.
TEST_F(CheckpointManagerTest, ADamagedOneCountsForNoRetention) {
  ManagerOptions options;
  options.keep_last = 2;
  auto manager = open(options);
  save(manager, 1);
  fs::create_directories(path);
  TemporaryDirectory::write(file(2, 2), "not a zip file at all");
  manager.close();
  auto next = open(options);
  save(next, 3);
  EXPECT_EQ(checkpoint_names().size(), 3U);
  save(next, 4);
  EXPECT_EQ(checkpoint_names(),
            (Names{"step-0000000002-g00000002.pt", "step-0000000003-g00000003.pt",
                   "step-0000000004-g00000004.pt"}));
}

TEST_F(CheckpointManagerTest, RefusesOptionsThatMeanNothing) {
  EXPECT_ERROR(invalid, "keep_last", CheckpointManager(path, {.keep_last = 0}));
  EXPECT_ERROR(invalid, "metric", CheckpointManager(path, {.keep_best = {{"", Mode::min, 1}}}));
  EXPECT_ERROR(invalid, "count", CheckpointManager(path, {.keep_best = {{"loss", Mode::min, 0}}}));
  EXPECT_ERROR(invalid, "empty", CheckpointManager(""));
}

TEST_F(CheckpointManagerTest, RefusesANegativeStep) {
  auto manager = open();
  EXPECT_ERROR(invalid, "-1", save(manager, -1));
}

TEST_F(CheckpointManagerTest, WhatCannotBeSavedIsThrownAtOnceAndIsNoFailure) {
  auto manager = open();
  for (int i = 0; i < 5; ++i) {
    EXPECT_ERROR(invalid, "config",
                 manager.save(Dict{{"config", Value::opaque({"__main__", "Config", {}, {}})}}, {}));
  }
  EXPECT_TRUE(warnings.empty());
  manager.close();  // has nothing to say
  EXPECT_TRUE(checkpoint_names().empty());
}

TEST_F(CheckpointManagerTest, AClosedOneRefusesEverything) {
  auto manager = open();
  save(manager, 1);
  manager.close();
  manager.close();
  EXPECT_ERROR(invalid, "closed", save(manager, 2));
  EXPECT_ERROR(invalid, "closed", restore(manager));
  EXPECT_ERROR(invalid, "closed", manager.wait());
  EXPECT_ERROR(invalid, "closed", manager.latest_step());
  EXPECT_ERROR(invalid, "closed", manager.latest());
  EXPECT_ERROR(invalid, "closed", manager.all_steps());
  EXPECT_ERROR(invalid, "closed", manager.checkpoints());
  EXPECT_ERROR(invalid, "closed", manager.best_step("loss"));
  open();  // the lock is free
}

TEST_F(CheckpointManagerTest, AManagerThatCannotOpenHoldsNoLock) {
  const auto storage = std::make_shared<storage::MemoryStorage>();
  EXPECT_ERROR(invalid, "keep_last", CheckpointManager(storage, {.keep_last = 0}));
  CheckpointManager first(storage, {});
  EXPECT_ERROR(locked, "in use", CheckpointManager(storage, {}));
}

TEST_F(CheckpointManagerTest, WorksOnAnyStorage) {
  const auto storage = std::make_shared<storage::MemoryStorage>();
  CheckpointManager manager(storage, {.keep_last = 2});
  for (int step = 1; step <= 3; ++step) save(manager, step);
  EXPECT_EQ(manager.all_steps(), (std::vector<std::int64_t>{2, 3}));
  EXPECT_EQ(restore(manager), 3);
  EXPECT_EQ(manager.directory(), "memory");
  EXPECT_EQ(manager.latest()->path, "memory/step-0000000003-g00000003.pt");
}

TEST_F(CheckpointManagerTest, ListsForToolsWithoutTheLock) {
  auto manager = open();
  save(manager, 1, {{"loss", 0.5}});
  save(manager, 2);
  save(manager, 3);
  TemporaryDirectory::write(file(2, 2), "torn");
  const auto listed = list_checkpoints(path);
  ASSERT_EQ(listed.size(), 3U);
  EXPECT_EQ(listed[0].checkpoint.step(), 3);
  EXPECT_EQ(listed[0].problem, "");
  EXPECT_EQ(listed[1].checkpoint.generation(), 2U);
  EXPECT_NE(listed[1].problem.find("g00000002"), std::string::npos) << listed[1].problem;
  EXPECT_EQ(listed[2].checkpoint.info.metrics.at("loss"), 0.5);
  EXPECT_ERROR(not_found, "none", list_checkpoints(path / "none"));
}

}  // namespace
}  // namespace perdure::test
