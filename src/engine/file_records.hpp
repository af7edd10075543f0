// The records of an open file, with their checksums compared: what CheckpointFile and verify share.
#pragma once

#include <functional>
#include <optional>
#include <perdure/file.hpp>
#include <string>
#include <vector>

#include "engine/bulk_read.hpp"
#include "format/block_index.hpp"
#include "format/pickle_reader.hpp"

namespace perdure::engine {

class FileRecords {
 public:
  // Reads and checks the zip directory. Error(unsupported) for PyTorch's other formats, which it
  // names.
  explicit FileRecords(std::shared_ptr<const Source> source);
  FileRecords(const FileRecords&) = delete;  // by_name_ points into records_

  const Source& source() const { return *source_; }
  const std::vector<CheckpointFile::Record>& records() const { return records_; }
  const CheckpointFile::Record* find(std::string_view name) const;
  bool has_checksums() const { return has_checksums_; }

  // A whole record, compared; for the small ones. Error(corrupt) where it is damaged.
  std::string read_text(const CheckpointFile::Record& record) const;
  // The record that must be there and whole: data.pkl.
  std::string read_required(std::string_view name) const;
  std::optional<CheckpointInfo> read_info() const;
  // nullopt in files that are not perdure's. Error(corrupt) where it contradicts the directory.
  std::optional<format::BlockIndex> read_index() const;
  // How to read a record into `into` (nowhere, where that is empty): with the checksum of each
  // block where `index` has them, and of the whole where not. Refers to both.
  RecordRead read_of(const CheckpointFile::Record& record,
                     const std::optional<format::BlockIndex>& index, MutableBytes into) const;

 private:
  void refuse_other_formats() const;
  void check_index(const format::BlockIndex& index) const;

  std::shared_ptr<const Source> source_;
  std::vector<CheckpointFile::Record> records_;
  // Sorted, not hashed: names of a hostile file could be made to collide.
  std::vector<const CheckpointFile::Record*> by_name_;
  bool has_checksums_ = false;
};

// Runs `parse`; an Error that it throws gets the file's name in front.
template <class F>
auto with_file_name(const Source& source, F&& parse) {
  try {
    return parse();
  } catch (const Error& error) {
    throw Error(error.code(), source.name() + ": " + error.what(), error.errno_value());
  }
}

// The checksum of all of a storage, from those of its blocks.
std::uint32_t combined(const format::StorageChecksums& sums, std::uint64_t block_size);

// Gives the storage memory that it owns.
void allocate_owned(TensorStorage& storage);

// Calls `visit` for every tensor below `value`, each container once, with its place.
void for_each_tensor(const Value& value,
                     const std::function<void(const KeyPath&, const Tensor&)>& visit);

}  // namespace perdure::engine
