// A thread that does one job at a time, at lower priority. It begins with the first one.
#pragma once

#include <chrono>
#include <condition_variable>
#include <cstdint>
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

  // `job` must not throw. While there is another one, it is the next; one that was to be the next
  // is forgotten. False: there is no thread to be had, and nothing is done.
  bool start(std::function<void()> job);
  bool idle() const;
  void wait_idle() const;
  bool wait_idle(std::chrono::duration<double> timeout) const;  // false: it has still a job
  // Jobs are numbered as they are started. False: that one is not over yet.
  std::uint64_t last_started() const;
  bool wait_over(std::uint64_t number, std::chrono::duration<double> timeout) const;

 private:
  void run();

  mutable std::mutex mutex_;
  mutable std::condition_variable changed_;
  std::function<void()> job_;
  std::uint64_t started_ = 0;
  std::uint64_t over_ = 0;
  bool stopping_ = false;
  std::optional<std::thread> thread_;
};

}  // namespace perdure::engine
