// history.jsonl: what a run tells of itself, and that nothing depends on it.
#include <perdure/checkpoint_manager.hpp>

#include "engine/gated_storage.hpp"
#include "engine/run_fixture.hpp"

namespace perdure::test {
namespace {

namespace fs = std::filesystem;

class HistoryTest : public RunFixture {
 protected:
  fs::path history = path / "history.jsonl";
  std::string events() const {
    std::string text;
    for (const Value& event : read_history(path)) {
      text += (text.empty() ? "" : " ") + event["event"].as_string();
      if (event.contains("step")) text += std::to_string(event["step"].as_int());
    }
    return text;
  }
};

TEST_F(HistoryTest, TellsOfEverything) {
  {
    auto manager = open({.keep_last = 1});
    save(manager, 1, {{"loss", 0.5}, {"worst", INFINITY}});
    save(manager, 2);
    manager.pin(2, "good");
  }
  auto manager = open({.keep_last = 1});
  restore(manager);
  damage(file(2, 2));
  EXPECT_ERROR(corrupt, "damaged", restore(manager));
  EXPECT_EQ(events(), "save1 save2 prune pin2 restore2 damaged");
  const auto all = read_history(path);
  EXPECT_EQ(all[0]["metrics"]["loss"].as_double(), 0.5);
  EXPECT_EQ(all[0]["metrics"]["worst"].as_string(), "inf");
  EXPECT_EQ(all[0]["generation"].as_int(), 1);
  EXPECT_GT(all[0]["bytes"].as_int(), 0);
  EXPECT_GT(all[0]["durable"].as_double(), 0);
  EXPECT_GT(all[0]["time"].as_double(), 1.6e9);
  EXPECT_EQ(all[2]["removed"].as_items()[0]["step"].as_int(), 1);
  EXPECT_GT(all[4]["seconds"].as_double(), 0);
}

TEST_F(HistoryTest, IsEmptyWhereThereIsNone) {
  open();
  EXPECT_TRUE(read_history(path).empty());
  EXPECT_ERROR(not_found, "nowhere", read_history(directory / "nowhere"));
}

TEST_F(HistoryTest, SurvivesTornAndForeignLines) {
  {
    auto manager = open();
    save(manager, 1);
  }
  std::string text = TemporaryDirectory::content(history);
  TemporaryDirectory::write(history, "\n[1]\n" + std::string(100, '[') + "\n\xff\xfe\n" + text +
                                         text.substr(0, text.size() / 2));
  {
    auto manager = open();
    save(manager, 2);
  }
  EXPECT_EQ(events(), "save1 save2");
}

TEST_F(HistoryTest, WhatIsTooLongOrTooDeepIsPassedOver) {
  {
    auto manager = open();
    save(manager, 1);
  }
  std::string keys;
  for (int i = 0; i < 100'000; ++i) keys += (i == 0 ? "\"" : ",\"") + std::to_string(i) + "\":1";
  const std::string deep = "{\"event\":" + std::string(20, '[') + std::string(20, ']') + "}\n";
  const std::string text = TemporaryDirectory::content(history);
  TemporaryDirectory::write(
      history, deep + "{\"event\":\"" + std::string(2 << 20, 'x') + "\"}\n{" + keys + "}\n" + text);
  {
    auto manager = open();
    save(manager, 2);
  }
  const auto all = read_history(path);
  ASSERT_EQ(all.size(), 3U);  // many keys are no harm
  EXPECT_EQ(all[0].as_dict().size(), 100'000U);
  EXPECT_EQ(all[1]["step"].as_int(), 1);
  EXPECT_EQ(all[2]["step"].as_int(), 2);
}

TEST_F(HistoryTest, OfATerabyteTheEndIsRead) {
  {
    auto manager = open();
    save(manager, 1);
  }
  fs::resize_file(history, std::uintmax_t{1} << 40);
  {
    auto manager = open();
    save(manager, 2);
  }
  EXPECT_EQ(events(), "save2");
}

TEST_F(HistoryTest, IsNotWrittenThroughAnotherName) {
  fs::create_directories(path);
  TemporaryDirectory::write(directory / "precious", "precious");
  fs::create_hard_link(directory / "precious", history);
  auto manager = open();
  save(manager, 1);
  EXPECT_EQ(TemporaryDirectory::content(directory / "precious"), "precious");
  ASSERT_EQ(warnings.size(), 1U);
  EXPECT_NE(warnings[0].find("another name"), std::string::npos) << warnings[0];
}

TEST_F(HistoryTest, WithoutItEverythingElseGoesOn) {
  fs::create_directories(path);
  fs::create_directory(history);
  auto manager = open({.keep_last = 1});
  for (int step = 1; step <= 3; ++step) save(manager, step);
  EXPECT_EQ(restore(manager), 3);
  ASSERT_EQ(warnings.size(), 1U);  // told once
  EXPECT_NE(warnings[0].find("history"), std::string::npos);
  manager.close();
}

TEST_F(HistoryTest, IsNotFollowedOutOfTheDirectory) {
  fs::create_directories(path);
  fs::create_symlink(directory / "elsewhere", history);
  auto manager = open();
  save(manager, 1);
  EXPECT_FALSE(fs::exists(directory / "elsewhere"));
  EXPECT_EQ(warnings.size(), 1U);
}

// The disk may be one that hangs: the thread that trains has what it tells written by another.
TEST_F(HistoryTest, ASkipWaitsForNoDisk) {
  const auto storage = std::make_shared<GatedStorage>();
  CheckpointManager manager(storage, {.when_busy = WhenBusy::skip});
  storage->before_create.close();
  manager.save(state_of_step(1), info_of_step(1));
  for (int step = 2; step <= 3; ++step)
    EXPECT_TRUE(manager.save(state_of_step(step), info_of_step(step)).skipped());
  EXPECT_TRUE(storage->appended().empty());
  storage->before_create.open();
  manager.close();
  ASSERT_EQ(storage->appended().size(), 3U);
  EXPECT_NE(storage->appended()[0].find("\"skip\""), std::string::npos);
  EXPECT_NE(storage->appended()[2].find("\"save\""), std::string::npos);
}

}  // namespace
}  // namespace perdure::test
