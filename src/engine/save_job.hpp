// One save between the call and its end, shared by the thread that trains and the one that writes.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <perdure/checkpoint_manager.hpp>

#include "engine/file_drain.hpp"
#include "engine/save_handle.hpp"
#include "engine/step_watch.hpp"

namespace perdure::engine {

class SaveJob {
 public:
  using Clock = std::chrono::steady_clock;

  // `plan` is of `state`, and fits `arena` as well as can be. `begin`: when save() was called.
  SaveJob(Value state, CheckpointInfo info, std::unique_ptr<const format::FilePlan> plan,
          Arena& arena, Capture capture, StepWatch watch, Clock::time_point begin);

  const CheckpointInfo& info() const noexcept { return info_; }
  std::uint64_t file_size() const { return plan_->file_size(); }
  double seconds() const;  // since save() was called
  const std::shared_ptr<SaveHandle::State>& handle() const noexcept { return handle_; }

  // --- The thread that trains ---

  // Copies what must be copied at once.
  void capture(unsigned threads);
  // Before a step: copies what is left (overlapped), or says what has changed since capture()
  // (checked), "" where nothing has. Only the first call does anything.
  std::string fence();

  // --- The thread that writes ---

  // Writes and commits. Throws what went wrong; then nobody waits for copies any more. `passed` is
  // told of every block.
  void write(storage::Storage& storage, const std::string& name, storage::IfExists if_exists,
             const std::function<void()>& passed = {});
  // What write() has committed is part of something that is durable now.
  void is_durable();
  // There is no write(), or none any more.
  void give_up() noexcept;
  const format::FilePlan& plan() const noexcept { return *plan_; }

 private:
  void let_go();
  void end(std::vector<format::StorageChecksums> sums);
  void settle_watch();
  std::string compare();

  Value state_;  // keeps the memory that is copied from
  CheckpointInfo info_;
  Capture capture_;
  Clock::time_point begin_;
  std::unique_ptr<const format::FilePlan> plan_;
  StagedFile file_;
  std::shared_ptr<SaveHandle::State> handle_;
  bool fenced_ = false;     // the training thread's own
  bool all_copied_ = true;  // of what it has waited for; its own, too

  std::mutex mutex_;  // of the following
  std::condition_variable summed_;
  StepWatch watch_;
  bool watched_ = false;           // the counters were compared: what changes now is no matter
  std::vector<std::string> torn_;  // what had changed by then
  std::vector<format::StorageChecksums> sums_;
  bool ended_ = false;  // the writer has passed all of the file, or given up
};

}  // namespace perdure::engine
