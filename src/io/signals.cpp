#include "io/signals.hpp"

#include <fmt/format.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <csignal>
#include <cstdint>
#include <cstring>
#include <mutex>
#include <perdure/error.hpp>

namespace perdure::io {
namespace {

constexpr int kSignals = 65;  // Linux has 1 to 64

// What the handler reads is written before it is installed, or atomic.
struct Watched {
  struct sigaction earlier = {};
  int watches = 0;
};
Watched watched[kSignals];
std::mutex watched_mutex;
std::atomic<pid_t> owner = 0;
std::atomic<pid_t> parent = 0;  // in a child that has said who that is
std::atomic<int> first_signal = 0;
std::atomic<std::int64_t> first_at = 0;  // of SignalWatch::Clock, in its own ticks

static_assert(std::atomic<int>::is_always_lock_free &&
              std::atomic<std::int64_t>::is_always_lock_free);

// clock_gettime, which steady_clock is made of, may be called in a handler (signal-safety(7)).
void note(int signal) {
  int none = 0;
  if (first_signal.load() != 0) return;
  first_at.store(SignalWatch::Clock::now().time_since_epoch().count());
  first_signal.compare_exchange_strong(none, signal);
}

void act_by_default(int signal) {
  ::signal(signal, SIG_DFL);
  ::raise(signal);  // delivered when the handler returns
}

void call_earlier(int signal, siginfo_t* info, void* context) {
  const struct sigaction& earlier = watched[signal].earlier;
  if ((earlier.sa_flags & SA_SIGINFO) != 0) {
    if (earlier.sa_sigaction) earlier.sa_sigaction(signal, info, context);
  } else if (earlier.sa_handler != SIG_DFL && earlier.sa_handler != SIG_IGN) {
    earlier.sa_handler(signal);
  }
}

void handle(int signal, siginfo_t* info, void* context) {
  const int saved = errno;
  if (::getpid() == owner.load()) {
    note(signal);
    call_earlier(signal, info, context);
  } else if (info && (info->si_pid == ::getppid() || info->si_pid == parent.load())) {
    act_by_default(signal);
  }
  errno = saved;
}

bool is_ours(const struct sigaction& action) {
  return (action.sa_flags & SA_SIGINFO) != 0 && action.sa_sigaction == handle;
}

struct sigaction our_action() {
  struct sigaction action = {};
  action.sa_sigaction = handle;
  action.sa_flags = SA_SIGINFO | SA_RESTART;
  sigemptyset(&action.sa_mask);
  return action;
}

// What a fork has copied is not this process's.
void begin_in_this_process() {
  if (owner.exchange(::getpid()) == ::getpid()) return;
  for (Watched& item : watched) item.watches = 0;
  first_signal = 0;
}

bool is_any_watched() {
  for (const Watched& item : watched)
    if (item.watches > 0) return true;
  return false;
}

void install(int signal) {
  if (watched[signal].watches++ > 0) return;
  struct sigaction present = {};
  ::sigaction(signal, nullptr, &present);
  if (is_ours(present)) return;  // somebody kept it, or the parent had it
  watched[signal].earlier = present;
  const struct sigaction action = our_action();
  ::sigaction(signal, &action, nullptr);
}

void uninstall(int signal) {
  if (--watched[signal].watches > 0) return;
  struct sigaction present = {};
  ::sigaction(signal, nullptr, &present);
  if (is_ours(present)) ::sigaction(signal, &watched[signal].earlier, nullptr);
}

void require_catchable(int signal) {
  struct sigaction present = {};
  if (signal > 0 && signal < kSignals && signal != SIGKILL && signal != SIGSTOP &&
      ::sigaction(signal, nullptr, &present) == 0)
    return;
  throw Error(ErrorCode::invalid,
              fmt::format("save_on_signal: {} is no signal that a process can handle", signal));
}

}  // namespace

SignalWatch::SignalWatch(std::vector<int> signals) : signals_(std::move(signals)) {
  for (const int signal : signals_) require_catchable(signal);
  const std::lock_guard guard(watched_mutex);
  begin_in_this_process();
  if (!is_any_watched()) first_signal = 0;
  for (const int signal : signals_) install(signal);
}

SignalWatch::~SignalWatch() {
  const std::lock_guard guard(watched_mutex);
  if (owner.load() != ::getpid()) return;
  for (const int signal : signals_) uninstall(signal);
}

std::optional<SignalWatch::Caught> SignalWatch::caught() {
  const int signal = first_signal.load();
  if (signal == 0) return std::nullopt;
  return Caught{signal, Clock::time_point(Clock::duration(first_at.load()))};
}

std::vector<int> watched_signals() {
  const std::lock_guard guard(watched_mutex);
  std::vector<int> signals;
  if (owner.load() != ::getpid()) return signals;
  for (int signal = 1; signal < kSignals; ++signal)
    if (watched[signal].watches > 0) signals.push_back(signal);
  return signals;
}

void watch_in_child(const std::vector<int>& signals, pid_t of_parent) {
  for (const int signal : signals) require_catchable(signal);
  const std::lock_guard guard(watched_mutex);
  if (owner.load() == ::getpid()) return;
  parent = of_parent;
  const struct sigaction action = our_action();
  for (const int signal : signals) ::sigaction(signal, &action, nullptr);
}

}  // namespace perdure::io
