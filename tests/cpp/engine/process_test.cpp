// More than one process: the lock, forked children, and SIGKILL in the middle of everything.
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <exception>
#include <perdure/checkpoint_manager.hpp>
#include <random>

#include "engine/run_fixture.hpp"
#include "io/system.hpp"

namespace perdure::test {
namespace {

class ProcessTest : public RunFixture {
 protected:
  template <class Body>
  static pid_t start(Body&& body) {
    const pid_t child = ::fork();
    if (child != 0) return child;
    try {
      ::_exit(body());
    } catch (const std::exception& error) {
      std::fprintf(stderr, "the child failed: %s\n", error.what());
      ::_exit(99);
    }
  }
  static int status_of(pid_t child) {
    int status = 0;
    ::waitpid(child, &status, 0);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
  }
  // 0 where `action` throws an Error of that code.
  template <class Action>
  static int refuses(ErrorCode code, Action&& action) {
    try {
      action();
    } catch (const Error& error) {
      return error.code() == code ? 0 : 2;
    }
    return 1;
  }
};

TEST_F(ProcessTest, OneManagerAtATime) {
  auto manager = open();
  EXPECT_ERROR(locked, std::to_string(::getpid()), open());
  EXPECT_EQ(status_of(start([&] { return refuses(ErrorCode::locked, [&] { open(); }); })), 0);
  manager.close();
  EXPECT_EQ(status_of(start([&] {
              open();
              return 0;
            })),
            0);
}

TEST_F(ProcessTest, AForkedChildIsRefusedEverythingAndDisturbsNothing) {
  auto manager = std::unique_ptr<CheckpointManager>(new CheckpointManager(open()));
  save(*manager, 1);
  const auto in_child = [&] {
    int failed = refuses(ErrorCode::invalid, [&] { save(*manager, 2); });
    failed += refuses(ErrorCode::invalid, [&] { restore(*manager); });
    failed += refuses(ErrorCode::invalid, [&] { manager->latest_step(); });
    failed += refuses(ErrorCode::invalid, [&] { manager->wait(); });
    failed += refuses(ErrorCode::invalid, [&] { manager->close(); });
    manager.reset();  // as at exit
    failed += refuses(ErrorCode::locked, [&] { open(); });
    return failed;
  };
  EXPECT_EQ(status_of(start(in_child)), 0);
  EXPECT_EQ(status_of(start([&] { return refuses(ErrorCode::locked, [&] { open(); }); })), 0);
  save(*manager, 3);
  EXPECT_EQ(restore(*manager), 3);
}

// From here on the kernel refuses this system call, as it does in sandboxes.
bool forbid(unsigned call, unsigned error) {
  sock_filter filter[] = {
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, nr)),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, call, 0, 1),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | error),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
  };
  const sock_fprog program{.len = std::size(filter), .filter = filter};
  return ::prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 &&
         ::prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) == 0;
}

// In a child that `forbids` something: saves and restores in every mode of capture. `state` gives
// what is saved.
class ForbiddenTest : public ProcessTest {
 protected:
  template <class Forbids>
  void expect_saves(Forbids&& forbids) {
    const int status = status_of(start([&] {
      if (!forbids()) return 77;
      for (const Capture capture : {Capture::eager, Capture::overlapped, Capture::checked}) {
        auto manager = open({.capture = capture});
        for (std::int64_t step = 1; step <= 3; ++step)
          if (!save(manager, step).checkpoint()) return 1;
        if (restore(manager) != 3) return 2;
      }
      return warnings.empty() ? 0 : 3;
    }));
    if (status == 77) GTEST_SKIP() << "this kernel has no seccomp filters";
    EXPECT_EQ(status, 0);
  }
};

// As containers do by default.
TEST_F(ForbiddenTest, IoUring) {
  expect_saves([] {
    const bool forbidden = forbid(SYS_io_uring_setup, EPERM);
    return forbidden && !io::open_uring(io::real_system(), 4);
  });
}

// A ring that opens, and takes nothing.
TEST_F(ForbiddenTest, SubmissionToARing) {
  for (const unsigned error : {EPERM, EAGAIN, EBUSY})
    expect_saves([&] { return forbid(SYS_io_uring_enter, error); });
}

// As where the number of processes is limited, and reached.
bool forbid_threads() { return forbid(SYS_clone, EAGAIN) && forbid(SYS_clone3, EAGAIN); }

TEST_F(ForbiddenTest, Threads) { expect_saves(forbid_threads); }

// What save() said is captured is what is in the file, though the threads that were to help with
// the copying could not be had.
TEST_F(ForbiddenTest, HelpersOfALargeSave) {
  const int status = status_of(start([&] {
    auto manager = open();
    save(manager, 1);  // the writer's thread is there
    if (!forbid_threads()) return 77;
    auto data = std::make_shared<std::vector<std::int64_t>>(std::size_t{12} << 20, 5);
    Tensor tensor = Tensor::over(data->data(), DType::int64, {std::int64_t{12} << 20});
    tensor.storage->owner = data;
    const SaveHandle handle = manager.save(Dict{{"weight", tensor}}, info_of_step(2));
    std::ranges::fill(*data, 6);
    handle.wait();
    bool whole = false;
    manager.restore({}, [&](const CheckpointFile& file) {
      file.read_all(file.value());
      const auto& storage = *file.value()["weight"].as_tensor().storage;
      const auto* numbers = reinterpret_cast<const std::int64_t*>(storage.data);
      whole = std::all_of(numbers, numbers + data->size(), [](auto x) { return x == 5; });
    });
    return whole ? 0 : 1;
  }));
  if (status == 77) GTEST_SKIP() << "this kernel has no seccomp filters";
  EXPECT_EQ(status, 0);
}

// The trainer is killed while a worker that it forked lives: the next trainer starts at once.
TEST_F(ProcessTest, TheRunIsFreeAtOnceAfterSigkillThoughWorkersLive) {
  int ready[2];
  int stay[2];
  ASSERT_EQ(::pipe(ready), 0);
  ASSERT_EQ(::pipe(stay), 0);
  const pid_t trainer = start([&] {
    auto manager = open();
    save(manager, 1);
    if (::fork() == 0) {
      ::close(stay[1]);
      char byte = 'r';
      [[maybe_unused]] auto written = ::write(ready[1], &byte, 1);
      [[maybe_unused]] auto count = ::read(stay[0], &byte, 1);
      ::_exit(0);
    }
    return ::pause();
  });
  ::close(stay[0]);
  char byte = 0;
  ASSERT_EQ(::read(ready[0], &byte, 1), 1);
  ::kill(trainer, SIGKILL);
  EXPECT_EQ(status_of(trainer), -SIGKILL);
  auto manager = open();
  EXPECT_EQ(restore(manager), 1);
  for (const int fd : {ready[0], ready[1], stay[1]}) ::close(fd);
}

// A trainer that saves all the time is killed at random moments: what it had acknowledged is there,
// whole.
TEST_F(ProcessTest, KilledAtRandomMomentsItNeverGoesBack) {
  constexpr int kKills = 40;
  std::mt19937 random(20240501);
  std::int64_t acknowledged = 0;
  for (int kill = 0; kill < kKills; ++kill) {
    int told[2];
    ASSERT_EQ(::pipe(told), 0);
    const pid_t trainer = start([&] {
      auto manager = open({.keep_last = 2});
      std::int64_t step = std::max<std::int64_t>(restore(manager), 0);
      while (true) {
        ++step;
        if (save(manager, step).error()) return 1;
        if (::write(told[1], &step, sizeof step) != sizeof step) return 1;
      }
    });
    ::close(told[1]);
    ::usleep(static_cast<useconds_t>(1000 + random() % 60000));
    ::kill(trainer, SIGKILL);
    EXPECT_EQ(status_of(trainer), -SIGKILL);
    for (std::int64_t step = 0; ::read(told[0], &step, sizeof step) == sizeof step;)
      acknowledged = step;
    ::close(told[0]);
    auto manager = open();
    EXPECT_GE(std::max<std::int64_t>(restore(manager), 0), acknowledged);
    EXPECT_TRUE(warnings.empty()) << warnings[0];
  }
  EXPECT_GT(acknowledged, 0);
  // What the last one had in flight may be held a moment longer; the next save collects it.
  auto manager = open();
  const auto has_debris = [&] {
    const auto names = TemporaryDirectory::names_in(path);
    return std::ranges::any_of(names, [](const auto& name) { return name.ends_with(".tmp"); });
  };
  for (int attempt = 1; attempt <= 100 && has_debris(); ++attempt) {
    ::usleep(50000);
    save(manager, acknowledged + attempt);
  }
  EXPECT_FALSE(has_debris());
}

}  // namespace
}  // namespace perdure::test
