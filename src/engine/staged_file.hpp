// A checkpoint file in the arena: filled block by block with the tensors' bytes, emptied by one
// writer.
//
// Who fills: the thread that calls save, for what must be copied at once; and for what the training
// leaves alone until its next step, the writer as it goes and, when that step comes, the thread
// that trains. They take blocks one after the other, so all of them together copy each one once.
// Where the file is larger than the arena, filling waits for the writer to give a block back.
#pragma once

#include <array>
#include <condition_variable>
#include <cstdint>
#include <exception>
#include <mutex>
#include <optional>
#include <vector>

#include "engine/arena.hpp"
#include "format/file_plan.hpp"

namespace perdure::engine {

// When the bytes of a tensor are copied.
enum class Pass {
  at_save,      // before save() returns
  before_step,  // before the next step of the optimizer: those that are Liveness::stepped
};

class StagedFile {
 public:
  // `overlapped`: there are bytes that are copied before_step; only where the whole file fits into
  // the arena. Else all of them are copied at_save. Both must outlive it, and the arena's blocks
  // are its own meanwhile.
  StagedFile(const format::FilePlan& plan, Arena& arena, bool overlapped);

  std::uint64_t blocks() const noexcept { return total_; }
  bool overlapped() const noexcept { return overlapped_; }

  // Any thread: copies blocks until none of the pass is left that nobody has begun with. Where a
  // copy fails (a device's may), the writer gets the error.
  void copy(Pass pass) noexcept;
  // Waits until all of the pass is copied. False where it never will be: abort() was called.
  bool wait_copied(Pass pass);

  // The writer, block after block: waits until block `number` has all of its tensor bytes; copies
  // what nobody has begun with. What it held before must be settled and released by then. Throws
  // what a copy has thrown.
  MutableBytes take(std::uint64_t number);
  // The first `count` blocks are on the disk, and their places free.
  void release(std::uint64_t count);
  // The writer has given up: nobody waits any more.
  void abort() noexcept;

 private:
  static constexpr std::size_t kPasses = 2;

  std::optional<std::uint64_t> claim(Pass pass, std::uint64_t end);
  void copy_block(std::uint64_t number, Pass pass) const;
  void copied(std::uint64_t number, Pass pass);
  bool belongs(const format::TensorRecord& tensor, Pass pass) const;

  const format::FilePlan& plan_;
  Arena& arena_;
  bool overlapped_;
  std::uint64_t total_;                        // blocks of the file
  std::uint64_t filled_;                       // of these, the first ones have bytes of tensors
  std::vector<std::size_t> first_tensor_;      // of each of those: the first tensor that reaches it
  std::vector<std::uint8_t> left_;             // of each: passes that are not done yet
  std::array<std::uint64_t, kPasses> next_{};  // the first block that nobody has begun with
  std::array<std::uint64_t, kPasses> copied_{};  // how many are done
  std::uint64_t released_ = 0;
  bool aborted_ = false;
  std::exception_ptr error_;  // why, where it was a copy
  std::mutex mutex_;          // of everything but the blocks' bytes and what never changes
  std::condition_variable changed_;
};

}  // namespace perdure::engine
