// Addresses that stand for bytes which are nowhere in memory.
#pragma once

#include <cstddef>
#include <cstdint>

namespace perdure::engine {

// The first of `size` addresses that nothing in this process has, and nobody else gets. They are
// for telling storages apart and for counting from; only the DeviceCopier of the storage knows what
// they stand for.
std::byte* reserve_addresses(std::uint64_t size) noexcept;

}  // namespace perdure::engine
