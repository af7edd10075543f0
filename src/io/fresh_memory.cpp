#include "io/fresh_memory.hpp"

#include <sys/mman.h>

#include <algorithm>
#include <cstdint>
#include <new>

namespace perdure::io {
namespace {

constexpr std::uintptr_t kHugePage = std::uintptr_t{2} << 20;
// Between two allocations lie what malloc keeps for itself, and the rest of a page.
constexpr std::uintptr_t kMaxGap = 2 * kPageSize;

struct Range {
  std::uintptr_t begin = 0;
  std::uintptr_t end = 0;
};

// Whole pages, with what else is on the first and the last one: so that neighbours which were
// advised one by one are one mapping for the kernel, in which a huge page may lie across them.
void advise(const Range& range) {
  if (range.end - range.begin < kHugePage) return;
  const std::uintptr_t begin = range.begin / kPageSize * kPageSize;
  const std::uintptr_t end = (range.end + kPageSize - 1) / kPageSize * kPageSize;
  ::madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
}

}  // namespace

std::shared_ptr<std::byte> allocate_fresh(std::uint64_t size) {
  constexpr std::align_val_t kAlignment{kPageSize};
  auto* memory = static_cast<std::byte*>(::operator new(size, kAlignment));
  prefer_huge_pages({{memory, size}});
  return {memory, [](std::byte* p) { ::operator delete(p, kAlignment); }};
}

void prefer_huge_pages(std::vector<MutableBytes> pieces) noexcept {
  std::ranges::sort(pieces, {}, [](MutableBytes piece) { return piece.data(); });
  Range run;
  for (const MutableBytes piece : pieces) {
    const auto begin = reinterpret_cast<std::uintptr_t>(piece.data());
    if (begin > run.end + kMaxGap) {
      advise(run);
      run.begin = begin;
    }
    run.end = std::max(run.end, begin + piece.size());
  }
  advise(run);
}

}  // namespace perdure::io
