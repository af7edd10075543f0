#include "engine/save_handle.hpp"

#include <algorithm>
#include <exception>

namespace perdure {
namespace {

// What a wait of seconds can be given without an overflow in the clock; nobody waits longer.
constexpr std::chrono::duration<double> kLongest = std::chrono::hours(24 * 365);

}  // namespace

void SaveHandle::State::succeed(Checkpoint saved) {
  const std::lock_guard guard(mutex);
  checkpoint = std::move(saved);
  done = true;
  ++moves;
  finished.notify_all();
}

void SaveHandle::State::fail(std::exception_ptr failure) {
  const std::lock_guard guard(mutex);
  error = std::move(failure);
  done = true;
  finished.notify_all();
}

void SaveHandle::State::skip() {
  const std::lock_guard guard(mutex);
  skipped = true;
  done = true;
  finished.notify_all();
}

void SaveHandle::State::rethrow_if_failed() {
  std::exception_ptr failure;
  {
    const std::lock_guard guard(mutex);
    failure = error;
    seen = true;
  }
  if (failure) std::rethrow_exception(failure);
}

std::exception_ptr SaveHandle::State::take_unseen() {
  const std::lock_guard guard(mutex);
  return std::exchange(seen, true) ? nullptr : error;
}

SaveHandle::SaveHandle(std::shared_ptr<State> state) : state_(std::move(state)) {}

bool SaveHandle::done() const {
  const std::lock_guard guard(state_->mutex);
  return state_->done;
}

void SaveHandle::wait() const {
  {
    std::unique_lock lock(state_->mutex);
    state_->finished.wait(lock, [&] { return state_->done; });
  }
  state_->rethrow_if_failed();
}

bool SaveHandle::wait(std::chrono::duration<double> timeout) const {
  {
    std::unique_lock lock(state_->mutex);
    const auto limit = std::clamp(timeout, std::chrono::duration<double>::zero(), kLongest);
    if (!state_->finished.wait_for(lock, limit, [&] { return state_->done; })) return false;
  }
  state_->rethrow_if_failed();
  return true;
}

bool SaveHandle::skipped() const {
  const std::lock_guard guard(state_->mutex);
  return state_->skipped;
}

std::exception_ptr SaveHandle::error() const {
  const std::lock_guard guard(state_->mutex);
  if (state_->error) state_->seen = true;
  return state_->error;
}

std::optional<Checkpoint> SaveHandle::checkpoint() const {
  const std::lock_guard guard(state_->mutex);
  return state_->checkpoint;
}

SaveStats SaveHandle::stats() const {
  const std::lock_guard guard(state_->mutex);
  return state_->stats;
}

double SaveHandle::progress() const {
  const std::lock_guard guard(state_->mutex);
  if (state_->checkpoint) return 1;
  return state_->stats.bytes == 0
             ? 0
             : static_cast<double>(state_->handed_over) / static_cast<double>(state_->stats.bytes);
}

std::exception_ptr take_first_unseen(const std::vector<std::shared_ptr<SaveHandle::State>>& saves) {
  std::exception_ptr first;
  for (const auto& save : saves)
    if (const std::exception_ptr error = save->take_unseen(); error && !first) first = error;
  return first;
}

}  // namespace perdure
