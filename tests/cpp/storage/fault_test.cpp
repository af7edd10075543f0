// Every system call of a save, a removal and a set-aside fails once, with every errno that matters.
#include <vector>

#include "storage/faulty_system.hpp"
#include "storage/local_storage.hpp"
#include "storage/storage_access.hpp"
#include "storage/temporary_directory.hpp"

namespace perdure::test {
namespace {

using storage::IfExists;
using storage::LocalStorage;

std::vector<int> errors_of(Call call) {
  if (call == Call::completion) return {EIO, ENOSPC, ECANCELED, EAGAIN, EINTR, kShort};
  if (call == Call::pread || call == Call::pwrite) return {EIO, ENOSPC, EACCES, EINTR, kShort};
  return {EIO, ENOSPC, EACCES};
}

// What is tried again, and so is no error.
bool passes(Call call, int error) {
  return error == EINTR || error == kShort || (error == EAGAIN && call == Call::completion);
}

ErrorCode code_of(Call call, int error) {
  if (call == Call::lock && error == EACCES)
    return ErrorCode::locked;  // what POSIX lets a taken lock say
  return error == ENOSPC ? ErrorCode::full : ErrorCode::io;
}

// Calls `check` after `action` ran with its n-th call of each kind failing, for every n that it
// gets to.
template <class Prepare, class Action, class Check>
void for_every_fault(Prepare prepare, Action action, Check check) {
  for (const Call call : kAllCalls) {
    for (const int error : errors_of(call)) {
      for (int n = 1;; ++n) {
        SCOPED_TRACE(testing::Message() << "call kind " << static_cast<int>(call) << ", number "
                                        << n << ", errno " << error);
        TemporaryDirectory directory;
        prepare(directory);
        FaultySystem system;
        system.fail(call, n, error);
        std::optional<Error> thrown;
        try {
          action(system, directory);
        } catch (const Error& e) {
          thrown = e;
        }
        EXPECT_EQ(system.open_descriptors(), 0U);
        if (!system.fired()) {
          EXPECT_FALSE(thrown) << thrown->what();
          break;
        }
        if (thrown) {
          EXPECT_FALSE(passes(call, error)) << thrown->what();
          EXPECT_EQ(thrown->code(), code_of(call, error)) << thrown->what();
          EXPECT_TRUE(thrown->errno_value() == error || thrown->code() == ErrorCode::locked);
          EXPECT_NE(std::string(thrown->what()).find(directory.path().parent_path().string()),
                    std::string::npos)
              << thrown->what();
        }
        check(directory, call, n, thrown.has_value());
        if (testing::Test::HasFailure()) return;
      }
    }
  }
}

bool is_temporary(const std::string& name) { return name.ends_with(".tmp"); }

void save_over(io::System& system, const TemporaryDirectory& directory) {
  const auto target = storage::resolve_target(system, directory / "a.pt");
  target.folder->collect_debris_of(target.name);
  put(*target.folder, target.name, "new");
}

// How many fstats such a save makes; the last one is behind the fsync of the directory.
int fstats_of_a_save() {
  TemporaryDirectory directory;
  TemporaryDirectory::write(directory / "a.pt", "old content");
  FaultySystem system;
  save_over(system, directory);
  return system.count(Call::fstat);
}

// XFS that has shut itself down says of the fsync of a directory that all went well.
TEST(FaultTest, ADirectoryThatIsNotThereAnyMoreIsNotDurable) {
  TemporaryDirectory directory;
  TemporaryDirectory::write(directory / "a.pt", "old content");
  FaultySystem system;
  system.fail(Call::fstat, fstats_of_a_save(), EIO);
  EXPECT_ERROR(io, "make durable (fsync) the directory", save_over(system, directory));
  EXPECT_EQ(system.count(Call::fsync), 2);
}

TEST(FaultTest, ASaveThatFailsLeavesTheOldContent) {
  for_every_fault(
      [](const TemporaryDirectory& directory) {
        TemporaryDirectory::write(directory / "a.pt", "old content");
      },
      save_over,
      [last = fstats_of_a_save()](const TemporaryDirectory& directory, Call call, int n,
                                  bool threw) {
        // The second fsync is the directory's, and what looks at it afterwards: the new content is
        // visible then, but not known to be durable.
        const bool visible =
            !threw || (call == Call::fsync && n == 2) || (call == Call::fstat && n == last);
        EXPECT_EQ(TemporaryDirectory::content(directory / "a.pt"), visible ? "new" : "old content");
        EXPECT_EQ(directory.names(), (std::set<std::string>{"a.pt"}));
      });
}

TEST(FaultTest, ANewRunDirectoryAndItsFirstSave) {
  for_every_fault(
      [](const TemporaryDirectory&) {},
      [](io::System& system, const TemporaryDirectory& directory) {
        const auto run = LocalStorage::create_run(system, directory / "runs/gpt");
        run->lock();
        run->collect_debris();
        put(*run, "a.pt", "new", IfExists::fail);
      },
      [](const TemporaryDirectory& directory, Call, int, bool threw) {
        EXPECT_TRUE(threw || TemporaryDirectory::content(directory / "runs/gpt/a.pt") == "new");
        // Whatever was left, the next one gets on from there.
        const auto run = LocalStorage::create_run(io::real_system(), directory / "runs/gpt");
        run->lock();
        run->collect_debris();
        for (const std::string& name : TemporaryDirectory::names_in(directory / "runs/gpt"))
          EXPECT_FALSE(is_temporary(name)) << name;
        put(*run, "b.pt", "next", IfExists::fail);
      });
}

TEST(FaultTest, ARemovalHidesWholeFilesOrLeavesThem) {
  for_every_fault(
      [](const TemporaryDirectory& directory) {
        for (const char* name : {"a", "b", "c"}) TemporaryDirectory::write(directory / name, name);
      },
      [](io::System& system, const TemporaryDirectory& directory) {
        LocalStorage::open_folder(system, directory.path())->remove({"a", "b"});
      },
      [](const TemporaryDirectory& directory, Call, int, bool threw) {
        for (const std::string& name : directory.names()) {
          if (name == ".trash") continue;
          EXPECT_EQ(TemporaryDirectory::content(directory / name), name);
          EXPECT_TRUE(threw || name == "c") << name;
        }
        EXPECT_TRUE(directory.names().contains("c"));
      });
}

TEST(FaultTest, ARenameHappensOrDoesNot) {
  for_every_fault(
      [](const TemporaryDirectory& directory) {
        TemporaryDirectory::write(directory / "a", "content");
      },
      [](io::System& system, const TemporaryDirectory& directory) {
        LocalStorage::open_folder(system, directory.path())->rename("a", "b");
      },
      [](const TemporaryDirectory& directory, Call, int, bool threw) {
        const auto names = directory.names();
        ASSERT_EQ(names.size(), 1U);
        EXPECT_TRUE(threw || names.contains("b"));
        EXPECT_EQ(TemporaryDirectory::content(directory / *names.begin()), "content");
      });
}

TEST(FaultTest, AReadFailsOrIsWhole) {
  for_every_fault(
      [](const TemporaryDirectory& directory) {
        TemporaryDirectory::write(directory / "a", "content");
      },
      [](io::System& system, const TemporaryDirectory& directory) {
        EXPECT_EQ(get(*LocalStorage::open_folder(system, directory.path()), "a"), "content");
      },
      [](const TemporaryDirectory&, Call call, int, bool threw) {
        EXPECT_TRUE(threw || call == Call::close || call == Call::pread);
      });
}

// NFS may tell of a full disk no earlier.
TEST(FaultTest, WhatCloseSaysIsHeeded) {
  TemporaryDirectory directory;
  FaultySystem system;
  const auto folder = LocalStorage::open_folder(system, directory.path());
  auto replacement = folder->create("a.pt", 3, IfExists::replace);
  replacement->append(bytes_of("new"));
  system.fail(Call::close, 1, EDQUOT);
  EXPECT_ERROR(full, "close", replacement->commit());
  replacement.reset();
  EXPECT_TRUE(directory.names().empty());
}

// A file whose fsync failed is never synced again: its pages may be marked clean though they are
// lost.
TEST(FaultTest, AFailedSyncIsNotRetried) {
  TemporaryDirectory directory;
  FaultySystem system;
  const auto folder = LocalStorage::open_folder(system, directory.path());
  system.fail(Call::fsync, 1, EIO);
  EXPECT_ERROR(io, "fsync", put(*folder, "a.pt", "new"));
  EXPECT_EQ(system.count(Call::fsync), 1);
  EXPECT_TRUE(directory.names().empty());
}

}  // namespace
}  // namespace perdure::test
