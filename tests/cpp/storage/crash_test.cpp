// The power is cut before every single change that a save, a removal and a set-aside make.
#include <cstdint>

#include "storage/crashing_disk.hpp"
#include "storage/local_storage.hpp"
#include "storage/storage_access.hpp"

namespace perdure::test {
namespace {

using storage::IfExists;
using storage::LocalStorage;

const std::string kOld = "the old content";
const std::string kNew = "the new and longer content";

std::string read_or_absent(CrashingDisk& disk, const std::string& name) {
  try {
    return get(*LocalStorage::create_run(disk, "/runs/gpt"), name);
  } catch (const Error& error) {
    if (error.code() != ErrorCode::not_found) throw;
    return "absent";
  }
}

// Runs `prepare`, then `action` with a power cut before its n-th change, for n = 1 until it is
// through, for every way in which the unsynced may survive; then `check(disk, acknowledged)`.
template <class Prepare, class Action, class Check>
void for_every_cut(Prepare prepare, Action action, Check check) {
  for (const Survival survival : kAllSurvivals) {
    const unsigned seeds = survival == Survival::random ? 20 : 1;
    for (unsigned seed = 0; seed < seeds; ++seed) {
      bool through = false;
      for (std::uint64_t n = 1; !through; ++n) {
        SCOPED_TRACE(testing::Message() << "cut before change " << n << ", survival "
                                        << static_cast<int>(survival) << ", seed " << seed);
        CrashingDisk disk;
        prepare(disk);
        disk.cut_power_before(n);
        bool acknowledged = false;
        try {
          action(disk);
          acknowledged = true;
        } catch (const Error&) {
          EXPECT_TRUE(disk.is_off());
        }
        through = !disk.is_off();
        disk.restart(survival, seed);
        check(disk, acknowledged);
        if (testing::Test::HasFailure()) return;
      }
    }
  }
}

void put_old(CrashingDisk& disk) {
  put(*LocalStorage::create_run(disk, "/runs/gpt"), "a.pt", kOld);
}
void put_new(CrashingDisk& disk) {
  put(*LocalStorage::create_run(disk, "/runs/gpt"), "a.pt", kNew);
}

TEST(CrashTest, AReplacedFileIsOldOrNewAndNewOnceAcknowledged) {
  int news = 0;
  for_every_cut(put_old, put_new, [&](CrashingDisk& disk, bool acknowledged) {
    const std::string content = read_or_absent(disk, "a.pt");
    EXPECT_TRUE(content == kNew || (content == kOld && !acknowledged)) << content;
    news += content == kNew && !acknowledged;
  });
  EXPECT_GT(news,
            0);  // visible before it was acknowledged: the cut between rename and fsync was met
}

TEST(CrashTest, AFirstSaveIsThereOnceAcknowledgedWithItsNewDirectory) {
  for_every_cut([](CrashingDisk&) {},
                [](CrashingDisk& disk) {
                  const auto run = LocalStorage::create_run(disk, "/runs/gpt");
                  run->lock();
                  run->collect_debris();
                  put(*run, "a.pt", kNew, IfExists::fail);
                },
                [](CrashingDisk& disk, bool acknowledged) {
                  const std::string content = read_or_absent(disk, "a.pt");
                  EXPECT_TRUE(content == kNew || (content == "absent" && !acknowledged)) << content;
                });
}

// A process that was killed made the directory, and did not get to sync it.
TEST(CrashTest, ADirectoryThatWasFoundIsMadeDurableToo) {
  CrashingDisk disk;
  ASSERT_EQ(disk.mkdirat(AT_FDCWD, "/runs", 0777), 0);
  put_new(disk);
  disk.restart(Survival::nothing);
  EXPECT_EQ(read_or_absent(disk, "a.pt"), kNew);
}

TEST(CrashTest, DebrisIsGoneAfterTheNextStart) {
  for_every_cut(put_old, put_new, [](CrashingDisk& disk, bool) {
    const auto run = LocalStorage::create_run(disk, "/runs/gpt");
    run->lock();
    run->collect_debris();
    std::vector<std::string> names;
    const int fd = disk.openat(AT_FDCWD, "/runs/gpt", O_RDONLY | O_DIRECTORY, 0);
    ASSERT_EQ(disk.list(fd, names), 0);
    disk.close(fd);
    EXPECT_EQ(names, (std::vector<std::string>{".lock", "a.pt"}));
  });
}

TEST(CrashTest, ARemovedFileIsWholeOrGoneAndStaysGoneOnceAcknowledged) {
  for_every_cut(
      [](CrashingDisk& disk) {
        put_old(disk);
        put(*LocalStorage::create_run(disk, "/runs/gpt"), "keep.pt", kNew);
      },
      [](CrashingDisk& disk) { LocalStorage::create_run(disk, "/runs/gpt")->remove({"a.pt"}); },
      [](CrashingDisk& disk, bool acknowledged) {
        const std::string content = read_or_absent(disk, "a.pt");
        EXPECT_TRUE(content == "absent" || (content == kOld && !acknowledged)) << content;
        EXPECT_EQ(read_or_absent(disk, "keep.pt"), kNew);
      });
}

TEST(CrashTest, ASetAsideFileHasExactlyOneOfTheTwoNames) {
  for_every_cut(
      put_old,
      [](CrashingDisk& disk) {
        LocalStorage::create_run(disk, "/runs/gpt")->rename("a.pt", "a.pt.damaged");
      },
      [](CrashingDisk& disk, bool acknowledged) {
        const bool before = read_or_absent(disk, "a.pt") == kOld;
        const bool after = read_or_absent(disk, "a.pt.damaged") == kOld;
        EXPECT_NE(before, after);
        EXPECT_TRUE(after || !acknowledged);
      });
}

// The test can see: on a disk whose fsync does nothing, an acknowledged save is lost.
TEST(CrashTest, ADiskThatDoesNotSyncIsFoundOut) {
  int lost = 0;
  for_every_cut(
      [](CrashingDisk& disk) {
        put_old(disk);
        disk.ignores_sync = true;
      },
      put_new,
      [&](CrashingDisk& disk, bool acknowledged) {
        lost += acknowledged && read_or_absent(disk, "a.pt") != kNew;
      });
  EXPECT_GT(lost, 0);
}

}  // namespace
}  // namespace perdure::test
