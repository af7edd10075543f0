#include "engine/storage_stream.hpp"

#include <fmt/format.h>

#include <algorithm>

#include "engine/file_records.hpp"
#include "engine/virtual_memory.hpp"
#include "format/crc32.hpp"

namespace perdure::engine {

using format::kBlockSize;

void StorageStream::attach(std::shared_ptr<const Source> source, const format::Contents& contents,
                           const Value& value, const std::vector<std::size_t>& numbers) {
  const auto stream = std::make_shared<StorageStream>(std::move(source));
  std::map<const TensorStorage*, Stretch*> by_storage;
  for (const std::size_t number : numbers) {
    TensorStorage& storage = *contents.storages[number];
    storage.data = reserve_addresses(storage.size);
    storage.copier = stream;
    Stretch stretch;
    stretch.record = contents.record_of(number);
    stretch.begin = stretch.record.size;
    const std::size_t place = contents.places[number];
    stretch.in_order =
        contents.has_checksums && !(place < contents.unchecked.size() && contents.unchecked[place]);
    // Without a checksum, there is nothing to sum up for.
    if (!stretch.in_order) stretch.summed = stretch.record.size;
    const auto address = reinterpret_cast<std::uintptr_t>(storage.data);
    by_storage[&storage] = &(stream->stretches_[address] = std::move(stretch));
  }
  for_each_tensor(value, [&](const KeyPath& path, const Tensor& tensor) {
    const auto it = by_storage.find(tensor.storage.get());
    if (it == by_storage.end()) return;
    Stretch& stretch = *it->second;
    if (stretch.tensor.empty()) stretch.tensor = format_path(path);
    const auto [begin, end] = tensor.byte_range();
    if (begin == end) return;
    stretch.begin = std::min(stretch.begin, begin);
    stretch.end = std::max(stretch.end, end);
  });
  for (auto& [address, stretch] : stream->stretches_)
    if (stretch.begin != 0 || stretch.end != stretch.record.size) stretch.in_order = false;
}

void StorageStream::add(Stretch& stretch, ConstBytes bytes) {
  stretch.sum = format::crc32(bytes, stretch.sum);
  stretch.summed += bytes.size();
  if (stretch.summed < stretch.record.size || stretch.sum == stretch.record.crc32) return;
  const Place place = source_->place(stretch.record.offset);
  throw Error(ErrorCode::corrupt,
              fmt::format("{}: {} is damaged: {} bytes at offset {} (record {}) do not have the "
                          "checksum that they were written with",
                          place.name, stretch.tensor, stretch.record.size, place.offset,
                          stretch.record.name));
}

void StorageStream::sum_rest(Stretch& stretch) {
  std::vector<std::byte> block(std::min(kBlockSize, stretch.record.size - stretch.summed));
  while (stretch.summed < stretch.record.size) {
    const MutableBytes bytes = std::span(block).first(static_cast<std::size_t>(
        std::min<std::uint64_t>(block.size(), stretch.record.size - stretch.summed)));
    source_->read(stretch.record.offset + stretch.summed, bytes);
    add(stretch, bytes);
  }
}

void StorageStream::copy(MutableBytes to, const std::byte* from) {
  const std::lock_guard lock(mutex_);
  const auto address = reinterpret_cast<std::uintptr_t>(from);
  const auto it = stretches_.upper_bound(address);
  if (it == stretches_.begin()) throw Error(ErrorCode::invalid, "an address of no file");
  auto& [begin, stretch] = *std::prev(it);
  const std::uint64_t offset = address - begin;
  if (offset > stretch.record.size || to.size() > stretch.record.size - offset)
    throw Error(ErrorCode::invalid, "an address of no file");
  if (stretch.in_order && offset != stretch.summed) stretch.in_order = false;
  if (!stretch.in_order) sum_rest(stretch);
  source_->read(stretch.record.offset + offset, to);
  if (stretch.in_order) add(stretch, to);
}

}  // namespace perdure::engine
