// What of a file follows from the structure of a state: where each tensor lies, the lines of the
// index, and the pickle but for its numbers. Made once and used again as long as the structure
// stays the same; a state of thousands of tensors then costs little more than a copy of its pickle.
//
// Structure is everything but the numbers (None, bools, ints, floats) that are no keys, and the
// addresses of memory. For a tree that is kept (Dict::keep_as) its number stands for all of it: it
// is not walked, and the addresses of its tensors are the same, too.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <unordered_set>
#include <vector>

#include "format/archive_layout.hpp"
#include "format/block_index.hpp"
#include "format/pickle_writer.hpp"

namespace perdure::format {

// One record data/N and the memory that it is written from.
struct TensorRecord {
  ConstBytes bytes;                        // on a device where there is a copier
  DeviceCopier* copier = nullptr;          // of the storage
  std::uint64_t header_offset = 0;         // in the file: of the header
  std::uint64_t data_offset = 0;           // of the bytes
  std::uint64_t end = 0;                   // of the descriptor, which follows the bytes
  Liveness liveness = Liveness::detached;  // the least that a tensor in it claims
};

// Calls `sink` with the bytes of each block of format::kBlockSize; those of a device come to the
// CPU for the time of the call.
using BlockSink = std::function<void(ConstBytes)>;
void for_each_block(const TensorRecord& tensor, const BlockSink& sink);

// Refers to no state, but to the memory of its tensors and, where it is reused, to kept trees.
struct Layout {
  TensorLines lines;
  std::vector<ZipRecord> records;  // of the tensors; they are the first in the file
  std::vector<TensorRecord> tensors;
  std::uint64_t directory_bytes = 0;  // of the tensors in the zip directory
  std::uint64_t end = 0;              // of the last tensor record

  // A record over memory that no kept tree has: at the next save it may lie elsewhere.
  struct Loose {
    std::size_t record = 0;
    std::uint64_t begin = 0;  // bytes of the storage in front of it
  };
  std::string outline;
  WrittenPickle pickle;
  std::vector<Loose> loose;                     // in the order of the state
  std::unordered_set<const void*> kept_memory;  // of the tensors in kept trees
};

// A layout with the state's own numbers and memory put in.
struct FittedLayout {
  std::shared_ptr<const Layout> layout;
  std::string pickle;
  std::vector<TensorRecord> tensors;
};

// Lays out `state`. Error(invalid) as for StoragePlan and write_pickle.
FittedLayout lay_out(const Value& state);

// The last layout, for who saves one state again and again. Not synchronised.
class LayoutCache {
 public:
  FittedLayout lay_out(const Value& state);

 private:
  std::shared_ptr<const Layout> last_;
};

}  // namespace perdure::format
