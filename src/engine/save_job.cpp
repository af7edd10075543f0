#include "engine/save_job.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <cstdint>
#include <system_error>
#include <thread>

#include "format/crc32.hpp"

namespace perdure::engine {
namespace {

// Below this, starting a thread costs more than it brings.
constexpr std::uint64_t kWorthAThread = std::uint64_t{64} << 20;

using Seconds = std::chrono::duration<double>;

std::uint32_t checksum(const format::TensorRecord& tensor) {
  std::uint32_t sum = 0;
  format::for_each_block(tensor, [&](ConstBytes block) { sum = format::crc32(block, sum); });
  return sum;
}

}  // namespace

SaveJob::SaveJob(Value state, CheckpointInfo info, std::unique_ptr<const format::FilePlan> plan,
                 Arena& arena, Capture capture, StepWatch watch, Clock::time_point begin)
    : state_(std::move(state)),
      info_(std::move(info)),
      capture_(capture),
      begin_(begin),
      plan_(std::move(plan)),
      file_(*plan_, arena, capture == Capture::overlapped),
      handle_(std::make_shared<SaveHandle::State>()),
      watch_(std::move(watch)) {
  handle_->stats.bytes = plan_->file_size();
}

double SaveJob::seconds() const { return Seconds(Clock::now() - begin_).count(); }

void SaveJob::capture(unsigned threads) {
  {
    std::vector<std::jthread> helpers;
    try {
      if (file_size() >= kWorthAThread)
        for (unsigned i = 1; i < threads; ++i)
          helpers.emplace_back([this] { file_.copy(Pass::at_save); });
    } catch (const std::exception&) {
      // No more threads to be had: those that there are do it all. An error here would let the
      // training go on while the rest is still being copied.
    }
    file_.copy(Pass::at_save);
  }
  all_copied_ = file_.wait_copied(Pass::at_save);
  handle_->update([&](SaveStats& stats) {
    stats.stalled = Seconds(seconds());
    if (!file_.overlapped()) stats.copied = stats.stalled;
  });
  if (capture_ == Capture::eager) let_go();
}

std::string SaveJob::fence() {
  if (std::exchange(fenced_, true) || capture_ == Capture::eager) return "";
  const auto begin = Clock::now();
  file_.copy(Pass::before_step);
  all_copied_ = file_.wait_copied(Pass::before_step) && all_copied_;
  if (file_.overlapped()) settle_watch();
  const std::string changed = capture_ == Capture::checked ? compare() : "";
  handle_->update([&](SaveStats& stats) {
    stats.fence_waited = Seconds(Clock::now() - begin);
    if (stats.copied.count() == 0) stats.copied = Seconds(seconds());
  });
  let_go();
  return changed;
}

// The plan knows what it needs of it, and the arena has the bytes. Where a copy has failed, the
// writer may be in the middle of another one.
void SaveJob::let_go() {
  if (!all_copied_) {
    std::unique_lock lock(mutex_);
    summed_.wait(lock, [&] { return ended_; });
  }
  state_ = Value();
  const std::lock_guard guard(mutex_);
  watch_ = StepWatch();
}

// Whoever comes first, the fence or the writer: afterwards a step may change everything.
void SaveJob::settle_watch() {
  const std::lock_guard guard(mutex_);
  if (!std::exchange(watched_, true)) torn_ = watch_.changed();
}

// The live bytes against the checksums of what was copied.
std::string SaveJob::compare() {
  std::unique_lock lock(mutex_);
  summed_.wait(lock, [&] { return ended_; });
  plan_->catch_up();
  const auto tensors = plan_->tensors();
  std::vector<std::string> changed;
  for (std::size_t i = 0; i < sums_.size() && changed.size() < 5; ++i)
    if (tensors[i].liveness == Liveness::stepped && checksum(tensors[i]) != sums_[i].crc32)
      changed.push_back(plan_->tensor_name(i, state_));
  if (changed.empty()) return "";
  return fmt::format(
      "changed between a save and the step after it: {}. The checkpoint is right, for it was "
      "copied "
      "before; with capture=\"overlapped\" it would not have been. Keep to \"eager\", or let "
      "nothing "
      "but the optimizer's step change parameters",
      fmt::join(changed, ", "));
}

void SaveJob::end(std::vector<format::StorageChecksums> sums) {
  const std::lock_guard guard(mutex_);
  sums_ = std::move(sums);
  ended_ = true;
  summed_.notify_all();
}

void SaveJob::give_up() noexcept {
  file_.abort();
  end({});
}

void SaveJob::is_durable() {
  handle_->update([&](SaveStats& stats) { stats.durable = Seconds(seconds()); });
}

void SaveJob::write(storage::Storage& storage, const std::string& name, storage::IfExists if_exists,
                    const std::function<void()>& passed) {
  try {
    const auto out = storage.create(name, file_size(), if_exists);
    end(drain(file_, *plan_, *out, [&](std::uint64_t bytes) {
      handle_->update([&](SaveStats&) { handle_->handed_over = bytes; });
      if (passed) passed();
    }));
    if (file_.overlapped()) settle_watch();
    if (!torn_.empty())
      throw Error(
          ErrorCode::invalid,
          fmt::format("'{}' was not saved: changed before they were copied: {}. With "
                      "capture=\"overlapped\" parameters may change only in an optimizer's step, "
                      "and C++ calls fence() before it; \"eager\" copies at once",
                      storage.describe(name), fmt::join(torn_, ", ")));
    out->settle(file_size());
    handle_->update([&](SaveStats& stats) {
      stats.written = Seconds(seconds());
      if (stats.copied.count() == 0) stats.copied = stats.written;
    });
    out->commit();
    is_durable();
  } catch (...) {
    give_up();
    throw;
  }
}

}  // namespace perdure::engine
