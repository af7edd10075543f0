#include "engine/file_drain.hpp"

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <functional>

#include "format/crc32.hpp"

namespace perdure::engine {
namespace {

constexpr std::uint64_t kBlockSize = Arena::kBlockSize;
// Blocks that may be on their way to the disk while the next ones are filled: 16 MiB keep a fast
// one busy.
constexpr std::uint64_t kBlocksInFlight = 4;

}  // namespace

FileWalk::FileWalk(const format::FilePlan& plan) : plan_(plan) { advance(); }

// To the next tensor that has bytes, or to the tail.
void FileWalk::advance() {
  while (sums_.size() < plan_.tensors().size()) {
    const format::TensorRecord& tensor = plan_.tensors()[sums_.size()];
    text_ += plan_.header(sums_.size());
    left_ = tensor.bytes.size();
    block_left_ = std::min(left_, format::kBlockSize);
    current_ = {.data_offset = tensor.data_offset, .size = left_, .crc32 = 0, .blocks = {}};
    if (left_ > 0) return;
    end_tensor();
  }
  text_ += plan_.tail(sums_);
}

void FileWalk::end_tensor() {
  text_ += plan_.descriptor(sums_.size(), current_.crc32);
  sums_.push_back(std::move(current_));
}

void FileWalk::sum(ConstBytes bytes) {
  block_crc32_ = format::crc32(bytes, block_crc32_);
  left_ -= bytes.size();
  block_left_ -= bytes.size();
  if (block_left_ > 0) return;
  const std::uint64_t done = current_.size - left_ - current_.blocks.size() * format::kBlockSize;
  current_.add_block(block_crc32_, done);
  block_crc32_ = 0;
  block_left_ = std::min(left_, format::kBlockSize);
}

void FileWalk::pass(MutableBytes bytes) {
  while (!bytes.empty()) {
    std::size_t count = 0;
    if (text_done_ < text_.size()) {
      count = std::min(bytes.size(), text_.size() - text_done_);
      std::memcpy(bytes.data(), text_.data() + text_done_, count);
      text_done_ += count;
    } else {
      text_.clear();
      text_done_ = 0;
      count = std::min<std::uint64_t>(bytes.size(), block_left_);
      sum(bytes.first(count));
      if (left_ == 0) {
        end_tensor();
        advance();
      }
    }
    bytes = bytes.subspan(count);
  }
}

std::vector<format::StorageChecksums> drain(StagedFile& file, const format::FilePlan& plan,
                                            storage::Replacement& out,
                                            const std::function<void(std::uint64_t)>& progress) {
  FileWalk walk(plan);
  const std::uint64_t size = plan.file_size();
  for (std::uint64_t number = 0; number < file.blocks(); ++number) {
    const std::uint64_t begin = number * kBlockSize;
    if (number >= kBlocksInFlight) {
      const std::uint64_t done = number - kBlocksInFlight + 1;
      out.settle(done * kBlockSize);
      file.release(done);
    }
    const MutableBytes block = file.take(number).first(std::min(kBlockSize, size - begin));
    walk.pass(block);
    out.append(block);
    if (progress) progress(begin + block.size());
  }
  return walk.sums();
}

}  // namespace perdure::engine
