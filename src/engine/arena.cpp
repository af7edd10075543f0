#include "engine/arena.hpp"

#include <algorithm>

#include "io/pages.hpp"

namespace perdure::engine {

Arena::Arena(std::uint64_t limit, AllocateStaging allocate)
    : limit_(limit), allocate_(allocate ? std::move(allocate) : io::allocate_pages) {}

Arena::~Arena() { wait_until_populated(); }

std::uint64_t Arena::limit_in_blocks(std::uint64_t wanted) const {
  // A file is a little larger than its tensors, and a limit of their size is meant to hold it.
  constexpr std::uint64_t kSlack = 4;
  const std::uint64_t bytes = limit_ != 0 ? limit_ : io::available_memory() / 2;
  const std::uint64_t blocks = std::max(bytes, kMinBytes) / kBlockSize;
  return wanted <= blocks + kSlack ? blocks + kSlack : blocks;
}

void Arena::reserve(std::uint64_t size) {
  const std::uint64_t wanted = std::max<std::uint64_t>(1, (size + kBlockSize - 1) / kBlockSize);
  if (wanted <= blocks_) return;
  wait_until_populated();
  memory_.reset();  // first: the old and the new together could pass the limit
  blocks_ = 0;
  // With room to grow: a text that is a byte longer must not cost a new arena.
  const std::uint64_t blocks = std::min(wanted + wanted / 32 + 1, limit_in_blocks(wanted));
  memory_ = allocate_(blocks * kBlockSize);
  blocks_ = blocks;
}

// In steps, so that whoever wants it gone waits for one of them only.
void Arena::populate_in_background() {
  if (blocks_ == 0 || populating_.joinable()) return;
  populating_ = std::jthread([this](const std::stop_token& stop) {
    for (std::uint64_t i = 0; i < blocks_ && !stop.stop_requested(); ++i) io::populate(block(i));
  });
}

void Arena::wait_until_populated() {
  if (populating_.joinable()) populating_.join();
}

}  // namespace perdure::engine
