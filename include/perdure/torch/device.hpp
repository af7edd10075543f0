// Tensors on a GPU, or any other accelerator that LibTorch knows: how their bytes come to the disk.
// Part of perdure/torch.hpp: include that.
//
// They are copied on a stream of perdure's own, into the staging memory of the save, so behind what
// was set going on the training's stream before save(), and beside what comes after it. Nothing
// here is CUDA's: it is LibTorch's generic device interface. Tested with a device that is simulated
// on the CPU, and on a GPU where the tests find one.
#pragma once

#include <ATen/ATen.h>
#include <c10/core/Event.h>
#include <c10/core/StreamGuard.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include <array>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <perdure/checkpoint_manager.hpp>
#include <perdure/value.hpp>
#include <utility>

namespace perdure {
namespace detail {

class StreamCopier final : public DeviceCopier {
 public:
  // c10::Error where the device has no streams.
  explicit StreamCopier(at::Device device)
      : device_(device),
        stream_(c10::impl::VirtualGuardImpl(device.type()).getStreamFromGlobalPool(device, false)) {
  }

  void catch_up() override {
    c10::Event done(device_.type());
    done.record(c10::impl::VirtualGuardImpl(device_.type()).getStream(device_));
    done.block(stream_);
  }
  void copy(MutableBytes to, const std::byte* from) override {
    const at::NoGradGuard no_grad;
    const c10::StreamGuard on_stream(stream_);
    const std::array<std::int64_t, 1> size{static_cast<std::int64_t>(to.size())};
    at::Tensor target = at::from_blob(to.data(), size, at::TensorOptions(c10::kByte));
    const at::Tensor source = at::for_blob(const_cast<std::byte*>(from), size)
                                  .options(at::TensorOptions(c10::kByte).device(device_))
                                  .target_device(device_)
                                  .make_tensor();
    target.copy_(source, /*non_blocking=*/true);
  }
  void finish() override { stream_.synchronize(); }

 private:
  at::Device device_;
  c10::Stream stream_;
};

// Null for devices whose tensors must be copied as a whole, by LibTorch: those without streams.
inline std::shared_ptr<DeviceCopier> copier_of(at::Device device) {
  static std::mutex mutex;
  static std::map<std::pair<int, int>, std::shared_ptr<DeviceCopier>> copiers;
  const std::lock_guard lock(mutex);
  const auto [place, fresh] =
      copiers.try_emplace({static_cast<int>(device.type()), device.index()});
  if (fresh) {
    try {
      place->second = std::make_shared<StreamCopier>(device);
    } catch (const c10::Error&) {
      // It stays null.
    }
  }
  return place->second;
}

}  // namespace detail

// For ManagerOptions::allocate_staging: pinned memory, which a GPU's copies reach without a detour
// through other memory of the driver's. LibTorch rounds its size up to a power of two. Null, and so
// ordinary pages, where there is no GPU to pin it for.
inline AllocateStaging pinned_staging() {
  return [](std::uint64_t bytes) -> std::shared_ptr<std::byte> {
    try {
      const auto options = at::TensorOptions(c10::kByte).pinned_memory(true);
      auto tensor =
          std::make_shared<at::Tensor>(at::empty({static_cast<std::int64_t>(bytes)}, options));
      return {tensor, static_cast<std::byte*>(tensor->data_ptr())};
    } catch (const c10::Error&) {
      return nullptr;
    }
  };
}

}  // namespace perdure
