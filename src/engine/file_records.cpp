#include "engine/file_records.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cstdint>
#include <functional>
#include <new>
#include <unordered_set>

#include "format/checkpoint_json.hpp"
#include "format/coding.hpp"
#include "format/crc32.hpp"
#include "format/zip_reader.hpp"

namespace perdure::engine {
namespace {

// data.pkl of 100,000 tensors is 20 MB. A bound on what a hostile file can make us allocate.
constexpr std::uint64_t kMaxTextRecord = format::kMaxPickle;

std::string read_head(const Source& source) {
  std::string head(std::min<std::uint64_t>(source.size(), 512), '\0');
  source.read(0, std::as_writable_bytes(std::span(head)));
  return head;
}

bool is_legacy(std::string_view head) {
  // Pickle protocol 2 of the number 0x1950a86a20f9469cfc6c, the magic number of torch.save
  // before 1.6.
  return head.starts_with(
      std::string_view("\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19", 14));
}
bool is_tar(std::string_view head) { return head.size() >= 262 && head.substr(257, 5) == "ustar"; }

}  // namespace

FileRecords::FileRecords(std::shared_ptr<const Source> source) : source_(std::move(source)) {
  refuse_other_formats();
  records_ = format::read_zip_directory(*source_);
  for (const auto& record : records_) by_name_.push_back(&record);
  std::ranges::sort(by_name_, {}, &CheckpointFile::Record::name);
  has_checksums_ =
      std::ranges::any_of(records_, [](const auto& record) { return record.crc32 != 0; });
  if (find("constants.pkl") != nullptr)
    throw Error(ErrorCode::unsupported, fmt::format("{}: a TorchScript archive (torch.jit.save, or "
                                                    "torch::save of LibTorch), not a checkpoint; "
                                                    "save the state_dict instead",
                                                    source_->name()));
}

void FileRecords::refuse_other_formats() const {
  if (source_->size() == 0)
    throw Error(ErrorCode::corrupt, fmt::format("{}: the file is empty", source_->name()));
  const std::string head = read_head(*source_);
  if (head.starts_with("PK\x03\x04")) return;
  if (is_legacy(head) || is_tar(head))
    throw Error(ErrorCode::unsupported,
                fmt::format("{}: written in the legacy format of PyTorch before 1.6; load it with "
                            "torch.load and save it again",
                            source_->name()));
  throw Error(ErrorCode::corrupt, fmt::format("{}: does not begin as a PyTorch file (at offset 0); "
                                              "it was overwritten, or is something else",
                                              source_->name()));
}

const CheckpointFile::Record* FileRecords::find(std::string_view name) const {
  const auto view = [](const CheckpointFile::Record* record) {
    return std::string_view(record->name);
  };
  const auto it = std::ranges::lower_bound(by_name_, name, {}, view);
  return it == by_name_.end() || (*it)->name != name ? nullptr : *it;
}

std::string FileRecords::read_text(const CheckpointFile::Record& record) const {
  if (record.size > kMaxTextRecord)
    throw Error(ErrorCode::unsupported, fmt::format("{}: record {} has {} bytes, more than 1 GiB",
                                                    source_->name(), record.name, record.size));
  std::string text(record.size, '\0');
  const auto bytes = std::as_writable_bytes(std::span(text));
  source_->read(record.offset, bytes);
  if (has_checksums_ && format::crc32(bytes) != record.crc32)
    throw Error(
        ErrorCode::corrupt,
        fmt::format("{}: record {} is damaged: its {} bytes at offset {} do not have the checksum "
                    "that they were written with",
                    source_->name(), record.name, record.size, record.offset));
  return text;
}

std::string FileRecords::read_required(std::string_view name) const {
  const auto* record = find(name);
  if (record == nullptr)
    throw Error(ErrorCode::unsupported,
                fmt::format("{}: a zip file without {}, so not a PyTorch checkpoint",
                            source_->name(), name));
  return read_text(*record);
}

std::optional<CheckpointInfo> FileRecords::read_info() const {
  const auto* record = find(".perdure/checkpoint.json");
  if (record == nullptr) return std::nullopt;
  const std::string text = read_text(*record);
  return with_file_name(*source_, [&] { return format::read_checkpoint_json(text); });
}

std::optional<format::BlockIndex> FileRecords::read_index() const {
  const auto* record = find(".perdure/index");
  if (record == nullptr) return std::nullopt;
  const std::string bytes = read_text(*record);
  return with_file_name(*source_, [&] {
    format::BlockIndex index = format::read_index(bytes);
    check_index(index);
    return index;
  });
}

std::uint32_t combined(const format::StorageChecksums& sums, std::uint64_t block_size) {
  std::uint32_t whole = 0;
  for (std::size_t block = 0; block < sums.blocks.size(); ++block) {
    const std::uint64_t size = std::min(block_size, sums.size - block * block_size);
    whole = format::crc32_combine(whole, sums.blocks[block], size);
  }
  return whole;
}

void FileRecords::check_index(const format::BlockIndex& index) const {
  for (std::size_t i = 0; i < index.storages.size(); ++i) {
    const auto* record = find(fmt::format("data/{}", i));
    const format::StorageChecksums& sums = index.storages[i];
    if (record == nullptr || record->size != sums.size || record->offset != sums.data_offset ||
        record->crc32 != sums.crc32 || combined(sums, index.block_size) != sums.crc32)
      throw Error(ErrorCode::corrupt,
                  fmt::format(".perdure/index contradicts the zip directory on data/{}", i));
  }
}

namespace {

// The checksums of a record's blocks, or null where `index` has none of it.
const format::StorageChecksums* blocks_of(const CheckpointFile::Record& record,
                                          const std::optional<format::BlockIndex>& index) {
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

RecordRead FileRecords::read_of(const CheckpointFile::Record& record,
                                const std::optional<format::BlockIndex>& index,
                                MutableBytes into) const {
  RecordRead read{.record = &record, .block_size = record.size, .checksums = {}, .into = into};
  if (!has_checksums_) return read;
  if (const format::StorageChecksums* blocks = blocks_of(record, index)) {
    read.block_size = index->block_size;
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
