#include "format/layout.hpp"

#include <algorithm>
#include <cstdint>

#include "format/crc32.hpp"
#include "format/outline.hpp"
#include "format/pickle_number.hpp"

namespace perdure::format {
namespace {

// Where the address of a storage's memory stands for it, as in MemoryTable.
const void* address_of(const TensorStorage& storage) {
  return storage.size == 0 ? static_cast<const void*>(&storage) : storage.data;
}

void append_tensor(Layout& layout, const StorageRecord& storage) {
  std::string name(kArchiveName);
  name.append("/data/").append(std::to_string(layout.tensors.size()));
  append_record(layout.records, std::move(name), storage.size);
  const ZipRecord& record = layout.records.back();
  const std::byte* data = storage.size == 0 ? nullptr : storage.storage->data + storage.begin;
  layout.tensors.push_back({.bytes = {data, storage.size},
                            .copier = storage.storage->copier.get(),
                            .header_offset = record.header_offset,
                            .data_offset = record.data_offset,
                            .end = record.end(),
                            .liveness = storage.liveness});
}

// Fills in what only a layout needs that is used again. False where memory is shared between kept
// trees and others: what lies where then is no matter of structure alone.
bool make_reusable(Layout& layout, const StoragePlan& plan, Outline outline) {
  std::vector<bool> kept(plan.records().size()), loose(plan.records().size());
  for (const PlannedTensor& planned : plan.tensors())
    if (planned.record >= 0)
      (planned.kept ? kept : loose)[static_cast<std::size_t>(planned.record)] = true;
  for (std::size_t i = 0; i < plan.records().size(); ++i) {
    const StorageRecord& record = plan.records()[i];
    if (kept[i] && loose[i]) return false;
    if (kept[i]) layout.kept_memory.insert(address_of(*record.storage));
    if (loose[i]) layout.loose.push_back({.record = i, .begin = record.begin});
  }
  layout.outline = std::move(outline.text);
  return layout.loose.size() == outline.memories.size();
}

std::shared_ptr<Layout> make_layout(const StoragePlan& plan) {
  auto layout = std::make_shared<Layout>();
  layout->lines = tensor_lines(plan);
  layout->records.reserve(plan.records().size());
  layout->tensors.reserve(plan.records().size());
  for (const StorageRecord& storage : plan.records()) append_tensor(*layout, storage);
  layout->directory_bytes = directory_entries_size(layout->records);
  layout->end = layout->records.empty() ? 0 : layout->records.back().end();
  return layout;
}

bool is_fit(const Value& number) {
  const BigInt* big = number.as_big_int();
  return is_number(number) && (big == nullptr || big->bytes.size() <= kMaxIntBytes);
}

// The pickle with the numbers of `outline` and of the kept trees as they are now. Empty where one
// of them is none that a file can hold.
std::string renewed_pickle(const WrittenPickle& pickle, const Outline& outline) {
  std::string out;
  out.reserve(pickle.text.size() + pickle.holes.size());
  std::size_t done = 0, next = 0;
  for (const PickleHole& hole : pickle.holes) {
    if (hole.kept == nullptr && next == outline.numbers.size()) return {};
    const Value& number = hole.kept ? *hole.kept : *outline.numbers[next++];
    if (!is_fit(number)) return {};
    out.append(pickle.text, done, hole.begin - done);
    put_number(out, number);
    done = hole.end;
  }
  if (next != outline.numbers.size()) return {};
  return out.append(pickle.text, done);
}

// Moves the loose records to where their memory is now. False where a kept tree has it, too.
bool move_loose(const Layout& layout, const Outline& outline, std::vector<TensorRecord>& tensors) {
  if (outline.memories.size() != layout.loose.size()) return false;
  for (std::size_t i = 0; i < layout.loose.size(); ++i) {
    const TensorStorage& storage = *outline.memories[i];
    if (layout.kept_memory.contains(address_of(storage))) return false;
    TensorRecord& record = tensors[layout.loose[i].record];
    if (!record.bytes.empty())
      record.bytes = {storage.data + layout.loose[i].begin, record.bytes.size()};
    record.copier = storage.copier.get();
  }
  return true;
}

// Nothing where the state has another structure.
std::optional<FittedLayout> fit(const std::shared_ptr<const Layout>& layout,
                                const Outline& outline) {
  if (!layout || layout->outline != outline.text) return std::nullopt;
  FittedLayout out{layout, renewed_pickle(layout->pickle, outline), layout->tensors};
  if (out.pickle.empty() || !move_loose(*layout, outline, out.tensors)) return std::nullopt;
  return out;
}

}  // namespace

void for_each_block(const TensorRecord& tensor, const BlockSink& sink) {
  std::vector<std::byte> copy;
  for (std::uint64_t at = 0; at < tensor.bytes.size(); at += kBlockSize) {
    ConstBytes block =
        tensor.bytes.subspan(at, std::min<std::uint64_t>(kBlockSize, tensor.bytes.size() - at));
    if (tensor.copier != nullptr) {
      copy.resize(block.size());
      tensor.copier->copy(copy, block.data());
      tensor.copier->finish();
      block = copy;
    }
    sink(block);
  }
}

FittedLayout lay_out(const Value& state) {
  const StoragePlan plan(state);
  std::string pickle = write_pickle(state, plan).text;
  std::shared_ptr<Layout> layout = make_layout(plan);
  std::vector<TensorRecord> tensors = std::move(layout->tensors);
  return {std::move(layout), std::move(pickle), std::move(tensors)};
}

FittedLayout LayoutCache::lay_out(const Value& state) {
  std::optional<Outline> outline = outline_of(state);
  if (!outline) return format::lay_out(state);
  if (std::optional<FittedLayout> fitted = fit(last_, *outline)) return std::move(*fitted);
  last_ = nullptr;  // not two of them at a time
  const StoragePlan plan(state);
  WrittenPickle pickle = write_pickle(state, plan);
  const std::shared_ptr<Layout> layout = make_layout(plan);
  FittedLayout out{layout, pickle.text, layout->tensors};
  layout->pickle = std::move(pickle);
  if (layout->pickle.is_reusable && make_reusable(*layout, plan, std::move(*outline)))
    last_ = layout;
  return out;
}

}  // namespace perdure::format
