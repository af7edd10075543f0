// Threads that run one at a time, in an order that a seed chooses: every lock, condition variable,
// start and join of a thread is a point where another one may go on.
//
// The pthread functions behind std::mutex, std::condition_variable and std::thread are replaced in
// the program that this is linked into (schedule.cpp); outside of run() they are the real ones. So
// an interleaving is a function of the seed, and a deadlock is seen at once: nobody can go on. It
// is reported with the seed, and ends the program.
#pragma once

#include <cstdint>
#include <functional>

namespace perdure::test {

struct ScheduleResult {
  std::uint64_t switches = 0;  // how often another thread went on
  int threads = 0;             // that took part
};

// Not nested, and from one thread at a time. Every thread that `body` starts must be joined by it.
ScheduleResult run_schedule(std::uint64_t seed, const std::function<void()>& body);

// Another point where a thread may change; outside of run_schedule() nothing.
void schedule_point();

// A number by the seed; 0 outside of run_schedule().
std::uint64_t schedule_choice(std::uint64_t count);

// Called instead of ending the program where nobody can go on; for the test of that itself, and it
// must not return.
void on_schedule_deadlock(void (*handler)());

}  // namespace perdure::test
