// CheckpointManager::save: capture, write and commit in the calling thread, then prune.
//
// Two kinds of failure are kept apart. What the caller got wrong (a value that cannot be saved, a
// state that is broken or has no optimizer, a negative step, a closed manager, a forked child) is
// thrown at once, whatever on_error says, and counts for nothing: to go on training with it would
// never produce a checkpoint. What went wrong with writing is on the handle and follows on_error.
#include <fmt/format.h>

#include "engine/manager_parts.hpp"
#include "engine/save_file.hpp"

namespace perdure {
namespace {

// After so many failed saves in a row, a run has too much to lose to go on in silence.
constexpr int kFailuresUntilRaised = 3;

std::string text_of(const std::exception_ptr& error) {
  try {
    std::rethrow_exception(error);
  } catch (const std::exception& e) {
    return e.what();
  } catch (...) {
    return "an exception of unknown type";
  }
}

}  // namespace

SaveHandle CheckpointManager::save(const TrainingState& state, const Metrics& metrics) {
  const auto begin = std::chrono::steady_clock::now();
  parts_->require_usable();
  CheckpointInfo info;
  info.step = state.step;
  info.metrics = metrics;
  info.optimizers = state.optimizers();
  return parts_->save(Value(state.state_dict()), std::move(info), begin);
}

SaveHandle CheckpointManager::save(const Value& state, CheckpointInfo info) {
  parts_->require_usable();
  return parts_->save(state, std::move(info), std::chrono::steady_clock::now());
}

SaveHandle CheckpointManager::Parts::save(const Value& state, CheckpointInfo info,
                                          std::chrono::steady_clock::time_point begin) {
  if (info.step < 0)
    throw Error(ErrorCode::invalid,
                fmt::format("the step is {}; steps are not negative", info.step));
  info.generation = run.next_generation();
  info.parent = parent;
  engine::sign(info);
  const format::Encoder encoder(state, info);
  const std::string name = engine::format({info.step, info.generation});
  const auto result = std::make_shared<SaveHandle::State>();
  const auto statistics = [&] {
    const std::chrono::duration<double> elapsed = std::chrono::steady_clock::now() - begin;
    return SaveStats{encoder.file_size(), elapsed, elapsed};
  };
  run.use_generation(info.generation);  // a failed commit may leave a file with it
  try {
    engine::write_file(*storage, name, encoder, storage::IfExists::fail);
  } catch (...) {
    result->fail(std::current_exception(), statistics());
    report(result, storage->describe(name));
    return SaveHandle(result);
  }
  failures_in_row = 0;
  parent = info.generation;
  const Checkpoint saved{storage->describe(name), encoder.file_size(), std::move(info)};
  run.add(saved, name);
  result->succeed(saved, statistics());
  prune();
  return SaveHandle(result);
}

// Throws the failure, or tells it and keeps it for wait() and close().
void CheckpointManager::Parts::report(const std::shared_ptr<SaveHandle::State>& state,
                                      const std::string& what) {
  ++failures_in_row;
  if (options.on_error == OnError::raise || failures_in_row >= kFailuresUntilRaised)
    state->rethrow_if_failed();
  failed.push_back(state);
  options.warning(fmt::format(
      "the checkpoint '{}' was not saved (failed saves in a row: {}; at {} it is raised): {}", what,
      failures_in_row, kFailuresUntilRaised, text_of(state->error)));
}

// The new checkpoint is durable: what goes wrong here costs space and no more, and must not look
// like a failed save.
void CheckpointManager::Parts::prune() {
  std::string problem;
  try {
    run.prune(
        engine::prunable(run.readable(), options.keep_last, options.keep_best, {restored_from}));
    return;
  } catch (const std::exception& error) {
    problem = error.what();
  }
  options.warning(
      fmt::format("older checkpoints in '{}' could not be pruned (the new one is saved): {}",
                  directory.string(), problem));
}

}  // namespace perdure
