// Reading much of a file: with several threads, in the order of the file, every checksum compared.
#pragma once

#include <cstdint>
#include <functional>
#include <perdure/file.hpp>
#include <span>
#include <vector>

namespace perdure::engine {

// A stretch of a record whose bytes do not have the checksum that they were written with.
struct DamagedBlock {
  std::uint64_t offset = 0;  // in the file
  std::uint64_t size = 0;
};

// One record to read.
struct RecordRead {
  const CheckpointFile::Record* record = nullptr;
  std::uint64_t block_size = 0;  // what has a checksum of its own; the last block may be shorter
  std::span<const std::uint32_t> checksums;  // of the blocks; empty: there is nothing to compare
  MutableBytes into;                         // where it goes; empty: nowhere, it is only compared
  // Nothing of a block is written to `into` before its checksum was found right. Only for blocks of
  // at most format::kBlockSize.
  bool compare_first = false;
  // Where it is set, what goes through it, and `into` is empty: runs of bytes that begin at
  // multiples of format::kBlockSize in the record (and of block_size, where that is smaller), by
  // several threads at once, about in the order of the file. Not those of a damaged block of at
  // most format::kBlockSize; of a larger one, that is known at its end.
  std::function<void(std::uint64_t at, ConstBytes bytes)> sink = {};
};

// Called for each damaged block, by one thread at a time, in any order. What it throws ends the
// reading.
using OnDamage = std::function<void(const RecordRead&, const DamagedBlock&)>;

// Takes a few MiB for each of at most four threads, the caller's among them: from `scratch`, fresh
// ones where that is empty or gives null. Where several places make it throw, the error is that of
// the first one in the file; those behind it may be unread.
void bulk_read(const Source& source, const std::vector<RecordRead>& reads,
               const OnDamage& on_damage, const CheckpointFile::Scratch& scratch = {});

// Reads records of two files side by side: each of `reads` with the one in its place in `others`,
// which has a whole multiple of its size. `sink` gets the bytes of both that are at the same part
// of them, under the number of the pair; otherwise as RecordRead::sink. Their blocks must be
// multiples of format::kBlockSize, or whole records.
using PairSink =
    std::function<void(std::size_t pair, std::uint64_t at, ConstBytes bytes, ConstBytes other)>;
struct PairedReads {
  const Source& source;
  std::vector<RecordRead> reads;
  const OnDamage& on_damage;
};
void bulk_read_pairs(const PairedReads& one, const PairedReads& other, const PairSink& sink);

}  // namespace perdure::engine
