// Tensors in the memory of a device, through a copier that is not LibTorch's: what it is asked to
// do, and what becomes of a save when it fails.
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstring>
#include <mutex>
#include <numeric>
#include <perdure/perdure.hpp>

#include "format/memory_source.hpp"
#include "storage/memory_storage.hpp"

namespace perdure::test {
namespace {

// The device's memory lies at addresses that are not those of its bytes: whoever reads there by
// himself crashes. What is copied arrives at finish(), not before.
class DoubleDevice final : public DeviceCopier {
 public:
  explicit DoubleDevice(std::size_t size) : bytes_(size) {
    std::iota(reinterpret_cast<unsigned char*>(bytes_.data()),
              reinterpret_cast<unsigned char*>(bytes_.data()) + size, 0);
  }
  std::byte* address(std::size_t offset) const {
    return reinterpret_cast<std::byte*>(kBase) + offset;  // in no process
  }
  std::byte* bytes(std::size_t offset) { return bytes_.data() + offset; }

  void catch_up() override { ++caught_up; }
  void copy(MutableBytes to, const std::byte* from) override {
    if (copies++ >= fail_from) throw std::runtime_error("the device fell off the bus");
    const std::lock_guard guard(mutex_);
    begun_.push_back({to, reinterpret_cast<std::uintptr_t>(from) - kBase});
  }
  void finish() override {
    const std::lock_guard guard(mutex_);
    for (const auto& [to, offset] : begun_)
      std::memcpy(to.data(), bytes_.data() + offset, to.size());
    begun_.clear();
    ++finished;
  }

  std::atomic<int> caught_up = 0, copies = 0, finished = 0;
  std::atomic<int> fail_from = 1 << 30;

 private:
  static constexpr std::uintptr_t kBase = 0xFFFF'8000'0000'0000U;
  std::vector<std::byte> bytes_;
  std::mutex mutex_;
  std::vector<std::pair<MutableBytes, std::uintptr_t>> begun_;
};

Tensor on(const std::shared_ptr<DoubleDevice>& device, std::size_t offset, std::int64_t count,
          Liveness liveness = Liveness::detached) {
  Tensor tensor = Tensor::over(device->address(offset), DType::uint8, {count});
  tensor.storage->copier = device;
  tensor.storage->device = "cuda:0";
  tensor.liveness = liveness;
  return tensor;
}

bool holds(const Value& value, DoubleDevice& device, std::size_t offset) {
  const TensorStorage& storage = *value.as_tensor().storage;
  return std::memcmp(storage.data, device.bytes(offset), storage.size) == 0;
}

constexpr std::size_t kLarge = 40'000'000;  // ten blocks

TEST(Device, ASaveOfOneFileCopiesFromIt) {
  const auto device = std::make_shared<DoubleDevice>(kLarge);
  const Value state = Dict{{"a", Value(on(device, 0, 5'000'001))},
                           {"b", Value(on(device, 5'000'001, 7))},
                           {"none", Value(on(device, 99, 0))}};
  const std::string text = file_of(state);
  EXPECT_GT(device->caught_up, 0);
  const CheckpointFile file = CheckpointFile::open(source_of(text));
  EXPECT_EQ(file.value()["a"].as_tensor().storage->device, "cuda:0");
  file.read_all(file.value());
  EXPECT_TRUE(holds(file.value()["a"], *device, 0));
  EXPECT_TRUE(holds(file.value()["b"], *device, 5'000'001));
}

class DeviceManager : public testing::TestWithParam<Capture> {
 protected:
  DeviceManager() {
    state.add("optimizer", nullptr);
    state.add_entry({.name = "model",
                     .role = Role::module,
                     .state_dict = [this]() -> Value {
                       return Dict{
                           {"weight", Value(on(device, 0, kLarge - 100, Liveness::stepped))},
                           {"buffer", Value(on(device, kLarge - 100, 100))},
                           {"host", Value(Tensor::over(&host, DType::float32, {1}))}};
                     },
                     .load_state_dict = [](const Value&) {},
                     .check = {},
                     .parameters = {},
                     .describe = {},
                     .align = {}});
  }
  void save(std::uint64_t staging) {
    CheckpointManager checkpoints(
        storage, {.on_error = OnError::raise, .capture = GetParam(), .staging_bytes = staging});
    checkpoints.save(state);
    checkpoints.fence();
    std::fill_n(device->bytes(0), kLarge - 100, std::byte{7});  // the step
    checkpoints.wait();
  }
  bool saved_whole() {
    const CheckpointFile file = CheckpointFile::open(storage->open(storage->list().back().name));
    file.read_all(file.value());
    const Value& model = file.value()["model"];
    DoubleDevice fresh(kLarge);
    return holds(model["weight"], fresh, 0) && holds(model["buffer"], fresh, kLarge - 100) &&
           *reinterpret_cast<float*>(model["host"].as_tensor().storage->data) == host;
  }

  std::shared_ptr<DoubleDevice> device = std::make_shared<DoubleDevice>(kLarge);
  float host = 2.5F;
  std::shared_ptr<storage::MemoryStorage> storage = std::make_shared<storage::MemoryStorage>();
  TrainingState state;
};

TEST_P(DeviceManager, SavesWhatWasThere) {
  save(0);
  EXPECT_TRUE(saved_whole());
  EXPECT_GE(device->caught_up, 1);
}

TEST_P(DeviceManager, StreamsThroughASmallArea) {
  save(std::uint64_t{16} << 20);
  EXPECT_TRUE(saved_whole());
}

TEST_P(DeviceManager, ADeviceThatFailsFailsTheSave) {
  for (const int from : {0, 1, 5, 9}) {
    device->copies = 0;
    device->fail_from = from;
    EXPECT_THROW(save(0), std::runtime_error);
    for (const auto& entry : storage->list()) EXPECT_EQ(entry.name, "history.jsonl");
  }
  device->fail_from = 1 << 30;
  CheckpointManager checkpoints(storage, {});
  checkpoints.save(state).wait();
}

INSTANTIATE_TEST_SUITE_P(All, DeviceManager,
                         testing::Values(Capture::eager, Capture::overlapped, Capture::checked));

TEST(Device, CheckedComparesWhatIsThere) {
  const auto device = std::make_shared<DoubleDevice>(kLarge);
  std::vector<std::string> warnings;
  CheckpointManager checkpoints(
      std::make_shared<storage::MemoryStorage>(),
      {.capture = Capture::checked,
       .warning = [&](const std::string& text) { warnings.push_back(text); }});
  const Value state = Dict{{"weight", Value(on(device, 0, kLarge, Liveness::stepped))}};
  checkpoints.save(state, {});
  checkpoints.fence();
  EXPECT_TRUE(warnings.empty());
  checkpoints.save(state, {});
  *device->bytes(kLarge / 2) ^= std::byte{1};
  checkpoints.fence();
  ASSERT_EQ(warnings.size(), 1U);
  EXPECT_NE(warnings[0].find("weight"), std::string::npos);
}

// What moves while the structure stays is read where it is now.
TEST(Device, ATensorThatMovesToTheDevice) {
  const auto device = std::make_shared<DoubleDevice>(100);
  std::vector<std::byte> host(100, std::byte{3});
  const auto storage = std::make_shared<storage::MemoryStorage>();
  CheckpointManager checkpoints(storage, {.keep_last = 9});
  for (const bool moved : {false, true, false}) {
    Tensor tensor = moved ? on(device, 0, 100) : Tensor::over(host.data(), DType::uint8, {100});
    tensor.storage->device = "cuda:0";
    checkpoints.save(Dict{{"weight", Value(std::move(tensor))}}, {});
    checkpoints.wait();
    const CheckpointFile file = CheckpointFile::open(storage->open(storage->list().back().name));
    file.read_all(file.value());
    EXPECT_EQ(holds(file.value()["weight"], *device, 0), moved);
  }
}

}  // namespace
}  // namespace perdure::test
