// The power is cut before every single change that a save, a removal and a set-aside make.
#include <cstdint>

#include "storage/crash_explorer.hpp"
#include "storage/local_storage.hpp"
#include "storage/new_directory.hpp"
#include "storage/storage_access.hpp"

namespace perdure::test {
namespace {

using storage::IfExists;
using storage::LocalStorage;

const std::string kOld = "the old content";
// Of several sectors, so that it can be torn.
const std::string kNew = std::string(3000, 'n') + "the new and longer content";

std::string read_or_absent(CrashingDisk& disk, const std::string& name) {
  try {
    return get(*LocalStorage::create_run(disk, "/runs/gpt"), name);
  } catch (const Error& error) {
    if (error.code() != ErrorCode::not_found) throw;
    return "absent";
  }
}

std::vector<std::string> names_in(CrashingDisk& disk, const char* path) {
  std::vector<std::string> names;
  const int fd = disk.openat(AT_FDCWD, path, O_RDONLY | O_DIRECTORY, 0);
  disk.list(fd, names);
  disk.close(fd);
  return names;
}

struct Promise {
  bool acknowledged = false;
};
using Work = std::function<void(CrashingDisk&)>;
using Check = std::function<void(CrashingDisk&, bool acknowledged)>;

std::uint64_t explore(const std::string& name, const Work& prepare, const Work& action,
                      const Check& check) {
  CrashExplorer<Promise> explorer(
      name,
      [&](CrashingDisk& disk, Promise& promise) {
        action(disk);
        promise.acknowledged = true;
      },
      [&](CrashingDisk& disk, const Promise& promise) { check(disk, promise.acknowledged); },
      number_from_environment("PERDURE_STATES", 1000), 1);
  return explorer.run([&](CrashingDisk& disk, Promise&) { prepare(disk); });
}

void put_old(CrashingDisk& disk) {
  put(*LocalStorage::create_run(disk, "/runs/gpt"), "a.pt", kOld);
}
void put_new(CrashingDisk& disk) {
  put(*LocalStorage::create_run(disk, "/runs/gpt"), "a.pt", kNew);
}
void nothing(CrashingDisk&) {}

TEST(CrashTest, AReplacedFileIsOldOrNewAndNewOnceAcknowledged) {
  int news = 0;
  const auto states =
      explore("replace", put_old, put_new, [&](CrashingDisk& disk, bool acknowledged) {
        const std::string content = read_or_absent(disk, "a.pt");
        EXPECT_TRUE(content == kNew || (content == kOld && !acknowledged)) << content;
        news += content == kNew && !acknowledged;
      });
  // Visible before it was acknowledged: the cut between rename and fsync was met.
  EXPECT_GT(news, 0);
  EXPECT_GT(states, 100U);
}

TEST(CrashTest, AFirstSaveIsThereOnceAcknowledgedWithItsNewDirectory) {
  explore(
      "first", nothing,
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
  const auto after = disk.crash().restart([](unsigned) { return 0U; });
  EXPECT_EQ(read_or_absent(*after, "a.pt"), kNew);
}

TEST(CrashTest, DebrisIsGoneAfterTheNextStart) {
  explore("debris", put_old, put_new, [](CrashingDisk& disk, bool) {
    const auto run = LocalStorage::create_run(disk, "/runs/gpt");
    run->lock();
    run->collect_debris();
    EXPECT_EQ(names_in(disk, "/runs/gpt"), (std::vector<std::string>{".lock", "a.pt"}));
  });
}

TEST(CrashTest, ARemovedFileIsWholeOrGoneAndStaysGoneOnceAcknowledged) {
  explore(
      "remove",
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
  explore(
      "aside", put_old,
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

void put_directory(CrashingDisk& disk, const std::string& content) {
  const auto run = LocalStorage::create_run(disk, "/runs/gpt");
  storage::NewDirectory directory(disk, "/runs/gpt/step.dcp", IfExists::replace);
  put(*run->open_directory(directory.temporary_name()), "one", content, IfExists::fail);
  put(directory.files(), "two", content, IfExists::fail);
  directory.commit();
}
// "mixed" where it is not whole.
std::string read_directory(CrashingDisk& disk) {
  const auto run = LocalStorage::create_run(disk, "/runs/gpt");
  if (!listed(*run).contains("step.dcp")) return "absent";
  const auto directory = run->open_directory("step.dcp");
  if (listed(*directory).size() != 2) return "mixed";
  const std::string one = get(*directory, "one");
  return one == get(*directory, "two") ? one : "mixed";
}

void check_no_debris(CrashingDisk& disk) {
  {
    const auto run = LocalStorage::create_run(disk, "/runs/gpt");
    run->lock();
    run->collect_debris();
  }
  for (const std::string& name : names_in(disk, "/runs/gpt"))
    EXPECT_TRUE(name == ".lock" || name == ".trash" || name == "step.dcp") << name;
  if (const auto status = io::Directory::open(disk, "/runs/gpt").status(".trash"))
    EXPECT_TRUE(names_in(disk, "/runs/gpt/.trash").empty());
  EXPECT_EQ(disk.open_descriptors(), 0U);
}

TEST(CrashTest, ANewDirectoryIsWholeOrAbsent) {
  int news = 0;
  const auto states = explore(
      "directory", nothing, [](CrashingDisk& disk) { put_directory(disk, kNew); },
      [&](CrashingDisk& disk, bool acknowledged) {
        const std::string content = read_directory(disk);
        EXPECT_TRUE(content == kNew || (content == "absent" && !acknowledged)) << content;
        news += content == kNew && !acknowledged;
        check_no_debris(disk);
        EXPECT_EQ(read_directory(disk), content);
        put_directory(disk, kOld);
        EXPECT_EQ(read_directory(disk), kOld);
      });
  EXPECT_GT(news, 0);
  EXPECT_GT(states, 200U);
}

TEST(CrashTest, AReplacedDirectoryIsTheOldOneOrTheNewOne) {
  int news = 0;
  explore(
      "exchange", [](CrashingDisk& disk) { put_directory(disk, kOld); },
      [](CrashingDisk& disk) { put_directory(disk, kNew); },
      [&](CrashingDisk& disk, bool acknowledged) {
        const std::string content = read_directory(disk);
        EXPECT_TRUE(content == kNew || (content == kOld && !acknowledged)) << content;
        news += content == kNew && !acknowledged;
        check_no_debris(disk);
        EXPECT_EQ(read_directory(disk), content);
      });
  EXPECT_GT(news, 0);
}

TEST(CrashTest, ARemovedDirectoryIsWholeOrGone) {
  int hidden = 0;
  explore(
      "rmdir", [](CrashingDisk& disk) { put_directory(disk, kOld); },
      [](CrashingDisk& disk) { LocalStorage::create_run(disk, "/runs/gpt")->remove({"step.dcp"}); },
      [&](CrashingDisk& disk, bool acknowledged) {
        const std::string content = read_directory(disk);
        EXPECT_TRUE(content == "absent" || (content == kOld && !acknowledged)) << content;
        hidden += content == "absent" && !acknowledged;
        check_no_debris(disk);
        EXPECT_EQ(read_directory(disk), content);
      });
  EXPECT_GT(hidden, 0);
}

// The test can see: on disks whose fsync does nothing, for files or for directories, acknowledged
// saves are lost.
TEST(CrashTest, ADiskThatDoesNotSyncIsFoundOut) {
  for (const bool of_files : {true, false}) {
    int lost = 0;
    explore(
        "lying",
        [&](CrashingDisk& disk) {
          put_old(disk);
          (of_files ? disk.ignores_sync_of_files : disk.ignores_sync_of_directories) = true;
        },
        put_new,
        [&](CrashingDisk& disk, bool acknowledged) {
          lost += acknowledged && read_or_absent(disk, "a.pt") != kNew;
        });
    EXPECT_GT(lost, 0) << (of_files ? "files" : "directories");
    lost = 0;
    explore(
        "lying-directory",
        [&](CrashingDisk& disk) {
          put_old(disk);
          (of_files ? disk.ignores_sync_of_files : disk.ignores_sync_of_directories) = true;
        },
        [](CrashingDisk& disk) { put_directory(disk, kNew); },
        [&](CrashingDisk& disk, bool acknowledged) {
          lost += acknowledged && read_directory(disk) != kNew;
        });
    EXPECT_GT(lost, 0) << (of_files ? "files" : "directories");
  }
}

TEST(CrashingDiskTest, ADirectoryIsRemovedAsLinuxDoes) {
  CrashingDisk disk;
  disk.mkdirat(AT_FDCWD, "/d", 0777);
  disk.close(disk.openat(AT_FDCWD, "/d/a", O_CREAT | O_RDWR, 0600));
  EXPECT_EQ(disk.unlinkat(AT_FDCWD, "/d"), -EISDIR);
  EXPECT_EQ(disk.rmdirat(AT_FDCWD, "/d/a"), -ENOTDIR);
  EXPECT_EQ(disk.rmdirat(AT_FDCWD, "/d"), -ENOTEMPTY);
  EXPECT_EQ(disk.rmdirat(AT_FDCWD, "/e"), -ENOENT);
  disk.unlinkat(AT_FDCWD, "/d/a");
  EXPECT_EQ(disk.rmdirat(AT_FDCWD, "/d"), 0);
  EXPECT_TRUE(names_in(disk, "/").empty());
}

// A file that is moved may be in both directories after a cut, or in none; a directory is in one.
TEST(CrashingDiskTest, ADirectoryIsNeverInTwoPlaces) {
  CrashingDisk disk;
  for (const char* path : {"/from", "/to", "/from/d"}) disk.mkdirat(AT_FDCWD, path, 0777);
  for (const char* path : {"/from", "/"}) {
    const int fd = disk.openat(AT_FDCWD, path, O_RDONLY | O_DIRECTORY, 0);
    disk.fsync(fd);
    disk.close(fd);
  }
  disk.renameat2(AT_FDCWD, "/from/d", AT_FDCWD, "/to/d", 0);
  for (const unsigned answer : {0U, 1U}) {
    const auto after = disk.crash().restart([&](unsigned) { return answer; });
    EXPECT_EQ(names_in(*after, "/from").size(), 1 - answer);
    EXPECT_EQ(names_in(*after, "/to").size(), answer);
  }
}

// And the disk forgets as it says.
TEST(CrashingDiskTest, EveryPartOfAWriteMayBeLost) {
  CrashingDisk disk;
  const int fd = disk.openat(AT_FDCWD, "/a", O_CREAT | O_RDWR, 0600);
  disk.pwrite(fd, bytes_of(std::string(1500, 'x')), 0);
  std::set<std::string> seen;
  std::string beginning;
  for (bool more = true; more;) {
    Answers answers(beginning);
    const auto after = disk.crash().restart(std::ref(answers));
    const auto names = names_in(*after, "/");
    std::string content = names.empty() ? "absent" : std::string(1500, '?');
    if (!names.empty()) {
      const int found = after->openat(AT_FDCWD, "/a", O_RDONLY, 0);
      content.resize(static_cast<std::size_t>(
          after->pread(found, std::as_writable_bytes(std::span(content)), 0)));
    }
    seen.insert(content);
    more = answers.next(beginning);
  }
  const std::string sector(512, 'x'), rest(476, 'x');
  for (const std::string& expected :
       {std::string("absent"), std::string(), std::string(1500, '\0'), std::string(1500, '\xA5'),
        std::string(1500, 'x'), sector + sector + std::string(476, '\0'),
        std::string(512, '\xA5') + sector + rest})
    EXPECT_TRUE(seen.contains(expected)) << expected.size();
}

}  // namespace
}  // namespace perdure::test
