// The processes ("ranks") that train together and save one checkpoint together.
//
// All they need of each other is a store of short messages that each of them reaches: what
// torch.distributed has its processes meet by (TCPStore, FileStore, HashStore). perdure/torch.hpp
// makes one of a c10d::Store; LocalRanks are threads of one process, for tests.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

namespace perdure {

// Called by several threads at once. What it throws ends the save or restore that it is called for.
class Ranks {
 public:
  virtual ~Ranks() = default;
  virtual std::size_t rank() const = 0;  // 0 leads
  virtual std::size_t size() const = 0;

  virtual void set(const std::string& key, const std::string& message) = 0;
  virtual bool has(const std::string& key) = 0;         // does not wait
  virtual std::string get(const std::string& key) = 0;  // of a key that is there
  virtual void remove(const std::string& key) = 0;

  // A prefix for the keys of one more user of it. The ranks must come to that in the same order.
  std::string next_use() { return std::to_string(uses_++) + "/"; }

 private:
  std::atomic<std::uint64_t> uses_ = 0;
};

// Threads of this process as ranks.
class LocalRanks final : public Ranks {
 public:
  static std::vector<std::shared_ptr<LocalRanks>> make(std::size_t count);

  std::size_t rank() const override { return rank_; }
  std::size_t size() const override { return size_; }
  void set(const std::string& key, const std::string& message) override;
  bool has(const std::string& key) override;
  std::string get(const std::string& key) override;
  void remove(const std::string& key) override;

 private:
  struct Store {
    std::mutex mutex;
    std::map<std::string, std::string> messages;
  };
  LocalRanks(std::shared_ptr<Store> store, std::size_t rank, std::size_t size)
      : store_(std::move(store)), rank_(rank), size_(size) {}

  std::shared_ptr<Store> store_;
  std::size_t rank_;
  std::size_t size_;
};

}  // namespace perdure
