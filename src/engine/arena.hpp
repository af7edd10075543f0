// The memory through which saves go: bounded, allocated once, reused for ever.
//
// It holds blocks of a file as they will lie on the disk. A file that fits has all of its blocks
// here at once; of a larger one, block n lies where block n - blocks() was.
#pragma once

#include <cstdint>
#include <mutex>
#include <perdure/checkpoint_manager.hpp>
#include <thread>

namespace perdure::engine {

class Arena {
 public:
  // Large enough that a block costs little beside its bytes, small enough that a writer has several
  // in flight while others are filled.
  static constexpr std::uint64_t kBlockSize = std::uint64_t{4} << 20;
  static constexpr std::uint64_t kMinBytes = 4 * kBlockSize;

  // `limit`: the most bytes, at least kMinBytes, and up to 16 MiB more where that holds all; 0:
  // half of the memory that is to be had when it is needed. Where `allocate` is empty or gives
  // null: pages of the system's.
  Arena(std::uint64_t limit, AllocateStaging allocate);
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;
  ~Arena();

  // Grows where a file of `size` bytes does not fit and the limit allows more, or by what is to be
  // had of that; an error where not even kMinBytes are. Only while nobody uses the blocks.
  void reserve(std::uint64_t size);
  // Touches what the last file takes in a thread of its own, so that the first save finds it warm.
  void populate_in_background();
  void wait_until_populated();

  // Gives the memory back. Only while nobody uses the blocks, lent ones included.
  void release();

  // Blocks to read through while nobody else uses them, for as long as the pointer lives; any
  // thread. Null where there are no more.
  std::shared_ptr<std::byte> lend(std::uint64_t size);

  std::uint64_t blocks() const noexcept { return blocks_; }
  MutableBytes block(std::uint64_t number) const {
    return {memory_.get() + number % blocks_ * kBlockSize, kBlockSize};
  }

 private:
  std::uint64_t blocks_for(std::uint64_t wanted) const;
  void allocate(std::uint64_t blocks);

  std::uint64_t limit_;
  AllocateStaging allocate_;
  std::shared_ptr<std::byte> memory_;
  std::uint64_t blocks_ = 0;
  std::uint64_t wanted_ = 0;  // blocks of the last file
  std::jthread populating_;

  std::mutex lending_;  // of the following
  std::uint64_t lent_ = 0;
  std::uint64_t lent_end_ = 0;  // blocks behind this one were not lent since lent_ was 0
};

}  // namespace perdure::engine
