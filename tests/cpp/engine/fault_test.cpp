// A run on an operating system that fails: on_error, and every call of a training's life failing
// once.
#include <cstdint>
#include <memory>
#include <optional>
#include <perdure/checkpoint_manager.hpp>
#include <vector>

#include "engine/run_fixture.hpp"
#include "engine/save_file.hpp"
#include "storage/faulty_system.hpp"
#include "storage/local_storage.hpp"

namespace perdure::test {
namespace {

// EIO for all; what transfers may say beside it.
std::vector<int> errors_of(Call call) {
  if (call == Call::completion) return {EIO, ENOSPC, ECANCELED, EAGAIN, EINTR, kShort};
  if (call == Call::pread || call == Call::pwrite) return {EIO, kShort};
  return {EIO};
}

// Does `action` with each error, at the first call of each kind, the second, and so on until none
// is left that fails; and `check` after each.
template <class Action, class Check>
void for_every_fault(FaultySystem& system, Action action, Check check) {
  for (const Call call : kAllCalls) {
    for (const int error : errors_of(call)) {
      for (int n = 1; n == 1 || system.fired(); ++n) {
        SCOPED_TRACE(testing::Message() << "call kind " << static_cast<int>(call) << ", number "
                                        << n << ", errno " << error);
        system.fail(call, n, error);
        std::optional<Error> thrown;
        try {
          action();
        } catch (const Error& e) {
          thrown = e;
          EXPECT_TRUE(e.code() == ErrorCode::io || e.code() == ErrorCode::full) << e.what();
          EXPECT_TRUE(error != EINTR && error != kShort) << e.what();
        }
        EXPECT_EQ(system.open_descriptors(), 0U);
        check(call, n, thrown.has_value());
        if (testing::Test::HasFailure()) return;
      }
    }
  }
}

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
  for_every_fault(
      system,
      [&] {
        auto manager = open_faulty({.keep_last = 2});
        EXPECT_GE(restore(manager), acknowledged);
        for (int i = 0; i < 2; ++i)
          if (const auto saved = save(manager, manager.latest_step().value() + 1).checkpoint())
            acknowledged = saved->step();
      },
      [&](Call, int, bool) {
        auto manager = open();
        EXPECT_GE(restore(manager), acknowledged);
      });
  for (const std::string& name : checkpoint_names())
    EXPECT_EQ(name.find("damaged"), std::string::npos) << name;
}

TEST_F(ManagerFaultTest, AOneFileSaveLeavesTheOldOneWhereACallFails) {
  engine::save_file(system, directory / "a.pt", state_of_step(1));
  const int last = system.count(Call::fstat);  // behind the fsync of the directory
  for_every_fault(
      system,
      [&] {
        perdure::save(directory / "a.pt", state_of_step(1));
        engine::save_file(system, directory / "a.pt", state_of_step(2));
      },
      [&](Call call, int n, bool threw) {
        const bool visible =
            !threw || (call == Call::fsync && n == 2) || (call == Call::fstat && n == last);
        EXPECT_EQ(step_of(load(directory / "a.pt")), visible ? 2 : 1);
        EXPECT_EQ(directory.names(), std::set<std::string>{"a.pt"});
      });
}

// Large enough to be read in several threads, and past the page cache.
Dict large_state() {
  auto data = std::make_shared<std::vector<std::int64_t>>(std::size_t{1} << 19, 7);
  Tensor tensor = Tensor::over(data->data(), DType::int64, {std::int64_t{1} << 19});
  tensor.storage->owner = data;
  return Dict{{"weight", tensor}};
}

TEST_F(ManagerFaultTest, AReadThatFailsIsNeverCalledDamage) {
  const auto large = directory / "a.pt";
  perdure::save(large, large_state());
  for (const bool cached : {true, false}) {
    system.all_cached = cached;
    for_every_fault(
        system,
        [&] {
          const auto open = [&] {
            return io::open_source(system, AT_FDCWD, large.c_str(), 0, large.string());
          };
          EXPECT_EQ(verify(open()).state, VerifyReport::State::good);
          const CheckpointFile file = CheckpointFile::open(open());
          file.read_all(file.value());
          const auto& weight = file.value()["weight"].as_tensor();
          EXPECT_EQ(reinterpret_cast<const std::int64_t*>(weight.storage->data)[12345], 7);
        },
        [](Call, int, bool) {});
  }
}

}  // namespace
}  // namespace perdure::test
