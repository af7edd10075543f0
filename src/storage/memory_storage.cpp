#include "storage/memory_storage.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cstdint>

namespace perdure::storage {
namespace {

class MemorySource final : public Source {
 public:
  MemorySource(MemoryStorage::Store::Content content, std::string name)
      : content_(std::move(content)), name_(std::move(name)) {}

  std::uint64_t size() const override { return content_->size(); }
  void read(std::uint64_t offset, MutableBytes into) const override {
    if (offset > size() || into.size() > size() - offset)
      throw Error(ErrorCode::io,
                  fmt::format("cannot read {} bytes at offset {} of '{}': it has {} bytes",
                              into.size(), offset, name_, size()));
    std::copy_n(content_->data() + offset, into.size(), into.data());
  }
  const std::string& name() const override { return name_; }

 private:
  MemoryStorage::Store::Content content_;
  std::string name_;
};

class MemoryReplacement final : public Replacement {
 public:
  MemoryReplacement(std::shared_ptr<MemoryStorage::Store> store, std::string name,
                    std::string shown, std::uint64_t size, IfExists if_exists)
      : store_(std::move(store)),
        name_(std::move(name)),
        shown_(std::move(shown)),
        size_(size),
        if_exists_(if_exists) {
    content_.reserve(size);
  }

  void append(ConstBytes bytes) override {
    if (bytes.size() > size_ - content_.size()) throw_size(content_.size() + bytes.size());
    content_.insert(content_.end(), bytes.begin(), bytes.end());
  }
  void settle(std::uint64_t) override {}
  void commit() override {
    if (content_.size() != size_) throw_size(content_.size());
    auto content = std::make_shared<const std::vector<std::byte>>(std::move(content_));
    const std::lock_guard guard(store_->mutex);
    if (if_exists_ == IfExists::fail && store_->files.contains(name_))
      throw Error(ErrorCode::invalid, fmt::format("'{}' exists already", shown_));
    store_->files.insert_or_assign(name_, std::move(content));
  }

 private:
  [[noreturn]] void throw_size(std::uint64_t size) const {
    throw Error(ErrorCode::invalid,
                fmt::format("'{}' was to have {} bytes, but {} were written", shown_, size_, size));
  }

  std::shared_ptr<MemoryStorage::Store> store_;
  std::string name_;
  std::string shown_;
  std::uint64_t size_;
  IfExists if_exists_;
  std::vector<std::byte> content_;
};

void check_name(std::string_view name) {
  if (name.empty() || name == "." || name == ".." ||
      name.find_first_of(std::string_view("/\0", 2)) != name.npos)
    throw Error(ErrorCode::invalid, fmt::format("not a file name: '{}'", name));
}

}  // namespace

MemoryStorage::MemoryStorage(std::shared_ptr<Store> store, std::string name)
    : store_(std::move(store)), name_(std::move(name)) {}

MemoryStorage::~MemoryStorage() { unlock(); }

std::string MemoryStorage::describe(std::string_view name) const {
  return name.empty() ? name_ : fmt::format("{}/{}", name_, name);
}

std::vector<Storage::Entry> MemoryStorage::list() const {
  const std::lock_guard guard(store_->mutex);
  std::vector<Entry> entries;
  for (const auto& [name, content] : store_->files)
    if (!name.starts_with('.')) entries.push_back({name, content->size()});
  return entries;
}

std::shared_ptr<const Source> MemoryStorage::open(std::string_view name) const {
  check_name(name);
  const std::lock_guard guard(store_->mutex);
  const auto found = store_->files.find(name);
  if (found == store_->files.end())
    throw Error(ErrorCode::not_found,
                fmt::format("cannot open '{}': there is no such file", describe(name)));
  return std::make_shared<MemorySource>(found->second, describe(name));
}

std::unique_ptr<Replacement> MemoryStorage::create(std::string_view name, std::uint64_t size,
                                                   IfExists if_exists) {
  check_name(name);
  return std::make_unique<MemoryReplacement>(store_, std::string(name), describe(name), size,
                                             if_exists);
}

void MemoryStorage::append_line(std::string_view name, std::string_view line) {
  check_name(name);
  const std::lock_guard guard(store_->mutex);
  Store::Content& content = store_->files[std::string(name)];
  auto grown = content ? *content : std::vector<std::byte>();
  const std::string whole =
      fmt::format("{}{}\n", grown.empty() || grown.back() == std::byte{'\n'} ? "" : "\n", line);
  const ConstBytes bytes = std::as_bytes(std::span(whole));
  grown.insert(grown.end(), bytes.begin(), bytes.end());
  content = std::make_shared<const std::vector<std::byte>>(std::move(grown));
}

void MemoryStorage::rename(std::string_view from, std::string_view to) {
  check_name(from);
  check_name(to);
  const std::lock_guard guard(store_->mutex);
  const auto found = store_->files.find(from);
  if (found == store_->files.end())
    throw Error(ErrorCode::not_found,
                fmt::format("cannot rename '{}': there is no such file", describe(from)));
  if (store_->files.contains(to))
    throw Error(ErrorCode::invalid,
                fmt::format("cannot rename '{}': '{}' exists", describe(from), describe(to)));
  auto content = found->second;
  store_->files.erase(found);
  store_->files.emplace(to, std::move(content));
}

void MemoryStorage::remove(const std::vector<std::string>& names) {
  for (const std::string& name : names) check_name(name);
  const std::lock_guard guard(store_->mutex);
  for (const std::string& name : names) store_->files.erase(name);
}

void MemoryStorage::lock() {
  const std::lock_guard guard(store_->mutex);
  if (store_->owner)
    throw Error(ErrorCode::locked,
                fmt::format("'{}' is in use by another manager; close that one first", name_));
  store_->owner = this;
}

void MemoryStorage::unlock() noexcept {
  const std::lock_guard guard(store_->mutex);
  if (store_->owner == this) store_->owner = nullptr;
}

}  // namespace perdure::storage
