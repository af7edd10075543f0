#include "engine/block_writer.hpp"

#include <algorithm>
#include <cstring>

#include "engine/stream_copy.hpp"
#include "format/coding.hpp"
#include "format/crc32.hpp"

namespace perdure::engine {
namespace {

// Blocks that may be on their way to the disk while the next one is filled.
constexpr std::uint64_t kBlocksInFlight = 3;

}  // namespace

BlockWriter::BlockWriter(storage::Replacement& out, Arena& arena, const OnBytes& on_bytes)
    : out_(out), arena_(arena), on_bytes_(on_bytes) {}

MutableBytes BlockWriter::room(std::uint64_t wanted) {
  const MutableBytes left = arena_.block(block_).subspan(in_block_);
  return left.first(static_cast<std::size_t>(std::min<std::uint64_t>(left.size(), wanted)));
}

void BlockWriter::filled(std::uint64_t count) {
  in_block_ += count;
  written_ += count;
  if (in_block_ == Arena::kBlockSize) send();
}

void BlockWriter::send() {
  out_.append(arena_.block(block_).first(in_block_));
  if (on_bytes_) on_bytes_(in_block_);
  in_block_ = 0;
  ++block_;
  if (block_ > kBlocksInFlight) out_.settle((block_ - kBlocksInFlight) * Arena::kBlockSize);
}

void BlockWriter::append(ConstBytes bytes) {
  while (!bytes.empty()) {
    const MutableBytes to = room(bytes.size());
    stream_copy(to.data(), bytes.first(to.size()));
    bytes = bytes.subspan(to.size());
    filled(to.size());
  }
}

void BlockWriter::append(std::string_view text) { append(format::as_bytes(text)); }

void BlockWriter::append(const Tensor& tensor, std::uint32_t* sum) {
  const std::uint64_t size = bytes_of(tensor);
  const auto begin = static_cast<std::uint64_t>(tensor.storage_offset) * itemsize(tensor.dtype);
  for (std::uint64_t at = 0; at < size;) {
    const MutableBytes to = room(size - at);
    const std::byte* from = tensor.storage->data + begin + at;
    if (DeviceCopier* copier = tensor.storage->copier.get()) {
      copier->copy(to, from);
      copier->finish();
    } else {
      stream_copy(to.data(), {from, to.size()});
    }
    if (sum != nullptr) *sum = format::crc32(to, *sum);
    at += to.size();
    filled(to.size());
  }
}

void BlockWriter::pad_to(std::uint64_t multiple) {
  std::uint64_t left = (multiple - written_ % multiple) % multiple;
  while (left > 0) {
    const MutableBytes to = room(left);
    std::memset(to.data(), 0, to.size());
    left -= to.size();
    filled(to.size());
  }
}

void BlockWriter::finish() {
  if (in_block_ > 0) send();
}

std::uint64_t bytes_of(const Tensor& tensor) { return tensor.numel() * itemsize(tensor.dtype); }

}  // namespace perdure::engine
