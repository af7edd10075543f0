// Storage in memory: for tests. What is kept belongs to a Store, which several storages may share,
// as several processes share a directory. Safe to use from several threads.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "storage/storage.hpp"

namespace perdure::storage {

class MemoryStorage final : public Storage {
 public:
  struct Store {
    using Content = std::shared_ptr<const std::vector<std::byte>>;
    std::mutex mutex;
    std::map<std::string, Content, std::less<>> files;
    const MemoryStorage* owner = nullptr;  // who has the lock
  };

  explicit MemoryStorage(std::shared_ptr<Store> store = std::make_shared<Store>(),
                         std::string name = "memory");
  ~MemoryStorage() override;

  std::string describe(std::string_view name) const override;
  std::vector<Entry> list() const override;
  std::shared_ptr<const Source> open(std::string_view name) const override;
  std::unique_ptr<Replacement> create(std::string_view name, std::uint64_t size,
                                      IfExists if_exists) override;
  void append_line(std::string_view name, std::string_view line) override;
  void rename(std::string_view from, std::string_view to) override;
  void remove(const std::vector<std::string>& names) override;
  void lock() override;
  void unlock() noexcept override;
  std::vector<std::string> collect_debris() override {
    return {};
  }  // what is not committed leaves nothing

 private:
  std::shared_ptr<Store> store_;
  std::string name_;
};

}  // namespace perdure::storage
