// A source of which some bytes cannot be read any more: they are zeros, and found out by their
// checksums.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <perdure/file.hpp>

namespace perdure::engine {

// Page by page where the whole cannot be read, because a disk loses sectors. Other errors than EIO
// are the source's to tell.
class PatientSource final : public Source {
 public:
  explicit PatientSource(std::shared_ptr<const Source> source) : source_(std::move(source)) {}

  std::uint64_t size() const override { return source_->size(); }
  const std::string& name() const override { return source_->name(); }
  void read(std::uint64_t offset, MutableBytes into) const override;
  ConstBytes read_bulk(std::uint64_t offset, MutableBytes into,
                       MutableBytes scratch) const override;
  bool is_cached() const override { return source_->is_cached(); }
  void will_read(std::uint64_t offset, std::uint64_t size) const override {
    source_->will_read(offset, size);
  }

  std::uint64_t unreadable() const { return unreadable_; }  // bytes so far, some twice

 private:
  std::shared_ptr<const Source> source_;
  mutable std::atomic<std::uint64_t> unreadable_ = 0;  // a count that nothing waits for
};

}  // namespace perdure::engine
