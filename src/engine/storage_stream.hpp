// Storages whose bytes stay in their file until somebody copies them.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <perdure/file.hpp>
#include <string>

#include "format/contents.hpp"

namespace perdure::engine {

// The copier of storages of one file. Bytes are summed up on their way: who copies a storage from
// front to back costs one read of it. For everybody else it is read whole, and compared, before a
// byte of it is given out.
class StorageStream final : public DeviceCopier {
 public:
  // Gives the storages of `contents` that `value` refers to, and that are among `numbers`, their
  // addresses and their copier.
  static void attach(std::shared_ptr<const Source> source, const format::Contents& contents,
                     const Value& value, const std::vector<std::size_t>& numbers);

  explicit StorageStream(std::shared_ptr<const Source> source) : source_(std::move(source)) {}
  void catch_up() override {}
  void copy(MutableBytes to, const std::byte* from) override;
  void finish() override {}

 private:
  struct Stretch {
    CheckpointFile::Record record;
    std::string tensor;       // one that is in it
    std::uint64_t begin = 0;  // of what tensors cover
    std::uint64_t end = 0;
    bool in_order = false;     // so far; nothing is compared before its end is reached
    std::uint64_t summed = 0;  // bytes from its beginning
    std::uint32_t sum = 0;
  };

  void sum_rest(Stretch& stretch);
  void add(Stretch& stretch, ConstBytes bytes);

  std::shared_ptr<const Source> source_;
  std::mutex mutex_;                             // of what follows
  std::map<std::uintptr_t, Stretch> stretches_;  // by their first address
};

}  // namespace perdure::engine
