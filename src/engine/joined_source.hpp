// Several sources as one: what a checkpoint of many files is read through.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <perdure/file.hpp>
#include <string>
#include <vector>

namespace perdure::engine {

// A part of another source, which must have so many bytes.
class SubSource final : public Source {
 public:
  SubSource(std::shared_ptr<const Source> source, std::uint64_t offset, std::uint64_t size);

  std::uint64_t size() const override { return size_; }
  const std::string& name() const override { return source_->name(); }
  void read(std::uint64_t offset, MutableBytes into) const override;
  ConstBytes read_bulk(std::uint64_t offset, MutableBytes into,
                       MutableBytes scratch) const override;
  bool is_cached() const override { return source_->is_cached(); }
  void will_read(std::uint64_t offset, std::uint64_t size) const override;
  Place place(std::uint64_t offset) const override { return source_->place(offset_ + offset); }

 private:
  void require_inside(std::uint64_t offset, std::uint64_t size) const;

  std::shared_ptr<const Source> source_;
  std::uint64_t offset_;
  std::uint64_t size_;
};

// A copy of another source in memory.
class HeldSource final : public Source {
 public:
  explicit HeldSource(const Source& source);

  std::uint64_t size() const override { return bytes_.size(); }
  const std::string& name() const override { return name_; }
  void read(std::uint64_t offset, MutableBytes into) const override;
  bool is_cached() const override { return true; }
  Place place(std::uint64_t offset) const override { return {name_, begin_ + offset}; }

 private:
  std::vector<std::byte> bytes_;
  std::string name_;
  std::uint64_t begin_ = 0;  // in the file of that name
};

// A source that is made when it is first read.
class LateSource final : public Source {
 public:
  using Make = std::function<std::shared_ptr<const Source>()>;
  LateSource(std::string name, std::uint64_t size, Make make)
      : name_(std::move(name)), size_(size), make_(std::move(make)) {}

  std::uint64_t size() const override { return size_; }
  const std::string& name() const override { return name_; }
  void read(std::uint64_t offset, MutableBytes into) const override { made()->read(offset, into); }
  Place place(std::uint64_t offset) const override { return made()->place(offset); }

 private:
  std::shared_ptr<const Source> made() const;

  std::string name_;
  std::uint64_t size_;
  Make make_;
  mutable std::mutex mutex_;  // of what follows
  mutable std::shared_ptr<const Source> made_;
};

// Runs of other sources end to end. Complete before the first read.
class JoinedSource final : public Source {
 public:
  explicit JoinedSource(std::string name) : name_(std::move(name)) {}

  // Where the run begins in this source.
  std::uint64_t append(std::shared_ptr<const Source> source, std::uint64_t offset,
                       std::uint64_t size);

  std::uint64_t size() const override { return size_; }
  const std::string& name() const override { return name_; }
  void read(std::uint64_t offset, MutableBytes into) const override;
  ConstBytes read_bulk(std::uint64_t offset, MutableBytes into,
                       MutableBytes scratch) const override;
  bool is_cached() const override;
  void will_read(std::uint64_t offset, std::uint64_t size) const override;
  Place place(std::uint64_t offset) const override;

 private:
  struct Run {
    std::uint64_t begin = 0;  // here
    std::shared_ptr<const Source> source;
    std::uint64_t offset = 0;  // there
    std::uint64_t size = 0;
  };
  const Run& run_at(std::uint64_t offset) const;
  void require_inside(std::uint64_t offset, std::uint64_t size) const;

  std::string name_;
  std::vector<Run> runs_;  // none is empty
  std::uint64_t size_ = 0;
};

}  // namespace perdure::engine
