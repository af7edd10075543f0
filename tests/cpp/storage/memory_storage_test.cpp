#include "storage/memory_storage.hpp"

#include "storage/storage_suite.hpp"

namespace perdure::test {

OpenStorage in_memory() {
  auto store = std::make_shared<storage::MemoryStorage::Store>();
  return [store] { return std::make_shared<storage::MemoryStorage>(store); };
}

INSTANTIATE_TEST_SUITE_P(Memory, StorageSuite, testing::Values(StorageKind{"memory", in_memory}));

}  // namespace perdure::test
