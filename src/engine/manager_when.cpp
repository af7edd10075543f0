// CheckpointManager::should_save and preempted: when to save.
#include <fmt/format.h>

#include <algorithm>
#include <cstdint>

#include "engine/manager_parts.hpp"

namespace perdure {
namespace {

using Seconds = std::chrono::duration<double>;

// An estimate that is this much too short still ends in time.
constexpr double kMargin = 1.25;

}  // namespace

std::vector<int> watched_signals() { return io::watched_signals(); }

void watch_signals_in_child(const std::vector<int>& signals, int parent) {
  io::watch_in_child(signals, parent);
}

bool CheckpointManager::should_save(std::int64_t step) {
  const auto call = parts_->enter();
  engine::SaveSchedule& schedule = parts_->schedule;
  if (!schedule.has_rule() && !parts_->signals)
    throw Error(ErrorCode::invalid,
                "should_save has nothing to go by: give the manager save_every, overhead or "
                "save_on_signal");
  parts_->notice();
  const bool due = schedule.due(step, engine::SaveSchedule::Clock::now(), !parts_->writer.idle());
  if (const auto interval = schedule.take_news()) {
    parts_->history.interval_picked(*interval, schedule.cost());
    parts_->options.note(fmt::format(
        "overhead={:g}: a save costs the training {:.3g} s, so there will be one every {:.3g} s "
        "(about {:.0f} steps)",
        parts_->options.overhead, schedule.cost().count(), interval->count(),
        *interval / std::max(schedule.step_time(), Seconds(1e-9))));
  }
  if (!parts_->preempted()) return due;
  const auto& saved = parts_->preemption_save;
  return (!saved || saved->has_failed()) && parts_->has_time_to_save();
}

// Also of a closed manager: it is then that the program decides what to tell who started it.
bool CheckpointManager::preempted() const { return parts_->preempted().has_value(); }

std::optional<Seconds> CheckpointManager::interval() const {
  const auto call = parts_->enter();
  return parts_->schedule.interval();
}

// A signal between should_save() and preempted() must not end the loop before the save that it asks
// for: where should_save() is used, a signal has come when that has seen it.
std::optional<io::SignalWatch::Caught> CheckpointManager::Parts::preempted() const {
  const std::lock_guard guard(signal_mutex);
  if (asked) return noticed;
  return signals ? io::SignalWatch::caught() : std::nullopt;
}

void CheckpointManager::Parts::notice() {
  const std::lock_guard guard(signal_mutex);
  asked = true;
  if (signals) noticed = io::SignalWatch::caught();
}

// What was seen so far is what is seen for ever.
void CheckpointManager::Parts::stop_watching() {
  const std::lock_guard guard(signal_mutex);
  if (!asked && signals) noticed = io::SignalWatch::caught();
  asked = true;
  signals.reset();
}

// By the bandwidth of the last save. The one in flight comes first.
bool CheckpointManager::Parts::has_time_to_save() const {
  const auto signal = preempted();
  if (!signal || writer.idle()) return true;
  Seconds whole{};
  Seconds begun{};
  double progress = 0;
  {
    const std::lock_guard guard(mutex);
    if (last_stats) whole = last_stats->durable;
    progress = SaveHandle(in_flight).progress();
    begun = Seconds(job->seconds());
  }
  if (whole.count() == 0 && progress > 0) whole = begun / progress;
  const Seconds left = std::max(whole - begun, whole * (1 - progress));
  const auto deadline = signal->at + options.grace;
  return engine::SaveJob::Clock::now() + (left + whole) * kMargin <= deadline;
}

}  // namespace perdure
