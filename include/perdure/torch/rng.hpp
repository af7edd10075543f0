// LibTorch's random number generators. Part of perdure/torch.hpp: include that.
//
// The state is a uint8 tensor with the bytes that torch.Generator.get_state() gives in Python.
#pragma once

#include <torch/cuda.h>
#include <torch/version.h>

#include <algorithm>
#include <cstdint>
#include <mutex>
#include <perdure/state.hpp>
#include <perdure/torch/tensor.hpp>
#include <string>
#include <utility>
#include <vector>

namespace perdure {

inline Value state_dict(at::Generator generator) {
  const std::lock_guard lock(generator.mutex());
  return Value(generator.get_state());
}

namespace detail {

inline void check_generator(const at::Generator& generator, const Value& value,
                            Problems& problems) {
  if (value.kind() != Kind::tensor || value.as_tensor().dtype != DType::uint8) {
    problems.push_back("a generator's state is a uint8 tensor, in the file it is " +
                       describe_value(value));
    return;
  }
  const auto size = state_dict(generator).as_tensor().numel();
  if (value.as_tensor().numel() != size)
    problems.push_back("a generator's state of " + std::to_string(value.as_tensor().numel()) +
                       " bytes in the file, one on " + generator.device().str() + " has " +
                       std::to_string(size));
}

inline Value cuda_rng_state() {
  Value::Items states;
  for (c10::DeviceIndex i = 0; i < static_cast<c10::DeviceIndex>(torch::cuda::device_count()); ++i)
    states.push_back(state_dict(at::globalContext().defaultGenerator({at::kCUDA, i})));
  return Value::list(std::move(states));
}

}  // namespace detail

inline void load_state_dict(at::Generator& generator, const Value& value) {
  Problems problems;
  detail::check_generator(generator, value, problems);
  detail::throw_if_any(problems, "the random number generator");
  const std::lock_guard lock(generator.mutex());
  generator.set_state(detail::present_tensor(value.as_tensor()).contiguous().clone());
}

namespace detail {

// A file with states of more GPUs than there are here, or of fewer, restores those that both sides
// have, as torch.cuda.set_rng_state_all does. The GPU paths follow torch's documentation; the tests
// run on the CPU.
inline void load_cuda_rng_state(const Value& value) {
  const auto& states = value.as_items();
  const std::size_t count =
      std::min(states.size(), static_cast<std::size_t>(torch::cuda::device_count()));
  for (std::size_t i = 0; i < count; ++i) {
    at::Generator generator =
        at::globalContext().defaultGenerator({at::kCUDA, static_cast<c10::DeviceIndex>(i)});
    load_state_dict(generator, states[i]);
  }
}

// LibTorch's version, and the default generators under the names that Python's TrainingState uses.
inline void attach_torch(TrainingState& state) {
  state.libraries["torch"] = TORCH_VERSION;
  state.add_rng({"torch", [] { return state_dict(at::globalContext().defaultGenerator(at::kCPU)); },
                 [](const Value& value) {
                   at::Generator generator = at::globalContext().defaultGenerator(at::kCPU);
                   load_state_dict(generator, value);
                 }});
  if (torch::cuda::is_available()) state.add_rng({"cuda", cuda_rng_state, load_cuda_rng_state});
}

}  // namespace detail

}  // namespace perdure
