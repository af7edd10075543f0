// What the file itself says of its records when not everything in it can be believed any more, and
// which of that its checksums prove.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <perdure/file.hpp>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "engine/bulk_read.hpp"
#include "format/block_index.hpp"
#include "format/zip_scan.hpp"

namespace perdure::engine {

// Three witnesses speak of a record: its entry in the zip directory, its header together with the
// descriptor behind it, and .perdure/index. As they come from one file, a place and a checksum that
// most of them name is believed, once the bytes have that checksum.
class Remains {
 public:
  // Error(corrupt) where nothing in the file is part of a zip, Error(unsupported) for PyTorch's
  // other formats and for a file without checksums.
  explicit Remains(std::shared_ptr<const Source> source);
  Remains(const Remains&) = delete;

  const Source& source() const { return *source_; }
  // Why the zip directory is not believed; "" where it is.
  const std::string& refusal() const { return refusal_; }
  // Whether .perdure/index is there, and whole.
  const std::optional<format::BlockIndex>& index() const { return index_; }
  // What the structure says that the storages' sizes are, by key: it tells where records end whose
  // own ends are damaged.
  void learn_sizes(const std::map<std::string, std::uint64_t>& sizes);
  // Whether a record of perdure's own was there, as far as one can see.
  bool had(std::string_view name) const;

  struct Found {
    std::optional<CheckpointFile::Record> record;  // nothing: `why`
    std::string why;
  };
  // The place of a record and the checksum that it should have; `size` is what it must have, or it
  // is any but 0. The bytes are still to be compared.
  Found find(std::string_view name, std::optional<std::uint64_t> size = {}) const;
  // How to read it: block by block, where the index speaks of the same place. Refers to both.
  RecordRead read_of(const CheckpointFile::Record& record, MutableBytes into) const;
  // The content of a small record, proven; nothing where it is not.
  std::optional<std::string> read_text(std::string_view name) const;

  // The records data/N, N a number, of which both ends are there: key, size.
  std::vector<std::pair<std::string, std::uint64_t>> sized_storages() const;

 private:
  struct Evidence {
    CheckpointFile::Record record;
    int witnesses = 1;
  };
  using Claims = std::span<const format::RecordClaim>;

  Claims claims_of(std::string_view name) const;
  const format::StorageChecksums* indexed(std::string_view name) const;
  std::vector<Evidence> evidence(std::string_view name, std::optional<std::uint64_t> size) const;
  Found decide(const std::vector<Evidence>& equal) const;
  bool is_whole(const CheckpointFile::Record& record) const;
  std::string why_absent(std::string_view name, std::optional<std::uint64_t> size) const;
  void take_claims(std::vector<format::RecordClaim> claims);
  void refuse_unchecked() const;
  void read_index();

  std::shared_ptr<const Source> source_;
  std::string refusal_;
  std::optional<format::ZipScan> scan_;      // where the directory is not believed
  std::vector<format::RecordClaim> claims_;  // by name, and in the order of the file
  std::string first_;                        // name of the first record in the file
  std::optional<format::BlockIndex> index_;
  mutable std::uint64_t compared_ = 0;  // bytes, by is_whole
};

}  // namespace perdure::engine
