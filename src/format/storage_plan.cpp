#include "format/storage_plan.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cstdint>
#include <unordered_map>

#include "format/composite.hpp"
#include "format/pickle_reader.hpp"
#include "format/pickle_writer.hpp"
#include "format/utf8.hpp"

namespace perdure::format {
namespace {

constexpr std::uint64_t kTensorNodes =
    40;  // calls, tuples and numbers that a tensor is in a pickle

// "cuda", "cuda:1": what write_device can write.
bool is_device_name(std::string_view name) {
  const auto is_word = [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_';
  };
  const auto is_digit = [](char c) { return c >= '0' && c <= '9'; };
  const std::size_t colon = std::min(name.find(':'), name.size());
  const std::string_view index = name.substr(std::min(colon + 1, name.size()));
  const bool index_fits = colon == name.size() || (!index.empty() && index.size() < 10 &&
                                                   std::ranges::all_of(index, is_digit));
  return colon > 0 && std::ranges::all_of(name.substr(0, colon), is_word) && index_fits;
}

bool is_complex(DType dtype) {
  return dtype == DType::complex128 || dtype == DType::complex64 || dtype == DType::complex32;
}

bool is_meta(const Tensor& tensor) { return tensor.storage && tensor.storage->device == "meta"; }

// Storages without bytes have no address that could tell them apart.
bool same_memory(const TensorStorage& a, const TensorStorage& b) {
  if (&a == &b) return true;
  return a.size != 0 && a.data == b.data && a.size == b.size && a.device == b.device;
}

// What makes a value without parts unfit for a file; "" where nothing does.
std::string scalar_problem(const Value& value) {
  if (value.kind() == Kind::opaque)
    return fmt::format("{} cannot be saved: perdure does not know what it is", repr(value));
  if (const BigInt* big = value.as_big_int(); big != nullptr && big->bytes.size() > kMaxIntBytes)
    return "an int of more than 255 bytes, which torch.load refuses; save it as a str";
  const bool text = value.kind() == Kind::string || value.kind() == Kind::bytes ||
                    value.kind() == Kind::bytearray;
  if (text && value.as_string().size() > kMaxPickle)
    return "a str or bytes of more than 1 GiB; save it as a uint8 tensor";
  if (value.kind() == Kind::string && !is_utf8(value.as_string()))
    return fmt::format("the str {} is no UTF-8; save it as bytes", repr(value));
  if (value.kind() == Kind::device && !is_device_name(value.as_string()))
    return fmt::format("{} is no device that torch would take; write it as in 'cuda:0'",
                       repr(value));
  return {};
}

bool is_quantized(const Dict& dict) {
  const CompositeForm* form = dict.kind() == Kind::composite ? composite_form(dict) : nullptr;
  return form != nullptr &&
         (form->form == Form::quantized_per_tensor || form->form == Form::quantized_per_channel);
}

bool has_parts(const Value& value) {
  return value.kind() == Kind::tensor || value.is_mapping() || value.is_sequence();
}

}  // namespace

std::size_t MemoryTable::slot_of(const TensorStorage& storage) const {
  const void* address = storage.size == 0 ? static_cast<const void*>(&storage) : storage.data;
  const std::size_t mask = slots_.size() - 1;
  // Fibonacci hashing: addresses differ in their middle bits.
  std::size_t slot = (reinterpret_cast<std::uintptr_t>(address) * 0x9E3779B97F4A7C15u) >> 20;
  for (slot &= mask; slots_[slot] != 0; slot = (slot + 1) & mask)
    if (same_memory(*records_[slots_[slot] - 1].storage, storage)) break;
  return slot;
}

std::size_t MemoryTable::find_or_add(const TensorStorage& storage) {
  if ((records_.size() + 1) * 2 > slots_.size()) grow();
  std::uint32_t& slot = slots_[slot_of(storage)];
  if (slot == 0) slot = static_cast<std::uint32_t>(records_.size() + 1);
  return slot - 1;
}

void MemoryTable::grow() {
  slots_.assign(std::max<std::size_t>(slots_.size() * 4, 64), 0);
  for (std::size_t i = 0; i < records_.size(); ++i)
    slots_[slot_of(*records_[i].storage)] = static_cast<std::uint32_t>(i + 1);
}

// Visits every value once, in pickle order, noting the way to what has parts: scalars have no step
// of their own, because there may be millions of them.
class StateWalk {
 public:
  explicit StateWalk(StoragePlan& plan) : plan_(plan) {}

  void visit_all(const Value& state) { visit_at({}, state); }

 private:
  void visit_at(const PathStep& place, const Value& value) {
    if (has_parts(value)) return visit(value, add_step(place));
    if (const std::string problem = scalar_problem(value); !problem.empty())
      plan_.refuse(add_step(place), problem);
    count(1, place.parent);
  }
  std::uint32_t add_step(const PathStep& place) {
    plan_.steps_.push_back(place);
    return static_cast<std::uint32_t>(plan_.steps_.size() - 1);
  }
  void visit(const Value& value, std::uint32_t step) {
    if (value.kind() == Kind::tensor) {
      count(kTensorNodes, step);
      return plan_.add_tensor(value.as_tensor(), step, in_kept_);
    }
    count(1, step);
    // What one handle alone refers to cannot turn up again.
    const bool shared = value.use_count() > 1;
    if (shared && std::ranges::find(open_, value.identity()) != open_.end())
      plan_.refuse(step, "contains itself; a checkpoint holds trees, break the loop");
    const auto done = shared ? done_.find(value.identity()) : done_.end();
    if (done != done_.end()) return count(done->second, step);
    const std::uint64_t before = expanded_;
    visit_container(value, step);
    if (shared) done_[value.identity()] = expanded_ - before;
  }
  // Some stand in the pickle as a call, with tuples around what they hold.
  static std::uint32_t levels_of(const Value& value) {
    if (value.kind() == Kind::composite) return 4;
    return value.kind() == Kind::counter || value.kind() == Kind::set ? 3 : 1;
  }
  void visit_container(const Value& value, std::uint32_t step) {
    const std::uint32_t levels = levels_of(value);
    if (depth_ + levels > kMaxDepth)
      plan_.refuse(step, fmt::format("nested more than {} deep", kMaxDepth));
    depth_ += levels;
    open_.push_back(value.identity());
    const bool was_in_kept = in_kept_;
    in_kept_ = in_kept_ || (value.is_mapping() && value.as_dict().structure() != 0);
    if (value.is_mapping())
      visit_dict(value.as_dict(), step);
    else
      visit_items(value.as_items(), step);
    in_kept_ = was_in_kept;
    open_.pop_back();
    depth_ -= levels;
  }
  void count(std::uint64_t nodes, std::uint32_t step) {
    expanded_ += nodes;
    if (expanded_ > kMaxExpanded / 2)
      plan_.refuse(step,
                   "containers that are shared so often that a reader would take them for a bomb; "
                   "copy less of them");
  }
  void visit_items(const Value::Items& items, std::uint32_t step) {
    for (std::size_t i = 0; i < items.size(); ++i)
      visit_at({.parent = step, .key = nullptr, .position = i}, items[i]);
  }
  void visit_dict(const Dict& dict, std::uint32_t step) {
    if (dict.kind() == Kind::composite && composite_form(dict) == nullptr)
      plan_.refuse(step, "a tensor of parts (Kind::composite) that are not those of any form");
    const std::size_t first = plan_.tensors_.size();
    visit_entries(dict, step);
    if (is_quantized(dict)) plan_.set_quantized(plan_.tensors_[first]);
    if (!dict.attributes()) return;
    if (dict.kind() != Kind::ordered_dict)
      plan_.refuse(
          step,
          fmt::format("a {} with attributes, which torch.load refuses; make it an OrderedDict",
                      kind_name(dict.kind())));
    visit_entries(*dict.attributes(), step);
  }
  void visit_entries(const Dict& dict, std::uint32_t step) {
    for (const auto& [key, value] : dict) {
      visit_key(key, step);
      visit_at({.parent = step, .key = &key, .position = 0}, value);
    }
  }
  // What is wrong with a key is told at the place of its dict.
  void visit_key(const Value& key, std::uint32_t step) {
    if (has_parts(key)) return visit(key, step);
    if (const std::string problem = scalar_problem(key); !problem.empty())
      plan_.refuse(step, problem);
    count(1, step);
  }

  StoragePlan& plan_;
  std::vector<const void*> open_;                        // at most kMaxDepth of them
  std::unordered_map<const void*, std::uint64_t> done_;  // shared containers -> nodes below
  std::uint64_t expanded_ = 0;                           // as kMaxExpanded counts, roughly
  std::uint32_t depth_ = 0;
  bool in_kept_ = false;
};

StoragePlan::StoragePlan(const Value& state) {
  StateWalk(*this).visit_all(state);
  settle();
}

KeyPath StoragePlan::path(std::uint32_t step) const {
  KeyPath out;
  for (; step != 0; step = steps_[step].parent)
    out.push_back(steps_[step].key ? *steps_[step].key : Value(steps_[step].position));
  std::ranges::reverse(out);
  return out;
}

void StoragePlan::refuse(std::uint32_t step, const std::string& what) const {
  throw Error(ErrorCode::invalid, fmt::format("{}: {}", format_path(path(step)), what));
}

void StoragePlan::add_tensor(const Tensor& tensor, std::uint32_t step, bool kept) {
  if (!tensor.storage) refuse(step, "a tensor without a storage");
  if (!is_utf8(tensor.storage->device)) refuse(step, "a tensor on a device whose name is no UTF-8");
  if (tensor.conj && !is_complex(tensor.dtype))
    refuse(step, "a conjugated tensor that is not complex");
  std::pair<std::uint64_t, std::uint64_t> range;
  try {
    range = tensor.byte_range();
  } catch (const Error& error) {
    refuse(step, error.what());
  }
  PlannedTensor& planned = tensors_.emplace_back();
  planned.tensor = &tensor;
  planned.step = step;
  planned.kept = kept;
  if (is_meta(tensor)) return;
  if (range.second > tensor.storage->size)
    refuse(step, "a tensor that reaches outside of its storage");
  if (range.second > 0 && tensor.storage->data == nullptr)
    refuse(step, "a tensor whose bytes were never read; call CheckpointFile::read_all first");
  const std::size_t number = record_for(tensor);
  planned.record = static_cast<std::int64_t>(number);
  if (range.second == 0) return;
  // Until settle(), `size` is the end of what the tensors seen so far cover.
  StorageRecord& record = records_[number];
  record.begin = record.size == 0 ? range.first : std::min(record.begin, range.first);
  record.size = std::max(record.size, range.second);
}

void StoragePlan::set_quantized(PlannedTensor& planned) {
  planned.quantized = true;
  if (planned.record < 0) refuse(planned.step, "a quantized tensor on the meta device");
  records_[static_cast<std::size_t>(planned.record)].quantized = true;
}

std::size_t StoragePlan::record_for(const Tensor& tensor) {
  const std::size_t number = by_memory_.find_or_add(*tensor.storage);
  if (number == records_.size()) {
    records_.emplace_back();
    records_.back().storage = tensor.storage.get();
    records_.back().dtype = tensor.dtype;
  }
  StorageRecord& record = records_[number];
  record.mixed = record.mixed || record.dtype != tensor.dtype;
  record.liveness = std::min(record.liveness, tensor.liveness);
  return number;
}

// _rebuild_tensor_v3 of torch 2.13 calls set_() on a tensor that requires grad already, which
// raises. Inside of a Parameter the flag is set afterwards.
void StoragePlan::check_gradient(const PlannedTensor& planned, const StorageRecord& record) const {
  const Tensor& tensor = *planned.tensor;
  if (!tensor.requires_grad || tensor.parameter || !needs_untyped_storage(tensor.dtype, record))
    return;
  refuse(
      planned.step,
      fmt::format(
          "a {} tensor that requires grad{}, which torch.load cannot rebuild: save x.detach() or "
          "make it a torch.nn.Parameter",
          dtype_name(tensor.dtype),
          record.mixed ? " and shares its storage with another dtype" : ""));
}

void StoragePlan::settle() {
  std::vector<std::uint64_t> largest_item(records_.size(), 1);
  for (const PlannedTensor& planned : tensors_) {
    if (planned.record < 0) continue;
    const auto number = static_cast<std::size_t>(planned.record);
    largest_item[number] =
        std::max<std::uint64_t>(largest_item[number], itemsize(planned.tensor->dtype));
    check_gradient(planned, records_[number]);
    if (records_[number].quantized && (!planned.quantized || records_[number].mixed))
      refuse(planned.step,
             "shares its memory with a quantized tensor of another dtype, which torch.load would "
             "read otherwise; save a copy of it");
  }
  for (std::size_t i = 0; i < records_.size(); ++i) {
    StorageRecord& record = records_[i];
    // Offsets must stay whole numbers of elements of every dtype; item sizes are powers of two.
    record.begin -= record.begin % largest_item[i];
    // torch counts a storage in elements; an untyped one (mixed) in bytes.
    record.size -= record.begin;
  }
  for (PlannedTensor& planned : tensors_) {
    if (planned.record < 0 || planned.tensor->numel() == 0) continue;
    const std::uint64_t begin = records_[static_cast<std::size_t>(planned.record)].begin;
    planned.storage_offset = planned.tensor->storage_offset -
                             static_cast<std::int64_t>(begin / itemsize(planned.tensor->dtype));
  }
}

}  // namespace perdure::format
