#include "format/zip_records.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cstdint>

#include "format/checkpoint_json.hpp"
#include "format/contents.hpp"
#include "format/crc32.hpp"
#include "format/pickle_reader.hpp"

namespace perdure::format {
namespace {

// data.pkl of 100,000 tensors is 20 MB. A bound on what a hostile file can make us allocate.
constexpr std::uint64_t kMaxTextRecord = kMaxPickle;

// What of a TorchScript archive is no code.
bool is_data(std::string_view name) {
  return name == "data.pkl" || name == "constants.pkl" || name == "version" ||
         name.starts_with("data/") || name.starts_with("constants/");
}

}  // namespace

ZipRecords::ZipRecords(const Source& source)
    : source_(&source), records_(read_zip_directory(source, &packed_)) {
  for (const auto& record : records_) by_name_.push_back(&record);
  std::ranges::sort(by_name_, {}, &CheckpointFile::Record::name);
  has_checksums_ =
      std::ranges::any_of(records_, [](const auto& record) { return record.crc32 != 0; });
  for (const PackedRecord& packed : packed_)
    if (!is_torch_script() || is_data(packed.record.name))
      with_file_name(source, [&] { refuse_packed(packed); });
}

const CheckpointFile::Record* ZipRecords::find(std::string_view name) const {
  const auto view = [](const CheckpointFile::Record* record) {
    return std::string_view(record->name);
  };
  const auto it = std::ranges::lower_bound(by_name_, name, {}, view);
  return it == by_name_.end() || (*it)->name != name ? nullptr : *it;
}

std::string ZipRecords::read_text(const CheckpointFile::Record& record) const {
  if (record.size > kMaxTextRecord)
    throw Error(ErrorCode::unsupported, fmt::format("{}: record {} has {} bytes, more than 1 GiB",
                                                    source_->name(), record.name, record.size));
  std::string text(record.size, '\0');
  const auto bytes = std::as_writable_bytes(std::span(text));
  source_->read(record.offset, bytes);
  if (has_checksums_ && crc32(bytes) != record.crc32)
    throw Error(
        ErrorCode::corrupt,
        fmt::format("{}: record {} is damaged: its {} bytes at offset {} do not have the checksum "
                    "that they were written with",
                    source_->name(), record.name, record.size, record.offset));
  return text;
}

std::string ZipRecords::read_required(std::string_view name) const {
  const auto* record = find(name);
  if (record == nullptr)
    throw Error(ErrorCode::unsupported,
                fmt::format("{}: a zip file without {}, so not a PyTorch checkpoint",
                            source_->name(), name));
  return read_text(*record);
}

std::optional<CheckpointInfo> ZipRecords::read_info() const {
  const auto* record = find(".perdure/checkpoint.json");
  if (record == nullptr) return std::nullopt;
  const std::string text = read_text(*record);
  return with_file_name(*source_, [&] { return read_checkpoint_json(text); });
}

std::optional<BlockIndex> ZipRecords::read_index() const {
  const auto* record = find(".perdure/index");
  if (record == nullptr) return std::nullopt;
  const std::string bytes = read_text(*record);
  return with_file_name(*source_, [&] {
    BlockIndex index = format::read_index(bytes);
    check_index(index);
    return index;
  });
}

void ZipRecords::check_index(const BlockIndex& index) const {
  for (std::size_t i = 0; i < index.storages.size(); ++i) {
    const auto* record = find(fmt::format("data/{}", i));
    const StorageChecksums& sums = index.storages[i];
    if (record == nullptr || record->size != sums.size || record->offset != sums.data_offset ||
        record->crc32 != sums.crc32 || combined(sums, index.block_size) != sums.crc32)
      throw Error(ErrorCode::corrupt,
                  fmt::format(".perdure/index contradicts the zip directory on data/{}", i));
  }
}

}  // namespace perdure::format
