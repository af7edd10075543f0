// The writing side of a save: from the blocks of a staged file to the storage, with the checksums
// of all that passes.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "engine/staged_file.hpp"
#include "storage/storage.hpp"

namespace perdure::engine {

// Walks a file from front to back: sums up the tensors' bytes, and puts what stands between and
// behind them into the blocks.
class FileWalk {
 public:
  explicit FileWalk(const format::FilePlan& plan);
  // The next bytes of the file: those of tensors are there, the rest is written into them.
  void pass(MutableBytes bytes);
  // Of the tensors that have passed whole.
  const std::vector<format::StorageChecksums>& sums() const noexcept { return sums_; }

 private:
  void advance();
  void end_tensor();
  void sum(ConstBytes bytes);

  const format::FilePlan& plan_;
  std::string text_;  // what comes before the bytes of tensor number sums_.size()
  std::size_t text_done_ = 0;
  std::uint64_t left_ = 0;        // bytes of that tensor
  std::uint64_t block_left_ = 0;  // of the block that its index has a checksum for
  std::uint32_t block_crc32_ = 0;
  format::StorageChecksums current_;
  std::vector<format::StorageChecksums> sums_;
};

// Writes the whole file, but does not commit it. `progress` is told the bytes handed over so far.
// Returns the checksums of the tensors' records.
std::vector<format::StorageChecksums> drain(
    StagedFile& file, const format::FilePlan& plan, storage::Replacement& out,
    const std::function<void(std::uint64_t)>& progress = {});

}  // namespace perdure::engine
