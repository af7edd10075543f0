#include "engine/staged_file.hpp"

#include <algorithm>
#include <cstdint>
#include <utility>

#include "engine/stream_copy.hpp"

namespace perdure::engine {
namespace {

constexpr std::uint64_t kBlockSize = Arena::kBlockSize;

std::uint64_t blocks_of(std::uint64_t bytes) { return (bytes + kBlockSize - 1) / kBlockSize; }

constexpr std::size_t index(Pass pass) { return static_cast<std::size_t>(pass); }

// The copies into one block. Those of a device are under way until finish().
class BlockCopy {
 public:
  BlockCopy() = default;
  BlockCopy(const BlockCopy&) = delete;
  BlockCopy& operator=(const BlockCopy&) = delete;
  // Where one failed, the others must not go on: the block may soon be somebody else's memory.
  ~BlockCopy() {
    try {
      finish();
    } catch (...) {
      // The first error is the one that is told.
    }
  }
  void add(const format::TensorRecord& tensor, std::uint64_t from, MutableBytes to) {
    const ConstBytes bytes = tensor.bytes.subspan(from, to.size());
    if (tensor.copier == nullptr) return stream_copy(to.data(), bytes);
    if (std::ranges::find(devices_, tensor.copier) == devices_.end())
      devices_.push_back(tensor.copier);
    tensor.copier->copy(to, bytes.data());
  }
  void finish() {
    for (DeviceCopier* device : std::exchange(devices_, {})) device->finish();
  }

 private:
  std::vector<DeviceCopier*> devices_;
};

}  // namespace

StagedFile::StagedFile(const format::FilePlan& plan, Arena& arena, bool overlapped)
    : plan_(plan),
      arena_(arena),
      overlapped_(overlapped && blocks_of(plan.file_size()) <= arena.blocks()),
      total_(blocks_of(plan.file_size())),
      filled_(blocks_of(plan.tail_offset())),
      left_(filled_, overlapped_ ? 2 : 1) {
  if (!overlapped_) copied_[index(Pass::before_step)] = filled_;
  if (!overlapped_) next_[index(Pass::before_step)] = filled_;
  const auto tensors = plan.tensors();
  std::size_t tensor = 0;
  for (std::uint64_t block = 0; block < filled_; ++block) {
    while (tensor < tensors.size() && tensors[tensor].end <= block * kBlockSize) ++tensor;
    first_tensor_.push_back(tensor);
  }
}

bool StagedFile::belongs(const format::TensorRecord& tensor, Pass pass) const {
  const bool later = overlapped_ && tensor.liveness == Liveness::stepped;
  return later == (pass == Pass::before_step);
}

void StagedFile::copy_block(std::uint64_t number, Pass pass) const {
  const std::uint64_t begin = number * kBlockSize, end = begin + kBlockSize;
  const MutableBytes block = arena_.block(number);
  const auto tensors = plan_.tensors();
  BlockCopy copy;
  for (std::size_t i = first_tensor_[number]; i < tensors.size(); ++i) {
    const format::TensorRecord& tensor = tensors[i];
    if (tensor.data_offset >= end) break;
    if (!belongs(tensor, pass)) continue;
    const std::uint64_t from = std::max(begin, tensor.data_offset);
    const std::uint64_t to = std::min(end, tensor.data_offset + tensor.bytes.size());
    if (from < to)
      copy.add(tensor, from - tensor.data_offset, block.subspan(from - begin, to - from));
  }
  copy.finish();
}

// The next block before `end` that nobody has begun with.
std::optional<std::uint64_t> StagedFile::claim(Pass pass, std::uint64_t end) {
  std::unique_lock lock(mutex_);
  std::uint64_t& next = next_[index(pass)];
  changed_.wait(lock, [&] {
    return aborted_ || next >= std::min(end, filled_) || next < released_ + arena_.blocks();
  });
  if (aborted_ || next >= std::min(end, filled_)) return std::nullopt;
  return next++;
}

void StagedFile::copied(std::uint64_t number, Pass pass) {
  const std::lock_guard guard(mutex_);
  --left_[number];
  ++copied_[index(pass)];
  changed_.notify_all();
}

void StagedFile::copy(Pass pass) noexcept {
  try {
    while (const auto block = claim(pass, filled_)) {
      copy_block(*block, pass);
      copied(*block, pass);
    }
  } catch (...) {
    {
      const std::lock_guard guard(mutex_);
      error_ = std::current_exception();
    }
    abort();
  }
}

bool StagedFile::wait_copied(Pass pass) {
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [&] { return aborted_ || copied_[index(pass)] == filled_; });
  return copied_[index(pass)] == filled_;
}

MutableBytes StagedFile::take(std::uint64_t number) {
  if (number < filled_) {
    for (const Pass pass : {Pass::at_save, Pass::before_step}) {
      while (const auto block = claim(pass, number + 1)) {
        copy_block(*block, pass);
        copied(*block, pass);
      }
    }
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return aborted_ || left_[number] == 0; });
    if (error_) std::rethrow_exception(error_);
  }
  return arena_.block(number);
}

void StagedFile::release(std::uint64_t count) {
  const std::lock_guard guard(mutex_);
  released_ = count;
  changed_.notify_all();
}

void StagedFile::abort() noexcept {
  const std::lock_guard guard(mutex_);
  aborted_ = true;
  changed_.notify_all();
}

}  // namespace perdure::engine
