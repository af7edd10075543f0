// Large memory for staging: whole pages, huge ones where they can be had, not handed to forked
// children.
//
// A page that was never touched costs its first write: the kernel has to find and clear it, which
// is several times slower than the write. populate() pays that in advance.
#pragma once

#include <cstdint>
#include <memory>
#include <perdure/error.hpp>

namespace perdure::io {

// `size` bytes, aligned to 2 MiB, none of them touched yet. Error(full) where there is no memory.
std::shared_ptr<std::byte> allocate_pages(std::uint64_t size);
// Touches every page without changing what it holds. Any memory; where the kernel refuses, nothing
// happens.
void populate(MutableBytes memory) noexcept;
// Bytes that this process may still take before others or its container run out: free memory and
// page cache, and what is left of the limits of its control groups.
std::uint64_t available_memory() noexcept;

}  // namespace perdure::io
