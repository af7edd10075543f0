// A directory that appears whole or not at all.
#include "storage/new_directory.hpp"

#include <gtest/gtest.h>

#include <fstream>

#include "expect_error.hpp"
#include "format/coding.hpp"
#include "storage/faulty_system.hpp"
#include "storage/temporary_directory.hpp"

namespace perdure::test {
namespace {

namespace fs = std::filesystem;
using storage::IfExists;
using storage::NewDirectory;

void write(NewDirectory& directory, const std::string& name, const std::string& text) {
  const auto file = directory.files().create(name, text.size(), IfExists::fail);
  file->append(format::as_bytes(text));
  file->commit();
}

std::string text_of(const fs::path& path) {
  std::ifstream in(path);
  return {std::istreambuf_iterator<char>(in), {}};
}

std::size_t entries_in(const fs::path& path) {
  return static_cast<std::size_t>(std::distance(fs::directory_iterator(path), {}));
}

class NewDirectoryTest : public ::testing::Test {
 protected:
  TemporaryDirectory folder;
  fs::path path = fs::path(folder.path()) / "new";
};

TEST_F(NewDirectoryTest, AppearsWithItsFiles) {
  {
    NewDirectory directory(io::real_system(), path, IfExists::fail);
    write(directory, "a", "alpha");
    EXPECT_FALSE(fs::exists(path));
    write(directory, "b", "beta");
    directory.commit();
    EXPECT_EQ(text_of(path / "a"), "alpha");
  }
  EXPECT_EQ(text_of(path / "b"), "beta");
  EXPECT_EQ(entries_in(folder.path()), 1u);
}

TEST_F(NewDirectoryTest, LeavesNothingWithoutCommit) {
  {
    NewDirectory directory(io::real_system(), path.string() + "/", IfExists::fail);
    write(directory, "a", "alpha");
  }
  EXPECT_EQ(entries_in(folder.path()), 0u);
}

TEST_F(NewDirectoryTest, TakesThePlaceOfAnother) {
  fs::create_directories(path / "in");
  std::ofstream(path / "in" / "old") << "old";
  EXPECT_ERROR(invalid, "exists already", NewDirectory(io::real_system(), path, IfExists::fail));
  {
    NewDirectory directory(io::real_system(), path, IfExists::replace);
    write(directory, "a", "alpha");
    EXPECT_EQ(text_of(path / "in" / "old"), "old");
    directory.commit();
  }
  EXPECT_EQ(text_of(path / "a"), "alpha");
  EXPECT_EQ(entries_in(path), 1u);
  EXPECT_EQ(entries_in(folder.path()), 1u);
}

TEST_F(NewDirectoryTest, TakesThePlaceOfNoFile) {
  std::ofstream(path) << "x";
  EXPECT_ERROR(invalid, "no directory", NewDirectory(io::real_system(), path, IfExists::replace));
  EXPECT_ERROR(not_found, "",
               NewDirectory(io::real_system(), path.string() + "2/x", IfExists::fail));
}

TEST_F(NewDirectoryTest, WhoCameFirstStays) {
  NewDirectory directory(io::real_system(), path, IfExists::fail);
  fs::create_directory(path);
  EXPECT_ERROR(io, "rename", directory.commit());
  EXPECT_EQ(entries_in(path), 0u);
}

TEST_F(NewDirectoryTest, RemovesWhatDeadWritersLeft) {
  const fs::path stem = fs::path(folder.path()) / ".new.12-0123456789abcdef.tmp";
  std::ofstream(stem) << "";
  fs::create_directory(stem.string() + ".d");
  std::ofstream(stem.string() + ".d/data") << "x";
  // Killed in front of the directory, or by a save of a file of that name cleaned up after.
  std::ofstream(folder.path() / ".new.13-0123456789abcdef.tmp") << "";
  fs::create_directory(folder.path() / ".new.14-0123456789abcdef.tmp.d");
  const fs::path other = fs::path(folder.path()) / ".other.12-0123456789abcdef.tmp.d";
  fs::create_directory(other);
  const NewDirectory living(io::real_system(), path, IfExists::fail);
  EXPECT_FALSE(fs::exists(stem));
  EXPECT_FALSE(fs::exists(stem.string() + ".d"));
  EXPECT_TRUE(fs::exists(other));
  EXPECT_EQ(entries_in(folder.path()), 3u);  // the living one has two names
  const std::size_t before = entries_in(folder.path());
  NewDirectory(io::real_system(), path, IfExists::fail);
  EXPECT_EQ(entries_in(folder.path()), before);
}

// A power cut may bring the old one back: it stays, until the next save finds that out.
TEST_F(NewDirectoryTest, WhereTheLastSyncFailsTheOldOneStaysAsDebris) {
  fs::create_directory(path);
  std::ofstream(path / "old") << "old";
  FaultySystem system;
  {
    NewDirectory directory(system, path, IfExists::replace);
    write(directory, "a", "alpha");
    system.fail(Call::fsync, 1, EIO);
    EXPECT_ERROR(io, "", directory.commit());
  }
  EXPECT_EQ(text_of(path / "a"), "alpha");
  std::string left;
  for (const auto& entry : fs::directory_iterator(folder.path()))
    if (entry.path() != path) left = entry.path();
  EXPECT_EQ(text_of(fs::path(left) / "old"), "old");
  NewDirectory(io::real_system(), path, IfExists::replace);
  EXPECT_EQ(entries_in(folder.path()), 1u);
}

}  // namespace
}  // namespace perdure::test
