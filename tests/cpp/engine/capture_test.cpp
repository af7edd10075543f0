// When the bytes of a state are copied, and what becomes of changes that come too early.
#include <gtest/gtest.h>

#include <cstdint>
#include <numeric>
#include <perdure/checkpoint_manager.hpp>
#include <thread>

#include "engine/arena.hpp"
#include "engine/gated_storage.hpp"
#include "expect_error.hpp"

namespace perdure::test {
namespace {

constexpr std::size_t kWeights = 5'000'000;  // 20 MB: several blocks

// A training loop without PyTorch: weights that a step changes, a buffer that anything may change.
class CaptureTest : public testing::Test {
 protected:
  CaptureTest() {
    set(1);
    state.add("optimizer", nullptr);
    state.add_entry({.name = "model",
                     .role = Role::module,
                     .state_dict = [this] { return tree(); },
                     .load_state_dict = [](const Value&) {},
                     .check = {},
                     .parameters = {},
                     .describe = {},
                     .align = {},
                     .versions = [this] { return std::vector<std::uint64_t>{version}; }});
  }

  Value tree() {
    const auto count = static_cast<std::int64_t>(weights.size());
    Tensor stepped = Tensor::over(weights.data(), DType::float32, {count});
    stepped.liveness = Liveness::stepped;
    return Dict{{"weight", Value(std::move(stepped))},
                {"buffer", Value(Tensor::over(&buffer, DType::float32, {1}))}};
  }
  void set(float x) {
    std::ranges::fill(weights, x);
    buffer = x;
  }
  std::unique_ptr<CheckpointManager> open(ManagerOptions options) {
    options.warning = [this](const std::string& text) { warnings.push_back(text); };
    return std::make_unique<CheckpointManager>(storage, std::move(options));
  }
  // Weight and buffer of the newest checkpoint; the weights must all be the same.
  std::pair<float, float> saved() const {
    const auto entries = storage->list();
    const CheckpointFile file = CheckpointFile::open(storage->open(entries.back().name));
    file.read_all(file.value());
    const Value& model = file.value()["model"];
    const auto* weight = reinterpret_cast<const float*>(model["weight"].as_tensor().storage->data);
    for (std::size_t i = 0; i < kWeights; ++i)
      if (weight[i] != weight[0]) return {-1, -1};
    return {weight[0], *reinterpret_cast<const float*>(model["buffer"].as_tensor().storage->data)};
  }

  std::shared_ptr<GatedStorage> storage = std::make_shared<GatedStorage>();
  TrainingState state;
  std::vector<float> weights = std::vector<float>(kWeights);
  float buffer = 0;
  std::uint64_t version = 0;
  std::vector<std::string> warnings;
};

using Floats = std::pair<float, float>;

TEST_F(CaptureTest, EagerIsRightWhateverChangesAfterwards) {
  auto manager = open({});
  storage->before_create.close();
  const SaveHandle handle = manager->save(state);
  set(2);
  ++version;
  EXPECT_FALSE(handle.done());
  EXPECT_FALSE(handle.checkpoint());
  EXPECT_FALSE(handle.wait(std::chrono::milliseconds(5)));
  EXPECT_EQ(handle.progress(), 0);
  EXPECT_GT(handle.stats().copied.count(), 0);
  EXPECT_EQ(handle.stats().durable.count(), 0);
  storage->before_create.open();
  handle.wait();
  EXPECT_EQ(handle.progress(), 1);
  EXPECT_EQ(saved(), (Floats{1, 1}));
  manager->fence();  // has nothing to do
  EXPECT_EQ(handle.stats().fence_waited.count(), 0);
}

TEST_F(CaptureTest, OverlappedCopiesTheRestAtTheFence) {
  auto manager = open({.capture = Capture::overlapped});
  storage->before_create.close();
  const SaveHandle handle = manager->save(state);
  buffer = 7;  // it was copied by save()
  EXPECT_EQ(handle.stats().copied.count(), 0);
  manager->fence();
  EXPECT_GT(handle.stats().fence_waited.count(), 0);
  EXPECT_GT(handle.stats().copied.count(), 0);
  set(2);
  ++version;
  manager->fence();  // the second step after a save waits for nothing
  storage->before_create.open();
  handle.wait();
  EXPECT_EQ(saved(), (Floats{1, 1}));
  EXPECT_TRUE(warnings.empty());
}

TEST_F(CaptureTest, OverlappedFinishesByItselfWhereNoStepComes) {
  auto manager = open({.capture = Capture::overlapped});
  manager->save(state);
  manager->close();
  EXPECT_EQ(saved(), (Floats{1, 1}));
}

TEST_F(CaptureTest, AForgottenFenceFailsTheSave) {
  auto manager = open({.capture = Capture::overlapped});
  manager->save(state).wait();
  storage->before_create.close();
  const SaveHandle handle = manager->save(state);
  set(2);
  ++version;
  storage->before_create.open();
  EXPECT_ERROR(invalid, "state['model']['weight']", handle.wait());
  EXPECT_ERROR(invalid, "fence", handle.wait());
  EXPECT_EQ(storage->list().size(), 1U);
  EXPECT_EQ(saved(), (Floats{1, 1}));
  manager->save(state).wait();  // the next one is whole again
  EXPECT_EQ(saved(), (Floats{2, 2}));
}

TEST_F(CaptureTest, AChangeBeforeTheFenceFailsTheSave) {
  auto manager = open({.capture = Capture::overlapped});
  storage->before_create.close();
  const SaveHandle handle = manager->save(state);
  ++version;
  manager->fence();
  storage->before_create.open();
  EXPECT_ERROR(invalid, "changed", handle.wait());
  EXPECT_TRUE(storage->list().empty());
}

TEST_F(CaptureTest, ACommitThatComesBeforeTheFenceHasCompared) {
  auto manager = open({.capture = Capture::overlapped});
  storage->before_commit.close();
  const SaveHandle handle = manager->save(state);
  while (handle.stats().written.count() == 0) std::this_thread::yield();
  ++version;
  manager->fence();
  storage->before_commit.open();
  handle.wait();
  EXPECT_EQ(saved(), (Floats{1, 1}));
}

TEST_F(CaptureTest, CheckedSeesWhatTheCountersDoNot) {
  auto manager = open({.capture = Capture::checked});
  SaveHandle handle = manager->save(state);
  manager->fence();
  EXPECT_TRUE(warnings.empty());
  handle = manager->save(state);
  weights[kWeights / 2] = 3;  // no counter moves
  manager->fence();
  handle.wait();
  EXPECT_EQ(saved(), (Floats{1, 1}));  // the checkpoint is right
  ASSERT_EQ(warnings.size(), 1U);
  EXPECT_NE(warnings[0].find("state['model']['weight']"), std::string::npos) << warnings[0];
  EXPECT_ERROR(invalid, "overlapped", manager->close());
}

TEST_F(CaptureTest, CheckedRaises) {
  auto manager = open({.on_error = OnError::raise, .capture = Capture::checked});
  manager->save(state);
  weights[0] = 3;
  EXPECT_ERROR(invalid, "weight", manager->fence());
  manager->close();
}

TEST_F(CaptureTest, CheckedSaysNothingOfABuffer) {
  auto manager = open({.capture = Capture::checked});
  manager->save(state);
  buffer = 9;
  manager->fence();
  manager->close();
  EXPECT_TRUE(warnings.empty());
}

TEST_F(CaptureTest, AStateLargerThanTheStagingStreamsThrough) {
  for (const Capture capture : {Capture::eager, Capture::overlapped, Capture::checked}) {
    std::uint64_t allocated = 0;
    std::vector<std::string> notes;
    weights.resize(4 * kWeights);  // 80 MB
    set(4);
    auto manager =
        open({.capture = capture,
              .staging_bytes = engine::Arena::kMinBytes,
              .allocate_staging =
                  [&](std::uint64_t bytes) {
                    allocated += bytes;
                    return std::shared_ptr<std::byte>(
                        static_cast<std::byte*>(std::aligned_alloc(4096, bytes)), std::free);
                  },
              .note = [&](const std::string& text) { notes.push_back(text); }});
    const SaveHandle handle = manager->save(state);
    set(5);  // overlapped, too, has copied all of it
    ++version;
    manager->fence();
    handle.wait();
    EXPECT_EQ(saved(), (Floats{4, 4}));
    manager->save(state).wait();
    EXPECT_LE(allocated, engine::Arena::kMinBytes + (16U << 20));
    // Eager is told nothing: it was asked for.
    ASSERT_EQ(notes.size(), capture == Capture::eager ? 0U : 1U);
    if (!notes.empty()) {
      EXPECT_NE(notes[0].find("larger than the staging memory"), std::string::npos);
    }
    warnings.clear();  // of checked
  }
}

TEST_F(CaptureTest, LessMemoryThanAskedForWillDo) {
  std::vector<std::uint64_t> asked;
  bool is_short = true;
  auto manager =
      open({.on_error = OnError::raise,
            .staging_bytes = std::uint64_t{64} << 20,
            .allocate_staging = [&](std::uint64_t bytes) -> std::shared_ptr<std::byte> {
              asked.push_back(bytes);
              if (is_short && bytes > engine::Arena::kMinBytes) throw std::bad_alloc();
              return {static_cast<std::byte*>(std::aligned_alloc(4096, bytes)), std::free};
            }});
  weights.resize(4 * kWeights);  // 80 MB
  set(4);
  manager->save(state).wait();
  EXPECT_EQ(saved(), (Floats{4, 4}));
  EXPECT_EQ(asked.back(), engine::Arena::kMinBytes);
  is_short = false;  // what is to be had later is taken then
  set(5);
  manager->save(state).wait();
  EXPECT_EQ(saved(), (Floats{5, 5}));
  EXPECT_GT(asked.back(), std::uint64_t{60} << 20);
}

TEST_F(CaptureTest, AWriterThatFailsFreesWhoeverWaitsForSpace) {
  weights.resize(4 * kWeights);
  auto manager = open({.staging_bytes = engine::Arena::kMinBytes});
  std::jthread([&] { manager->save(state).wait(); }).join();
  storage->before_create.close();
  std::jthread saver([&] { EXPECT_ERROR(io, "no more", manager->save(state).wait()); });
  storage->fail_next_create(Error(ErrorCode::io, "no more"));
  storage->before_create.open();
  saver.join();
}

TEST_F(CaptureTest, BusySkips) {
  auto manager = open({.when_busy = WhenBusy::skip});
  storage->before_commit.close();
  const SaveHandle first = manager->save(state);
  const SaveHandle second = manager->save(state);
  EXPECT_TRUE(second.done());
  EXPECT_TRUE(second.skipped());
  EXPECT_FALSE(second.checkpoint());
  second.wait();
  EXPECT_FALSE(manager->idle());
  storage->before_commit.open();
  manager->wait();
  EXPECT_TRUE(manager->idle());
  EXPECT_TRUE(first.checkpoint());
  EXPECT_EQ(storage->list().size(), 1U);
}

TEST_F(CaptureTest, BusyWaits) {
  auto manager = open({});
  storage->before_commit.close();
  const SaveHandle first = manager->save(state);
  std::jthread opener([&] {
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    storage->before_commit.open();
  });
  const SaveHandle second = manager->save(state);
  EXPECT_TRUE(first.done());
  second.wait();
  EXPECT_EQ(second.checkpoint()->info.parent, first.checkpoint()->generation());
}

TEST_F(CaptureTest, PrepareChangesNothingButTheTimeOfTheFirstSave) {
  auto manager = open({});
  manager->prepare(state);
  manager->save(state);
  manager->prepare(state);  // waits for the one in flight
  manager->close();
  EXPECT_EQ(saved(), (Floats{1, 1}));
  EXPECT_ERROR(invalid, "closed", manager->prepare(state));
  EXPECT_ERROR(invalid, "closed", manager->fence());
}

TEST_F(CaptureTest, RefusesStagingThatIsTooSmall) {
  EXPECT_ERROR(invalid, "staging_bytes", open({.staging_bytes = 1000}));
}

}  // namespace
}  // namespace perdure::test
