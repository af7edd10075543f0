// A run on an operating system that fails: on_error, and every call of a training's life failing
// once.
#include <cstdint>
#include <perdure/checkpoint_manager.hpp>

#include "engine/run_fixture.hpp"
#include "engine/save_file.hpp"
#include "storage/faulty_system.hpp"
#include "storage/local_storage.hpp"

namespace perdure::test {
namespace {

class ManagerFaultTest : public RunFixture {
 protected:
  CheckpointManager open_faulty(ManagerOptions options = {}) {
    options.warning = [this](const std::string& text) { warnings.push_back(text); };
    return CheckpointManager(storage::LocalStorage::create_run(system, path), std::move(options));
  }
  SaveHandle failing_save(CheckpointManager& manager, std::int64_t step) {
    system.fail(Call::fallocate, 1, ENOSPC);
    return save(manager, step);
  }

  FaultySystem system;
};

TEST_F(ManagerFaultTest, WarnsAndKeepsTheErrorOnTheHandle) {
  auto manager = open_faulty();
  save(manager, 1);
  const SaveHandle handle = failing_save(manager, 2);
  EXPECT_TRUE(handle.done());
  EXPECT_FALSE(handle.checkpoint());
  ASSERT_EQ(warnings.size(), 1U);
  EXPECT_NE(warnings[0].find("needed"), std::string::npos) << warnings[0];
  EXPECT_ERROR(full, "needed", handle.wait());
  EXPECT_ERROR(full, "needed", handle.wait(std::chrono::seconds(1)));
  EXPECT_EQ(restore(manager), 1);
  manager.close();  // the error was seen
}

TEST_F(ManagerFaultTest, WaitThrowsWhatNobodyHasSeenOnce) {
  auto manager = open_faulty();
  failing_save(manager, 1);
  save(manager, 2);
  EXPECT_ERROR(full, "step-0000000001", manager.wait());
  manager.wait();
  manager.close();
}

TEST_F(ManagerFaultTest, CloseThrowsWhatNobodyHasSeenAndGivesUpTheLock) {
  auto manager = open_faulty();
  failing_save(manager, 1);
  EXPECT_ERROR(full, "step-0000000001", manager.close());
  open();
  manager.close();
}

// So that the file system can be unmounted while the object lies around.
TEST_F(ManagerFaultTest, CloseLetsGoOfTheDirectory) {
  auto manager = open_faulty();
  save(manager, 1);
  EXPECT_GT(system.open_descriptors(), 0U);
  manager.close();
  EXPECT_EQ(system.open_descriptors(), 0U);
}

TEST_F(ManagerFaultTest, TheThirdInARowIsThrown) {
  auto manager = open_faulty();
  failing_save(manager, 1);
  failing_save(manager, 2);
  save(manager, 3);
  failing_save(manager, 4);
  failing_save(manager, 5);
  EXPECT_EQ(warnings.size(), 4U);
  failing_save(manager, 6);
  EXPECT_ERROR(full, "step-0000000006", save(manager, 7));  // once; then the next one is tried
  failing_save(manager, 7);
  EXPECT_ERROR(full, "step-0000000007", save(manager, 8));
  save(manager, 8);
  failing_save(manager, 9);
  save(manager, 10);
  EXPECT_EQ(warnings.size(), 7U);
}

TEST_F(ManagerFaultTest, RaiseThrowsAtTheNextCall) {
  auto manager = open_faulty({.on_error = OnError::raise});
  failing_save(manager, 1);
  EXPECT_ERROR(full, "needed", save(manager, 2));
  failing_save(manager, 3);
  EXPECT_ERROR(full, "step-0000000003", manager.wait());
  EXPECT_TRUE(warnings.empty());
  manager.close();
}

TEST_F(ManagerFaultTest, NoGenerationIsUsedTwice) {
  auto manager = open_faulty();
  system.fail(Call::fsync, 2,
              EIO);  // the directory's: the file is visible, and perhaps not durable
  const SaveHandle handle = save(manager, 1);
  EXPECT_NE(handle.error(), nullptr);
  EXPECT_EQ(save(manager, 2).checkpoint()->generation(), 2U);
}

TEST_F(ManagerFaultTest, APruningThatFailsIsNoFailedSave) {
  auto manager = open_faulty({.keep_last = 1, .on_error = OnError::raise});
  save(manager, 1);
  system.fail(Call::mkdirat, 1, EROFS);
  const SaveHandle handle = save(manager, 2);
  EXPECT_EQ(handle.checkpoint()->step(), 2);
  ASSERT_EQ(warnings.size(), 1U);
  EXPECT_NE(warnings[0].find("pruned"), std::string::npos) << warnings[0];
  save(manager, 3);
  EXPECT_EQ(manager.all_steps(), std::vector<std::int64_t>{3});
}

TEST_F(ManagerFaultTest, TheDestructorNeverThrows) {
  auto manager = std::unique_ptr<CheckpointManager>(new CheckpointManager(open_faulty()));
  failing_save(*manager, 1);
  manager.reset();
  EXPECT_EQ(warnings.size(), 1U);
}

// Opens, restores and saves twice, with one fault; then the next start without any must have what
// was acknowledged.
TEST_F(ManagerFaultTest, WhateverCallFailsNothingAcknowledgedIsLost) {
  {
    auto manager = open();
    save(manager, 1);
    save(manager, 2);
  }
  std::int64_t acknowledged = 2;
  for (const Call call : kAllCalls) {
    bool fired = true;
    for (int n = 1; fired; ++n) {
      SCOPED_TRACE(testing::Message()
                   << "call kind " << static_cast<int>(call) << ", number " << n);
      system.fail(call, n, EIO);
      try {
        auto manager = open_faulty({.keep_last = 2});
        EXPECT_GE(restore(manager), acknowledged);
        for (int i = 0; i < 2; ++i)
          if (const auto saved = save(manager, manager.latest_step().value() + 1).checkpoint())
            acknowledged = saved->step();
      } catch (const Error& error) {
        EXPECT_EQ(error.code(), ErrorCode::io) << error.what();
      }
      fired = system.fired();
      EXPECT_EQ(system.open_descriptors(), 0U);
      auto manager = open();
      EXPECT_GE(restore(manager), acknowledged);
      if (HasFailure()) return;
    }
  }
  for (const std::string& name : checkpoint_names())
    EXPECT_EQ(name.find("damaged"), std::string::npos) << name;
}

TEST_F(ManagerFaultTest, AOneFileSaveLeavesTheOldOneWhereACallFails) {
  perdure::save(directory / "a.pt", state_of_step(1));
  for (const Call call : kAllCalls) {
    bool fired = true;
    for (int n = 1; fired; ++n) {
      SCOPED_TRACE(testing::Message()
                   << "call kind " << static_cast<int>(call) << ", number " << n);
      perdure::save(directory / "a.pt", state_of_step(1));
      system.fail(call, n, EIO);
      bool threw = false;
      try {
        engine::save_file(system, directory / "a.pt", state_of_step(2));
      } catch (const Error& error) {
        threw = true;
        EXPECT_EQ(error.code(), ErrorCode::io) << error.what();
      }
      fired = system.fired();
      EXPECT_EQ(system.open_descriptors(), 0U);
      const bool visible = !threw || (call == Call::fsync && n == 2);
      EXPECT_EQ(step_of(load(directory / "a.pt")), visible ? 2 : 1);
      EXPECT_EQ(directory.names(), std::set<std::string>{"a.pt"});
      if (HasFailure()) return;
    }
  }
}

}  // namespace
}  // namespace perdure::test
