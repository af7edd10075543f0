// Memory that is about to be filled: not cleared first, and cheap to touch.
#pragma once

#include <cstdint>
#include <memory>
#include <perdure/error.hpp>
#include <vector>

namespace perdure::io {

inline constexpr std::uint64_t kPageSize = 4096;

// `size` bytes, aligned to pages. std::bad_alloc where there are none.
std::shared_ptr<std::byte> allocate_fresh(std::uint64_t size);

// Asks for huge pages under memory that nobody has touched yet: one fault for 2 MiB in place of
// 512. Pieces that lie side by side, as an allocator gives them one after the other, are taken
// together. A wish only: what is too small, and systems without, are left as they are.
void prefer_huge_pages(std::vector<MutableBytes> pieces) noexcept;

}  // namespace perdure::io
