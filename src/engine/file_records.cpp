#include "engine/file_records.hpp"

#include <fmt/format.h>

#include <charconv>
#include <cstdint>
#include <functional>
#include <new>
#include <unordered_set>

namespace perdure::engine {
namespace {

// The checksums of a record's blocks, or null where the index has none of it.
const format::StorageChecksums* blocks_of(const std::optional<format::BlockIndex>& index,
                                          const CheckpointFile::Record& record) {
  constexpr std::string_view kFolder = "data/";
  const std::string_view name = record.name;
  if (!index || !name.starts_with(kFolder)) return nullptr;
  std::size_t number = 0;
  std::from_chars(name.data() + kFolder.size(), name.data() + name.size(), number);
  // Other spellings of the number, such as data/00, are other records.
  if (number >= index->storages.size() || name != fmt::format("{}{}", kFolder, number))
    return nullptr;
  return &index->storages[number];
}

}  // namespace

RecordRead read_of(const format::Contents& contents, const CheckpointFile::Record& record,
                   MutableBytes into) {
  RecordRead read{.record = &record, .block_size = record.size, .checksums = {}, .into = into};
  if (!contents.has_checksums) return read;
  const auto number = static_cast<std::size_t>(&record - contents.records.data());
  if (number < contents.unchecked.size() && contents.unchecked[number]) return read;
  if (const format::StorageChecksums* blocks = blocks_of(contents.index, record)) {
    read.block_size = contents.index->block_size;
    read.checksums = blocks->blocks;
  } else {
    read.checksums = std::span(&record.crc32, 1);
  }
  return read;
}

namespace {

class TensorWalk {
 public:
  explicit TensorWalk(const std::function<void(const KeyPath&, const Tensor&)>& visit)
      : visit_(visit) {}

  void walk(const Value& value) {
    if (value.kind() == Kind::tensor) return visit_(path_, value.as_tensor());
    if (value.kind() == Kind::opaque) return walk_opaque(value.as_opaque());
    if (!value.is_mapping() && !value.is_sequence()) return;
    if (!seen_.insert(value.identity()).second) return;
    if (value.is_mapping()) {
      for (const auto& [key, item] : value.as_dict()) walk_at(key, item);
      if (const auto& attributes = value.as_dict().attributes())
        for (const auto& [key, item] : *attributes) walk_at(key, item);
    } else {
      const auto& items = value.as_items();
      for (std::size_t i = 0; i < items.size(); ++i) walk_at(Value(i), items[i]);
    }
  }

 private:
  void walk_opaque(const Opaque& opaque) {
    if (!seen_.insert(&opaque).second) return;
    walk_at(Value("(arguments)"), opaque.arguments);
    walk_at(Value("(state)"), opaque.state);
  }
  void walk_at(const Value& key, const Value& value) {
    path_.push_back(key);
    walk(value);
    path_.pop_back();
  }

  const std::function<void(const KeyPath&, const Tensor&)>& visit_;
  KeyPath path_;
  std::unordered_set<const void*> seen_;
};

}  // namespace

// Neither torch's kernels nor ours want more than a cache line.
const Tensor* array_in(const Value& value) {
  if (value.kind() != Kind::dict || !value.contains("__perdure__") || !value.contains("data"))
    return nullptr;
  const Value& data = value["data"];
  return data.kind() == Kind::tensor ? &data.as_tensor() : nullptr;
}

void allocate_owned(TensorStorage& storage) {
  constexpr std::align_val_t kCacheLine{64};
  auto* memory = static_cast<std::byte*>(::operator new(storage.size, kCacheLine));
  storage.owner = std::shared_ptr<const void>(
      memory, [](const void* p) { ::operator delete(const_cast<void*>(p), kCacheLine); });
  storage.data = memory;
}

void for_each_tensor(const Value& value,
                     const std::function<void(const KeyPath&, const Tensor&)>& visit) {
  TensorWalk(visit).walk(value);
}

}  // namespace perdure::engine
