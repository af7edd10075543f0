// The power is cut before every change that the ranks of a run make on its disk in a save: what was
// acknowledged is there, what is visible is whole for every rank, and the run goes on.
#include <condition_variable>
#include <mutex>

#include "engine/checkpoint_name.hpp"
#include "engine/rank_save.hpp"
#include "engine/rank_threads.hpp"
#include "engine/run_directory.hpp"
#include "engine/run_fixture.hpp"
#include "storage/crash_explorer.hpp"
#include "storage/local_storage.hpp"

namespace perdure::test {
namespace {

using engine::FoundCheckpoint;

constexpr const char* kRun = "/runs/gpt";
constexpr std::int64_t kNone = -2;

// One rank goes on at a time, until it waits for another: so that the changes come in one order,
// and a disk that knows no threads will do.
class Turns {
 public:
  explicit Turns(std::size_t count) : ended_(count) {}
  void begin(std::size_t rank) {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return turn_ == rank; });
  }
  void pass(std::size_t rank) {
    const std::lock_guard lock(mutex_);
    next(rank);
  }
  void end(std::size_t rank) {
    const std::lock_guard lock(mutex_);
    ended_[rank] = true;
    next(rank);
  }

 private:
  void next(std::size_t rank) {
    for (std::size_t i = 1; i <= ended_.size(); ++i) {
      turn_ = (rank + i) % ended_.size();
      if (!ended_[turn_]) break;
    }
    changed_.notify_all();
  }

  std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<bool> ended_;
  std::size_t turn_ = 0;
};

struct Promise {
  std::int64_t acknowledged = kNone;
};

class RankInTurn final : public Ranks {
 public:
  RankInTurn(std::shared_ptr<Ranks> inner, Turns& turns, std::function<void()> on_end)
      : inner_(std::move(inner)), turns_(turns), on_end_(std::move(on_end)) {}
  std::size_t rank() const override { return inner_->rank(); }
  std::size_t size() const override { return inner_->size(); }
  void set(const std::string& key, const std::string& message) override {
    inner_->set(key, message);
    if (key.ends_with("/end") && message.starts_with("=+")) on_end_();
  }
  bool has(const std::string& key) override {
    if (inner_->has(key)) return true;
    turns_.pass(rank());
    turns_.begin(rank());
    return inner_->has(key);
  }
  std::string get(const std::string& key) override { return inner_->get(key); }
  void remove(const std::string& key) override { inner_->remove(key); }

 private:
  std::shared_ptr<Ranks> inner_;
  Turns& turns_;
  std::function<void()> on_end_;
};

// Rank 0's part of the run: what a manager does when it begins.
std::shared_ptr<storage::LocalStorage> begin_run(CrashingDisk& disk) {
  std::shared_ptr<storage::LocalStorage> run = storage::LocalStorage::create_run(disk, kRun);
  run->lock();
  run->collect_debris();
  return run;
}

std::vector<FoundCheckpoint> find_all(std::shared_ptr<storage::Storage> run) {
  return engine::RunDirectory(std::move(run)).find_all();
}

// Saves the steps, and after each removes what is older than the last two.
void save(CrashingDisk& disk, std::size_t count, std::vector<std::int64_t> steps,
          Promise& promise) {
  Turns turns(count);
  std::int64_t saving = kNone;
  std::vector<std::shared_ptr<Ranks>> ranks;
  for (const auto& rank : LocalRanks::make(count))
    ranks.push_back(
        std::make_shared<RankInTurn>(rank, turns, [&] { promise.acknowledged = saving; }));
  const auto life = [&](std::size_t rank) {
    turns.begin(rank);
    const auto run = rank == 0 ? begin_run(disk)
                               : std::shared_ptr<storage::LocalStorage>(
                                     storage::LocalStorage::open_folder(disk, kRun));
    engine::RankTalk talk(ranks[rank], std::chrono::minutes(10));
    engine::RankSaver saver(talk, *run);
    engine::Arena arena(engine::Arena::kMinBytes, {});
    engine::RankPlan::Items cache;
    std::uint64_t generation = std::stoull(talk.led("newest", [&] {
      const auto all = find_all(run);
      return std::to_string(all.empty() ? 0 : all.front().number.generation);
    }));
    for (const std::int64_t step : steps) {
      saving = step;
      CheckpointInfo info = info_of_step(step);
      info.generation = ++generation;
      Dict model = state_of_step(step);
      model.find(Value("weight"))->as_tensor().liveness = Liveness::stepped;
      Value state = Dict{{"model", model}, {"own", state_of_step(step)}};
      const engine::RankRoles roles{rank, count, {"model"}, {}};
      auto plan = std::make_unique<const engine::RankPlan>(state, roles, &cache);
      arena.reserve(plan->file_size());
      engine::SaveJob job(std::move(state), info, std::move(plan), arena, Capture::eager, {},
                          engine::SaveJob::Clock::now());
      job.capture(1);
      saver.save(job, engine::format({step, generation, true}));
      if (rank != 0) continue;
      std::vector<std::string> old;
      const auto all = find_all(run);
      for (std::size_t i = 2; i < all.size(); ++i) old.push_back(all[i].name);
      run->remove(old);
    }
  };
  std::vector<std::jthread> threads;
  for (std::size_t rank = 0; rank < count; ++rank)
    threads.emplace_back([&, rank] {
      try {
        life(rank);
      } catch (const std::exception& error) {
        ADD_FAILURE() << "rank " << rank << ": " << error.what();
      }
      turns.end(rank);
    });
}

std::vector<std::string> names_in(CrashingDisk& disk, const std::string& path) {
  std::vector<std::string> names;
  const int fd = disk.openat(AT_FDCWD, path.c_str(), O_RDONLY | O_DIRECTORY, 0);
  if (fd < 0) return names;
  disk.list(fd, names);
  disk.close(fd);
  return names;
}

// The step that a directory has for every one of the ranks; -1 for a mixture. Error(corrupt) where
// it is not whole. What reads directories reads real ones.
std::int64_t step_in(CrashingDisk& disk, const std::string& name, std::size_t count) {
  TemporaryDirectory folder;
  const std::string path = std::string(kRun) + "/" + name;
  const auto from = storage::LocalStorage::open_folder(disk, path);
  for (const std::string& file : names_in(disk, path))
    TemporaryDirectory::write(folder / file, get(*from, file));
  std::int64_t step = kNone;
  for (std::size_t rank = 0; rank < count; ++rank) {
    CheckpointFile file = CheckpointFile::open(folder.path());
    if (file.ranks() != count) return -1;
    file.view_as(rank);
    file.read_all(file.value());
    const std::int64_t shared = step_of(file.value()["model"]);
    const std::int64_t own = step_of(file.value()["own"]);
    if (shared != own || (rank > 0 && own != step)) return -1;
    step = own;
  }
  return step;
}

void start_again(CrashingDisk& disk, std::size_t count, const Promise& promise) {
  std::int64_t newest = kNone;
  {
    const auto run = begin_run(disk);
    for (const std::string& name : names_in(disk, kRun))
      EXPECT_EQ(name.find(".tmp"), std::string::npos) << name;
    EXPECT_TRUE(names_in(disk, std::string(kRun) + "/.trash").empty());
    const auto all = find_all(run);
    for (const FoundCheckpoint& found : all)
      EXPECT_EQ(step_in(disk, found.name, count), found.number.step);
    if (!all.empty()) newest = all.front().number.step;
  }
  EXPECT_GE(newest, promise.acknowledged);
  Promise again;
  save(disk, count, {100}, again);
  EXPECT_EQ(again.acknowledged, 100);
  const auto all = find_all(begin_run(disk));
  ASSERT_FALSE(all.empty());
  EXPECT_EQ(step_in(disk, all.front().name, count), 100);
  EXPECT_EQ(disk.open_descriptors(), 0U);
}

std::uint64_t explore(const std::string& name, std::size_t count, std::int64_t saved_before,
                      std::vector<std::int64_t> steps, int depth) {
  using Explorer = CrashExplorer<Promise>;
  return Explorer(
             name, [&](CrashingDisk& disk, Promise& promise) { save(disk, count, steps, promise); },
             [&](CrashingDisk& disk, const Promise& promise) { start_again(disk, count, promise); },
             number_from_environment("PERDURE_STATES", 250), depth)
      .run([&](CrashingDisk& disk, Promise& promise) {
        for (std::int64_t step = 1; step <= saved_before; ++step)
          save(disk, count, {step}, promise);
      });
}

TEST(RankCrashTest, ANewRunIsNeverOlderThanAcknowledged) {
  for (const std::size_t count : {1, 2})
    EXPECT_GT(explore("ranks-new-" + std::to_string(count), count, 0, {1}, 1), 100U);
}

TEST(RankCrashTest, ARunThatGoesOnAndPrunesIsNeverOlderThanAcknowledged) {
  EXPECT_GT(explore("ranks-more", 2, 2, {3, 4}, 1), 100U);
}

TEST(RankCrashTest, ACutWhileItStartsAgainLosesNothing) {
  EXPECT_GT(explore("ranks-again", 1, 1, {2}, 2), 100U);
}

// The test can see.
TEST(RankCrashTest, ADiskThatDoesNotSyncIsFoundOut) {
  for (const bool of_files : {true, false}) {
    int lost = 0;
    CrashExplorer<Promise>(
        of_files ? "ranks-lying-files" : "ranks-lying-directories",
        [](CrashingDisk& disk, Promise& promise) { save(disk, 2, {2, 3}, promise); },
        [&](CrashingDisk& disk, const Promise& promise) {
          const auto all = find_all(begin_run(disk));
          try {
            lost +=
                (all.empty() ? kNone : step_in(disk, all.front().name, 2)) < promise.acknowledged;
          } catch (const Error&) {
            ++lost;
          }
        },
        100, 1)
        .run([&](CrashingDisk& disk, Promise& promise) {
          save(disk, 2, {1}, promise);
          (of_files ? disk.ignores_sync_of_files : disk.ignores_sync_of_directories) = true;
        });
    EXPECT_GT(lost, 0) << (of_files ? "files" : "directories");
  }
}

}  // namespace
}  // namespace perdure::test
