// What a command that takes a while shows meanwhile, and how Ctrl-C ends it.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <mutex>
#include <string>

namespace perdure::cli {

// What Ctrl-C and a polite kill become where a Progress lives: it unwinds, so that temporary files
// go, and the command exits with 130 or 143, as a shell says that the signal had ended it.
struct Interrupted {
  int signal;
};

// One line on standard error, redrawn a few times a second, with rate and time left; only where
// that is a terminal, and not before a second has passed.
//
// While one lives, the first SIGINT or SIGTERM is noted, and add() and tell() throw; a second one
// ends the process at once. One at a time.
class Progress {
 public:
  // `what`: "verify model.pt"; `total`: bytes that will be added, 0 where that is not known.
  Progress(std::string what, std::uint64_t total);
  ~Progress();
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;

  // So many bytes more are done. From any thread. Throws Interrupted after a signal.
  void add(std::uint64_t bytes);
  // The same, for who counts by himself, and learns the total on the way.
  void tell(std::uint64_t done, std::uint64_t total);
  // Wipes the line away, before the results are printed. The destructor does so, too.
  void finish();

 private:
  using Clock = std::chrono::steady_clock;
  void show();
  void draw(Clock::time_point now);
  std::string line(double seconds, std::uint64_t done) const;

  const std::string what_;
  const bool shown_;
  const Clock::time_point start_ = Clock::now();
  std::atomic<std::uint64_t> total_;     // both are numbers alone: nothing else is read by way
  std::atomic<std::uint64_t> done_ = 0;  // of them
  std::mutex mutex_;                     // of what follows
  Clock::time_point next_draw_;
  bool drawn_ = false;
};

}  // namespace perdure::cli
