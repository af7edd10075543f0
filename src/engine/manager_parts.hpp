// The inside of a CheckpointManager. Its calls stand in five files: checkpoint_manager.cpp
// (opening, closing, looking), manager_save.cpp, manager_restore.cpp, manager_when.cpp (when to
// save) and manager_keep.cpp (what is kept).
#pragma once

#include <atomic>
#include <cstdint>
#include <exception>
#include <functional>
#include <mutex>
#include <perdure/checkpoint_manager.hpp>

#include "engine/history.hpp"
#include "engine/rank_plan.hpp"
#include "engine/rank_save.hpp"
#include "engine/rank_talk.hpp"
#include "engine/retention.hpp"
#include "engine/run_directory.hpp"
#include "engine/save_handle.hpp"
#include "engine/save_job.hpp"
#include "engine/save_schedule.hpp"
#include "engine/worker.hpp"
#include "io/signals.hpp"
#include "io/system.hpp"
#include "storage/storage.hpp"

namespace perdure {

struct CheckpointManager::Parts {
  using Open = std::function<std::shared_ptr<storage::Storage>()>;
  Parts(const Open& open, ManagerOptions with);  // locks, collects debris
  ~Parts();

  void require_usable() const;  // Error(invalid) when closed or in a forked child
  // For what changes anything: one call at a time, whatever the thread.
  std::unique_lock<std::recursive_mutex> enter();
  // For what only looks: it can be asked while another thread waits for a save.
  std::unique_lock<std::mutex> look() const;
  // What the first rank finds out, and all others are told; or just what it gives.
  std::string together(const std::string& key, const std::function<std::string()>& lead);
  void wait_idle();     // until no save is in flight
  void throw_unseen();  // the oldest error that nobody has seen; all count as seen then

  // manager_save.cpp
  // Before anything of a save is done: waits for the one in flight, or says that this one is to be
  // skipped; throws what an earlier one left to throw.
  bool make_way(std::int64_t step);
  bool make_way_alone(std::int64_t step);  // as far as this rank goes
  void tell_of_streaming(std::uint64_t size);
  void number(CheckpointInfo& info);  // with the next generation, and its parent
  void use_generation(std::uint64_t generation);
  SaveHandle save(Value state, CheckpointInfo info, engine::StepWatch watch,
                  engine::RankRoles roles, engine::SaveJob::Clock::time_point begin);
  std::unique_ptr<const format::FilePlan> file_plan_of(const Value& state,
                                                       const CheckpointInfo& info,
                                                       engine::RankRoles roles);
  // A save that this rank cannot begin fails on the others, too.
  void refuse_save(const std::exception_ptr& why);
  void start(const std::shared_ptr<engine::SaveJob>& next);
  // In the writing thread; false where the save failed.
  bool persist(const std::shared_ptr<engine::SaveJob>& done, const std::string& name,
               Checkpoint& saved);
  void failed_to_save(const engine::SaveJob& done, const std::exception_ptr& error,
                      const std::filesystem::path& path);
  void prune_quietly();
  void fence();
  void watch_writer(const engine::SaveJob& started, const std::filesystem::path& path) noexcept;
  void watch(const std::shared_ptr<SaveHandle::State>& state, std::uint64_t number,
             const std::string& name) noexcept;  // in the watching thread

  // manager_when.cpp
  bool decide(std::int64_t step);
  bool decide_together(std::int64_t step);
  std::optional<io::SignalWatch::Caught> preempted() const;
  void notice();
  void hear_of_signals();
  void stop_watching();
  // Whether a save that begins now ends before the process is killed; true where that cannot be
  // told, and where nothing is lost by trying.
  bool has_time_to_save() const;

  // manager_keep.cpp
  std::vector<PlannedCheckpoint> plan();
  std::vector<PlannedCheckpoint> prune();
  engine::FoundCheckpoint find_step(std::int64_t step) const;  // its newest; Error(not_found)

  // manager_restore.cpp
  std::optional<Checkpoint> restore_newest(const Take& take);
  std::optional<Checkpoint> restore_newest_of_ranks(const Take& take);
  std::string candidate(const std::function<std::string()>& lead);
  // Takes a file that all ranks take; where one fails, all do.
  Checkpoint take_together(const std::string& name, const Take& take);
  engine::FoundCheckpoint found_of(const std::string& name) const;
  void require_none_set_aside() const;
  void tell_set_aside(const engine::FoundCheckpoint& found, const std::string& damage);
  std::string set_aside(const engine::FoundCheckpoint& found);
  CheckpointFile open(const engine::FoundCheckpoint& found);
  CheckpointFile open(const std::filesystem::path& path);
  CheckpointFile opened(CheckpointFile file);
  void take(const Take& take, const CheckpointFile& file);
  Checkpoint restore_step(std::int64_t step, const Take& take);
  Checkpoint restore_path(const std::filesystem::path& path, const Take& take);
  Checkpoint restored(Checkpoint checkpoint);

  bool leads() const { return !talk || talk->leads(); }

  ManagerOptions options;
  std::optional<engine::RankTalk> talk;  // where there are other ranks
  std::shared_ptr<storage::Storage> storage;
  std::filesystem::path directory;
  pid_t owner;  // the process that opened it
  std::atomic<bool> closed = false;
  format::LayoutCache layouts;
  engine::Arena arena;
  bool told_of_streaming = false;
  std::shared_ptr<engine::SaveJob> job;  // the last one: of the thread that trains
  engine::SaveSchedule schedule;
  mutable std::mutex signal_mutex;  // of the following three; held for no more than a look
  std::optional<io::SignalWatch> signals;
  bool asked = false;                                  // should_save() is used,
  std::optional<io::SignalWatch::Caught> noticed;      // and this is what it has seen
  std::shared_ptr<SaveHandle::State> preemption_save;  // the last one that was begun for it
  engine::History history;
  // Of the ranks: all of the thread that trains, but for the saver.
  engine::RankPlan::Items rank_items;
  std::optional<engine::RankSaver> saver;
  std::uint64_t candidates = 0, restores = 0, decisions = 0, ways = 0;
  bool told_of_signal = false;
  bool begun = false;                   // a save has been handed to the writer
  bool was_due = false;                 // since the last decision
  std::optional<std::int64_t> horizon;  // the step of the next decision
  // Of the restore that is going on, what is read of what there is; 0 of 0: none.
  std::atomic<std::uint64_t> restore_read = 0;
  std::atomic<std::uint64_t> restore_bytes = 0;

  std::recursive_mutex calls;  // of what callers do; what they are called back for may call, too

  // What the writer and those who look use. Nothing is called back while it is held.
  mutable std::mutex mutex;
  engine::RunDirectory run;
  std::uint64_t parent = 0;  // what the next save goes on from: restored, or saved by this manager
  std::uint64_t restored_from = 0;  // never pruned while this manager lives
  int failures_in_row = 0;
  std::optional<SaveStats> last_stats;                     // of the last save that went well
  std::shared_ptr<SaveHandle::State> in_flight;            // or the last one
  std::vector<std::shared_ptr<SaveHandle::State>> failed;  // those whose error may be unseen

  // Last: their jobs use all of the above, and what watches uses what writes.
  engine::Worker writer;
  engine::Worker watcher;
};

}  // namespace perdure
