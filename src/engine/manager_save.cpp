// CheckpointManager::save: the calling thread captures, a thread of the manager's writes, commits
// and prunes.
//
// Two kinds of failure are kept apart. What the caller got wrong (a value that cannot be saved, a
// state that is broken or has no optimizer, a negative step, a closed manager, a forked child) is
// thrown at once, whatever on_error says, and counts for nothing: to go on training with it would
// never produce a checkpoint. What went wrong with writing is on the handle and
// follows on_error: the next call throws it, or it was told and wait() and close() throw it.
#include <fmt/format.h>

#include <cstdint>
#include <exception>
#include <utility>

#include "engine/manager_parts.hpp"
#include "engine/save_file.hpp"
#include "engine/saving.hpp"
#include "io/errors.hpp"

namespace perdure {
namespace {

// After so many failed saves in a row, a run has too much to lose to go on in silence.
constexpr int kFailuresUntilRaised = 3;

SaveHandle skipped() {
  const auto state = std::make_shared<SaveHandle::State>();
  state->skip();
  return SaveHandle(state);
}

CheckpointInfo info_of(const TrainingState& state, const Metrics& metrics) {
  CheckpointInfo info;
  info.step = state.step;
  info.metrics = metrics;
  info.optimizers = state.optimizers();
  info.libraries = state.libraries;
  return info;
}

}  // namespace

namespace {

engine::RankRoles roles_of(const TrainingState& state) {
  engine::RankRoles roles;
  for (const TrainingState::Entry& entry : state.entries())
    if (entry.role == Role::module || entry.role == Role::optimizer)
      roles.shared.insert(entry.name);
  roles.shards = state.shards();
  return roles;
}

}  // namespace

SaveHandle CheckpointManager::save(const TrainingState& state, const Metrics& metrics) {
  const auto begin = engine::SaveJob::Clock::now();
  const auto call = parts_->enter();
  try {
    if (!parts_->make_way(state.step)) return skipped();
    Value tree(state.state_dict());
    engine::StepWatch watch;
    if (parts_->options.capture == Capture::overlapped) watch = engine::StepWatch(state, tree);
    return parts_->save(std::move(tree), info_of(state, metrics), std::move(watch), roles_of(state),
                        begin);
  } catch (...) {
    parts_->refuse_save(std::current_exception());
    throw;
  }
}

SaveHandle CheckpointManager::save(const Value& state, CheckpointInfo info) {
  const auto begin = engine::SaveJob::Clock::now();
  const auto call = parts_->enter();
  try {
    if (!parts_->make_way(info.step)) return skipped();
    return parts_->save(state, std::move(info), {}, {}, begin);
  } catch (...) {
    parts_->refuse_save(std::current_exception());
    throw;
  }
}

void CheckpointManager::prepare(const TrainingState& state) {
  const auto call = parts_->enter();
  parts_->wait_idle();
  const Value tree(state.state_dict());
  const auto plan = parts_->file_plan_of(tree, info_of(state, {}), roles_of(state));
  parts_->arena.reserve(plan->file_size());
  parts_->arena.populate_in_background();
}

void CheckpointManager::fence() {
  const auto call = parts_->enter();
  parts_->fence();
}

// Before the end of the process, what is in flight is worth more than what would be thrown away
// half written, and is worth waiting for where there is time for both.
bool CheckpointManager::Parts::make_way(std::int64_t step) {
  if (talk && (preempted() || options.when_busy == WhenBusy::skip)) {
    // The others may be further with their writing, or less far.
    const std::string way = together(fmt::format("way/{}", ways++),
                                     [&] { return make_way_alone(step) ? "go" : "skip"; });
    if (way != "go") return false;
    wait_idle();
  }
  return make_way_alone(step);
}

bool CheckpointManager::Parts::make_way_alone(std::int64_t step) {
  if (!writer.idle()) {
    if (!preempted() && options.when_busy == WhenBusy::skip) {
      history.skipped(step, "another save was in flight");
      return false;
    }
    if (!has_time_to_save()) {
      history.skipped(step, "the process ends before a new save could be written");
      options.note(
          fmt::format("step {} is not saved: the process ends before that could be written; the "
                      "save in flight is finished instead",
                      step));
      return false;
    }
    wait_idle();
  }
  job.reset();
  const std::lock_guard guard(mutex);
  if (failed.empty()) return true;
  if (options.on_error == OnError::raise || failures_in_row >= kFailuresUntilRaised)
    if (const std::exception_ptr error = failed.back()->take_unseen())
      std::rethrow_exception(error);
  return true;
}

void CheckpointManager::Parts::number(CheckpointInfo& info) {
  const std::lock_guard guard(mutex);
  info.generation = run.next_generation();
  info.parent = parent;
}

void CheckpointManager::Parts::use_generation(std::uint64_t generation) {
  const std::lock_guard guard(mutex);
  run.use_generation(generation);
}

std::unique_ptr<const format::FilePlan> CheckpointManager::Parts::file_plan_of(
    const Value& state, const CheckpointInfo& info, engine::RankRoles roles) {
  if (talk) {
    roles.rank = talk->rank();
    roles.ranks = talk->size();
    return std::make_unique<const engine::RankPlan>(state, roles, &rank_items);
  }
  for (const Shard& shard : roles.shards)
    if (shard.shape != shard.sizes)
      throw Error(ErrorCode::invalid,
                  fmt::format("{} is a part of a tensor, whose other parts other processes have "
                              "(DTensor): give the manager of each of them its ranks (Python: "
                              "process_group=...)",
                              format_path(shard.path)));
  return std::make_unique<const format::Encoder>(state, info, &layouts);
}

void CheckpointManager::Parts::refuse_save(const std::exception_ptr& why) {
  if (!saver || std::exchange(begun, false)) return;
  CheckpointInfo info;
  number(info);
  use_generation(info.generation);
  saver->refuse(info.generation, why);
}

SaveHandle CheckpointManager::Parts::save(Value state, CheckpointInfo info, engine::StepWatch watch,
                                          engine::RankRoles roles,
                                          engine::SaveJob::Clock::time_point begin) {
  if (info.step < 0)
    throw Error(ErrorCode::invalid,
                fmt::format("the step is {}; steps are not negative", info.step));
  number(info);
  const bool is_last_chance = preempted().has_value();
  if (is_last_chance && info.reason == CheckpointInfo().reason) info.reason = "preemption";
  engine::sign(info);
  auto plan = file_plan_of(state, info, std::move(roles));
  arena.reserve(plan->file_size());
  tell_of_streaming(plan->file_size());
  begun = true;
  use_generation(info.generation);  // a failed commit may leave a file with it
  const auto next =
      std::make_shared<engine::SaveJob>(std::move(state), std::move(info), std::move(plan), arena,
                                        options.capture, std::move(watch), begin);
  start(next);
  job = next;
  if (is_last_chance) preemption_save = job->handle();
  job->capture(engine::copy_threads());
  begun = false;
  schedule.saved(job->info().step, begin, engine::SaveSchedule::Clock::now());
  return SaveHandle(job->handle());
}

// Where nobody asked for that: it makes save() as slow as the disk.
void CheckpointManager::Parts::tell_of_streaming(std::uint64_t size) {
  const std::uint64_t staging = arena.blocks() * engine::Arena::kBlockSize;
  const bool asked_for = options.staging_bytes != 0 && options.capture == Capture::eager;
  if (size <= staging || asked_for || std::exchange(told_of_streaming, true)) return;
  options.note(fmt::format(
      "the checkpoint of {} is larger than the staging memory of {} ({}): save() copies it {}at "
      "the "
      "speed of the disk; more staging_bytes would let it return earlier",
      io::format_bytes(size), io::format_bytes(staging),
      staging < options.staging_bytes / 2 ? "no more memory is to be had"
      : options.staging_bytes != 0        ? "staging_bytes"
                                          : "half of the memory that is to be had",
      options.capture == Capture::eager ? "" : "at once, and "));
}

// Nothing depends on it: a save goes on where no thread and no memory are to be had for that.
void CheckpointManager::Parts::watch_writer(const engine::SaveJob& started,
                                            const std::filesystem::path& path) noexcept {
  if (options.stuck_after.count() == 0) return;
  try {
    watcher.start([this, state = started.handle(), number = writer.last_started(),
                   name = path.string()] { watch(state, number, name); });
  } catch (const std::exception&) {
  }
}

void CheckpointManager::Parts::watch(const std::shared_ptr<SaveHandle::State>& state,
                                     std::uint64_t number, const std::string& name) noexcept try {
  const auto begin = engine::SaveJob::Clock::now();
  const auto seconds = [&] {
    return std::chrono::duration<double>(engine::SaveJob::Clock::now() - begin).count();
  };
  bool told = false;
  for (std::uint64_t moves = 0; !writer.wait_over(number, options.stuck_after);) {
    const auto seen = std::exchange(moves, state->count_moves());
    if (told || seen != moves) continue;
    told = true;
    options.warning(fmt::format(
        "the save of '{}' makes no progress, {:.3g} s after it began: the disk or the file system "
        "hangs. It goes on when they do; a further save waits for it, or is skipped with when_busy "
        "\"skip\"",
        name, seconds()));
  }
  if (told) options.note(fmt::format("the save of '{}' was over after {:.3g} s", name, seconds()));
} catch (...) {
  // There is nobody left to tell.
}

// Whatever needs memory is made here, where an error reaches the caller: what is thrown in the
// writing thread ends the process.
void CheckpointManager::Parts::start(const std::shared_ptr<engine::SaveJob>& next) {
  const std::string name =
      engine::format({next->info().step, next->info().generation, talk.has_value()});
  Checkpoint saved{storage->describe(name), next->file_size(), next->info()};
  {
    const std::lock_guard guard(mutex);
    failed.reserve(failed.size() + 1);
    in_flight = next->handle();
  }
  const std::function<void()> work = [this, next, name, saved]() mutable {
    try {
      if (persist(next, name, saved) && leads()) prune_quietly();
    } catch (...) {
      // No memory even to tell of it; the handle has what became of the save.
    }
  };
  if (writer.start(work))
    watch_writer(*next, saved.path);
  else
    work();  // there is no thread to be had
}

// Who waits for the handle waits for what is durable, not for the removal of older ones, which
// takes its time; the next save does, and wait().
bool CheckpointManager::Parts::persist(const std::shared_ptr<engine::SaveJob>& done,
                                       const std::string& name, Checkpoint& saved) {
  const auto& handle = done->handle();
  try {
    if (saver) {
      saved.size = saver->save(*done, name);
      done->is_durable();
    } else {
      done->write(*storage, name, storage::IfExists::fail);
    }
  } catch (...) {
    failed_to_save(*done, std::current_exception(), saved.path);
    return false;
  }
  const auto remember = [&] {
    const std::lock_guard guard(mutex);
    failures_in_row = 0;
    parent = saved.generation();
    last_stats = SaveHandle(handle).stats();
    run.add(saved, name);
  };
  try {
    remember();
  } catch (const std::bad_alloc&) {
    // It will be read again where it is needed.
  }
  handle->succeed(std::move(saved));
  history.saved(SaveHandle(handle).checkpoint().value(), SaveHandle(handle).stats());
  return true;
}

// The next call throws it, or it is told now and kept for wait() and close(). Whoever waits is let
// go last, to find everything told.
void CheckpointManager::Parts::failed_to_save(const engine::SaveJob& done,
                                              const std::exception_ptr& error,
                                              const std::filesystem::path& path) {
  int failures = 0;
  {
    const std::lock_guard guard(mutex);
    failures = ++failures_in_row;
    failed.push_back(done.handle());
  }
  try {
    history.failed(done.info(), engine::text_of(error));
    if (options.on_error == OnError::warn)
      options.warning(fmt::format(
          "the checkpoint '{}' was not saved (failed saves in a row: {}; from {} on, the next call "
          "raises it): {}",
          path.string(), failures, kFailuresUntilRaised, engine::text_of(error)));
  } catch (...) {
    // What the listener throws is not the save's, and without memory nothing can be told.
  }
  done.handle()->fail(error);
}

// The new checkpoint is durable: what goes wrong here costs space and no more, and must not look
// like a failed save.
void CheckpointManager::Parts::prune_quietly() {
  std::string problem;
  try {
    prune();
    return;
  } catch (const std::exception& error) {
    problem = error.what();
  }
  options.warning(
      fmt::format("older checkpoints in '{}' could not be pruned (the new one is saved): {}",
                  directory.string(), problem));
}

// The save itself went well, and still somebody has to hear it: it is kept like an error of one.
void CheckpointManager::Parts::fence() {
  if (!job) return;
  const std::string changed = job->fence();
  if (changed.empty()) return;
  const auto told = std::make_shared<SaveHandle::State>();
  told->fail(std::make_exception_ptr(Error(ErrorCode::invalid, changed)));
  {
    const std::lock_guard guard(mutex);
    failed.push_back(told);
  }
  if (options.on_error == OnError::raise) throw_unseen();
  options.warning(changed);
}

}  // namespace perdure
