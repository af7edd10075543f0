// What every Storage must do. A new kind joins by an INSTANTIATE_TEST_SUITE_P with a factory of its
// own.
#pragma once

#include <gtest/gtest.h>

#include <functional>
#include <memory>
#include <ostream>
#include <string>

#include "storage/storage.hpp"

namespace perdure::test {

// Opens one and the same place, empty at first, as often as it is called.
using OpenStorage = std::function<std::shared_ptr<storage::Storage>()>;

struct StorageKind {
  std::string name;
  std::function<OpenStorage()> make;
};
inline void PrintTo(const StorageKind& kind, std::ostream* stream) { *stream << kind.name; }

class StorageSuite : public testing::TestWithParam<StorageKind> {
 protected:
  OpenStorage open_again = GetParam().make();
  std::shared_ptr<storage::Storage> storage = open_again();
};

}  // namespace perdure::test
