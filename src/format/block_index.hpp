// .perdure/index: where every tensor lies, and a checksum for every few MiB of it. The byte layout
// stands in docs/format.md ("The index"). Written last, read first: what a tool needs to find one
// tensor of 100,000.
#pragma once

#include <cstdint>
#include <optional>
#include <perdure/value.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "format/archive_layout.hpp"
#include "format/storage_plan.hpp"

namespace perdure::format {

inline constexpr std::uint32_t kIndexVersion = 1;

struct StorageChecksums {
  std::uint64_t data_offset = 0;  // in the file
  std::uint64_t size = 0;
  std::uint32_t crc32 = 0;            // of all of it; the same as in the zip directory
  std::vector<std::uint32_t> blocks;  // one for each block_size bytes, the last one shorter

  // Takes in the next block, of `bytes` bytes.
  void add_block(std::uint32_t block_crc32, std::uint64_t bytes);
};

// The checksum of all of a storage, from those of its blocks.
std::uint32_t combined(const StorageChecksums& sums, std::uint64_t block_size);

// One line of the index. A path element is a str or an int; other keys stand there as their repr.
struct IndexedTensor {
  KeyPath path;
  std::int64_t record = -1;  // -1: meta, no bytes
  std::string device;        // "cpu", "cuda:0"
  Tensor geometry;           // storage is null
};

struct BlockIndex {
  std::uint64_t block_size = 0;
  std::vector<StorageChecksums> storages;
  std::vector<IndexedTensor> tensors;
};

std::uint64_t block_count(std::uint64_t size, std::uint64_t block_size) noexcept;
// The part of the index that says where the tensors lie: known before anything is written, and
// free of the state that it was made of.
struct TensorLines {
  std::uint64_t count = 0;
  std::string bytes;
};
TensorLines tensor_lines(const StoragePlan& plan);
// Bytes of the index that write_index will make: a function of the structure alone.
std::uint64_t index_size(const std::vector<ZipRecord>& tensors, const TensorLines& lines);
std::string write_index(const std::vector<StorageChecksums>& storages, const TensorLines& lines);
// Error(corrupt) where the bytes contradict themselves, Error(unsupported) for a newer version.
BlockIndex read_index(std::string_view bytes);
// The one tensor whose keys, joined with dots, are `name`, in a storage without data, and nothing
// else looked at. Null where there is none, and where several tensors could be meant, which of a
// name with dots in its keys, or that other names go on from, nobody knows. Errors: read_index's.
std::optional<Tensor> find_tensor(std::string_view bytes, std::string_view name);

}  // namespace perdure::format
