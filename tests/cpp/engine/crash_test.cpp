// The power is cut before every change that a run makes on its disk: opening, saving, saving a step
// again, pruning, pinning, setting aside, and starting again after a cut.
#include <algorithm>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <optional>
#include <perdure/checkpoint_manager.hpp>

#include "engine/history.hpp"
#include "engine/run_fixture.hpp"
#include "engine/save_file.hpp"
#include "storage/crash_explorer.hpp"
#include "storage/local_storage.hpp"

namespace perdure::test {
namespace {

constexpr std::int64_t kNone = -2;
constexpr const char* kRun = "/runs/gpt";

// The last step that was acknowledged. A copy, which the writer makes before it changes the disk,
// knows it from the moment at which the handle does: it waits for the handle where a save begins.
class Acknowledged {
 public:
  Acknowledged() = default;
  Acknowledged(const Acknowledged& other) : step_(other.step()) {}
  Acknowledged& operator=(std::int64_t step) {
    const std::lock_guard guard(mutex_);
    step_ = step;
    handle_.reset();
    return *this;
  }
  void expect() {
    const std::lock_guard guard(mutex_);
    expected_ = true;
  }
  void watch(SaveHandle handle) {
    const std::lock_guard guard(mutex_);
    handle_ = std::move(handle);
    expected_ = false;
    changed_.notify_all();
  }
  std::int64_t step() const {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return !expected_; });
    const auto saved = handle_ ? handle_->checkpoint() : std::nullopt;
    return saved ? saved->step() : step_;
  }

 private:
  mutable std::mutex mutex_;
  mutable std::condition_variable changed_;
  bool expected_ = false;
  std::optional<SaveHandle> handle_;
  std::int64_t step_ = kNone;
};

// What a run was told is safe.
struct Promise {
  Acknowledged acknowledged;
  std::set<std::int64_t> kept;  // must be there as well, each whole
  std::set<std::int64_t> pinned;
  bool damaged = false;  // the newest file was damaged before: a restore may say so
};

ManagerOptions quiet(std::size_t keep_last = 2) {
  return {.keep_last = keep_last,
          .on_error = OnError::raise,
          .warning = [](const std::string&) {},
          .note = [](const std::string&) {}};
}

CheckpointManager open(CrashingDisk& disk, ManagerOptions options = quiet()) {
  return CheckpointManager(storage::LocalStorage::create_run(disk, kRun), std::move(options));
}

std::int64_t restore(CheckpointManager& manager, const RestoreOptions& options = {}) {
  std::int64_t step = kNone;
  manager.restore(options, step_into(step));
  return step;
}

// Everything of a save is over when this returns, so that the changes come in one order.
void save(CheckpointManager& manager, std::int64_t step, Promise& promise,
          const Metrics& metrics = {}) {
  promise.acknowledged.expect();
  promise.acknowledged.watch(manager.save(state_of_step(step), info_of_step(step, metrics)));
  manager.wait();
  ASSERT_EQ(promise.acknowledged.step(), step);
  promise.acknowledged = step;
}

std::vector<std::string> names_in(CrashingDisk& disk, const std::string& path) {
  std::vector<std::string> names;
  const int fd = disk.openat(AT_FDCWD, path.c_str(), O_RDONLY | O_DIRECTORY, 0);
  if (fd < 0) return names;
  disk.list(fd, names);
  disk.close(fd);
  return names;
}

void check_no_debris(CrashingDisk& disk) {
  EXPECT_TRUE(names_in(disk, std::string(kRun) + "/.trash").empty());
  for (const std::string& name : names_in(disk, kRun)) EXPECT_FALSE(name.ends_with(".tmp")) << name;
}

// The promise, and that the run goes on from here.
void start_again(CrashingDisk& disk, const Promise& promise) {
  std::vector<std::string> warnings;
  ManagerOptions options = quiet(100);
  options.warning = [&](const std::string& text) { warnings.push_back(text); };
  {
    CheckpointManager manager = open(disk, std::move(options));
    check_no_debris(disk);
    const std::int64_t step = restore(manager);
    EXPECT_NE(step, -1) << "a mixture was restored";
    EXPECT_GE(step, promise.acknowledged.step());
    EXPECT_TRUE(promise.damaged || warnings.empty()) << warnings.front();
    for (const std::int64_t kept : promise.kept) EXPECT_EQ(restore(manager, {.step = kept}), kept);
    const std::int64_t next = std::max<std::int64_t>(step, 0) + 10;
    Promise again;
    save(manager, next, again);
    EXPECT_EQ(restore(manager), next);
  }
  // What the history has lost is lost by whole lines, so that the next one begins a line of its
  // own.
  const auto events = engine::read_history(*storage::LocalStorage::create_run(disk, kRun));
  ASSERT_FALSE(events.empty());
  EXPECT_EQ(events.back()["event"].as_string(), "restore");
  EXPECT_EQ(disk.open_descriptors(), 0U);
}

using Explorer = CrashExplorer<Promise>;

std::uint64_t explore(const std::string& name, const Explorer::Work& prepare,
                      const Explorer::Work& life, const Explorer::Check& check = start_again) {
  return Explorer(name, life, check, number_from_environment("PERDURE_STATES", 1500), 2)
      .run(prepare);
}

void nothing(CrashingDisk&, Promise&) {}

void train(CrashingDisk& disk, Promise& promise) {
  auto manager = open(disk);
  std::int64_t step = std::max<std::int64_t>(restore(manager), 0);
  for (int i = 0; i < 4; ++i) save(manager, ++step, promise);
}

TEST(ManagerCrashTest, ANewRunIsNeverOlderThanAcknowledged) {
  EXPECT_GT(explore("new", nothing, train), 1000U);
}

TEST(ManagerCrashTest, ARunThatGoesOnIsNeverOlderThanAcknowledged) {
  EXPECT_GT(explore("more", train, train), 1000U);
}

// A step that is saved again is another file, and the newer one counts.
TEST(ManagerCrashTest, AStepThatIsSavedAgainIsTheOldOneOrTheNew) {
  EXPECT_GT(explore("again", train,
                    [](CrashingDisk& disk, Promise& promise) {
                      auto manager = open(disk);
                      for (int i = 0; i < 3; ++i) save(manager, 4, promise);
                    }),
            1000U);
}

// Two lives at one disk that is cut off again and again, each of which saves, restores, pins and
// closes: the lock and the history are those of a run that was never cut off.
TEST(ManagerCrashTest, LocksAndHistoryDoNotStandInTheWay) {
  EXPECT_GT(explore("lives", nothing,
                    [](CrashingDisk& disk, Promise& promise) {
                      for (int life = 0; life < 2; ++life) {
                        auto manager = open(disk);
                        const std::int64_t step = std::max<std::int64_t>(restore(manager), 0);
                        save(manager, step + 1, promise);
                        manager.close();
                      }
                    }),
            1000U);
}

// The newest is damaged: it is set aside, and the run goes on from the one before.
TEST(ManagerCrashTest, SettingAsideLosesNothingMore) {
  const auto prepare = [](CrashingDisk& disk, Promise& promise) {
    train(disk, promise);
    const int fd = disk.openat(AT_FDCWD, "/runs/gpt/step-0000000004-g00000004.pt", O_RDWR, 0);
    ASSERT_GT(fd, 0);
    disk.ftruncate(fd, 100);
    disk.fsync(fd);
    disk.close(fd);
    promise.acknowledged = 3;
    promise.damaged = true;
  };
  EXPECT_GT(explore("aside", prepare, train), 1000U);
}

// What should be kept is kept, wherever a prune was cut off: the newest, the best and the pinned.
TEST(ManagerCrashTest, APruneThatIsCutOffTakesNothingElse) {
  const auto with = [](std::size_t keep_last) {
    ManagerOptions options = quiet(keep_last);
    options.keep_best = {{"loss", Mode::min, 1}};
    options.keep_every = {.steps = 3};
    return options;
  };
  const auto prepare = [&](CrashingDisk& disk, Promise& promise) {
    auto manager = open(disk, with(100));
    for (std::int64_t step = 1; step <= 7; ++step)
      save(manager, step, promise, {{"loss", step == 2 ? 0.0 : 1.0}});
    manager.pin(5, "pinned");
    promise.kept = {2, 3, 5, 6, 7};
  };
  const auto prune = [&](CrashingDisk& disk, Promise&) { open(disk, with(1)).prune(); };
  const auto check = [&](CrashingDisk& disk, const Promise& promise) {
    auto manager = open(disk, with(1));
    for (const std::int64_t step : manager.all_steps())
      EXPECT_EQ(restore(manager, {.step = step}), step);
    manager.prune();
    const auto steps = manager.all_steps();
    EXPECT_EQ(std::set<std::int64_t>(steps.begin(), steps.end()), promise.kept);
    check_no_debris(disk);
  };
  EXPECT_GT(explore("prune", prepare, prune, check), 1000U);
}

// A pin that was acknowledged holds, and one that was taken back does not come again.
TEST(ManagerCrashTest, APinIsThereOnceAcknowledged) {
  const auto pins = [](CrashingDisk& disk, Promise& promise) {
    auto manager = open(disk);
    manager.pin(3, "for the paper");
    promise.pinned = {3};
    save(manager, 5, promise);  // which would take step 3 away
    promise.pinned = {};        // from here on it may be there or not
    manager.unpin(3);
    manager.pin(4, "for the paper");
    promise.pinned = {4};
  };
  const auto check = [](CrashingDisk& disk, const Promise& promise) {
    std::set<std::int64_t> pinned;
    {
      auto manager = open(disk);
      for (const PlannedCheckpoint& item : manager.retention_plan())
        for (const std::string& reason : item.reasons)
          if (reason.starts_with("pinned")) {
            EXPECT_EQ(reason, "pinned: for the paper");
            pinned.insert(item.checkpoint.step());
          }
    }
    for (const std::int64_t step : promise.pinned) EXPECT_TRUE(pinned.contains(step)) << step;
    start_again(disk, promise);
  };
  EXPECT_GT(explore("pin", train, pins, check), 1000U);
}

// The test can see: on disks whose fsync does nothing, for files or for directories, acknowledged
// steps are lost, or damaged.
TEST(ManagerCrashTest, ADiskThatDoesNotSyncIsFoundOut) {
  for (const bool of_files : {true, false}) {
    int lost = 0;
    const auto prepare = [&](CrashingDisk& disk, Promise&) {
      (of_files ? disk.ignores_sync_of_files : disk.ignores_sync_of_directories) = true;
    };
    explore(of_files ? "lying-files" : "lying-directories", prepare, train,
            [&](CrashingDisk& disk, const Promise& promise) {
              try {
                auto manager = open(disk);
                lost += restore(manager) < promise.acknowledged.step();
              } catch (const Error& error) {
                EXPECT_EQ(error.code(), ErrorCode::corrupt) << error.what();  // all are damaged
                ++lost;
              }
            });
    EXPECT_GT(lost, 0) << (of_files ? "files" : "directories");
  }
}

TEST(ManagerCrashTest, AOneFileSaveIsOldOrNew) {
  const auto save_as = [](CrashingDisk& disk, std::int64_t step, Promise& promise) {
    engine::save_file(disk, "/a.pt", state_of_step(step));
    promise.acknowledged = step;
  };
  const auto check = [&](CrashingDisk& disk, const Promise& promise) {
    const auto found = [&] {
      std::int64_t step = kNone;
      step_into(step)(
          CheckpointFile::open(storage::LocalStorage::open_folder(disk, "/")->open("a.pt")));
      return step;
    };
    EXPECT_GE(found(), promise.acknowledged.step());
    Promise again;
    save_as(disk, 9, again);
    EXPECT_EQ(found(), 9);
    EXPECT_EQ(names_in(disk, "/"), std::vector<std::string>{"a.pt"});
    EXPECT_EQ(disk.open_descriptors(), 0U);
  };
  EXPECT_GT(explore(
                "file", [&](CrashingDisk& disk, Promise& promise) { save_as(disk, 1, promise); },
                [&](CrashingDisk& disk, Promise& promise) { save_as(disk, 2, promise); }, check),
            500U);
}

}  // namespace
}  // namespace perdure::test
