// Which checkpoint a restore takes, and what it does about damage.
#include <unistd.h>

#include <cstdint>
#include <perdure/checkpoint_manager.hpp>

#include "engine/run_fixture.hpp"

namespace perdure::test {
namespace {

namespace fs = std::filesystem;

class RestoreTest : public RunFixture {
 protected:
  RestoreTest() {
    auto manager = open({.keep_last = 10});
    for (int step = 1; step <= 3; ++step) save(manager, step * 10);
  }
  static RestoreOptions step(std::int64_t number) {
    return {.step = number, .path = {}, .strict = true};
  }
};

TEST_F(RestoreTest, TakesTheNewest) {
  auto manager = open();
  std::int64_t step = 0;
  const auto checkpoint = manager.restore({}, step_into(step));
  EXPECT_EQ(step, 30);
  EXPECT_EQ(checkpoint->path, file(30, 3));
  EXPECT_EQ(checkpoint->size, fs::file_size(file(30, 3)));
  EXPECT_EQ(checkpoint->generation(), 3U);
}

TEST_F(RestoreTest, FallsBackPastDamageAndSaysSo) {
  damage(file(30, 3));
  auto manager = open();
  EXPECT_EQ(restore(manager), 20);
  ASSERT_EQ(warnings.size(), 1U);
  EXPECT_NE(warnings[0].find("step-0000000030-g00000003.pt.damaged"), std::string::npos)
      << warnings[0];
  EXPECT_FALSE(fs::exists(file(30, 3)));
  EXPECT_TRUE(fs::exists(file(30, 3).string() + ".damaged"));
  EXPECT_EQ(manager.latest_step(), 20);
  const Checkpoint next = save(manager, 25).checkpoint().value();
  EXPECT_EQ(next.generation(), 4U);
  EXPECT_EQ(next.info.parent, 2U);
}

// Every byte of the newest, changed or cut off behind: the restore gives the one before or the very
// same state.
TEST_F(RestoreTest, NoDamagedByteGoesUnnoticed) {
  const std::string whole = TemporaryDirectory::content(file(30, 3));
  for (std::size_t at = 0; at < whole.size(); at += 37) {
    SCOPED_TRACE(at);
    std::string changed = whole;
    changed[at] = static_cast<char>(changed[at] ^ 0x10);
    TemporaryDirectory::write(file(30, 3), changed);
    {
      auto manager = open();
      const std::int64_t step = restore(manager);
      EXPECT_TRUE(step == 20 || step == 30) << step;
      EXPECT_EQ(step == 20, !fs::exists(file(30, 3)));
    }
    fs::remove(file(30, 3).string() + ".damaged");
    TemporaryDirectory::write(file(30, 3), whole.substr(0, at));
    auto manager = open();
    EXPECT_EQ(restore(manager), 20);
    fs::remove(file(30, 3).string() + ".damaged");
  }
}

TEST_F(RestoreTest, SetsAsideUnderANameThatIsFree) {
  TemporaryDirectory::write(file(30, 3).string() + ".damaged", "an earlier one");
  damage(file(30, 3));
  auto manager = open();
  EXPECT_EQ(restore(manager), 20);
  EXPECT_EQ(TemporaryDirectory::content(file(30, 3).string() + ".damaged"), "an earlier one");
  EXPECT_TRUE(fs::exists(file(30, 3).string() + ".damaged-2"));
}

TEST_F(RestoreTest, OnlyDamagedOnesLeftIsAnErrorAlsoTheNextTime) {
  for (const int step : {10, 20, 30}) damage(file(step, static_cast<std::uint64_t>(step / 10)));
  for (int start = 0; start < 2; ++start) {
    auto manager = open();
    EXPECT_ERROR(corrupt, "g00000001.pt.damaged", restore(manager));
  }
  EXPECT_EQ(warnings.size(), 3U);
}

TEST_F(RestoreTest, WhatIsNoDamageIsThrownAndNothingIsSetAside) {
  auto manager = open();
  for (const ErrorCode code :
       {ErrorCode::io, ErrorCode::invalid, ErrorCode::unsupported, ErrorCode::not_found}) {
    const Error error = error_of(
        [&] { manager.restore({}, [&](const CheckpointFile&) { throw Error(code, "no"); }); });
    EXPECT_EQ(error.code(), code);
  }
  EXPECT_TRUE(fs::exists(file(30, 3)));
  EXPECT_TRUE(warnings.empty());
}

TEST_F(RestoreTest, AFileThatMayNotBeReadIsNoReasonToFallBack) {
  if (::geteuid() == 0) GTEST_SKIP() << "root may read everything";
  fs::permissions(file(30, 3), fs::perms::none);
  auto manager = open();
  EXPECT_ERROR(io, "g00000003", restore(manager));
  EXPECT_TRUE(fs::exists(file(30, 3)));
}

TEST_F(RestoreTest, ANewerFormatIsNoReasonToFallBack) {
  CheckpointInfo info = info_of_step(40);
  info.format_version = 999;
  info.generation = 4;
  std::string bytes;
  write_to(
      [&](ConstBytes part) {
        bytes.append(reinterpret_cast<const char*>(part.data()), part.size());
      },
      state_of_step(40), info);
  TemporaryDirectory::write(file(40, 4), bytes);
  auto manager = open();
  EXPECT_ERROR(unsupported, "g00000004", restore(manager));
  EXPECT_TRUE(fs::exists(file(40, 4)));
}

TEST_F(RestoreTest, TakesTheStepThatWasAskedFor) {
  auto manager = open();
  EXPECT_EQ(restore(manager, step(20)), 20);
  EXPECT_ERROR(not_found, "10, 20, 30", restore(manager, step(25)));
}

TEST_F(RestoreTest, OfAStepTheNewestGeneration) {
  auto manager = open();
  over(manager.save(state_of_step(77), info_of_step(20)));
  EXPECT_EQ(restore(manager, step(20)), 77);
}

TEST_F(RestoreTest, AStepOrAPathNeverFallsBack) {
  damage(file(20, 2));
  auto manager = open();
  EXPECT_ERROR(corrupt, "g00000002", restore(manager, step(20)));
  EXPECT_ERROR(corrupt, "g00000002",
               restore(manager, {.step = {}, .path = file(20, 2), .strict = true}));
  EXPECT_TRUE(fs::exists(file(20, 2)));
  EXPECT_TRUE(warnings.empty());
}

TEST_F(RestoreTest, TakesAnyFileByItsPath) {
  perdure::save(directory / "elsewhere.pt", state_of_step(5));
  auto manager = open();
  EXPECT_EQ(restore(manager, {.step = {}, .path = directory / "elsewhere.pt", .strict = true}), 5);
  EXPECT_EQ(save(manager, 6).checkpoint()->info.parent, 0U);
  EXPECT_ERROR(not_found, "none.pt",
               restore(manager, {.step = {}, .path = directory / "none.pt", .strict = true}));
  EXPECT_ERROR(invalid, "not both", restore(manager, {.step = 1, .path = "x", .strict = true}));
}

TEST_F(RestoreTest, AGenerationOfAnotherRunIsGoneAbove) {
  CheckpointManager other(directory / "runs/other");
  for (int i = 1; i <= 8; ++i) save(other, i);
  auto manager = open();
  EXPECT_EQ(restore(manager, {.step = {}, .path = other.latest()->path, .strict = true}), 8);
  const Checkpoint next = save(manager, 9).checkpoint().value();
  EXPECT_EQ(next.info.parent, 8U);
  EXPECT_EQ(next.generation(), 9U);
}

TEST_F(RestoreTest, ATrainingStateGetsNothingFromADamagedFile) {
  TrainingState state;
  Value data = state_of_step(0);
  state.add("data", data);
  std::vector<std::int64_t> seen;
  state.add_entry({.name = "witness",
                   .role = Role::other,
                   .state_dict = [&] { return Value(state.step); },
                   .load_state_dict = [&](const Value& value) { seen.push_back(value.as_int()); },
                   .check = {},
                   .parameters = {},
                   .describe = {},
                   .align = {}});
  CheckpointManager run(directory / "runs/state", {.warning = [](const std::string&) {}});
  for (state.step = 1; state.step <= 2; ++state.step) {
    data = state_of_step(state.step);
    run.save(state).wait();
  }
  damage(run.latest()->path);
  EXPECT_EQ(run.restore(state)->step(), 1);
  EXPECT_EQ(step_of(data), 1);
  EXPECT_EQ(state.step, 1);
  EXPECT_EQ(seen, std::vector<std::int64_t>{1});
}

TEST_F(RestoreTest, AMixtureIsNotSavedUntilAnotherRestoreSucceeds) {
  bool breaks = true;
  std::int64_t epoch = 0;
  TrainingState state;
  state.add("epoch", epoch);
  TrainingState::Entry entry;
  entry.name = "fragile";
  entry.state_dict = [] { return Value(1); };
  entry.load_state_dict = [&](const Value&) {
    if (breaks) throw std::runtime_error("out of device memory");
  };
  state.add_entry(entry);
  CheckpointManager run(directory / "runs/state");
  run.save(state).wait();
  EXPECT_THROW(run.restore(state), std::runtime_error);
  EXPECT_TRUE(state.broken());
  EXPECT_ERROR(invalid, "half way", run.save(state));
  breaks = false;
  run.restore(state);
  run.save(state).wait();
  EXPECT_EQ(run.all_steps().size(), 1U);
}

}  // namespace
}  // namespace perdure::test
