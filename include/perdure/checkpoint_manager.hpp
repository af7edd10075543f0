// CheckpointManager: the checkpoints of one training run, in one directory.
//
// A save is acknowledged when it survives kill -9 and a power cut; a reader sees a whole checkpoint
// or none; a restore takes the newest and falls back only on proven damage (docs/design.md, "The
// promise"). One manager per run directory at a time, in one process: the directory is locked while
// it is open. Calls of several threads are made one after the other; what is saved must not change
// meanwhile. A forked child gets Error(invalid) from every call.
#pragma once

#include <chrono>
#include <cstdint>
#include <exception>
#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <perdure/ranks.hpp>
#include <perdure/state.hpp>
#include <string>
#include <vector>

namespace perdure {

namespace storage {
class Storage;
}

enum class Mode { min, max };

// Keep the `count` checkpoints with the lowest (min) or highest (max) value of a metric. NaN never
// is best; of equal ones the older is kept.
struct Best {
  std::string metric;
  Mode mode = Mode::min;
  std::size_t count = 1;
};

// Again and again: after so many steps, after so much time, or (both given) after either.
struct Every {
  std::int64_t steps = 0;                   // 0: not by steps
  std::chrono::duration<double> time = {};  // 0: not by time
  bool never() const noexcept { return steps == 0 && time.count() == 0; }
};

// What becomes of a save that failed. In both cases the handle has the error, and wait() and
// close() throw it.
enum class OnError {
  warn,   // the training goes on, `warning` is told; the third failure in a row is thrown all the
          // same
  raise,  // the next call of save, wait or close throws it
};
// What a save does while another one is in flight.
enum class WhenBusy { wait, skip };

// When the tensors' bytes are copied. What is copied later than by save() must not change before:
// the optimizer's step waits for it (CheckpointManager::fence).
enum class Capture {
  eager,       // all of them by save(): always right, whatever the loop does next
  overlapped,  // parameters and per-parameter state of registered optimizers behind the next
               // forward and backward pass; all else by save()
  checked,     // all of them by save(), and compared again at the fence: does this loop qualify for
               // overlapped?
};

// Gives memory for staging, aligned to a page, that lives as long as the pointer; or null: pages of
// the system's will do.
using AllocateStaging = std::function<std::shared_ptr<std::byte>(std::uint64_t bytes)>;

struct ManagerOptions {
  std::size_t keep_last = 3;  // at least 1
  std::vector<Best> keep_best = {};
  // Steps: the first checkpoint at or after each multiple. Time: the first one, and after that the
  // next that was created so much later (by the writers' clocks).
  Every keep_every = {};
  // When should_save() says so. Steps: each multiple that was passed since the last save.
  Every save_every = {};
  // The part of the training's time that saving may cost, such as 0.02: should_save() then says so
  // at the shortest interval that keeps to it (a second at least), by what saves were seen to cost.
  // 0: not so.
  double overhead = 0;
  // Signals that announce the end of the process, such as {SIGTERM, SIGUSR1}: see preempted(). An
  // earlier handler still runs. Forked children ignore them, unless they come from their parent.
  std::vector<int> save_on_signal = {};
  // How long after such a signal the process is killed: what Kubernetes calls
  // terminationGracePeriodSeconds, and Slurm the time in --signal.
  std::chrono::duration<double> grace = std::chrono::seconds(30);
  OnError on_error = OnError::warn;
  WhenBusy when_busy = WhenBusy::wait;
  // After so long without progress of the save in flight, `warning` is told, from a thread of the
  // manager's: a disk or a network file system that hangs stops a training without a word. 0:
  // never.
  std::chrono::duration<double> stuck_after = std::chrono::seconds(60);
  Capture capture = Capture::eager;
  // The most memory for copies of tensors on their way to the disk, at least 16 MiB. A state that
  // fits is captured at the speed of memory; a larger one at that of the disk, streaming through
  // (and eagerly, whatever `capture` says). 0: as much as the state takes, up to half of the memory
  // that is to be had (free, and within the limits of the control groups) when it is first needed.
  std::uint64_t staging_bytes = 0;
  // Default: pages of the system's, huge where it has them. For a model on a GPU:
  // perdure::pinned_staging() (perdure/torch.hpp).
  AllocateStaging allocate_staging = {};
  // The processes that train together: each has a manager with the same options and directory (on a
  // file system that all of them see), and each calls restore, save, should_save and close where
  // the others do. A checkpoint is a directory then. See docs/distributed.md. Null: this one alone.
  std::shared_ptr<Ranks> ranks = {};
  // How long to wait for a sign of life of another rank before a save or restore fails.
  std::chrono::duration<double> rank_timeout = std::chrono::minutes(10);
  // Where warnings go (a failed save, a damaged checkpoint set aside), and notes of what is no
  // trouble (the interval that keeps to `overhead`). Default: standard error.
  std::function<void(const std::string&)> warning = {};
  std::function<void(const std::string&)> note = {};
};

struct Checkpoint {
  std::filesystem::path path;
  std::uint64_t size = 0;  // bytes of the file
  CheckpointInfo info;     // step, generation, parent, metrics, created, reason, ...
  std::int64_t step() const noexcept { return info.step; }
  std::uint64_t generation() const noexcept { return info.generation; }
};

// What retention wants of one checkpoint: `reasons` to keep it ("last 3", "best 2 by val_loss
// (min)", "every 1000 steps", "pinned: for the paper"); none: it goes. One that cannot be read
// counts for no rule, and stays: "cannot be read: ...".
struct PlannedCheckpoint {
  Checkpoint checkpoint;
  std::vector<std::string> reasons;
  bool kept() const noexcept { return !reasons.empty(); }
};

// What a save took. The points in time are seconds since save() was called; 0: not yet reached.
struct SaveStats {
  std::uint64_t bytes = 0;                       // of the file
  std::chrono::duration<double> stalled{};       // how long save() held the caller
  std::chrono::duration<double> fence_waited{};  // how long fence() did
  std::chrono::duration<double> copied{};        // when the state was free to change
  std::chrono::duration<double> written{};       // when the storage had all of it
  std::chrono::duration<double> durable{};       // when it was acknowledged
};

// One save. Copies refer to the same save. Safe to use from any thread.
class SaveHandle {
 public:
  bool done() const;  // durable, failed or skipped
  void wait() const;  // until done; throws what the save had to say
  bool wait(std::chrono::duration<double> timeout) const;  // false where it is not done in time
  bool skipped() const;                          // WhenBusy::skip and another one was in flight
  std::exception_ptr error() const;              // null while not done and when it went well
  std::optional<Checkpoint> checkpoint() const;  // what was saved, once it is durable
  SaveStats stats() const;
  double progress() const;  // what part of the file was handed to the storage: 0 to 1

  struct State;
  explicit SaveHandle(std::shared_ptr<State> state);

 private:
  std::shared_ptr<State> state_;
};

struct RestoreOptions {
  std::optional<std::int64_t> step = {};  // this step (its newest generation) instead of the newest
  std::filesystem::path path = {};  // this file, any that load() takes, instead of one of the run
  // What follows is as in MatchOptions (perdure/state.hpp).
  bool strict = true;  // false: what only one side has is skipped, which `warning` is told
  std::vector<std::string> only = {};  // {"model", "model.encoder.*"}: nothing but that
  std::vector<std::pair<std::string, std::string>> rename = {};  // {{"model.old.*", "model.new.*"}}
  bool cast = false;  // whether dtypes of a module's tensors are converted
};

class CheckpointManager {
 public:
  // Opens (and creates) the run directory, takes its lock and collects debris of crashed saves.
  // Errors: locked (names the process that holds it), invalid, io.
  explicit CheckpointManager(const std::filesystem::path& directory, ManagerOptions options = {});
  CheckpointManager(std::shared_ptr<storage::Storage> storage, ManagerOptions options);
  // Waits for what is in flight; an error nobody has seen goes to `warning`. Never throws.
  ~CheckpointManager();
  CheckpointManager(const CheckpointManager&) = delete;
  CheckpointManager& operator=(const CheckpointManager&) = delete;

  // Restores the newest whole checkpoint into `state`, falling back past damaged ones (set aside as
  // *.damaged, and told). nullopt: there is none yet. A named step or path never falls back.
  // What fits is read straight into live tensors (TrainingState::restore): an error that is not
  // `invalid` may leave the state broken() until a restore succeeds.
  // Errors: corrupt (all there are, are damaged), invalid (does not fit: everything is listed),
  // not_found, io, unsupported.
  std::optional<Checkpoint> restore(TrainingState& state, const RestoreOptions& options = {});
  // Saves `state` as the next generation of its step: returns when it is captured, and the rest
  // goes on in a thread of the manager's, pruning included. Throws at once, whatever on_error says,
  // what no later save could mend: a value that cannot be saved, a broken state, one with a module
  // and no optimizer, a negative step, a closed manager.
  SaveHandle save(const TrainingState& state, const Metrics& metrics = {});
  // Makes the first save as fast as the later ones: allocates the memory for staging, and touches
  // it in a thread of its own.
  void prepare(const TrainingState& state);
  // Whether the loop should save now: after every step, `if (checkpoints.should_save(state.step))
  // checkpoints.save(state)`. By save_every, by overhead, and once preempted(), unless the save in
  // flight is all that `grace` leaves time for. Goes on across restarts: steps count from the last
  // save or restore. Error(invalid) where the options name nothing to go by.
  bool should_save(std::int64_t step);
  // One of save_on_signal has come: save (should_save() says so, too), leave the loop and close.
  // What is saved from now on says "preemption" for its reason. Stays as it is when the manager is
  // closed. Where should_save() is used, it
  // is what notices the signal: ask it first.
  bool preempted() const;
  // The interval that keeps to `overhead`, once a save was measured.
  std::optional<std::chrono::duration<double>> interval() const;
  // To be called before every step of an optimizer whose state is captured overlapped (or checked):
  // returns when what the step changes has been copied. Cheap where nothing is left to copy.
  void fence();

  // The same for a tree of one's own: `info` gives step, metrics, reason and optimizers; the rest
  // is filled in.
  SaveHandle save(const Value& state, CheckpointInfo info);
  // `take` gets each candidate, newest first, until it returns; Error(corrupt) from it means
  // damage. It may be called with a file that turns out damaged while it reads, so it must change
  // nothing before it has read all.
  using Take = std::function<void(const CheckpointFile&)>;
  std::optional<Checkpoint> restore(const RestoreOptions& options, const Take& take);

  // What is durable, newest first, by generation. Damaged ones that were found so far are not among
  // them.
  std::vector<Checkpoint> checkpoints() const;
  std::optional<Checkpoint> latest() const;
  std::optional<std::int64_t> latest_step() const;  // step of the newest generation
  std::optional<std::int64_t> best_step(
      const std::string& metric) const;         // mode as in keep_best; min where it is not there
  std::vector<std::int64_t> all_steps() const;  // ascending, each once
  const std::filesystem::path& directory() const;

  // Keeps this step (its newest generation) whatever retention says, until unpin. A pin is a file
  // beside the checkpoint, "<its name>.pin", with the reason in it. Error(not_found).
  void pin(std::int64_t step, const std::string& reason = {});
  void unpin(std::int64_t step);
  // What retention would do now, newest first. Every save does it; prune() does it at once, and
  // returns what it has done.
  std::vector<PlannedCheckpoint> retention_plan() const;
  std::vector<PlannedCheckpoint> prune();

  // What part of the save in flight is written, or of the restore that is going on read: 0 to 1,
  // and 1 where nothing is going on. Safe from any thread.
  double progress() const;
  // Whether no save is in flight, after at most `timeout`. Throws nothing that a save had to say.
  bool idle(std::chrono::duration<double> timeout = {}) const;
  void wait();  // until nothing is in flight (what prepare began, too); throws the error of a save
                // that nobody has seen
  // wait(), then gives up the lock, the memory and the directory; later calls but close() are
  // Error(invalid).
  void close();

 private:
  struct Parts;
  std::unique_ptr<Parts> parts_;
};

// The signals that save_on_signal has this process watch now, for all of its managers.
std::vector<int> watched_signals();
// For a worker process, of which a scheduler that signals a whole job must not make an end: it
// ignores `signals` from now on, unless they come from the process `parent` or from getppid(). A
// forked child does so by itself until its libraries put handlers of their own over that (PyTorch's
// do so for SIGTERM).
void watch_signals_in_child(const std::vector<int>& signals, int parent);

// The checkpoints in a run directory, newest first, without taking its lock (for tools; another
// process may add and prune meanwhile). Files whose names are not of a checkpoint, and
// symbolic links, are left out.
struct ListedCheckpoint {
  Checkpoint checkpoint;
  std::string problem;             // why it cannot be read, or ""
  std::optional<std::string> pin;  // the reason, where it is pinned
  bool damaged = false;            // that is why: reading it again will not help
};
std::vector<ListedCheckpoint> list_checkpoints(const std::filesystem::path& directory);

// What a manager with these options would keep, without taking the lock.
std::vector<PlannedCheckpoint> retention_plan(const std::filesystem::path& directory,
                                              const ManagerOptions& options);

// What history.jsonl in a run directory tells: one dict for each save, restore, skip, failure and
// prune, oldest first, as docs/format.md says. Lines that are no JSON objects, or of more than
// 1 MiB, are passed over; of more than 256 MiB, the last 256 are read. Empty where there is none.
// For people and their plots: nothing in perdure relies on it.
std::vector<Value> read_history(const std::filesystem::path& directory);

}  // namespace perdure
