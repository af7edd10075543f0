#include "engine/live_read.hpp"

#include <algorithm>
#include <cstdint>
#include <functional>

namespace perdure::engine {
namespace {

std::int64_t first_byte(const Tensor& tensor) {
  return tensor.storage_offset * static_cast<std::int64_t>(itemsize(tensor.dtype));
}

bool same_form(const Tensor& a, const Tensor& b) {
  return a.dtype == b.dtype && a.shape == b.shape && a.strides == b.strides && a.conj == b.conj &&
         a.neg == b.neg;
}

bool is_own(const Tensor& tensor) {
  return tensor.liveness != Liveness::detached && tensor.storage->data != nullptr &&
         tensor.storage->copier == nullptr && tensor.storage->device == "cpu" && tensor.numel() > 0;
}

// Every byte of its range is one of an element, and of one only.
bool is_dense(const Tensor& tensor) {
  std::vector<std::pair<std::int64_t, std::int64_t>> dimensions;
  for (std::size_t i = 0; i < tensor.shape.size(); ++i)
    if (tensor.shape[i] > 1) dimensions.emplace_back(tensor.strides[i], tensor.shape[i]);
  std::ranges::sort(dimensions);
  std::int64_t expected = 1;
  for (const auto& [stride, size] : dimensions) {
    if (stride != expected) return false;
    expected *= size;
  }
  return true;
}

// The value at `key` of a mapping or sequence that is walked beside another one.
const Value* beside(const Value* own, const Value& key) {
  if (own == nullptr) return nullptr;
  if (own->is_mapping()) return own->as_dict().find(key);
  if (!own->is_sequence() || key.kind() != Kind::integer) return nullptr;
  const auto& items = own->as_items();
  const auto place = static_cast<std::size_t>(key.as_int());
  return place < items.size() ? &items[place] : nullptr;
}

using Range = std::pair<std::uint64_t, std::uint64_t>;

bool cover(std::vector<Range> ranges, std::uint64_t size) {
  std::ranges::sort(ranges);
  std::uint64_t end = 0;
  for (const Range& range : ranges) {
    if (range.first > end) return false;
    end = std::max(end, range.second);
  }
  return end == size;
}

}  // namespace

std::byte* LiveRead::Pair::begin() const {
  return own.storage->data + (first_byte(own) - first_byte(file));
}

void LiveRead::add(const Value& wanted, const Value& own, bool scalars) {
  walk(wanted, own.is_none() ? nullptr : &own, scalars);
}

void LiveRead::walk(const Value& wanted, const Value* own, bool scalars) {
  if (wanted.kind() == Kind::tensor) return add_tensor(wanted, own, scalars);
  if (wanted.is_mapping()) {
    for (const auto& [key, item] : wanted.as_dict()) walk(item, beside(own, key), scalars);
    if (const auto& attributes = wanted.as_dict().attributes())
      for (const auto& [key, item] : *attributes) walk(item, nullptr, scalars);
  } else if (wanted.is_sequence()) {
    const auto& items = wanted.as_items();
    for (std::size_t i = 0; i < items.size(); ++i)
      walk(items[i], beside(own, Value(static_cast<std::int64_t>(i))), scalars);
  }
}

void LiveRead::add_tensor(const Value& wanted, const Value* own, bool scalars) {
  const Tensor& tensor = wanted.as_tensor();
  if (tensor.storage->record < 0 || tensor.storage->data != nullptr) return;
  Use& use = uses_.at(static_cast<std::size_t>(tensor.storage->record));
  use.any = wanted;
  if ((scalars && tensor.numel() <= 1) || own == nullptr || own->kind() != Kind::tensor ||
      !is_own(own->as_tensor()) || !same_form(tensor, own->as_tensor()))
    use.aside = true;
  if (own != nullptr && own->kind() == Kind::tensor && is_own(own->as_tensor()) &&
      tensor.dtype == own->as_tensor().dtype)
    use.pairs.push_back({tensor, own->as_tensor()});
}

bool LiveRead::fits(const Use& use) const {
  if (use.aside || use.pairs.empty()) return false;
  const Pair& first = use.pairs.front();
  const std::int64_t shift = first_byte(first.own) - first_byte(first.file);
  const std::uint64_t size = first.file.storage->size;
  if (shift < 0 || static_cast<std::uint64_t>(shift) + size > first.own.storage->size) return false;
  std::vector<Range> ranges;
  for (const Pair& pair : use.pairs) {
    if (pair.begin() != first.begin()) return false;
    if (is_dense(pair.file)) ranges.push_back(pair.file.byte_range());
  }
  return cover(std::move(ranges), size);
}

// Two storages of the file for one piece of live memory, or one that lies differently there.
void LiveRead::put_contested_aside() {
  struct Place {
    const std::byte* begin;
    const std::byte* end;
    std::size_t storage;
    const std::byte* storage_begin;
  };
  std::vector<Place> places;
  for (std::size_t i = 0; i < uses_.size(); ++i) {
    for (const Pair& pair : uses_[i].pairs) {
      const auto [begin, end] = pair.own.byte_range();
      const std::byte* data = pair.own.storage->data;
      places.push_back({data + begin, data + end, i, pair.begin()});
    }
  }
  std::ranges::sort(places, {}, &Place::begin);
  for (std::size_t first = 0; first < places.size();) {
    const std::byte* end = places[first].end;
    bool agree = true;
    std::size_t next = first + 1;
    for (; next < places.size() && places[next].begin < end; ++next) {
      end = std::max(end, places[next].end);
      agree = agree && places[next].storage == places[first].storage &&
              places[next].storage_begin == places[first].storage_begin;
    }
    for (; first < next; ++first)
      if (!agree) uses_[places[first].storage].aside = true;
  }
}

void LiveRead::read_aside(const CheckpointFile::Allocate& allocate) {
  put_contested_aside();
  Value::Items aside;
  for (std::size_t i = 0; i < uses_.size(); ++i) {
    if (uses_[i].any.is_none()) continue;
    if (file_.reads_in_place() && fits(uses_[i]))
      live_.push_back(i);
    else
      aside.push_back(uses_[i].any);
  }
  file_.read_all(Value::list(std::move(aside)), allocate);
}

void LiveRead::read_live() {
  if (live_.empty()) return;
  for (const std::size_t i : live_) {
    TensorStorage& storage = *file_.storages()[i];
    storage.data = uses_[i].pairs.front().begin();
    storage.owner = uses_[i].pairs.front().own.storage->owner;
  }
  try {
    file_.read_in_place(live_);
  } catch (...) {
    for (const std::size_t i : live_) {
      file_.storages()[i]->data = nullptr;
      file_.storages()[i]->owner = nullptr;
    }
    throw;
  }
}

}  // namespace perdure::engine
