// A file in memory, and the few things that the format tests do with one.
#pragma once

#include <cstdint>
#include <cstring>
#include <memory>
#include <perdure/file.hpp>
#include <string>
#include <utility>

namespace perdure::test {

class MemorySource final : public Source {
 public:
  explicit MemorySource(std::string bytes, std::string name = "memory.pt")
      : bytes_(std::move(bytes)), name_(std::move(name)) {}

  std::uint64_t size() const override { return bytes_.size(); }
  void read(std::uint64_t offset, MutableBytes into) const override {
    if (offset > bytes_.size() || into.size() > bytes_.size() - offset)
      throw Error(ErrorCode::io, name_ + ": a read past the end");
    if (!into.empty()) std::memcpy(into.data(), bytes_.data() + offset, into.size());
  }
  const std::string& name() const override { return name_; }

 private:
  std::string bytes_;
  std::string name_;
};

inline std::shared_ptr<const Source> source_of(std::string bytes) {
  return std::make_shared<MemorySource>(std::move(bytes));
}

// What perdure writes for `state`. The info is not signed, so the same state gives the same bytes.
inline std::string file_of(const Value& state, const CheckpointInfo& info = {}) {
  std::string out;
  write_to(
      [&](ConstBytes bytes) {
        out.append(reinterpret_cast<const char*>(bytes.data()), bytes.size());
      },
      state, info);
  return out;
}

// Opened, read and verified whole.
inline Value load_bytes(std::string bytes) {
  const CheckpointFile file = CheckpointFile::open(source_of(std::move(bytes)));
  file.read_all(file.value());
  return file.value();
}

}  // namespace perdure::test
