#include "engine/worker.hpp"

#include <system_error>

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

void Worker::start(std::function<void()> job) {
  try {
    if (!thread_) thread_.emplace([this] { run(); });
  } catch (const std::system_error&) {
    return job();
  }
  const std::lock_guard guard(mutex_);
  job_ = std::move(job);
  busy_ = true;
  changed_.notify_all();
}

void Worker::run() {
  io::lower_priority();
  std::unique_lock lock(mutex_);
  for (;;) {
    changed_.wait(lock, [&] { return busy_ || stopping_; });
    if (!busy_) return;
    lock.unlock();
    job_();
    job_ = nullptr;  // what it holds is let go by the thread that it belonged to
    lock.lock();
    busy_ = false;
    changed_.notify_all();
  }
}

bool Worker::idle() const {
  const std::lock_guard guard(mutex_);
  return !busy_;
}

void Worker::wait_idle() const {
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [&] { return !busy_; });
}

bool Worker::wait_idle(std::chrono::duration<double> timeout) const {
  std::unique_lock lock(mutex_);
  return changed_.wait_for(lock, timeout, [&] { return !busy_; });
}

}  // namespace perdure::engine
