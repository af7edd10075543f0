// The manager under thousands of schedules: no deadlock, no mixture, nothing acknowledged is lost,
// whichever thread goes on at whatever lock, and whichever fsync fails.
//
// PERDURE_SCHEDULES says how many, PERDURE_SEED with which one they begin, and PERDURE_SCHEDULE
// runs that one alone.
#include "engine/schedule.hpp"

#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdint>
#include <mutex>
#include <numeric>
#include <optional>
#include <perdure/perdure.hpp>
#include <set>
#include <thread>
#include <vector>

#include "storage/crash_explorer.hpp"
#include "storage/local_storage.hpp"

namespace perdure::test {
namespace {

// ---- the scheduler itself

std::vector<int> order_of(std::uint64_t seed) {
  std::vector<int> order;
  run_schedule(seed, [&] {
    std::mutex mutex;
    std::vector<std::jthread> threads;
    for (int number = 0; number < 3; ++number)
      threads.emplace_back([&, number] {
        for (int i = 0; i < 3; ++i) {
          const std::lock_guard guard(mutex);
          order.push_back(number);
        }
      });
  });
  return order;
}

TEST(ScheduleTest, TheSeedAloneMakesTheOrder) {
  std::set<std::vector<int>> orders;
  for (std::uint64_t seed = 0; seed < 50; ++seed) {
    EXPECT_EQ(order_of(seed), order_of(seed)) << seed;
    orders.insert(order_of(seed));
  }
  EXPECT_GT(orders.size(), 25U);
}

TEST(ScheduleTest, AnUpdateWithoutALockIsLost) {
  int lost = 0;
  for (std::uint64_t seed = 0; seed < 50; ++seed) {
    int counter = 0;
    run_schedule(seed, [&] {
      const auto count = [&] {
        const int read = counter;
        schedule_point();
        counter = read + 1;
      };
      const std::jthread other(count);
      count();
    });
    lost += counter != 2;
  }
  EXPECT_GT(lost, 0);
  EXPECT_LT(lost, 50);
}

TEST(ScheduleTest, ADeadlockIsFound) {
  const auto cross = [] {
    std::mutex a, b;
    const std::jthread other([&] {
      const std::lock_guard first(a);
      const std::lock_guard second(b);
    });
    const std::lock_guard first(b);
    const std::lock_guard second(a);
  };
  EXPECT_EXIT(
      {
        on_schedule_deadlock([] { ::_exit(7); });
        for (std::uint64_t seed = 0; seed < 1000; ++seed) run_schedule(seed, cross);
        ::_exit(0);
      },
      testing::ExitedWithCode(7), "deadlock in the schedule of PERDURE_SCHEDULE=");
}

TEST(ScheduleTest, AWakeUpThatNobodyGivesIsADeadlock) {
  const auto wait_for_ever = [] {
    std::mutex mutex;
    std::condition_variable changed;
    bool done = false;
    const std::jthread other([&] { done = true; });  // and forgets to notify
    std::unique_lock lock(mutex);
    changed.wait(lock, [&] { return done; });
  };
  EXPECT_EXIT(
      {
        on_schedule_deadlock([] { ::_exit(7); });
        for (std::uint64_t seed = 0; seed < 1000; ++seed) run_schedule(seed, wait_for_ever);
        ::_exit(0);
      },
      testing::ExitedWithCode(7), "waits for a condition");
}

// ---- the manager

constexpr std::size_t kNumbers = 1000;

std::vector<std::int64_t> numbers_of(std::int64_t step) {
  std::vector<std::int64_t> numbers(kNumbers);
  std::iota(numbers.begin(), numbers.end(), step * 1'000'000);
  return numbers;
}

// A disk whose fsync may fail, and that lets another thread go on at every change.
class FlakyDisk final : public CrashingDisk {
 public:
  FlakyDisk() { before_change = schedule_point; }
  int fsync(int fd) override {
    const int result = CrashingDisk::fsync(fd);
    return !mended_ && schedule_choice(12) == 1 ? -EIO : result;
  }
  void mend() { mended_ = true; }

 private:
  bool mended_ = false;
};

// A model of one tensor, which a step changes and overlapped capture copies late.
class Training {
 public:
  Training() {
    state.add_entry({.name = "numbers",
                     .role = Role::other,
                     .state_dict = [this] { return live(); },
                     .load_state_dict = [this](const Value& value) { take(value.as_tensor()); },
                     .check = {},
                     .parameters = {},
                     .describe = {},
                     .align = {},
                     .versions = [this] { return std::vector<std::uint64_t>{version_}; }});
  }
  void step() {
    ++version_;
    numbers = numbers_of(++state.step);
  }

  TrainingState state;
  std::vector<std::int64_t> numbers = numbers_of(0);

 private:
  Value live() {
    Tensor tensor = Tensor::over(numbers.data(), DType::int64, {std::int64_t{kNumbers}});
    tensor.liveness = Liveness::stepped;
    return Value(std::move(tensor));
  }
  void take(const Tensor& tensor) {
    const auto* found = reinterpret_cast<const std::int64_t*>(tensor.storage->data);
    numbers.assign(found, found + tensor.numel());
  }
  std::uint64_t version_ = 0;
};

ManagerOptions any_options() {
  constexpr Capture kCaptures[] = {Capture::eager, Capture::overlapped, Capture::checked};
  return {.keep_last = 1 + schedule_choice(2),
          .on_error = schedule_choice(2) == 0 ? OnError::warn : OnError::raise,
          .when_busy = schedule_choice(2) == 0 ? WhenBusy::wait : WhenBusy::skip,
          .capture = kCaptures[schedule_choice(3)],
          .staging_bytes = std::uint64_t{16} << 20,
          .warning = [](const std::string&) {},
          .note = [](const std::string&) {}};
}

// Some saves, with others looking on; gives the last step that was acknowledged.
std::int64_t train(CheckpointManager& checkpoints, Training& training) {
  std::vector<std::jthread> watchers;
  std::vector<SaveHandle> handles;
  for (int i = 0; i < 3; ++i) {
    checkpoints.fence();
    training.step();
    try {
      handles.push_back(checkpoints.save(training.state));
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ErrorCode::io) << error.what();
      continue;
    }
    if (schedule_choice(2) == 0)
      watchers.emplace_back([&checkpoints, handle = handles.back()] {
        try {
          while (!handle.wait(std::chrono::seconds(1))) EXPECT_LE(checkpoints.progress(), 1.0);
        } catch (const Error& error) {
          EXPECT_EQ(error.code(), ErrorCode::io) << error.what();
        }
      });
  }
  std::int64_t acknowledged = 0;
  for (const SaveHandle& handle : handles) {
    while (!handle.done()) checkpoints.idle(std::chrono::seconds(1));
    if (const auto saved = handle.checkpoint()) acknowledged = saved->step();
  }
  return acknowledged;
}

void live(FlakyDisk& disk) {
  std::int64_t acknowledged = 0;
  try {
    Training training;
    CheckpointManager checkpoints(storage::LocalStorage::create_run(disk, "/run"), any_options());
    if (schedule_choice(2) == 0) checkpoints.prepare(training.state);
    acknowledged = train(checkpoints, training);
    if (schedule_choice(2) == 0) checkpoints.close();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::io) << error.what();
  }
  disk.mend();
  Training training;
  CheckpointManager checkpoints(storage::LocalStorage::create_run(disk, "/run"),
                                {.warning = [](const std::string&) {}});
  const auto restored = checkpoints.restore(training.state);
  EXPECT_GE(restored ? restored->step() : 0, acknowledged);
  EXPECT_EQ(training.numbers, numbers_of(training.state.step));
}

TEST(ManagerScheduleTest, NoScheduleStopsItOrLosesAnything) {
  const auto run = [](std::uint64_t seed) {
    SCOPED_TRACE("to run this case alone: PERDURE_SCHEDULE=" + std::to_string(seed));
    FlakyDisk disk;
    return run_schedule(seed, [&] { live(disk); }).switches;
  };
  if (const std::uint64_t only = number_from_environment("PERDURE_SCHEDULE", 0); only != 0) {
    run(only);
    return;
  }
  const std::uint64_t first = number_from_environment("PERDURE_SEED", 1) * 1'000'000;
  const std::uint64_t count = number_from_environment("PERDURE_SCHEDULES", 10'000);
  std::uint64_t switches = 0;
  for (std::uint64_t i = 0; i < count && !HasFailure(); ++i) switches += run(first + i);
  EXPECT_GT(switches, count * 20);
}

}  // namespace
}  // namespace perdure::test
