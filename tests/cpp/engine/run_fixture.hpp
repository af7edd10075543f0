// A run in a directory of the test's own, and small states to save in it.
#pragma once

#include <gtest/gtest.h>

#include <cstdint>
#include <perdure/perdure.hpp>
#include <string>
#include <thread>
#include <vector>

#include "engine/checkpoint_name.hpp"
#include "storage/storage_access.hpp"
#include "storage/temporary_directory.hpp"

namespace perdure::test {

// A state whose every part says which step it is of: a value, a tensor, and a string.
inline Dict state_of_step(std::int64_t step) {
  auto data = std::make_shared<std::vector<std::int64_t>>(100, step);
  Tensor tensor = Tensor::over(data->data(), DType::int64, {10, 10});
  tensor.storage->owner = data;
  return Dict{{"epoch", step}, {"weight", tensor}, {"name", "step " + std::to_string(step)}};
}

// The step of a state that is wholly of one step; -1 where it is a mixture.
inline std::int64_t step_of(const Value& state) {
  const std::int64_t step = state["epoch"].as_int();
  const auto* weight =
      reinterpret_cast<const std::int64_t*>(state["weight"].as_tensor().storage->data);
  for (int i = 0; i < 100; ++i)
    if (weight[i] != step) return -1;
  return state["name"].as_string() == "step " + std::to_string(step) ? step : -1;
}

// Takes the step out of the file that restores; reads all of it.
inline CheckpointManager::Take step_into(std::int64_t& step) {
  return [&step](const CheckpointFile& file) {
    file.read_all(file.value());
    step = step_of(file.value());
  };
}

inline CheckpointInfo info_of_step(std::int64_t step, const Metrics& metrics = {}) {
  CheckpointInfo info;
  info.step = step;
  info.metrics = metrics;
  return info;
}

class RunFixture : public testing::Test {
 protected:
  CheckpointManager open(ManagerOptions options = {}) {
    options.warning = [this](const std::string& text) { warnings.push_back(text); };
    options.note = [this](const std::string& text) { notes.push_back(text); };
    return CheckpointManager(path, std::move(options));
  }
  // A save that is over when it returns, pruning included, and whose error nobody has seen.
  static SaveHandle save(CheckpointManager& manager, std::int64_t step,
                         const Metrics& metrics = {}) {
    SaveHandle handle = over(manager.save(state_of_step(step), info_of_step(step, metrics)));
    while (!manager.idle(std::chrono::seconds(1))) continue;
    return handle;
  }
  static SaveHandle over(SaveHandle handle) {
    while (!handle.done()) std::this_thread::sleep_for(std::chrono::microseconds(50));
    return handle;
  }
  // The step that a restore gives; -2 for nullopt.
  static std::int64_t restore(CheckpointManager& manager, const RestoreOptions& options = {}) {
    std::int64_t step = -2;
    manager.restore(options, step_into(step));
    return step;
  }
  std::filesystem::path file(std::int64_t step, std::uint64_t generation) const {
    return path / engine::format({step, generation});
  }
  std::vector<std::string> checkpoint_names() const {
    std::vector<std::string> names;
    for (const std::string& name : TemporaryDirectory::names_in(path))
      if (!name.starts_with('.') && name != "history.jsonl") names.push_back(name);
    return names;
  }
  // Changes one byte in the tensor of a checkpoint of that step.
  static void damage(const std::filesystem::path& file) {
    std::string content = TemporaryDirectory::content(file);
    const std::size_t at = content.size() / 4;
    content[at] = static_cast<char>(content[at] ^ 0x20);
    TemporaryDirectory::write(file, content);
  }

  TemporaryDirectory directory;
  std::filesystem::path path = directory / "runs/gpt";
  std::vector<std::string> warnings;
  std::vector<std::string> notes;
};

}  // namespace perdure::test
