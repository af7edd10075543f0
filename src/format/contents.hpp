// What a file holds, in whichever of the formats that perdure reads: known before a byte of its
// tensors is read. Each format has a reader that makes a Contents of a Source; docs/formats.md says
// how each is told and what is refused.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <perdure/file.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "format/block_index.hpp"

namespace perdure::format {

struct Contents {
  std::string format;  // in words: "PyTorch zip", "safetensors"
  Value value;
  // In the order of first mention: storages[i]->record == i, data == nullptr.
  std::vector<std::shared_ptr<TensorStorage>> storages;
  // What has a name and a place of its own in the file: of a zip, each of its records.
  std::vector<CheckpointFile::Record> records;
  std::vector<std::size_t> places;              // records[places[i]] has the bytes of storages[i]
  bool has_checksums = false;                   // the crc32 of every record is one to compare
  std::vector<bool> unchecked;                  // but of these; may be shorter than records
  std::map<std::string, std::string> metadata;  // what safetensors say beside their tensors
  std::optional<CheckpointInfo> info;
  std::optional<BlockIndex> index;

  // Of a directory that several ranks have saved: the bytes of all files, and that a restore may
  // write into live memory what it has yet to verify, because every piece has a checksum and damage
  // makes it take another checkpoint.
  std::uint64_t bytes = 0;  // 0: those of the source
  bool reads_in_place = false;

  // A storage whose bytes are a box of a tensor, and come from boxes of it that lie elsewhere.
  // What is in one is looked at when it is needed: of many ranks, each needs few pieces.
  struct PieceBytes {
    std::shared_ptr<const Source> source;
    std::uint64_t offset = 0;
    std::optional<std::uint32_t> crc32;
  };
  struct Piece {
    std::vector<std::int64_t> offsets;
    std::vector<std::int64_t> sizes;
    std::function<PieceBytes()> bytes;  // from any thread; throws what is wrong with it
  };
  struct Gathered {
    std::string name;
    std::size_t itemsize = 1;
    std::vector<std::int64_t> offsets;
    std::vector<std::int64_t> sizes;
    std::vector<Piece> pieces;
  };
  std::map<std::size_t, Gathered> gathered;  // by storage
  // A storage with the elements of a view of another one, C-contiguous.
  struct Cut {
    std::size_t storage = 0;
    Tensor view;
  };
  std::map<std::size_t, Cut> cuts;  // by storage

  const CheckpointFile::Record& record_of(std::size_t storage) const {
    return records[places[storage]];
  }
  // The next storage, whose bytes are those of `record`, which no other has.
  const std::shared_ptr<TensorStorage>& add_storage(CheckpointFile::Record record);
};

// By what stands in the file; its name says nothing. Error(unsupported) for a format that is known
// and not read, Error(corrupt) for what is no format at all, and each reader's own. `allow_opaque`
// as in CheckpointFile::open.
Contents read_contents(const Source& source, bool allow_opaque);

// Whether `state` has what a checkpoint of so many ranks has: under "ranks", by "1", "2", ..., the
// record of each but the first.
bool has_records_of(const Value& state, std::size_t ranks);

// By the first bytes alone: whether the rest holds what they promise, its reader finds out.
enum class Format { torch_zip, torch_legacy, torch_tar, safetensors, unknown };
Format format_of(const Source& source);
// "a PyTorch zip"; of an unknown format, one that perdure does not read and that is known by its
// first bytes, or "".
std::string describe_format(const Source& source);

// Runs `parse`; an Error that it throws gets the file's name in front.
template <class F>
auto with_file_name(const Source& source, F&& parse) {
  try {
    return parse();
  } catch (const Error& error) {
    throw Error(error.code(), source.name() + ": " + error.what(), error.errno_value());
  }
}

}  // namespace perdure::format
