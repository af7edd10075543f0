// The power is cut before every change that a run makes on its disk: opening, saving, pruning,
// setting aside.
#include <algorithm>
#include <cstdint>
#include <perdure/checkpoint_manager.hpp>

#include "engine/run_fixture.hpp"
#include "engine/save_file.hpp"
#include "storage/crashing_disk.hpp"
#include "storage/local_storage.hpp"

namespace perdure::test {
namespace {

constexpr std::int64_t kNone = -2;

CheckpointManager open(CrashingDisk& disk, std::size_t keep_last = 2) {
  return CheckpointManager(
      storage::LocalStorage::create_run(disk, "/runs/gpt"),
      {.keep_last = keep_last, .on_error = OnError::raise, .warning = [](const std::string&) {}});
}

std::int64_t restore(CheckpointManager& manager) {
  std::int64_t step = kNone;
  manager.restore({}, step_into(step));
  return step;
}

struct Outcome {
  int cuts = 0;
  int lost = 0;     // acknowledged, and not there any more
  int damaged = 0;  // visible, and not whole
};

void start_again(CrashingDisk& disk, std::int64_t acknowledged, Outcome& outcome) {
  try {
    CheckpointManager manager(storage::LocalStorage::create_run(disk, "/runs/gpt"),
                              {.warning = [&](const std::string&) { ++outcome.damaged; }});
    const std::int64_t step = restore(manager);
    EXPECT_NE(step, -1) << "a mixture was restored";
    const std::int64_t next = std::max<std::int64_t>(step, 0) + 10;
    manager.save(state_of_step(next), info_of_step(next)).wait();
    EXPECT_EQ(restore(manager), next);
    outcome.lost += step < acknowledged;
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::corrupt) << error.what();  // nothing but damaged ones
    ++outcome.lost;
  }
}

// Runs `life(disk, acknowledged)` with a cut before its n-th change, for n = 1 until it is through,
// for every way in which the unsynced may survive; then starts again and compares with what was
// acknowledged.
template <class Prepare, class Life>
Outcome for_every_cut(Prepare prepare, Life life) {
  Outcome outcome;
  for (const Survival survival : kAllSurvivals) {
    const unsigned seeds = survival == Survival::random ? 5 : 1;
    for (unsigned seed = 0; seed < seeds; ++seed) {
      bool through = false;
      for (std::uint64_t n = 1; !through; ++n) {
        CrashingDisk disk;
        std::int64_t acknowledged = prepare(disk);
        disk.cut_power_before(n);
        try {
          life(disk, acknowledged);
        } catch (const Error& error) {
          EXPECT_TRUE(disk.is_off()) << error.what();
        }
        through = !disk.is_off();
        disk.restart(survival, seed);
        disk.ignores_sync = false;
        start_again(disk, acknowledged, outcome);
        ++outcome.cuts;
      }
    }
  }
  return outcome;
}

void train(CrashingDisk& disk, std::int64_t& acknowledged) {
  auto manager = open(disk);
  std::int64_t step = std::max<std::int64_t>(restore(manager), 0);
  for (int i = 0; i < 4; ++i) {
    ++step;
    manager.save(state_of_step(step), info_of_step(step)).wait();
    acknowledged = step;
  }
}

TEST(ManagerCrashTest, ANewRunIsNeverOlderThanAcknowledged) {
  const Outcome outcome = for_every_cut([](CrashingDisk&) { return kNone; }, train);
  EXPECT_GT(outcome.cuts, 200);
  EXPECT_EQ(outcome.lost, 0);
  EXPECT_EQ(outcome.damaged, 0);
}

TEST(ManagerCrashTest, ARunThatGoesOnIsNeverOlderThanAcknowledged) {
  const auto prepare = [](CrashingDisk& disk) {
    std::int64_t acknowledged = kNone;
    train(disk, acknowledged);
    return acknowledged;
  };
  const Outcome outcome = for_every_cut(prepare, train);
  EXPECT_EQ(outcome.lost, 0);
  EXPECT_EQ(outcome.damaged, 0);
}

// The newest is damaged: it is set aside, and the run goes on from the one before.
TEST(ManagerCrashTest, SettingAsideLosesNothingMore) {
  const auto prepare = [](CrashingDisk& disk) {
    std::int64_t acknowledged = kNone;
    train(disk, acknowledged);
    const int fd = disk.openat(AT_FDCWD, "/runs/gpt/step-0000000004-g00000004.pt", O_RDWR, 0);
    disk.ftruncate(fd, 100);
    disk.fsync(fd);
    disk.close(fd);
    return acknowledged - 1;
  };
  const Outcome outcome = for_every_cut(prepare, train);
  EXPECT_EQ(outcome.lost, 0);
  EXPECT_GT(outcome.damaged, 0);  // where the cut came before it was set aside
}

// What should be kept is kept, wherever a prune was cut off: the newest, the best and the pinned.
TEST(ManagerCrashTest, APruneThatIsCutOffTakesNothingElse) {
  const auto options = [](std::size_t keep_last) {
    return ManagerOptions{.keep_last = keep_last,
                          .keep_best = {{"loss", Mode::min, 1}},
                          .keep_every = {.steps = 3},
                          .on_error = OnError::raise,
                          .warning = [](const std::string&) {}};
  };
  const auto open_with = [&](CrashingDisk& disk, std::size_t keep_last) {
    return CheckpointManager(storage::LocalStorage::create_run(disk, "/runs/gpt"),
                             options(keep_last));
  };
  int cuts = 0;
  for (const Survival survival : kAllSurvivals) {
    bool through = false;
    for (std::uint64_t n = 1; !through; ++n, ++cuts) {
      CrashingDisk disk;
      {
        auto manager = open_with(disk, 100);
        for (std::int64_t step = 1; step <= 7; ++step)
          manager.save(state_of_step(step), info_of_step(step, {{"loss", step == 2 ? 0.0 : 1.0}}))
              .wait();
        manager.pin(5, "pinned");
      }
      disk.cut_power_before(n);
      try {
        open_with(disk, 1).prune();
      } catch (const Error& error) {
        EXPECT_TRUE(disk.is_off()) << error.what();
      }
      through = !disk.is_off();
      disk.restart(survival, static_cast<unsigned>(n));
      auto manager = open_with(disk, 1);
      const auto steps = manager.all_steps();
      for (const std::int64_t step : {2, 3, 5, 6, 7})
        EXPECT_TRUE(std::find(steps.begin(), steps.end(), step) != steps.end())
            << step << " is gone after a cut before change " << n;
      for (const std::int64_t step : steps) {
        std::int64_t found = kNone;
        manager.restore({.step = step}, step_into(found));
        EXPECT_EQ(found, step);
      }
      manager.prune();
      EXPECT_EQ(manager.all_steps().size(), 5U);
    }
  }
  EXPECT_GT(cuts, 30);
}

TEST(ManagerCrashTest, ADiskThatDoesNotSyncIsFoundOut) {
  const auto prepare = [](CrashingDisk& disk) {
    disk.ignores_sync = true;
    return kNone;
  };
  EXPECT_GT(for_every_cut(prepare, train).lost, 0);
}

TEST(ManagerCrashTest, AOneFileSaveIsOldOrNew) {
  for (const Survival survival : kAllSurvivals) {
    bool through = false;
    for (std::uint64_t n = 1; !through; ++n) {
      CrashingDisk disk;
      engine::save_file(disk, "/a.pt", state_of_step(1));
      disk.cut_power_before(n);
      bool acknowledged = false;
      try {
        engine::save_file(disk, "/a.pt", state_of_step(2));
        acknowledged = true;
      } catch (const Error&) {
        EXPECT_TRUE(disk.is_off());
      }
      through = !disk.is_off();
      disk.restart(survival);
      std::int64_t step = kNone;
      step_into(step)(
          CheckpointFile::open(storage::LocalStorage::open_folder(disk, "/")->open("a.pt")));
      EXPECT_TRUE(step == 2 || (step == 1 && !acknowledged)) << step;
    }
  }
}

}  // namespace
}  // namespace perdure::test
