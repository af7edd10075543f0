// The records of a zip by their names, with their checksums compared when they are read.
#pragma once

#include <optional>
#include <perdure/file.hpp>
#include <string>
#include <vector>

#include "format/block_index.hpp"
#include "format/zip_reader.hpp"

namespace perdure::format {

class ZipRecords {
 public:
  // Reads and checks the zip directory. `source` must outlive it. Error(unsupported) for compressed
  // records in what is no TorchScript archive.
  explicit ZipRecords(const Source& source);
  ZipRecords(ZipRecords&&) = default;
  ZipRecords(const ZipRecords&) = delete;  // by_name_ points into records_

  const Source& source() const { return *source_; }
  const std::vector<CheckpointFile::Record>& records() const { return records_; }
  // Leaves none here.
  std::vector<CheckpointFile::Record> take() && { return std::move(records_); }
  const CheckpointFile::Record* find(std::string_view name) const;
  // The place in records() of one that find has found.
  std::size_t place_of(const CheckpointFile::Record& record) const {
    return static_cast<std::size_t>(&record - records_.data());
  }
  bool has_checksums() const { return has_checksums_; }
  // torch.jit.save, or torch::save of LibTorch; the code in it is compressed.
  bool is_torch_script() const { return find("constants.pkl") != nullptr; }
  const std::vector<PackedRecord>& packed() const { return packed_; }

  // A whole record, compared; for the small ones. Error(corrupt) where it is damaged.
  std::string read_text(const CheckpointFile::Record& record) const;
  // The record that must be there and whole: data.pkl.
  std::string read_required(std::string_view name) const;
  std::optional<CheckpointInfo> read_info() const;
  // nullopt in files that are not perdure's. Error(corrupt) where it contradicts the directory.
  std::optional<BlockIndex> read_index() const;

 private:
  void check_index(const BlockIndex& index) const;

  const Source* source_;
  std::vector<PackedRecord> packed_;
  std::vector<CheckpointFile::Record> records_;
  // Sorted, not hashed: names of a hostile file could be made to collide.
  std::vector<const CheckpointFile::Record*> by_name_;
  bool has_checksums_ = false;
};

}  // namespace perdure::format
