// Notices the signals that announce the end of a process.
//
// The handler does nothing but note which signal came first, and when; then it calls the handler
// that was there before. A forked child has the handler and not the owner: there it does nothing,
// except that a signal of its parent's acts as if nobody handled it (so that terminate() of
// multiprocessing ends a worker).
#pragma once

#include <sys/types.h>

#include <chrono>
#include <optional>
#include <vector>

namespace perdure::io {

// For as long as one lives in a process, its signals are noticed. One record for all of them, kept
// until the last one goes. Safe from any thread.
class SignalWatch {
 public:
  using Clock = std::chrono::steady_clock;

  // Error(invalid) for what is no signal, or cannot be handled.
  explicit SignalWatch(std::vector<int> signals);
  // Where nobody has put a handler over it meanwhile, the earlier one comes back.
  ~SignalWatch();
  SignalWatch(const SignalWatch&) = delete;
  SignalWatch& operator=(const SignalWatch&) = delete;

  struct Caught {
    int signal = 0;
    Clock::time_point at;
  };
  static std::optional<Caught> caught();  // the first one

 private:
  std::vector<int> signals_;
};

// The signals that are watched in this process.
std::vector<int> watched_signals();

// In a child process, whatever handlers it has: does nothing at `signals`, except at those of
// `of_parent` or of getppid(), who differ where a server forks the children.
void watch_in_child(const std::vector<int>& signals, pid_t of_parent);

}  // namespace perdure::io
