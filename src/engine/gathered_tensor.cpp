#include "engine/gathered_tensor.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>

#include "format/crc32.hpp"

namespace perdure::engine {

using format::kBlockSize;

GatheredTensor::GatheredTensor(std::string name, std::size_t itemsize,
                               const std::vector<std::int64_t>& shape,
                               std::vector<TensorPiece> pieces)
    : name_(std::move(name)), size_(itemsize) {
  for (const std::int64_t size : shape) size_ *= static_cast<std::uint64_t>(size);
  for (TensorPiece& piece : pieces) pieces_.push_back(make_box(std::move(piece), itemsize, shape));
}

GatheredTensor::Box GatheredTensor::make_box(TensorPiece piece, std::size_t itemsize,
                                             const std::vector<std::int64_t>& shape) {
  Box box;
  box.sizes = {itemsize};
  box.strides = {1};
  std::uint64_t stride = itemsize;
  bool joins = true;  // the dimensions behind this one are whole, so it goes on where they end
  for (std::size_t i = shape.size(); i-- > 0;) {
    const auto size = static_cast<std::uint64_t>(piece.sizes[i]);
    if (joins) {
      box.sizes.front() *= size;
    } else {
      box.sizes.insert(box.sizes.begin(), size);
      box.strides.insert(box.strides.begin(), stride);
    }
    box.begin += static_cast<std::uint64_t>(piece.offsets[i]) * stride;
    joins = piece.sizes[i] == shape[i] && joins;
    stride *= static_cast<std::uint64_t>(shape[i]);
  }
  box.size = 1;
  for (const std::uint64_t size : box.sizes) box.size *= size;
  box.piece = std::move(piece);
  return box;
}

std::uint64_t GatheredTensor::Box::target(std::uint64_t at) const {
  std::uint64_t offset = begin;
  for (std::size_t i = sizes.size(); i-- > 0;) {
    offset += at % sizes[i] * strides[i];
    at /= sizes[i];
  }
  return offset;
}

std::uint64_t GatheredTensor::Box::first_from(std::uint64_t offset) const {
  std::uint64_t low = 0, high = size;
  while (low < high) {
    const std::uint64_t middle = low + (high - low) / 2;
    if (target(middle) < offset)
      low = middle + 1;
    else
      high = middle;
  }
  return low;
}

void GatheredTensor::compare(const Box& box) const {
  if (!box.piece.crc32) return;
  const std::lock_guard lock(box.compared->mutex);
  if (box.compared->good) return;
  std::vector<std::byte> block(std::min(box.size, kBlockSize));
  std::uint32_t sum = 0;
  for (std::uint64_t at = 0; at < box.size; at += block.size()) {
    const MutableBytes bytes = std::span(block).first(
        static_cast<std::size_t>(std::min<std::uint64_t>(block.size(), box.size - at)));
    box.piece.source->read(box.piece.offset + at, bytes);
    sum = format::crc32(bytes, sum);
  }
  box.compared->good = sum == *box.piece.crc32;
  if (box.compared->good) return;
  const Place place = box.piece.source->place(box.piece.offset);
  throw Error(ErrorCode::corrupt,
              fmt::format("{}: a piece of {} is damaged: {} bytes at offset {} do not have the "
                          "checksum that they were written with",
                          place.name, name_, box.size, place.offset));
}

// What of the box belongs into a run of the tensor is a run of the box, too, with gaps in between
// only in the tensor.
void GatheredTensor::read_box(const Box& box, std::uint64_t offset, MutableBytes into) const {
  const std::uint64_t begin = box.first_from(offset);
  const std::uint64_t end = box.first_from(offset + into.size());
  if (begin == end) return;
  compare(box);
  const std::uint64_t size = end - begin;
  const Source& source = *box.piece.source;
  if (box.target(end - 1) - box.target(begin) == size - 1)
    return source.read(box.piece.offset + begin, into.subspan(box.target(begin) - offset, size));
  const auto bytes = std::make_unique_for_overwrite<std::byte[]>(size);
  source.read(box.piece.offset + begin, {bytes.get(), size});
  const std::uint64_t row = box.sizes.back();
  for (std::uint64_t at = begin; at < end;) {
    const std::uint64_t count = std::min(row - at % row, end - at);
    std::memcpy(into.data() + (box.target(at) - offset), bytes.get() + (at - begin), count);
    at += count;
  }
}

void GatheredTensor::read(std::uint64_t offset, MutableBytes into) const {
  if (offset > size_ || into.size() > size_ - offset)
    throw Error(ErrorCode::io, fmt::format("cannot read {} bytes at offset {} of {}: it has {}",
                                           into.size(), offset, name_, size_));
  for (const Box& box : pieces_) {
    if (box.begin >= offset + into.size() || box.target(box.size - 1) < offset) continue;
    read_box(box, offset, into);
  }
}

Place GatheredTensor::place(std::uint64_t offset) const {
  for (const Box& box : pieces_) {
    const std::uint64_t at = box.first_from(offset);
    if (at < box.size && box.target(at) == offset)
      return box.piece.source->place(box.piece.offset + at);
  }
  return {name_, offset};
}

}  // namespace perdure::engine
