// CheckpointManager::should_save and preempted: when to save.
#include <fmt/format.h>

#include <algorithm>
#include <cinttypes>
#include <cstdint>
#include <cstdio>
#include <utility>

#include "engine/manager_parts.hpp"

namespace perdure {
namespace {

using Seconds = std::chrono::duration<double>;

// An estimate that is this much too short still ends in time.
constexpr double kMargin = 1.25;
// How far ahead ranks agree on when to look again.
constexpr Seconds kAhead{0.5};

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
  if (parts_->talk) return parts_->decide_together(step);
  parts_->notice();
  return parts_->decide(step);
}

bool CheckpointManager::Parts::decide(std::int64_t step) {
  const bool due = schedule.due(step, engine::SaveSchedule::Clock::now(), !writer.idle());
  if (const auto interval = schedule.take_news()) {
    history.interval_picked(*interval, schedule.cost());
    options.note(fmt::format(
        "overhead={:g}: a save costs the training {:.3g} s, so there will be one every {:.3g} s "
        "(about {:.0f} steps)",
        options.overhead, schedule.cost().count(), interval->count(),
        *interval / std::max(schedule.step_time(), Seconds(1e-9))));
  }
  if (!preempted()) return due;
  const auto& saved = preemption_save;
  return (!saved || saved->has_failed()) && has_time_to_save();
}

// Rank 0 decides for all, and at the same step for each: at every one that the options name, and
// between these at a step that was agreed on before, about half a second ahead. In between, nobody
// has to hear of anything.
bool CheckpointManager::Parts::decide_together(std::int64_t step) {
  if (signals && !told_of_signal && io::SignalWatch::caught()) {
    told_of_signal = true;
    talk->tell("signal", std::to_string(io::SignalWatch::caught()->signal));
  }
  const bool decides = !horizon || step >= *horizon || schedule.due_by_steps(step);
  if (talk->leads() && decides) {  // not in between: the others do not know of it then
    notice();
    hear_of_signals();
  }
  if (talk->leads()) was_due = decide(step) || was_due;
  if (!decides) return false;
  const std::uint64_t number = decisions++;
  constexpr std::uint64_t kKept = 10'000;  // no rank is so far behind
  const std::string told = talk->led(fmt::format("decision/{}", number), [&] {
    if (number >= kKept) talk->forget(fmt::format("decision/{}", number - kKept));
    const auto steps = schedule.step_time().count() > 0 ? kAhead / schedule.step_time() : 1.0;
    return fmt::format("{} {} {}", std::exchange(was_due, false) ? 1 : 0,
                       preempted() ? preempted()->signal : 0,
                       step + static_cast<std::int64_t>(std::clamp(steps, 1.0, 1000.0)));
  });
  int due = 0, signal = 0;
  std::int64_t next = 0;
  std::sscanf(told.c_str(), "%d %d %" SCNd64, &due, &signal, &next);
  horizon = next;
  if (signal != 0) {
    const std::lock_guard guard(signal_mutex);
    asked = true;
    if (!noticed) noticed = io::SignalWatch::Caught{signal, engine::SaveJob::Clock::now()};
  }
  return due != 0;
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
  if (asked || talk) return noticed;  // of several ranks, should_save() alone makes it known
  return signals ? io::SignalWatch::caught() : std::nullopt;
}

void CheckpointManager::Parts::notice() {
  const std::lock_guard guard(signal_mutex);
  asked = true;
  if (noticed || !signals) return;
  noticed = io::SignalWatch::caught();
}

// What came to another rank.
void CheckpointManager::Parts::hear_of_signals() {
  const std::lock_guard guard(signal_mutex);
  if (noticed || !signals || !talk->has("signal")) return;
  noticed =
      io::SignalWatch::Caught{std::stoi(talk->hear("signal", 0)), engine::SaveJob::Clock::now()};
}

// What was seen so far is what is seen for ever.
void CheckpointManager::Parts::stop_watching() {
  const std::lock_guard guard(signal_mutex);
  if (!asked && signals && !talk) noticed = io::SignalWatch::caught();
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
