#include "engine/arena.hpp"

#include <algorithm>
#include <cstdint>
#include <system_error>

#include "io/pages.hpp"
#include "io/priority.hpp"

namespace perdure::engine {

Arena::Arena(std::uint64_t limit, AllocateStaging allocate)
    : limit_(limit), allocate_(std::move(allocate)) {}

Arena::~Arena() { wait_until_populated(); }

// Of a file that fits: its own blocks, and room to grow, because a text that is a byte longer must
// not cost a new arena. Of one that streams through: as many as there may be.
std::uint64_t Arena::blocks_for(std::uint64_t wanted) const {
  // A file is a little larger than its tensors, and a limit of their size is meant to hold it.
  constexpr std::uint64_t kSlack = 4;
  const std::uint64_t bytes = limit_ != 0 ? limit_ : io::available_memory() / 2;
  const std::uint64_t limit = std::max(bytes, kMinBytes) / kBlockSize;
  // What a save has beside its blocks is to stay within the limit, too.
  if (wanted > limit + kSlack) return limit - limit / 32;
  return std::max(wanted, std::min(wanted + wanted / 32 + 1, limit));
}

void Arena::reserve(std::uint64_t size) {
  wanted_ = std::max<std::uint64_t>(1, (size + kBlockSize - 1) / kBlockSize);
  if (wanted_ <= blocks_) return;
  const std::uint64_t blocks = blocks_for(wanted_);
  if (blocks <= blocks_) return;
  wait_until_populated();
  memory_.reset();  // first: the old and the new together could pass the limit
  blocks_ = 0;
  allocate(blocks);
}

// With less than was wanted a save is slower, which is better than none.
void Arena::allocate(std::uint64_t blocks) {
  try {
    memory_ = allocate_ ? allocate_(blocks * kBlockSize) : nullptr;
    if (!memory_) memory_ = io::allocate_pages(blocks * kBlockSize);
    blocks_ = blocks;
  } catch (const std::exception&) {
    constexpr std::uint64_t kMinBlocks = kMinBytes / kBlockSize;
    if (blocks <= kMinBlocks) throw;
    allocate(std::max(blocks / 2, kMinBlocks));
  }
}

// In steps, so that whoever wants it gone waits for one of them only.
void Arena::populate_in_background() {
  if (blocks_ == 0 || populating_.joinable()) return;
  const auto populate = [this, count = std::min(wanted_, blocks_)](const std::stop_token& stop) {
    io::lower_priority();
    for (std::uint64_t i = 0; i < count && !stop.stop_requested(); ++i) io::populate(block(i));
  };
  try {
    populating_ = std::jthread(populate);
  } catch (const std::system_error&) {
    // No thread to be had: the first save will touch it.
  }
}

void Arena::wait_until_populated() {
  if (populating_.joinable()) populating_.join();
}

void Arena::release() {
  wait_until_populated();
  memory_.reset();
  blocks_ = 0;
}

std::shared_ptr<std::byte> Arena::lend(std::uint64_t size) {
  const std::lock_guard guard(lending_);
  if (lent_ == 0) lent_end_ = 0;
  const std::uint64_t count = (size + kBlockSize - 1) / kBlockSize;
  if (lent_end_ + count > blocks_) return nullptr;
  std::byte* const begin = memory_.get() + lent_end_ * kBlockSize;
  lent_end_ += count;
  ++lent_;
  return {begin, [this](std::byte*) {
            const std::lock_guard back(lending_);
            --lent_;
          }};
}

}  // namespace perdure::engine
