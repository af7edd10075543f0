// A thread that does one job at a time, at lower priority. It begins with the first one.
#pragma once

#include <chrono>
#include <condition_variable>
#include <functional>
#include <mutex>
#include <optional>
#include <thread>

namespace perdure::engine {

class Worker {
 public:
  Worker() = default;
  Worker(const Worker&) = delete;
  Worker& operator=(const Worker&) = delete;
  ~Worker();  // finishes the job that it has

  // Only while idle. `job` must not throw. Where there is no thread to be had, it is done at once.
  void start(std::function<void()> job);
  bool idle() const;
  void wait_idle() const;
  bool wait_idle(std::chrono::duration<double> timeout) const;  // false: it has still a job

 private:
  void run();

  mutable std::mutex mutex_;
  mutable std::condition_variable changed_;
  std::function<void()> job_;
  bool busy_ = false;
  bool stopping_ = false;
  std::optional<std::thread> thread_;
};

}  // namespace perdure::engine
