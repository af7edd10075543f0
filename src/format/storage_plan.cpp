#include "format/storage_plan.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <unordered_set>

#include "format/pickle_reader.hpp"
#include "format/pickle_writer.hpp"
#include "format/utf8.hpp"

namespace perdure::format {
namespace {

constexpr std::size_t kMaxIntBytes = 255;  // LONG1; weights_only takes nothing longer

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

[[noreturn]] void refuse(const KeyPath& path, const std::string& what) {
  throw Error(ErrorCode::invalid, fmt::format("{}: {}", format_path(path), what));
}

bool is_meta(const Tensor& tensor) { return tensor.storage && tensor.storage->device == "meta"; }

std::string memory_key(const TensorStorage& storage) {
  // Storages without bytes have no address that could tell them apart.
  if (storage.size == 0) return fmt::format("empty {}", static_cast<const void*>(&storage));
  return fmt::format("{} {} {}", static_cast<const void*>(storage.data), storage.size,
                     storage.device);
}

}  // namespace

// Visits every value once, in pickle order, keeping the path for messages.
class StateWalk {
 public:
  explicit StateWalk(StoragePlan& plan) : plan_(plan) {}

  void visit(const Value& value) {
    check_scalar(value);
    count(value.kind() == Kind::tensor ? kTensorNodes : 1);
    if (value.kind() == Kind::tensor) return plan_.add_tensor(value.as_tensor(), path_);
    if (!value.is_mapping() && !value.is_sequence()) return;
    const void* self = value.identity();
    if (open_.contains(self))
      refuse(path_, "contains itself; a checkpoint holds trees, break the loop");
    if (const auto it = done_.find(self); it != done_.end()) return count(it->second);
    visit_container(value);
  }

 private:
  void visit_container(const Value& value) {
    // These two stand in the pickle as a call with a tuple around what they hold.
    const std::uint32_t levels = value.kind() == Kind::counter || value.kind() == Kind::set ? 3 : 1;
    if (depth_ + levels > kMaxDepth)
      refuse(path_, fmt::format("nested more than {} deep", kMaxDepth));
    const std::uint64_t before = expanded_;
    depth_ += levels;
    open_.insert(value.identity());
    if (value.is_mapping())
      visit_dict(value.as_dict());
    else
      visit_items(value.as_items());
    open_.erase(value.identity());
    depth_ -= levels;
    if (value.use_count() > 1) done_[value.identity()] = expanded_ - before;
  }
  void count(std::uint64_t nodes) {
    expanded_ += nodes;
    if (expanded_ > kMaxExpanded / 2)
      refuse(path_,
             "containers that are shared so often that a reader would take them for a bomb; copy "
             "less of them");
  }
  void check_scalar(const Value& value) const {
    if (value.kind() == Kind::opaque)
      refuse(path_,
             fmt::format("{} cannot be saved: perdure does not know what it is", repr(value)));
    if (const BigInt* big = value.as_big_int(); big != nullptr && big->bytes.size() > kMaxIntBytes)
      refuse(path_, "an int of more than 255 bytes, which torch.load refuses; save it as a str");
    const bool text = value.kind() == Kind::string || value.kind() == Kind::bytes ||
                      value.kind() == Kind::bytearray;
    if (text && value.as_string().size() > kMaxPickle)
      refuse(path_, "a str or bytes of more than 1 GiB; save it as a uint8 tensor");
    if (value.kind() == Kind::string && !is_utf8(value.as_string()))
      refuse(path_, fmt::format("the str {} is no UTF-8; save it as bytes", repr(value)));
    if (value.kind() == Kind::device && !is_device_name(value.as_string()))
      refuse(path_, fmt::format("{} is no device that torch would take; write it as in 'cuda:0'",
                                repr(value)));
  }
  void visit_items(const Value::Items& items) {
    for (std::size_t i = 0; i < items.size(); ++i) visit_at(Value(i), items[i]);
  }
  void visit_dict(const Dict& dict) {
    visit_entries(dict);
    if (!dict.attributes()) return;
    if (dict.kind() != Kind::ordered_dict)
      refuse(path_,
             fmt::format("a {} with attributes, which torch.load refuses; make it an OrderedDict",
                         kind_name(dict.kind())));
    visit_entries(*dict.attributes());
  }
  void visit_entries(const Dict& dict) {
    for (const auto& [key, value] : dict) {
      visit(key);
      visit_at(key, value);
    }
  }
  void visit_at(const Value& key, const Value& value) {
    path_.push_back(key);
    visit(value);
    path_.pop_back();
  }

  StoragePlan& plan_;
  KeyPath path_;
  std::unordered_set<const void*> open_;
  std::unordered_map<const void*, std::uint64_t> done_;  // shared containers -> nodes below
  std::uint64_t expanded_ = 0;                           // as kMaxExpanded counts, roughly
  std::uint32_t depth_ = 0;
};

StoragePlan::StoragePlan(const Value& state) {
  StateWalk(*this).visit(state);
  settle();
}

void StoragePlan::add_tensor(const Tensor& tensor, const KeyPath& path) {
  if (!tensor.storage) refuse(path, "a tensor without a storage");
  if (!is_utf8(tensor.storage->device)) refuse(path, "a tensor on a device whose name is no UTF-8");
  if (tensor.conj && !is_complex(tensor.dtype))
    refuse(path, "a conjugated tensor that is not complex");
  std::pair<std::uint64_t, std::uint64_t> range;
  try {
    range = tensor.byte_range();
  } catch (const Error& error) {
    refuse(path, error.what());
  }
  if (is_meta(tensor)) {
    tensors_.push_back({path, &tensor, -1});
    return;
  }
  if (range.second > tensor.storage->size)
    refuse(path, "a tensor that reaches outside of its storage");
  if (range.second > 0 && tensor.storage->data == nullptr)
    refuse(path, "a tensor whose bytes were never read; call CheckpointFile::read_all first");
  StorageRecord& record = record_for(tensor);
  if (range.second > 0) {
    // Until settle(), `size` is the end of what the tensors seen so far cover.
    record.begin = record.size == 0 ? range.first : std::min(record.begin, range.first);
    record.size = std::max(record.size, range.second);
  }
  const auto number = static_cast<std::int64_t>(&record - records_.data());
  by_tensor_[&tensor] = number;
  tensors_.push_back({path, &tensor, number});
}

StorageRecord& StoragePlan::record_for(const Tensor& tensor) {
  const auto [it, fresh] = by_memory_.try_emplace(memory_key(*tensor.storage), records_.size());
  if (fresh) records_.push_back({.storage = tensor.storage.get(), .dtype = tensor.dtype});
  StorageRecord& record = records_[it->second];
  record.mixed = record.mixed || record.dtype != tensor.dtype;
  record.liveness = std::min(record.liveness, tensor.liveness);
  return record;
}

// _rebuild_tensor_v3 of torch 2.13 calls set_() on a tensor that requires grad already, which
// raises. Inside of a Parameter the flag is set afterwards.
void StoragePlan::check_gradient(const PlannedTensor& planned, const StorageRecord& record) {
  const Tensor& tensor = *planned.tensor;
  if (!tensor.requires_grad || tensor.parameter || !needs_untyped_storage(tensor.dtype, record))
    return;
  refuse(
      planned.path,
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
    auto& largest = largest_item[static_cast<std::size_t>(planned.record)];
    largest = std::max<std::uint64_t>(largest, itemsize(planned.tensor->dtype));
    check_gradient(planned, records_[static_cast<std::size_t>(planned.record)]);
  }
  for (std::size_t i = 0; i < records_.size(); ++i) {
    StorageRecord& record = records_[i];
    // Offsets must stay whole numbers of elements of every dtype; item sizes are powers of two.
    record.begin -= record.begin % largest_item[i];
    // torch counts a storage in elements; an untyped one (mixed) in bytes.
    record.size -= record.begin;
  }
}

std::int64_t StoragePlan::record_of(const Tensor& tensor) const {
  const auto it = by_tensor_.find(&tensor);
  return it == by_tensor_.end() ? -1 : it->second;
}

std::int64_t StoragePlan::storage_offset(const Tensor& tensor) const {
  const std::int64_t record = record_of(tensor);
  if (record < 0 || tensor.numel() == 0) return 0;
  return tensor.storage_offset -
         static_cast<std::int64_t>(records_[static_cast<std::size_t>(record)].begin /
                                   itemsize(tensor.dtype));
}

}  // namespace perdure::format
