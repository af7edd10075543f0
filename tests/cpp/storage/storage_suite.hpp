// What every Storage must do. A new kind joins by an INSTANTIATE_TEST_SUITE_P with a factory of its
// own.
#pragma once

#include <gtest/gtest.h>

#include <functional>
#include <memory>
#include <string>

#include "storage/storage.hpp"

namespace perdure::test {

struct StorageKind {
  std::string name;
  // A function that opens one and the same place, empty at first, as often as it is called.
  std::function<std::function<std::shared_ptr<storage::Storage>()>()> make;
};

class StorageSuite : public testing::TestWithParam<StorageKind> {
 protected:
  std::function<std::shared_ptr<storage::Storage>()> open_again = GetParam().make();
  std::shared_ptr<storage::Storage> storage = open_again();
};

}  // namespace perdure::test
