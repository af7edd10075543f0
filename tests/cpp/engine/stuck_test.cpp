// A disk that hangs: after stuck_after the user is told, once, whatever the training thread does.
#include <atomic>
#include <cstdint>

#include "engine/gated_storage.hpp"
#include "engine/run_fixture.hpp"
#include "expect_error.hpp"

namespace perdure::test {
namespace {

using namespace std::chrono_literals;

// What was told, from whichever thread.
class Told {
 public:
  std::function<void(const std::string&)> listener() {
    return [this](const std::string& text) {
      const std::lock_guard guard(mutex_);
      texts_.push_back(text);
    };
  }
  std::vector<std::string> texts() const {
    const std::lock_guard guard(mutex_);
    return texts_;
  }
  std::vector<std::string> wait() const {
    while (texts().empty()) std::this_thread::sleep_for(1ms);
    return texts();
  }

 private:
  mutable std::mutex mutex_;
  std::vector<std::string> texts_;
};

class StuckTest : public testing::Test {
 protected:
  CheckpointManager open(std::chrono::duration<double> stuck_after) {
    return CheckpointManager(
        storage,
        {.stuck_after = stuck_after, .warning = warnings.listener(), .note = notes.listener()});
  }

  std::shared_ptr<GatedStorage> storage = std::make_shared<GatedStorage>();
  Told warnings, notes;
};

TEST_F(StuckTest, TheUserIsToldOnceAndAgainWhenItIsOver) {
  auto manager = open(5ms);
  storage->before_commit.close();
  const SaveHandle handle = manager.save(state_of_step(1), info_of_step(1));
  EXPECT_NE(warnings.wait().front().find("step-0000000001"), std::string::npos);
  EXPECT_NE(warnings.texts().front().find("no progress"), std::string::npos);
  std::this_thread::sleep_for(50ms);
  EXPECT_FALSE(handle.done());
  storage->before_commit.open();
  handle.wait();
  EXPECT_NE(notes.wait().front().find("was over after"), std::string::npos);
  EXPECT_EQ(warnings.texts().size(), 1U);
}

TEST_F(StuckTest, ASaveThatWaitsForAStuckOneIsToldToo) {
  auto manager = open(5ms);
  storage->before_create.close();
  manager.save(state_of_step(1), info_of_step(1));
  std::jthread opener([&] {
    warnings.wait();
    storage->before_create.open();
  });
  manager.save(state_of_step(2), info_of_step(2)).wait();
  EXPECT_GE(warnings.texts().size(), 1U);
}

TEST_F(StuckTest, NobodyIsToldOfASaveThatTakesItsTimeOrOfNone) {
  {
    auto manager = open(60s);
    manager.save(state_of_step(1), info_of_step(1)).wait();
  }
  {
    auto manager = open(0s);
    storage->before_commit.close();
    const SaveHandle handle = manager.save(state_of_step(2), info_of_step(2));
    std::this_thread::sleep_for(30ms);
    storage->before_commit.open();
    handle.wait();
  }
  EXPECT_TRUE(warnings.texts().empty());
  EXPECT_TRUE(notes.texts().empty());
}

TEST_F(StuckTest, ANegativeTimeIsRefused) { EXPECT_ERROR(invalid, "stuck_after", open(-1s)); }

}  // namespace
}  // namespace perdure::test
