// Signals that announce the end of the process.
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <functional>
#include <perdure/checkpoint_manager.hpp>

#include "engine/gated_storage.hpp"
#include "engine/run_fixture.hpp"
#include "io/signals.hpp"

namespace perdure::test {
namespace {

int handled_before = 0;
void handle_before(int) { ++handled_before; }

class PreemptionTest : public RunFixture {
 protected:
  static ManagerOptions on(std::vector<int> signals) {
    ManagerOptions options;
    options.save_on_signal = std::move(signals);
    return options;
  }
  static int status_of(pid_t child) {
    int status = 0;
    ::waitpid(child, &status, 0);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
  }
  // SIGUSR2, of a child that begins with `begin`.
  static void expect_only_the_parent_ends_it(const std::function<void()>& begin) {
    int ready[2];
    ASSERT_EQ(::pipe(ready), 0);
    const pid_t worker = ::fork();
    if (worker == 0) {
      begin();
      ::raise(SIGUSR2);  // not from the parent
      static_cast<void>(!::write(ready[1], "x", 1));
      for (;;) ::pause();
    }
    ::close(ready[1]);
    char byte = 0;
    EXPECT_EQ(::read(ready[0], &byte, 1), 1);
    ::kill(worker, SIGUSR2);
    EXPECT_EQ(status_of(worker), -SIGUSR2);
    ::close(ready[0]);
  }
};

TEST_F(PreemptionTest, ASignalIsNoticedAndTheSaveSaysWhy) {
  auto manager = open(on({SIGTERM, SIGUSR1}));
  EXPECT_FALSE(manager.preempted());
  EXPECT_FALSE(manager.should_save(1));
  EXPECT_EQ(save(manager, 1).checkpoint()->info.reason, "regular");
  ::raise(SIGUSR1);
  EXPECT_TRUE(manager.should_save(2));
  EXPECT_TRUE(manager.preempted());
  EXPECT_EQ(save(manager, 2).checkpoint()->info.reason, "preemption");
  EXPECT_EQ(CheckpointFile::open(file(2, 2)).info()->reason, "preemption");
  EXPECT_FALSE(manager.should_save(3));  // is done
  ::raise(SIGTERM);                      // a second one is harmless
  EXPECT_FALSE(manager.should_save(4));
  manager.close();
  EXPECT_TRUE(manager.preempted());  // the program wants to know for its exit code
}

// Else a loop would end without the save that should_save() had no chance to ask for.
TEST_F(PreemptionTest, ASignalAfterShouldSaveWaitsForTheNextOne) {
  auto manager = open(on({SIGUSR2}));
  EXPECT_FALSE(manager.should_save(1));
  ::raise(SIGUSR2);
  EXPECT_FALSE(manager.preempted());
  EXPECT_EQ(save(manager, 1).checkpoint()->info.reason, "regular");
  EXPECT_TRUE(manager.should_save(2));
  EXPECT_TRUE(manager.preempted());
}

TEST_F(PreemptionTest, WithoutShouldSaveItIsSeenAtOnce) {
  auto manager = open(on({SIGUSR2}));
  ::raise(SIGUSR2);
  EXPECT_TRUE(manager.preempted());
  EXPECT_EQ(save(manager, 1).checkpoint()->info.reason, "preemption");
}

TEST_F(PreemptionTest, AnEarlierHandlerStillRunsAndComesBack) {
  handled_before = 0;
  const auto original = std::signal(SIGUSR2, handle_before);
  {
    auto manager = open(on({SIGUSR2}));
    ::raise(SIGUSR2);
    EXPECT_TRUE(manager.preempted());
    EXPECT_EQ(handled_before, 1);
  }
  ::raise(SIGUSR2);
  EXPECT_EQ(handled_before, 2);
  EXPECT_EQ(std::signal(SIGUSR2, original), handle_before);
}

TEST_F(PreemptionTest, AHandlerThatWasPutOverOursStays) {
  const auto original = std::signal(SIGUSR2, SIG_IGN);
  {
    auto manager = open(on({SIGUSR2}));
    std::signal(SIGUSR2, handle_before);
  }
  EXPECT_EQ(std::signal(SIGUSR2, original), handle_before);
}

TEST_F(PreemptionTest, TwoManagersShareTheSignal) {
  auto first = open(on({SIGUSR2}));
  CheckpointManager second(directory / "other", on({SIGUSR2}));
  first.close();
  ::raise(SIGUSR2);
  EXPECT_TRUE(second.preempted());
  second.close();
  auto third = open(on({SIGUSR2}));  // begins anew
  EXPECT_FALSE(third.preempted());
}

TEST_F(PreemptionTest, WithoutTheOptionNothingIsInstalled) {
  auto manager = open();
  struct sigaction action = {};
  ::sigaction(SIGTERM, nullptr, &action);
  EXPECT_EQ(action.sa_handler, SIG_DFL);
  EXPECT_FALSE(manager.preempted());
  EXPECT_ERROR(invalid, "save_every", manager.should_save(1));
}

TEST_F(PreemptionTest, WhatIsNoSignalIsRefused) {
  EXPECT_ERROR(invalid, "9 is no signal", open(on({SIGKILL})));
  EXPECT_ERROR(invalid, "0 is no signal", open(on({0})));
  EXPECT_ERROR(invalid, "1000 is no signal", open(on({1000})));
}

// A scheduler signals all of a job's processes; multiprocessing ends its workers by SIGTERM.
TEST_F(PreemptionTest, AForkedChildIgnoresItUnlessItComesFromItsParent) {
  auto manager = open(on({SIGUSR2}));
  expect_only_the_parent_ends_it([] {});
  EXPECT_FALSE(manager.preempted());
}

// As PyTorch does in DataLoader workers.
TEST_F(PreemptionTest, AChildWhoseLibrariesHandleItCanWatchItAgain) {
  auto manager = open(on({SIGUSR1, SIGUSR2}));
  EXPECT_EQ(watched_signals(), (std::vector<int>{SIGUSR1, SIGUSR2}));
  expect_only_the_parent_ends_it([parent = ::getpid()] {
    std::signal(SIGUSR2, SIG_DFL);
    if (!watched_signals().empty()) ::_exit(1);
    watch_signals_in_child({SIGUSR2}, parent);
  });
  EXPECT_FALSE(manager.preempted());
  manager.close();
  EXPECT_TRUE(watched_signals().empty());
}

TEST_F(PreemptionTest, AChildWithAManagerOfItsOwnIsAProcessLikeAnyOther) {
  auto manager = open(on({SIGUSR2}));
  const pid_t child = ::fork();
  if (child == 0) {
    CheckpointManager own(directory / "own", on({SIGUSR2}));
    const bool before = own.preempted();
    ::raise(SIGUSR2);
    ::_exit(!before && own.preempted() ? 0 : 1);
  }
  EXPECT_EQ(status_of(child), 0);
  EXPECT_FALSE(manager.preempted());
}

// The one in flight would take longer than there is time: it is finished, and no other is begun.
TEST_F(PreemptionTest, FinishesTheOneInFlightWhereThereIsNoTimeForAnother) {
  ManagerOptions options = on({SIGUSR2});
  options.grace = std::chrono::milliseconds(1);
  options.note = [this](const std::string& text) { notes.push_back(text); };
  const auto storage = std::make_shared<GatedStorage>();
  CheckpointManager manager(storage, options);
  save(manager, 1);  // so that it is known what a save takes
  storage->before_commit.close();
  const SaveHandle in_flight = manager.save(state_of_step(2), info_of_step(2));
  ::raise(SIGUSR2);
  std::this_thread::sleep_for(std::chrono::milliseconds(5));
  EXPECT_FALSE(manager.should_save(3));
  EXPECT_TRUE(manager.preempted());
  const SaveHandle third = manager.save(state_of_step(3), info_of_step(3));
  EXPECT_TRUE(third.skipped());
  ASSERT_EQ(notes.size(), 1U);
  EXPECT_NE(notes[0].find("step 3 is not saved"), std::string::npos);
  storage->before_commit.open();
  manager.wait();
  EXPECT_EQ(manager.latest_step(), 2);
  EXPECT_TRUE(manager.should_save(3));  // nothing is in flight: a try costs nothing
}

// With time enough, also a manager that skips otherwise waits for the one in flight.
TEST_F(PreemptionTest, WaitsForTheOneInFlightWhereThereIsTime) {
  ManagerOptions options = on({SIGUSR2});
  options.when_busy = WhenBusy::skip;
  const auto storage = std::make_shared<GatedStorage>();
  CheckpointManager manager(storage, options);
  save(manager, 1);
  storage->before_commit.close();
  manager.save(state_of_step(2), info_of_step(2));
  EXPECT_TRUE(manager.save(state_of_step(3), info_of_step(3)).skipped());
  ::raise(SIGUSR2);
  EXPECT_TRUE(manager.should_save(3));
  std::thread opener([&] {
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    storage->before_commit.open();
  });
  EXPECT_FALSE(manager.save(state_of_step(3), info_of_step(3)).skipped());
  opener.join();
  manager.wait();
  EXPECT_EQ(manager.latest_step(), 3);
}

TEST_F(PreemptionTest, ASaveThatFailedIsTriedAgain) {
  const auto storage = std::make_shared<GatedStorage>();
  ManagerOptions options = on({SIGUSR2});
  options.warning = [](const std::string&) {};
  CheckpointManager manager(storage, options);
  ::raise(SIGUSR2);
  EXPECT_TRUE(manager.should_save(1));
  storage->fail_next_create(Error(ErrorCode::full, "no room"));
  save(manager, 1);
  EXPECT_TRUE(manager.should_save(2));
  save(manager, 2);
  EXPECT_FALSE(manager.should_save(3));
}

TEST_F(PreemptionTest, SavesByStepsUntilThen) {
  ManagerOptions options = on({SIGUSR2});
  options.save_every.steps = 10;
  auto manager = open(options);
  EXPECT_FALSE(manager.should_save(9));
  EXPECT_TRUE(manager.should_save(10));
  save(manager, 10);
  ::raise(SIGUSR2);
  EXPECT_TRUE(manager.should_save(11));
}

}  // namespace
}  // namespace perdure::test
