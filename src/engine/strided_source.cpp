#include "engine/strided_source.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>

#include "format/crc32.hpp"

namespace perdure::engine {
namespace {

// Where the next element is: an odometer over all dimensions but the last.
class Rows {
 public:
  explicit Rows(const Tensor& tensor)
      : tensor_(tensor), place_(tensor.shape.empty() ? 0 : tensor.shape.size() - 1) {}

  std::int64_t offset() const { return offset_; }
  void next() {
    for (std::size_t i = place_.size(); i-- > 0;) {
      offset_ += tensor_.strides[i];
      if (++place_[i] < tensor_.shape[i]) return;
      offset_ -= tensor_.strides[i] * tensor_.shape[i];
      place_[i] = 0;
    }
  }

 private:
  const Tensor& tensor_;
  std::vector<std::int64_t> place_;
  std::int64_t offset_ = 0;  // in elements
};

template <std::size_t kSize>
void copy_row(std::byte* to, const std::byte* from, std::int64_t count, std::int64_t stride) {
  for (std::int64_t i = 0; i < count; ++i)
    std::memcpy(to + static_cast<std::size_t>(i) * kSize,
                from + i * stride * static_cast<std::int64_t>(kSize), kSize);
}

void copy_row(std::size_t size, std::byte* to, const std::byte* from, std::int64_t count,
              std::int64_t stride) {
  if (stride == 1) {
    std::memcpy(to, from, size * static_cast<std::size_t>(count));
    return;
  }
  switch (size) {
    case 1:
      return copy_row<1>(to, from, count, stride);
    case 2:
      return copy_row<2>(to, from, count, stride);
    case 4:
      return copy_row<4>(to, from, count, stride);
    case 8:
      return copy_row<8>(to, from, count, stride);
    default:
      return copy_row<16>(to, from, count, stride);
  }
}

}  // namespace

void copy_elements(const Tensor& tensor, ConstBytes storage, MutableBytes out) {
  if (out.empty()) return;
  const std::size_t size = itemsize(tensor.dtype);
  const std::int64_t count = tensor.shape.empty() ? 1 : tensor.shape.back();
  const std::int64_t stride = tensor.shape.empty() ? 1 : tensor.strides.back();
  Rows rows(tensor);
  for (std::size_t at = 0; at < out.size(); at += size * static_cast<std::size_t>(count)) {
    const auto first = static_cast<std::size_t>(tensor.storage_offset + rows.offset());
    copy_row(size, out.data() + at, storage.data() + first * size, count, stride);
    rows.next();
  }
}

LastLoaded::Bytes LastLoaded::get(const void* tensor, const void* piece,
                                  const std::function<std::vector<std::byte>()>& load) {
  const std::lock_guard lock(mutex_);
  if (tensor_ != tensor) pieces_.clear();  // not two of them at a time
  tensor_ = tensor;
  Bytes& bytes = pieces_[piece];
  if (!bytes) bytes = std::make_shared<const std::vector<std::byte>>(load());
  return bytes;
}

void LastLoaded::forget(const void* piece) noexcept {
  const std::lock_guard lock(mutex_);
  pieces_.erase(piece);
}

StridedSource::StridedSource(std::shared_ptr<const Source> source,
                             const CheckpointFile::Record& record, bool has_checksum, Tensor tensor,
                             std::shared_ptr<LastLoaded> last, const void* whole)
    : source_(std::move(source)),
      record_(record),
      has_checksum_(has_checksum),
      tensor_(std::move(tensor)),
      last_(std::move(last)),
      whole_(whole),
      size_(tensor_.numel() * itemsize(tensor_.dtype)) {}

std::vector<std::byte> StridedSource::load() const {
  std::vector<std::byte> storage(record_.size);
  source_->read(record_.offset, storage);
  if (has_checksum_ && format::crc32(storage) != record_.crc32) {
    const Place place = source_->place(record_.offset);
    throw Error(ErrorCode::corrupt,
                fmt::format("{}: {} bytes at offset {} do not have the checksum that they were "
                            "written with",
                            place.name, record_.size, place.offset));
  }
  std::vector<std::byte> out(size_);
  copy_elements(tensor_, storage, out);
  return out;
}

void StridedSource::read(std::uint64_t offset, MutableBytes into) const {
  if (offset > size_ || into.size() > size_ - offset)
    throw Error(ErrorCode::io, fmt::format("cannot read {} bytes at offset {} of a tensor of {}",
                                           into.size(), offset, size_));
  const LastLoaded::Bytes bytes = last_->get(whole_, this, [this] { return load(); });
  std::memcpy(into.data(), bytes->data() + offset, into.size());
}

}  // namespace perdure::engine
