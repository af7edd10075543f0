#include "progress.hpp"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <csignal>
#include <cstdio>
#include <utility>

#include "terminal.hpp"
#include "text.hpp"

namespace perdure::cli {
namespace {

constexpr auto kFirstDraw = std::chrono::seconds(1);
constexpr auto kBetweenDraws = std::chrono::milliseconds(200);

constexpr std::array kSignals = {SIGINT, SIGTERM};

volatile std::sig_atomic_t interrupted = 0;  // by which signal
std::array<struct sigaction, kSignals.size()> actions_before;

void on_interrupt(int signal) {
  interrupted = signal;
  std::signal(signal, SIG_DFL);  // the next one is not asked
}

// A parent that ignores one, as nohup and scripts in the background do, meant what it said.
void watch_signals() {
  interrupted = 0;
  for (std::size_t i = 0; i < kSignals.size(); ++i) {
    ::sigaction(kSignals[i], nullptr, &actions_before[i]);
    if (actions_before[i].sa_handler == SIG_IGN) continue;
    struct sigaction action = {};
    action.sa_handler = on_interrupt;
    action.sa_flags = SA_RESTART;
    ::sigaction(kSignals[i], &action, nullptr);
  }
}

std::string time_text(double seconds) {
  const auto whole = static_cast<std::uint64_t>(seconds + 0.5);
  if (whole < 60) return fmt::format("{} s", whole);
  if (whole < 3600) return fmt::format("{}:{:02} min", whole / 60, whole % 60);
  return fmt::format("{}:{:02} h", whole / 3600, whole / 60 % 60);
}

}  // namespace

Progress::Progress(std::string what, std::uint64_t total)
    : what_(std::move(what)),
      shown_(::isatty(STDERR_FILENO) == 1),
      total_(total),
      next_draw_(start_ + kFirstDraw) {
  watch_signals();
}

Progress::~Progress() {
  for (std::size_t i = 0; i < kSignals.size(); ++i)
    ::sigaction(kSignals[i], &actions_before[i], nullptr);
  finish();
}

void Progress::finish() {
  const std::lock_guard lock(mutex_);
  if (std::exchange(drawn_, false)) std::fputs("\r\x1b[K", stderr);
}

void Progress::add(std::uint64_t bytes) {
  done_.fetch_add(bytes, std::memory_order_relaxed);
  show();
}

void Progress::tell(std::uint64_t done, std::uint64_t total) {
  done_.store(done, std::memory_order_relaxed);
  total_.store(total, std::memory_order_relaxed);
  show();
}

void Progress::show() {
  if (interrupted != 0) throw Interrupted{interrupted};
  if (!shown_) return;
  const Clock::time_point now = Clock::now();
  const std::unique_lock lock(mutex_, std::try_to_lock);  // who draws already, draws for all
  if (lock && now >= next_draw_) draw(now);
}

void Progress::draw(Clock::time_point now) {
  next_draw_ = now + kBetweenDraws;
  drawn_ = true;
  const double seconds = std::chrono::duration<double>(now - start_).count();
  const std::string figures = line(seconds, done_.load(std::memory_order_relaxed));
  const std::size_t room = terminal_columns(STDERR_FILENO) - 1;
  const std::string what =
      room > figures.size() ? shorten(escape(what_), room - figures.size()) : "";
  std::fputs(fmt::format("\r{}{}\x1b[K", what, shorten(figures, room)).c_str(), stderr);
}

std::string Progress::line(double seconds, std::uint64_t done) const {
  const std::uint64_t total = total_.load(std::memory_order_relaxed);
  const double rate = static_cast<double>(done) / seconds;
  std::string out = ": ";
  if (total > 0)
    out +=
        fmt::format("{:.0f} %, {} of ",
                    std::min(100.0, 100 * static_cast<double>(done) / static_cast<double>(total)),
                    format_bytes(done));
  out += fmt::format("{}, {}/s", format_bytes(total > 0 ? total : done),
                     format_bytes(static_cast<std::uint64_t>(rate)));
  if (total > done && rate > 0)
    out += fmt::format(", {} left", time_text(static_cast<double>(total - done) / rate));
  return out;
}

}  // namespace perdure::cli
