// Storage in memory whose writing stands still until the test says otherwise.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "storage/memory_storage.hpp"

namespace perdure::test {

class Gate {
 public:
  void open() {
    const std::lock_guard guard(mutex_);
    open_ = true;
    changed_.notify_all();
  }
  void close() {
    const std::lock_guard guard(mutex_);
    open_ = false;
  }
  void pass() {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return open_; });
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  bool open_ = true;
};

// A save stops at `before_create`, and again before it commits.
class GatedStorage final : public storage::Storage {
 public:
  Gate before_create;
  Gate before_commit;
  void fail_next_create(Error error) { failure_ = std::move(error); }

  std::string describe(std::string_view name) const override { return inner_.describe(name); }
  std::vector<Entry> list() const override { return inner_.list(); }
  std::shared_ptr<const Source> open(std::string_view name) const override {
    return inner_.open(name);
  }
  std::unique_ptr<storage::Replacement> create(std::string_view name, std::uint64_t size,
                                               storage::IfExists if_exists) override {
    before_create.pass();
    if (const auto failure = std::exchange(failure_, std::nullopt)) throw *failure;
    return std::make_unique<Gated>(inner_.create(name, size, if_exists), before_commit);
  }
  void append_line(std::string_view, std::string_view line) override {  // list() is of checkpoints
    const std::lock_guard guard(mutex_);
    appended_.emplace_back(line);
  }
  std::vector<std::string> appended() const {
    const std::lock_guard guard(mutex_);
    return appended_;
  }
  void rename(std::string_view from, std::string_view to) override { inner_.rename(from, to); }
  void remove(const std::vector<std::string>& names) override { inner_.remove(names); }
  void lock() override { inner_.lock(); }
  void unlock() noexcept override { inner_.unlock(); }
  std::vector<std::string> collect_debris() override { return inner_.collect_debris(); }

 private:
  class Gated final : public storage::Replacement {
   public:
    Gated(std::unique_ptr<storage::Replacement> inner, Gate& gate)
        : inner_(std::move(inner)), gate_(gate) {}
    void append(ConstBytes bytes) override { inner_->append(bytes); }
    void settle(std::uint64_t end) override { inner_->settle(end); }
    void commit() override {
      gate_.pass();
      inner_->commit();
    }

   private:
    std::unique_ptr<storage::Replacement> inner_;
    Gate& gate_;
  };

  storage::MemoryStorage inner_;
  mutable std::mutex mutex_;
  std::vector<std::string> appended_;
  std::optional<Error> failure_;
};

}  // namespace perdure::test
