// perdure::save: one file.
#include <perdure/file.hpp>
#include <thread>

#include "engine/run_fixture.hpp"

namespace perdure::test {
namespace {

namespace fs = std::filesystem;

class SaveFileTest : public testing::Test {
 protected:
  TemporaryDirectory directory;
};

TEST_F(SaveFileTest, SavesAndReplaces) {
  for (const int step : {1, 2}) {
    save(directory / "a.pt", state_of_step(step));
    EXPECT_EQ(step_of(load(directory / "a.pt")), step);
  }
  EXPECT_EQ(directory.names(), std::set<std::string>{"a.pt"});
}

TEST_F(SaveFileTest, TakesARelativePath) {
  const fs::path before = fs::current_path();
  fs::current_path(directory.path());
  save("a.pt", state_of_step(1));
  save("./b.pt", state_of_step(2));
  fs::current_path(before);
  EXPECT_EQ(directory.names(), (std::set<std::string>{"a.pt", "b.pt"}));
}

TEST_F(SaveFileTest, SaysWhatIsWrongWithAPath) {
  const auto save_to = [&](const fs::path& path) { save(path, state_of_step(1)); };
  EXPECT_ERROR(io, "directory", save_to(directory.path()));
  EXPECT_ERROR(io, "directory", save_to(directory.path().string() + "/"));
  EXPECT_ERROR(not_found, "none", save_to(directory / "none/a.pt"));
  TemporaryDirectory::write(directory / "file", "x");
  EXPECT_ERROR(io, "not a directory", save_to(directory / "file/a.pt"));
  EXPECT_ERROR(io, "", save_to(""));
}

TEST_F(SaveFileTest, AValueThatCannotBeSavedLeavesEverythingAsItWas) {
  save(directory / "a.pt", state_of_step(1));
  EXPECT_ERROR(
      invalid, "['config']",
      save(directory / "a.pt", Dict{{"config", Value::opaque({"__main__", "Config", {}, {}})}}));
  EXPECT_EQ(step_of(load(directory / "a.pt")), 1);
  EXPECT_EQ(directory.names(), std::set<std::string>{"a.pt"});
}

// Each of them also collects what it takes for the debris of the others.
TEST_F(SaveFileTest, ManySaversOfOnePathAreEachWhole) {
  constexpr int kSavers = 4;
  std::vector<std::jthread> savers;
  for (int saver = 1; saver <= kSavers; ++saver)
    savers.emplace_back([&, saver] {
      for (int i = 0; i < 25; ++i) {
        save(directory / "a.pt", state_of_step(saver));
        EXPECT_GT(step_of(load(directory / "a.pt")), 0);
      }
    });
  savers.clear();
  EXPECT_EQ(directory.names(), std::set<std::string>{"a.pt"});
}

TEST_F(SaveFileTest, TheRecordSaysWhoWroteItAndThatItIsOfNoRun) {
  save(directory / "a.pt", state_of_step(1));
  const CheckpointInfo info = CheckpointFile::open(directory / "a.pt").info().value();
  EXPECT_EQ(info.writer, "perdure 0.1.0");
  EXPECT_EQ(info.generation, 0U);
  EXPECT_GT(info.created, 1.6e9);
}

}  // namespace
}  // namespace perdure::test
