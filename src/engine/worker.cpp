#include "engine/worker.hpp"

#include <cstdint>
#include <system_error>
#include <utility>

#include "io/priority.hpp"

namespace perdure::engine {

Worker::~Worker() {
  if (!thread_) return;
  {
    const std::lock_guard guard(mutex_);
    stopping_ = true;
    changed_.notify_all();
  }
  thread_->join();
}

bool Worker::start(std::function<void()> job) {
  try {
    if (!thread_) thread_.emplace([this] { run(); });
  } catch (const std::system_error&) {
    return false;
  }
  const std::lock_guard guard(mutex_);
  job_ = std::move(job);
  ++started_;
  changed_.notify_all();
  return true;
}

void Worker::run() {
  io::lower_priority();
  std::unique_lock lock(mutex_);
  for (;;) {
    changed_.wait(lock, [&] { return over_ != started_ || stopping_; });
    if (over_ == started_) return;
    const std::uint64_t number = started_;
    std::function<void()> job = std::exchange(job_, nullptr);
    lock.unlock();
    job();
    job = nullptr;  // what it holds is let go by the thread that it belonged to
    lock.lock();
    over_ = number;
    changed_.notify_all();
  }
}

bool Worker::idle() const {
  const std::lock_guard guard(mutex_);
  return over_ == started_;
}

void Worker::wait_idle() const {
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [&] { return over_ == started_; });
}

bool Worker::wait_idle(std::chrono::duration<double> timeout) const {
  std::unique_lock lock(mutex_);
  return changed_.wait_for(lock, timeout, [&] { return over_ == started_; });
}

std::uint64_t Worker::last_started() const {
  const std::lock_guard guard(mutex_);
  return started_;
}

bool Worker::wait_over(std::uint64_t number, std::chrono::duration<double> timeout) const {
  std::unique_lock lock(mutex_);
  return changed_.wait_for(lock, timeout, [&] { return over_ >= number; });
}

}  // namespace perdure::engine
