// Who holds a run directory: within a process, between processes, and after a death.
#include "storage/directory_lock.hpp"

#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include "storage/faulty_system.hpp"
#include "storage/local_storage.hpp"
#include "storage/storage_access.hpp"
#include "storage/temporary_directory.hpp"

namespace perdure::test {
namespace {

using storage::LocalStorage;

std::shared_ptr<LocalStorage> run_at(const std::filesystem::path& path) {
  return LocalStorage::create_run(io::real_system(), path);
}

class LockTest : public testing::Test {
 protected:
  // Runs `body` in a child and gives its exit status.
  template <class Body>
  static int in_child(Body&& body) {
    const pid_t child = ::fork();
    if (child == 0) ::_exit(body());
    int status = 0;
    ::waitpid(child, &status, 0);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
  }
  int try_lock() const {
    try {
      run_at(path)->lock();
      return 0;
    } catch (const Error& error) {
      return error.code() == ErrorCode::locked ? 1 : 2;
    }
  }

  TemporaryDirectory directory;
  std::filesystem::path path = directory / "run";
};

TEST_F(LockTest, ExcludesAnotherProcessAndNamesTheHolder) {
  const auto storage = run_at(path);
  storage->lock();
  EXPECT_EQ(in_child([&] {
              const std::string text = error_of([&] { run_at(path)->lock(); }).what();
              return text.find("process " + std::to_string(::getppid())) == std::string::npos ? 1
                                                                                              : 0;
            }),
            0);
  EXPECT_EQ(TemporaryDirectory::content(path / ".lock"), std::to_string(::getpid()) + "\n");
  storage->unlock();
  EXPECT_EQ(in_child([&] { return try_lock(); }), 0);
}

// A hard link: a backup of the directory has one, or somebody wants to have something overwritten.
TEST_F(LockTest, ALockThatHasAnotherNameIsTakenAndNotWritten) {
  std::filesystem::create_directories(path);
  TemporaryDirectory::write(directory / "precious", "precious");
  std::filesystem::create_hard_link(directory / "precious", path / ".lock");
  const auto storage = run_at(path);
  storage->lock();
  EXPECT_EQ(in_child([&] { return try_lock(); }), 1);
  EXPECT_EQ(TemporaryDirectory::content(directory / "precious"), "precious");
}

TEST_F(LockTest, AFailedAttemptDoesNotDropTheLock) {
  const auto storage = run_at(path);
  storage->lock();
  EXPECT_EQ(try_lock(), 1);
  EXPECT_TRUE(storage->list().empty());
  EXPECT_EQ(in_child([&] { return try_lock(); }), 1);
}

TEST_F(LockTest, AChildsCopyNeitherHoldsNorFreesIt) {
  auto storage = run_at(path);
  storage->lock();
  EXPECT_EQ(in_child([&] {
              storage.reset();  // as at the exit of a forked worker
              return try_lock();
            }),
            1);
  EXPECT_EQ(in_child([&] { return try_lock(); }), 1);
}

// A trainer is killed while a worker that it forked lives on.
TEST_F(LockTest, IsFreeAtOnceAfterSigkillThoughChildrenLive) {
  int ready[2];
  int stay[2];
  ASSERT_EQ(::pipe(ready), 0);
  ASSERT_EQ(::pipe(stay), 0);
  const pid_t trainer = ::fork();
  if (trainer == 0) {
    const auto storage = run_at(path);
    storage->lock();
    if (::fork() == 0) {  // the worker: waits until the test closes its end
      ::close(stay[1]);
      char byte = 'r';
      [[maybe_unused]] auto written = ::write(ready[1], &byte, 1);
      [[maybe_unused]] auto count = ::read(stay[0], &byte, 1);
      ::_exit(0);
    }
    ::pause();
  }
  ::close(stay[0]);
  char byte = 0;
  ASSERT_EQ(::read(ready[0], &byte, 1), 1);
  EXPECT_EQ(try_lock(), 1);
  ::kill(trainer, SIGKILL);
  ::waitpid(trainer, nullptr, 0);
  EXPECT_EQ(try_lock(), 0);
  for (const int fd : {ready[0], ready[1], stay[1]}) ::close(fd);
}

TEST_F(LockTest, DoesWithoutLocksWhereTheFileSystemHasNone) {
  FaultySystem system;
  system.lock_error = -ENOSYS;
  const auto storage = LocalStorage::create_run(system, path);
  storage->lock();
  const auto other = LocalStorage::create_run(system, path);
  EXPECT_ERROR(locked, "of this process", other->lock());
  system.lock_error = -ENOLCK;  // has locks, but out of them: that may pass, so it is told
  storage->unlock();
  EXPECT_ERROR(io, ".lock", other->lock());
}

}  // namespace
}  // namespace perdure::test
