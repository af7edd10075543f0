#include "engine/virtual_memory.hpp"

#include <atomic>

namespace perdure::engine {

std::byte* reserve_addresses(std::uint64_t size) noexcept {
  // Above what a process of any platform that we run on may have, and below what would overflow.
  static std::atomic<std::uintptr_t> next = std::uintptr_t{1} << 60;
  constexpr std::uint64_t kGap = 64;  // the one behind the last is nobody's
  // Only the number counts: nothing is published by it.
  return reinterpret_cast<std::byte*>(next.fetch_add(size + kGap, std::memory_order_relaxed));
}

}  // namespace perdure::engine
