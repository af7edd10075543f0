// What a command that takes a while shows meanwhile, and how Ctrl-C ends it.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <mutex>
#include <string>

namespace perdure::cli {

// What Ctrl-C becomes where a Progress lives: it unwinds, so that temporary files go, and the
// command exits with 130, as if the signal had ended it.
struct Interrupted {};

// One line on standard error, redrawn a few times a second, with rate and time left; only where
// that is a terminal, and not before a second has passed.
//
// While one lives, the first Ctrl-C is noted, and add() throws; a second one ends the process at
// once. One at a time.
class Progress {
 public:
  // `what`: "verify model.pt"; `total`: bytes that will be added, 0 where that is not known.
  Progress(std::string what, std::uint64_t total);
  ~Progress();
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;

  // So many bytes more are done. From any thread. Throws Interrupted after a Ctrl-C.
  void add(std::uint64_t bytes);
  // Wipes the line away, before the results are printed. The destructor does so, too.
  void finish();

 private:
  using Clock = std::chrono::steady_clock;
  void draw(Clock::time_point now);
  std::string line(double seconds, std::uint64_t done) const;

  const std::string what_;
  const std::uint64_t total_;
  const bool shown_;
  const Clock::time_point start_ = Clock::now();
  std::atomic<std::uint64_t> done_ = 0;  // a sum: nothing else is read by way of it
  std::mutex mutex_;                     // of what follows
  Clock::time_point next_draw_;
  bool drawn_ = false;
};

}  // namespace perdure::cli
