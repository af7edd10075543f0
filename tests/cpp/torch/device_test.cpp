// Models on a device that is not the CPU: the simulated one of fake_device.hpp, or (in cuda_test) a
// real GPU.
#include <gtest/gtest.h>
#include <torch/torch.h>

#include <cstdint>
#include <filesystem>
#include <perdure/perdure.hpp>
#include <perdure/torch.hpp>

#include "engine/gated_storage.hpp"
#include "expect_error.hpp"
#include "format/memory_source.hpp"
#include "storage/temporary_directory.hpp"

#ifdef PERDURE_TEST_ON_CUDA
#include <ATen/core/CachingHostAllocator.h>
#include <ATen/cuda/Sleep.h>
#else
#include "fake_device.hpp"
#endif

namespace perdure::test {
namespace {

namespace nn = torch::nn;
namespace optim = torch::optim;

#ifdef PERDURE_TEST_ON_CUDA
const at::Device kGpu("cuda:0");
constexpr bool kComputesAsCpu = false;              // sums in another order
void delay_gpu() { at::cuda::sleep(200'000'000); }  // cycles, of about 2 GHz
std::uint64_t pinned_bytes() {
  return static_cast<std::uint64_t>(
      at::getHostAllocator(at::kCUDA)->get_stats().active_bytes.allocated);
}
#else
const at::Device kGpu("fake:0");
constexpr bool kComputesAsCpu = true;
void delay_gpu() { fake_device_delay(100); }
std::uint64_t pinned_bytes() { return fake_device_pinned_bytes(); }
#endif

struct Trainee {
  nn::Linear model{40, 30};
  optim::Adam optimizer;
  TrainingState state;

  explicit Trainee(at::Device device)
      : optimizer((model->to(device), model->parameters()), optim::AdamOptions(0.1)) {
    state.add("model", model), state.add("optimizer", optimizer);
  }
  void train(CheckpointManager* checkpoints = nullptr) {
    const at::Device device = model->weight.device();
    optimizer.zero_grad();
    model->forward(torch::ones({2, 40}).to(device)).square().sum().backward();
    if (checkpoints != nullptr) checkpoints->fence();
    optimizer.step();
    ++state.step;
  }
};

// The state of a run, with every tensor on the CPU.
std::string bytes_of(const Trainee& run) {
  const CheckpointFile file = CheckpointFile::open(source_of(file_of(run.state.state_dict())));
  file.read_all(file.value());
  for (const auto& storage : file.storages()) storage->device = "cpu";
  return file_of(file.value());
}

class GpuTest : public testing::Test {
 protected:
  GpuTest() { torch::manual_seed(1); }
  TemporaryDirectory folder;
};
class CaptureOnGpu : public GpuTest, public testing::WithParamInterface<Capture> {};

TEST_P(CaptureOnGpu, ARunGoesOnExactly) {
  Trainee run(kGpu), twin(kComputesAsCpu ? at::Device(at::kCPU) : kGpu);
  {
    const at::NoGradGuard no_grad;
    twin.model->weight.copy_(run.model->weight);
    twin.model->bias.copy_(run.model->bias);
  }
  {
    CheckpointManager checkpoints(folder / "run", {.capture = GetParam()});
    for (int i = 0; i < 3; ++i) {
      run.train(&checkpoints), twin.train();
      checkpoints.save(run.state);
    }
    run.train(&checkpoints);
    EXPECT_NO_THROW(checkpoints.close());
  }
  for (const at::Device device : {kGpu, at::Device(at::kCPU)}) {
    Trainee back(device);
    CheckpointManager checkpoints(folder / "run");
    ASSERT_EQ(checkpoints.restore(back.state)->step(), 3);
    EXPECT_EQ(back.model->weight.device(), device);
    EXPECT_EQ(back.optimizer.state().size(), 2U);
    EXPECT_TRUE(bytes_of(back) == bytes_of(twin));
    back.train();
    if (device == kGpu || kComputesAsCpu) {
      EXPECT_TRUE(bytes_of(back) == bytes_of(run));
    }
  }
}

// What the device has still to do when save() is called is done before the copy.
TEST_P(CaptureOnGpu, WhatIsUnderWayIsWaitedFor) {
  Trainee run(kGpu);
  run.train();
  CheckpointManager checkpoints(folder / "run", {.capture = GetParam()});
  checkpoints.prepare(run.state);
  delay_gpu();
  {
    const at::NoGradGuard no_grad;
    run.model->weight.fill_(5);
  }
  checkpoints.save(run.state);
  checkpoints.fence();
  {
    const at::NoGradGuard no_grad;
    run.model->weight.fill_(6);
  }
  checkpoints.wait();
  Trainee back(at::kCPU);
  checkpoints.restore(back.state);
  EXPECT_TRUE(torch::equal(back.model->weight, torch::full({30, 40}, 5.0)));
}

INSTANTIATE_TEST_SUITE_P(All, CaptureOnGpu,
                         testing::Values(Capture::eager, Capture::overlapped, Capture::checked));

TEST_F(GpuTest, AForgottenFenceIsNoticed) {
  Trainee run(kGpu);
  const auto storage = std::make_shared<GatedStorage>();
  CheckpointManager checkpoints(storage, {.capture = Capture::overlapped});
  run.train();
  checkpoints.save(run.state).wait();
  storage->before_create.close();  // so that nothing is copied behind the training
  const SaveHandle handle = checkpoints.save(run.state);
  run.train();
  storage->before_create.open();
  EXPECT_ERROR(invalid, "changed before they were copied", handle.wait());
  EXPECT_EQ(storage->list().size(), 1U);
}

TEST_F(GpuTest, StagingIsPinned) {
  const auto before = pinned_bytes();
  Trainee run(kGpu);
  CheckpointManager checkpoints(folder / "run", {.allocate_staging = pinned_staging()});
  checkpoints.save(run.state).wait();
  EXPECT_GT(pinned_bytes(), before);
}

TEST_F(GpuTest, AValueLooksIntoTheDevice) {
  at::Tensor x = torch::arange(12.0).to(kGpu);
  const Value value = Dict{{"x", x}, {"view", x.slice(0, 4)}};
  EXPECT_EQ(to_tensor(value["x"]).const_data_ptr(), x.const_data_ptr());
  save(folder / "x.pt", value);
  const Value loaded = load(folder / "x.pt");
  EXPECT_EQ(to_tensor(loaded["x"]).device(), kGpu);
  EXPECT_TRUE(torch::equal(to_tensor(loaded["view"]).cpu(), torch::arange(4.0, 12.0)));
  LoadOptions to_cpu;
  to_cpu.map_location = "cpu";
  EXPECT_TRUE(to_tensor(load(folder / "x.pt", to_cpu)["x"]).is_cpu());
}

}  // namespace
}  // namespace perdure::test
