#include "engine/schedule.hpp"

#include <dlfcn.h>
#include <pthread.h>
#include <semaphore.h>
#include <time.h>

#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <memory>
#include <random>
#include <utility>
#include <vector>

namespace perdure::test {
namespace {

template <class Function>
Function* real(const char* name) {
  return reinterpret_cast<Function*>(::dlsym(RTLD_NEXT, name));
}

struct Waiting {
  enum Kind { nothing, mutex, condition, timed_condition, thread } kind = nothing;
  const void* on = nullptr;
};

// One of the threads. Only the one whose turn it is runs; the others are at their semaphores.
struct Member {
  Member() { ::sem_init(&turn, 0, 0); }
  ~Member() { ::sem_destroy(&turn); }
  sem_t turn;
  int number = 0;
  Waiting waiting;
  bool timed_out = false;
  bool ended = false;
  pthread_t handle{};
  void* (*start)(void*) = nullptr;
  void* argument = nullptr;
};

class Schedule;
Schedule* active = nullptr;
thread_local Member* self = nullptr;
thread_local int pinned = 0;  // no change of thread while it is above 0
void (*deadlock_handler)() = nullptr;

class Schedule {
 public:
  explicit Schedule(std::uint64_t seed) : seed_(seed), random_(seed) { self = add(); }

  std::uint64_t choose(std::uint64_t count) { return random_() % count; }
  ScheduleResult result() const { return {switches_, static_cast<int>(members_.size())}; }
  bool all_ended() const {
    for (const auto& member : members_)
      if (member.get() != self && !member->ended) return false;
    return true;
  }

  void point() {
    if (pinned == 0) hand_over();
  }

  void lock(const void* mutex) {
    point();
    while (owners_.contains(mutex)) wait({Waiting::mutex, mutex});
    owners_[mutex] = self;
  }
  bool try_lock(const void* mutex) {
    point();
    return owners_.emplace(mutex, self).second;
  }
  void unlock(const void* mutex) {
    release(mutex);
    point();
  }

  // False: the time was over.
  bool wait_condition(const void* condition, const void* mutex, bool timed) {
    release(mutex);
    self->timed_out = false;
    wait({timed ? Waiting::timed_condition : Waiting::condition, condition});
    const bool in_time = !self->timed_out;
    while (owners_.contains(mutex)) wait({Waiting::mutex, mutex});
    owners_[mutex] = self;
    return in_time;
  }
  void signal(const void* condition, bool all) {
    std::vector<Member*> waiting;
    for (const auto& member : members_)
      if (is_at(*member, condition)) waiting.push_back(member.get());
    if (!waiting.empty() && !all) waiting = {waiting[choose(waiting.size())]};
    for (Member* member : waiting) member->waiting = {};
    point();
  }

  int create(pthread_t* handle, const pthread_attr_t* attributes, void* (*start)(void*),
             void* argument) {
    static const auto real_create = real<decltype(pthread_create)>("pthread_create");
    Member* const member = add();
    member->start = start;
    member->argument = argument;
    const int result = real_create(handle, attributes, run, member);
    if (result != 0) {
      member->ended = true;
      return result;
    }
    member->handle = *handle;
    point();
    return 0;
  }
  void join(pthread_t handle) {
    for (const auto& member : members_)
      if (member->start != nullptr && ::pthread_equal(member->handle, handle) != 0)
        while (!member->ended) wait({Waiting::thread, member.get()});
  }

 private:
  static bool is_at(const Member& member, const void* condition) {
    const auto kind = member.waiting.kind;
    return (kind == Waiting::condition || kind == Waiting::timed_condition) &&
           member.waiting.on == condition;
  }

  Member* add() {
    members_.push_back(std::make_unique<Member>());
    members_.back()->number = static_cast<int>(members_.size()) - 1;
    return members_.back().get();
  }

  static void* run(void* data) {
    self = static_cast<Member*>(data);
    ::sem_wait(&self->turn);
    void* const result = self->start(self->argument);
    active->end();
    return result;
  }

  void wake(Waiting::Kind kind, const void* on) {
    for (const auto& member : members_)
      if (member->waiting.kind == kind && member->waiting.on == on) member->waiting = {};
  }
  void release(const void* mutex) {
    owners_.erase(mutex);
    wake(Waiting::mutex, mutex);
  }
  void end() {
    self->ended = true;
    wake(Waiting::thread, self);
    Member* const ending = std::exchange(self, nullptr);
    ::sem_post(&next(ending)->turn);
  }

  void wait(Waiting waiting) {
    self->waiting = waiting;
    hand_over();
  }
  void hand_over() {
    Member* const to = next(self);
    if (to == self) return;
    ++switches_;
    ::sem_post(&to->turn);
    ::sem_wait(&self->turn);
  }

  // Now and then a time is over early, and a waiter wakes without a reason: both are allowed.
  Member* next(const Member* from) {
    std::vector<Member*> able, timed;
    for (const auto& member : members_) {
      if (member->ended) continue;
      if (member->waiting.kind == Waiting::nothing) able.push_back(member.get());
      if (member->waiting.kind == Waiting::timed_condition) timed.push_back(member.get());
      if (member->waiting.kind == Waiting::condition && choose(64) == 0) {
        member->waiting = {};
        able.push_back(member.get());
      }
    }
    if (!timed.empty() && (able.empty() || choose(16) == 0)) {
      Member* const member = timed[choose(timed.size())];
      member->waiting = {};
      member->timed_out = true;
      return member;
    }
    if (able.empty()) report_deadlock(from);
    return able[choose(able.size())];
  }

  [[noreturn]] void report_deadlock(const Member* from) {
    static constexpr const char* kNames[] = {"nothing", "a mutex", "a condition", "a time",
                                             "a thread"};
    std::fprintf(stderr, "deadlock in the schedule of PERDURE_SCHEDULE=%llu:\n",
                 static_cast<unsigned long long>(seed_));
    for (const auto& member : members_)
      if (!member->ended)
        std::fprintf(stderr, "  thread %d waits for %s %p%s\n", member->number,
                     kNames[member->waiting.kind], member->waiting.on,
                     member.get() == from ? " (the last that ran)" : "");
    if (deadlock_handler != nullptr) deadlock_handler();
    std::abort();
  }

  std::uint64_t seed_;
  std::mt19937_64 random_;
  std::vector<std::unique_ptr<Member>> members_;
  std::map<const void*, Member*> owners_;
  std::uint64_t switches_ = 0;
};

struct Active {
  explicit Active(Schedule& schedule) { active = &schedule; }
  Active(const Active&) = delete;
  Active& operator=(const Active&) = delete;
  ~Active() {
    active = nullptr;
    self = nullptr;
  }
};

bool scheduled() { return active != nullptr && self != nullptr; }

}  // namespace

ScheduleResult run_schedule(std::uint64_t seed, const std::function<void()>& body) {
  Schedule schedule(seed);
  const Active whole_body(schedule);
  body();
  if (!schedule.all_ended()) {
    std::fprintf(stderr, "threads are left by the schedule of PERDURE_SCHEDULE=%llu\n",
                 static_cast<unsigned long long>(seed));
    std::abort();
  }
  return schedule.result();
}

void schedule_point() {
  if (scheduled()) active->point();
}

std::uint64_t schedule_choice(std::uint64_t count) {
  return scheduled() ? active->choose(count) : 0;
}

void on_schedule_deadlock(void (*handler)()) { deadlock_handler = handler; }

}  // namespace perdure::test

// What replaces the C library's: the real thing for threads that are not part of a schedule.
using perdure::test::active;
using perdure::test::pinned;
using perdure::test::real;
using perdure::test::scheduled;

extern "C" {

int pthread_mutex_lock(pthread_mutex_t* mutex) noexcept {
  static const auto next = real<int(pthread_mutex_t*)>("pthread_mutex_lock");
  if (!scheduled()) return next(mutex);
  active->lock(mutex);
  return 0;
}
int pthread_mutex_trylock(pthread_mutex_t* mutex) noexcept {
  static const auto next = real<int(pthread_mutex_t*)>("pthread_mutex_trylock");
  if (!scheduled()) return next(mutex);
  return active->try_lock(mutex) ? 0 : EBUSY;
}
int pthread_mutex_unlock(pthread_mutex_t* mutex) noexcept {
  static const auto next = real<int(pthread_mutex_t*)>("pthread_mutex_unlock");
  if (!scheduled()) return next(mutex);
  active->unlock(mutex);
  return 0;
}

int pthread_cond_wait(pthread_cond_t* condition, pthread_mutex_t* mutex) {
  static const auto next = real<int(pthread_cond_t*, pthread_mutex_t*)>("pthread_cond_wait");
  if (!scheduled()) return next(condition, mutex);
  active->wait_condition(condition, mutex, false);
  return 0;
}
int pthread_cond_timedwait(pthread_cond_t* condition, pthread_mutex_t* mutex,
                           const timespec* until) {
  static const auto next =
      real<int(pthread_cond_t*, pthread_mutex_t*, const timespec*)>("pthread_cond_timedwait");
  if (!scheduled()) return next(condition, mutex, until);
  return active->wait_condition(condition, mutex, true) ? 0 : ETIMEDOUT;
}
int pthread_cond_clockwait(pthread_cond_t* condition, pthread_mutex_t* mutex, clockid_t clock,
                           const timespec* until) {
  static const auto next = real<int(pthread_cond_t*, pthread_mutex_t*, clockid_t, const timespec*)>(
      "pthread_cond_clockwait");
  if (!scheduled()) return next(condition, mutex, clock, until);
  return active->wait_condition(condition, mutex, true) ? 0 : ETIMEDOUT;
}
int pthread_cond_signal(pthread_cond_t* condition) noexcept {
  static const auto next = real<int(pthread_cond_t*)>("pthread_cond_signal");
  if (!scheduled()) return next(condition);
  active->signal(condition, false);
  return 0;
}
int pthread_cond_broadcast(pthread_cond_t* condition) noexcept {
  static const auto next = real<int(pthread_cond_t*)>("pthread_cond_broadcast");
  if (!scheduled()) return next(condition);
  active->signal(condition, true);
  return 0;
}

int pthread_create(pthread_t* handle, const pthread_attr_t* attributes, void* (*start)(void*),
                   void* argument) noexcept {
  static const auto next = real<decltype(pthread_create)>("pthread_create");
  if (!scheduled()) return next(handle, attributes, start, argument);
  return active->create(handle, attributes, start, argument);
}
int pthread_join(pthread_t handle, void** result) {
  static const auto next = real<int(pthread_t, void**)>("pthread_join");
  if (scheduled()) active->join(handle);
  return next(handle, result);
}

// Whoever waits for another thread's first call would wait outside of the schedule: so nobody gets
// a turn in the middle of one.
int pthread_once(pthread_once_t* control, void (*routine)()) {
  static const auto next = real<int(pthread_once_t*, void (*)())>("pthread_once");
  ++pinned;
  const int result = next(control, routine);
  --pinned;
  return result;
}
}
