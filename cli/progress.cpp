#include "progress.hpp"

#include <fmt/format.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <cstdio>
#include <utility>

#include "text.hpp"

namespace perdure::cli {
namespace {

constexpr auto kFirstDraw = std::chrono::seconds(1);
constexpr auto kBetweenDraws = std::chrono::milliseconds(200);

volatile std::sig_atomic_t interrupted = 0;
struct sigaction action_before;

void on_interrupt(int signal) {
  interrupted = 1;
  std::signal(signal, SIG_DFL);  // the next one is not asked
}

// A parent that ignores it, as nohup and scripts in the background do, meant what it said.
void watch_interrupts() {
  interrupted = 0;
  ::sigaction(SIGINT, nullptr, &action_before);
  if (action_before.sa_handler == SIG_IGN) return;
  struct sigaction action = {};
  action.sa_handler = on_interrupt;
  action.sa_flags = SA_RESTART;
  ::sigaction(SIGINT, &action, nullptr);
}

std::size_t terminal_columns() {
  winsize size{};
  return ::ioctl(STDERR_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0 ? size.ws_col : 80;
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
      total_(total),
      shown_(::isatty(STDERR_FILENO) == 1),
      next_draw_(start_ + kFirstDraw) {
  watch_interrupts();
}

Progress::~Progress() {
  ::sigaction(SIGINT, &action_before, nullptr);
  finish();
}

void Progress::finish() {
  const std::lock_guard lock(mutex_);
  if (std::exchange(drawn_, false)) std::fputs("\r\x1b[K", stderr);
}

void Progress::add(std::uint64_t bytes) {
  if (interrupted != 0) throw Interrupted();
  done_.fetch_add(bytes, std::memory_order_relaxed);
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
  const std::size_t room = terminal_columns() - 1;
  const std::string what =
      room > figures.size() ? shorten(escape(what_), room - figures.size()) : "";
  std::fputs(fmt::format("\r{}{}\x1b[K", what, shorten(figures, room)).c_str(), stderr);
}

std::string Progress::line(double seconds, std::uint64_t done) const {
  const double rate = static_cast<double>(done) / seconds;
  std::string out = ": ";
  if (total_ > 0)
    out +=
        fmt::format("{:.0f} %, {} of ",
                    std::min(100.0, 100 * static_cast<double>(done) / static_cast<double>(total_)),
                    format_bytes(done));
  out += fmt::format("{}, {}/s", format_bytes(total_ > 0 ? total_ : done),
                     format_bytes(static_cast<std::uint64_t>(rate)));
  if (total_ > done && rate > 0)
    out += fmt::format(", {} left", time_text(static_cast<double>(total_ - done) / rate));
  return out;
}

}  // namespace perdure::cli
