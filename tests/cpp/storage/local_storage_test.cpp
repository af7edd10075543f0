// What is particular to directories: permissions, links, debris, who holds the lock, names on the
// disk.
#include "storage/local_storage.hpp"

#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>

#include "storage/faulty_system.hpp"
#include "storage/new_directory.hpp"
#include "storage/storage_access.hpp"
#include "storage/storage_suite.hpp"
#include "storage/temporary_directory.hpp"
#include "storage/temporary_file.hpp"

namespace perdure::test {
namespace {

namespace fs = std::filesystem;
using storage::IfExists;
using storage::LocalStorage;

std::shared_ptr<LocalStorage> run_at(const fs::path& path) {
  return LocalStorage::create_run(io::real_system(), path);
}

OpenStorage in_run_directory() {
  auto parent = std::make_shared<TemporaryDirectory>();
  return [parent] { return run_at(*parent / "runs/gpt"); };
}
OpenStorage in_folder() {
  auto parent = std::make_shared<TemporaryDirectory>();
  return [parent]() -> std::shared_ptr<storage::Storage> {
    return LocalStorage::open_folder(io::real_system(), parent->path());
  };
}

INSTANTIATE_TEST_SUITE_P(Local, StorageSuite,
                         testing::Values(StorageKind{"run", in_run_directory},
                                         StorageKind{"folder", in_folder}));

class LocalStorageTest : public testing::Test {
 protected:
  fs::perms mode_of(const std::string& name) const {
    return fs::status(directory / name).permissions();
  }
  void save(const std::string& name, const std::string& content) {
    const auto target = storage::resolve_target(io::real_system(), directory / name);
    target.folder->collect_debris_of(target.name);
    put(*target.folder, target.name, content);
  }

  TemporaryDirectory directory;
};

TEST_F(LocalStorageTest, MakesTheRunDirectoryWithItsParents) {
  run_at(directory / "a/b/c/");
  EXPECT_TRUE(fs::is_directory(directory / "a/b/c"));
  run_at(directory / "a/b/c");
}

TEST_F(LocalStorageTest, MakesARelativeRunDirectory) {
  const fs::path before = fs::current_path();
  fs::current_path(directory.path());
  const auto storage = run_at("runs/gpt");
  fs::current_path(before);
  put(*storage, "a.pt", "x");  // the directory is held, not its path
  EXPECT_EQ(TemporaryDirectory::content(directory / "runs/gpt/a.pt"), "x");
}

TEST_F(LocalStorageTest, SaysWhyADirectoryCannotBeUsed) {
  TemporaryDirectory::write(directory / "file", "x");
  EXPECT_ERROR(io, "not a directory", run_at(directory / "file"));
  EXPECT_ERROR(io, "not a directory", run_at(directory / "file/below"));
  EXPECT_ERROR(invalid, "empty", run_at(""));
  EXPECT_ERROR(not_found, "does not exist",
               LocalStorage::open_folder(io::real_system(), directory / "none"));
}

TEST_F(LocalStorageTest, ANewFileObeysTheUmask) {
  const mode_t before = ::umask(0027);
  save("a.pt", "x");
  ::umask(before);
  EXPECT_EQ(mode_of("a.pt"), fs::perms(0640));
}

TEST_F(LocalStorageTest, AReplacedFileKeepsItsPermissions) {
  for (const int mode : {0600, 0666, 0444, 0755}) {
    save("a.pt", "old");
    fs::permissions(directory / "a.pt", fs::perms(mode));
    save("a.pt", "new");
    EXPECT_EQ(mode_of("a.pt"), fs::perms(mode));
    fs::remove(directory / "a.pt");
  }
}

TEST_F(LocalStorageTest, ReplacesWhatALinkPointsTo) {
  fs::create_directory(directory / "elsewhere");
  TemporaryDirectory::write(directory / "elsewhere/target.pt", "old");
  fs::create_symlink("elsewhere/target.pt", directory / "one.pt");
  fs::create_symlink(directory / "one.pt", directory / "two.pt");
  save("two.pt", "new");
  EXPECT_TRUE(fs::is_symlink(directory / "two.pt"));
  EXPECT_TRUE(fs::is_symlink(directory / "one.pt"));
  EXPECT_EQ(TemporaryDirectory::content(directory / "elsewhere/target.pt"), "new");
}

TEST_F(LocalStorageTest, WritesThroughALinkToNothing) {
  fs::create_symlink("later.pt", directory / "link.pt");
  save("link.pt", "new");
  EXPECT_EQ(TemporaryDirectory::content(directory / "later.pt"), "new");
  fs::create_symlink("loop", directory / "loop");
  EXPECT_ERROR(io, "loop", save("loop", "x"));
}

TEST_F(LocalStorageTest, RefusesToReplaceWhatIsNoFile) {
  fs::create_directory(directory / "folder");
  ASSERT_EQ(::mkfifo((directory / "pipe").c_str(), 0600), 0);
  EXPECT_EQ(error_of([&] { save("folder", "x"); }).errno_value(), EISDIR);
  EXPECT_EQ(error_of([&] { save("folder/", "x"); }).errno_value(), EISDIR);
  EXPECT_ERROR(invalid, "pipe", save("pipe", "x"));
  EXPECT_ERROR(not_found, "nowhere", save("nowhere/a.pt", "x"));
  EXPECT_EQ(directory.names(), (std::set<std::string>{"folder", "pipe"}));
}

TEST_F(LocalStorageTest, OpensOnlyRegularFiles) {
  ASSERT_EQ(::mkfifo((directory / "pipe").c_str(), 0600), 0);
  EXPECT_EQ(error_of([&] { open_source(directory.path()); }).errno_value(), EISDIR);
  EXPECT_ERROR(invalid, "regular",
               open_source(directory / "pipe"));  // and does not wait for a writer
  EXPECT_ERROR(not_found, "none", open_source(directory / "none"));
  TemporaryDirectory::write(directory / "a", "abc");
  EXPECT_EQ(open_source(directory / "a")->size(), 3U);
}

TEST_F(LocalStorageTest, AFileThatShrinksIsAnError) {
  TemporaryDirectory::write(directory / "a", "0123456789");
  const auto source = open_source(directory / "a");
  fs::resize_file(directory / "a", 4);
  std::string content(10, '?');
  EXPECT_ERROR(io, "longer when it was opened",
               source->read(0, std::as_writable_bytes(std::span(content))));
}

TEST_F(LocalStorageTest, TakesTheLongestName) {
  const std::string name(255, 'n');
  save(name, "x");
  EXPECT_EQ(TemporaryDirectory::content(directory / name), "x");
  EXPECT_ERROR(io, "", save(name + "n", "x"));
}

TEST_F(LocalStorageTest, KnowsTheNamesOfTemporaries) {
  using storage::name_of_temporary;
  EXPECT_EQ(name_of_temporary(".a.pt.12-0123456789abcdef.tmp"), "a.pt");
  EXPECT_EQ(name_of_temporary("..a.12-0123456789abcdef.tmp"), ".a");
  for (const char* other :
       {"a.pt", ".a.pt.tmp", ".12-0123456789abcdef.tmp", ".a.12-0123456789abcde.tmp",
        ".a.x-0123456789abcdef.tmp", ".a.12-0123456789ABCDEF.tmp", ".a.12-0123456789abcdef"})
    EXPECT_EQ(name_of_temporary(other), std::nullopt) << other;
}

TEST_F(LocalStorageTest, CollectsWhatDeadWritersOfTheNameLeft) {
  const std::string dead = ".a.pt.12-0123456789abcdef.tmp";
  const std::string other = ".a.pt.x.12-0123456789abcdef.tmp";
  TemporaryDirectory::write(directory / dead, "dead");
  TemporaryDirectory::write(directory / other, "of the name a.pt.x");
  TemporaryDirectory::write(directory / ".a.pt.tmp", "someone else's");
  save("a.pt", "x");
  EXPECT_EQ(directory.names(), (std::set<std::string>{"a.pt", other, ".a.pt.tmp"}));
}

TEST_F(LocalStorageTest, LeavesALiveWriterAlone) {
  const auto storage = LocalStorage::open_folder(io::real_system(), directory.path());
  auto slow = storage->create("a.pt", 4, IfExists::replace);
  save("a.pt", "quick");
  slow->append(bytes_of("slow"));
  slow->commit();
  EXPECT_EQ(get(*storage, "a.pt"), "slow");
  EXPECT_EQ(directory.names(), (std::set<std::string>{"a.pt"}));
}

TEST_F(LocalStorageTest, TheHolderOfTheLockCollectsAllDebris) {
  const auto storage = run_at(directory / "run");
  put(*storage, "keep.pt", "x");
  TemporaryDirectory::write(directory / "run/.b.pt.12-0123456789abcdef.tmp", "dead");
  fs::create_directory(directory / "run/.trash");
  TemporaryDirectory::write(directory / "run/.trash/c.pt.0123456789abcdef", "removed");
  storage->lock();
  auto collected = storage->collect_debris();
  std::sort(collected.begin(), collected.end());
  EXPECT_EQ(collected, (std::vector<std::string>{"b.pt", "c.pt"}));
  EXPECT_EQ(TemporaryDirectory::names_in(directory / "run"),
            (std::set<std::string>{".lock", ".trash", "keep.pt"}));
  EXPECT_TRUE(fs::is_empty(directory / "run/.trash"));
}

TEST_F(LocalStorageTest, ListsFilesAndDirectoriesAndNoLinks) {
  const auto storage = run_at(directory / "run");
  put(*storage, "a.pt", "abc");
  fs::create_directory(directory / "run/folder");
  fs::create_symlink("a.pt", directory / "run/latest");
  fs::create_directory_symlink("folder", directory / "run/other");
  EXPECT_EQ(listed(*storage), (std::map<std::string, std::uint64_t>{{"a.pt", 3}, {"folder", 0}}));
  for (const auto& entry : storage->list()) EXPECT_EQ(entry.is_directory, entry.name == "folder");
  EXPECT_ERROR(io, "latest", storage->open("latest"));
}

TEST_F(LocalStorageTest, ShortTransfersAndInterruptionsAreInvisible) {
  FaultySystem system;
  system.transfer_limit = 7;
  system.interrupting = true;
  const auto storage = LocalStorage::create_run(system, directory / "run");
  const std::string content(1000, 'q');
  put(*storage, "a.pt", content, IfExists::fail);
  EXPECT_EQ(get(*storage, "a.pt"), content);
  storage->remove({"a.pt"});
  EXPECT_TRUE(storage->list().empty());
}

TEST_F(LocalStorageTest, ReportsAFullDiskBeforeWriting) {
  FaultySystem system;
  const auto storage = LocalStorage::open_folder(system, directory.path());
  system.fail(Call::fallocate, 1, ENOSPC);
  EXPECT_ERROR(full, "5.0 GB needed", storage->create("a.pt", 5'000'000'000, IfExists::replace));
  system.fail(Call::fallocate, 1, ENOSPC);
  EXPECT_ERROR(full, "available", storage->create("a.pt", 5'000'000'000, IfExists::replace));
  EXPECT_EQ(system.count(Call::pwrite), 0);
  EXPECT_TRUE(directory.names().empty());
}

TEST_F(LocalStorageTest, DoesWithoutFallocate) {
  for (const int error : {EOPNOTSUPP, ENOSYS, EINVAL}) {
    FaultySystem system;
    const auto storage = LocalStorage::open_folder(system, directory.path());
    system.fail(Call::fallocate, 1, error);
    put(*storage, "a.pt", "content");
    EXPECT_TRUE(system.fired());
    EXPECT_EQ(get(*storage, "a.pt"), "content");
  }
}

// In a child, because the limit is the process's: past it the kernel would kill the program by
// SIGXFSZ.
TEST_F(LocalStorageTest, NeverRunsIntoTheFileSizeLimit) {
  const pid_t child = ::fork();
  if (child == 0) {
    const struct rlimit limit = {1000, 1000};
    ::setrlimit(RLIMIT_FSIZE, &limit);
    try {
      save("a.pt", std::string(2000, 'x'));
    } catch (const Error& error) {
      ::_exit(error.code() == ErrorCode::full && error.errno_value() == EFBIG ? 0 : 2);
    }
    ::_exit(1);
  }
  int status = 0;
  ::waitpid(child, &status, 0);
  EXPECT_TRUE(WIFEXITED(status));
  EXPECT_EQ(WEXITSTATUS(status), 0);
  EXPECT_TRUE(directory.names().empty());
}

TEST_F(LocalStorageTest, DoesWithoutRenameFlags) {
  for (const int error : {-EINVAL, -ENOSYS}) {
    FaultySystem system;
    system.no_replace_error = error;
    const auto storage = LocalStorage::create_run(system, directory / "run");
    put(*storage, "a.pt", "first", IfExists::fail);
    EXPECT_ERROR(invalid, "a.pt", put(*storage, "a.pt", "second", IfExists::fail));
    EXPECT_EQ(get(*storage, "a.pt"), "first");
    storage->remove({"a.pt"});
  }
}

TEST_F(LocalStorageTest, DoesWithoutLocksOnTheTemporary) {
  FaultySystem system;
  system.lock_error = -ENOLCK;
  const auto storage = LocalStorage::open_folder(system, directory.path());
  auto slow = storage->create("a.pt", 4, IfExists::replace);
  storage->collect_debris_of("a.pt");  // nobody can tell who lives: nothing is removed
  slow->append(bytes_of("slow"));
  slow->commit();
  EXPECT_EQ(get(*storage, "a.pt"), "slow");
}

// The collector comes between the creation and the lock of the file, once.
TEST_F(LocalStorageTest, TakesAnotherNameWhereACollectorWasFaster) {
  FaultySystem system;
  const auto storage = LocalStorage::open_folder(system, directory.path());
  system.fail(Call::lock, 1, EAGAIN);
  put(*storage, "a.pt", "content");
  EXPECT_TRUE(system.fired());
  EXPECT_EQ(get(*storage, "a.pt"), "content");
}

TEST_F(LocalStorageTest, AForkedChildDoesNotRemoveItsParentsTemporary) {
  const auto storage = LocalStorage::open_folder(io::real_system(), directory.path());
  auto replacement = storage->create("a.pt", 1, IfExists::replace);
  const pid_t child = ::fork();
  if (child == 0) {
    replacement.reset();
    ::_exit(0);
  }
  ::waitpid(child, nullptr, 0);
  replacement->append(bytes_of("x"));
  replacement->commit();
  EXPECT_EQ(get(*storage, "a.pt"), "x");
}

// Past the limit the kernel ends the process.
TEST_F(LocalStorageTest, AppendsNoLinePastTheFileSizeLimit) {
  FaultySystem system;
  system.size_limit = 10;
  const auto storage = LocalStorage::open_folder(system, directory.path());
  storage->append_line("log", "12345");
  EXPECT_ERROR(full, "ulimit -f", storage->append_line("log", "12345"));
  EXPECT_EQ(get(*storage, "log"), "12345\n");
}

TEST_F(LocalStorageTest, SaysThatItsDirectoryIsGone) {
  const auto storage = run_at(directory / "run");
  fs::remove_all(directory / "run");
  EXPECT_ERROR(not_found, "was removed while it was open", put(*storage, "a.pt", "content"));
}

TEST_F(LocalStorageTest, SaysThatAFullDiskMayBeOutOfInodes) {
  FaultySystem system;
  const auto storage = LocalStorage::open_folder(system, directory.path());
  system.fail(Call::openat, 1, ENOSPC);
  EXPECT_ERROR(full, "df -i", put(*storage, "a.pt", "content"));
}

TEST_F(LocalStorageTest, DirectoriesAreListedRenamedAndRemovedWithAllThatIsInThem) {
  const auto run = run_at(directory.path());
  {
    const auto made = run->create_directory("step.dcp");
    put(made->files(), "a", "alpha");
    EXPECT_TRUE(run->list().empty());
    // Another process finds it under the name that it has meanwhile.
    put(*run_at(directory.path())->open_directory(made->temporary_name()), "b", "beta");
    made->commit();
  }
  ASSERT_EQ(run->list().size(), 1U);
  EXPECT_TRUE(run->list()[0].is_directory);
  EXPECT_EQ(get(*run->open_directory("step.dcp"), "b"), "beta");
  EXPECT_ERROR(invalid, "exists already", run->create_directory("step.dcp"));
  run->rename("step.dcp", "step.dcp.damaged");
  fs::create_directory(directory / "other");
  EXPECT_ERROR(invalid, "other", run->rename("step.dcp.damaged", "other"));
  EXPECT_EQ(get(*run->open_directory("step.dcp.damaged"), "a"), "alpha");
  fs::create_directories(directory / "step.dcp.damaged/by hand/deep");
  run->remove({"step.dcp.damaged", "not there"});
  EXPECT_EQ(directory.names(), (std::set<std::string>{".trash", "other"}));
  EXPECT_TRUE(fs::is_empty(directory / ".trash"));
}

TEST_F(LocalStorageTest, ADirectoryIsOpenedOnlyWhereItStands) {
  const auto run = run_at(directory / "run");
  fs::create_directory(directory / "elsewhere");
  fs::create_symlink("../elsewhere", directory / "run/link");
  TemporaryDirectory::write(directory / "run/file", "x");
  EXPECT_ERROR(io, "link", run->open_directory("link"));
  EXPECT_ERROR(io, "file", run->open_directory("file"));
  EXPECT_ERROR(not_found, "no such directory", run->open_directory("none"));
  EXPECT_FALSE(fs::exists(directory / "run/none"));
  for (const char* name : {"", ".", "..", "a/b", "../elsewhere"}) {
    EXPECT_ERROR(invalid, "not a file name", run->open_directory(name));
    EXPECT_ERROR(invalid, "not a file name", run->create_directory(name));
  }
}

TEST_F(LocalStorageTest, NoLinkIsFollowedWhereDirectoriesAreRemoved) {
  const auto run = run_at(directory / "run");
  fs::create_directories(directory / "elsewhere/below");
  TemporaryDirectory::write(directory / "elsewhere/precious", "x");
  fs::create_directories(directory / "run/step.dcp");
  fs::create_directory_symlink("../../elsewhere", directory / "run/step.dcp/link");
  fs::create_directory_symlink("../elsewhere", directory / "run/itself");
  run->remove({"step.dcp", "itself"});
  fs::create_directory_symlink("../../elsewhere", directory / "run/.trash/x.0123456789abcdef");
  fs::create_directory_symlink("../elsewhere", directory / "run/.s.dcp.12-0123456789abcdef.tmp.d");
  run->lock();
  run->collect_debris();
  EXPECT_EQ(TemporaryDirectory::content(directory / "elsewhere/precious"), "x");
  EXPECT_TRUE(fs::exists(directory / "elsewhere/below"));
  EXPECT_TRUE(fs::is_empty(directory / "run/.trash"));
}

TEST_F(LocalStorageTest, DebrisOfDirectoriesIsCollectedUnlessItsWriterLives) {
  const auto run = run_at(directory.path());
  const auto living = run->create_directory("step-2.dcp");
  put(living->files(), "a", "alpha");
  const std::string dead = ".step-1.dcp.12-0123456789abcdef.tmp";
  TemporaryDirectory::write(directory / dead, "");
  fs::create_directories(directory / (dead + ".d/deep"));
  TemporaryDirectory::write(directory / (dead + ".d/deep/data"), "x");
  fs::create_directories(directory / ".trash/step-0.dcp.0123456789abcdef");
  TemporaryDirectory::write(directory / ".trash/step-0.dcp.0123456789abcdef/data", "x");
  run->lock();
  const auto names = run->collect_debris();
  for (const char* name : {"step-0.dcp", "step-1.dcp", "step-2.dcp"})
    EXPECT_NE(std::ranges::find(names, name), names.end()) << name;
  EXPECT_TRUE(fs::is_empty(directory / ".trash"));
  EXPECT_EQ(directory.names().size(), 4U);  // the lock, the trash, and the living one's two
  living->commit();
  EXPECT_EQ(get(*run->open_directory("step-2.dcp"), "a"), "alpha");
}

}  // namespace
}  // namespace perdure::test
