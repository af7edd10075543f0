// Storages, and the tensors that are one run of memory with a shape.
#include <algorithm>
#include <cstdint>
#include <limits>

#include "format/decoder_walk.hpp"
#include "format/pickle_writer.hpp"

namespace perdure::format {
namespace {

std::optional<DType> storage_dtype(std::string_view class_name) {
  for (std::size_t i = 0; i < kDTypeCount; ++i) {
    const auto dtype = static_cast<DType>(i);
    if (!storage_class(dtype).empty() && storage_class(dtype) == class_name) return dtype;
  }
  return std::nullopt;
}

std::optional<DType> quantized_dtype(std::string_view class_name) {
  if (class_name == "QInt8Storage") return DType::int8;
  if (class_name == "QUInt8Storage") return DType::uint8;
  if (class_name == "QInt32Storage") return DType::int32;
  return std::nullopt;
}

bool is_complex(DType dtype) {
  return dtype == DType::complex128 || dtype == DType::complex64 || dtype == DType::complex32;
}

// Any bytes may stand there, and as many as there is room for.
std::string dotted(const Node& global) {
  const std::string text = std::string(global.text) + "." + std::string(global.name);
  return repr(Value(text));
}

}  // namespace

std::vector<std::int64_t> Decoder::integers(NodeId id) {
  // A torch.Size stands here in some files, a plain tuple in most.
  if (pickle_[id].kind == NodeKind::call) {
    const Value size = decode(id);
    require(size.kind() == Kind::size, "a tuple of numbers is expected");
    spend_items(size.as_items().size());
    std::vector<std::int64_t> out;
    for (const Value& x : size.as_items()) out.push_back(x.as_int());
    return out;
  }
  const auto& items = node(id, NodeKind::tuple, "a tuple of numbers is expected").items;
  spend_items(items.size());
  std::vector<std::int64_t> out;
  out.reserve(items.size());
  for (const NodeId item : items) out.push_back(integer(item));
  return out;
}

DType Decoder::dtype(NodeId id) const {
  const Node& source = node(id, NodeKind::global, "a dtype is expected");
  const auto found = source.text == "torch" ? dtype_from_name(source.name) : std::nullopt;
  if (!found)
    throw Error(ErrorCode::unsupported,
                fmt::format("{} has the dtype {}, which perdure does not know", format_path(path_),
                            dotted(source)));
  return *found;
}

// Of one record, torch.load makes one storage, of the first type that is named for it: tensors that
// name another type would be read in two ways.
std::shared_ptr<TensorStorage> Decoder::storage_for_key(const std::string& key,
                                                        const std::string& device, StorageType type,
                                                        std::uint64_t declared) {
  const auto [it, fresh] =
      storage_by_key_.try_emplace(key, KnownStorage{out_.storages.size(), type});
  require(it->second.type == type, "its record is a storage of another type elsewhere");
  if (!fresh) return out_.storages[it->second.number];
  const auto size = record_size_ ? record_size_(key) : std::optional(declared);
  if (!size) damaged(fmt::format("its record {} is not in the file", record_name(key)));
  auto made = std::make_shared<TensorStorage>();
  made->size = *size;
  made->device = device;
  made->record = static_cast<std::int64_t>(out_.storages.size());
  out_.storages.push_back(made);
  out_.keys.push_back(key);
  out_.item_sizes.push_back(itemsize(type.dtype));
  return made;
}

// ('storage', class, key, device, number of elements)
// ('storage', class, key, device, count), and in the legacy format None or (view key, offset,
// count).
Decoder::StorageView Decoder::storage(NodeId id, bool quantized) {
  const Node& persistent = node(id, NodeKind::persistent, "a storage is expected");
  const auto& fields =
      node(persistent.items[0], NodeKind::tuple, "a storage of an unknown form").items;
  require((fields.size() == 5 || fields.size() == 6) &&
              pickle_[fields[0]].kind == NodeKind::string && pickle_[fields[0]].text == "storage",
          "a storage of an unknown form");
  const Node& type = node(fields[1], NodeKind::global, "a storage without a class");
  StorageView view;
  if (type.text == "torch")
    view.typed = quantized ? quantized_dtype(type.name) : storage_dtype(type.name);
  const bool untyped = !quantized && type.name == "UntypedStorage" &&
                       (type.text == "torch.storage" || type.text == "torch");
  if (!view.typed && !untyped)
    throw Error(ErrorCode::unsupported, fmt::format("{} lies in a {}, which perdure does not know",
                                                    format_path(path_), dotted(type)));
  const std::string key = text(fields[2], "a storage without a key");
  const std::string device = text(fields[3], "a storage without a device");
  require(is_plain_name(device), "a storage on a device of an unknown form");
  const std::int64_t count = integer(fields[4]);
  const std::uint64_t item = view.typed ? itemsize(*view.typed) : 1;
  const bool fits = count >= 0 && static_cast<std::uint64_t>(count) <=
                                      std::numeric_limits<std::uint64_t>::max() / item;
  view.end = fits ? static_cast<std::uint64_t>(count) * item : 0;
  view.storage = storage_for_key(
      key, device, {.dtype = view.typed.value_or(DType::uint8), .quantized = quantized}, view.end);
  if (!fits || view.storage->size != view.end)
    damaged(fmt::format("the record {} has {} bytes, not {} elements of {} bytes each",
                        record_name(key), view.storage->size, count, item));
  if (fields.size() == 6 && pickle_[fields[5]].kind != NodeKind::none)
    take_view(view, node(fields[5], NodeKind::tuple, "a storage of an unknown form").items);
  return view;
}

void Decoder::take_view(StorageView& view, const Arguments& metadata) const {
  require(metadata.size() == 3, "a storage of an unknown form");
  const std::uint64_t item = view.typed ? itemsize(*view.typed) : 1;
  const std::uint64_t whole = view.end / item;
  const std::int64_t count = integer(metadata[2]);
  view.first = integer(metadata[1]);
  require(view.first >= 0 && count >= 0 && static_cast<std::uint64_t>(view.first) <= whole &&
              static_cast<std::uint64_t>(count) <= whole - static_cast<std::uint64_t>(view.first),
          "a view that reaches outside of its storage");
  view.end = static_cast<std::uint64_t>(view.first + count) * item;
}

// No element may lie outside of the record: this is what stands between a file and somebody else's
// memory.
void Decoder::take_storage(Tensor& tensor, const StorageView& view, const Arguments& arguments) {
  tensor.storage = view.storage;
  tensor.shape = integers(arguments[2]);
  tensor.strides = integers(arguments[3]);
  tensor.storage_offset = integer(arguments[1]);
  if (view.first != 0)
    require(tensor.storage_offset >= 0 &&
                !__builtin_add_overflow(tensor.storage_offset, view.first, &tensor.storage_offset),
            "a tensor with an impossible offset");
  std::uint64_t end = 0;
  try {
    end = tensor.byte_range().second;
  } catch (const Error& error) {
    damaged(error.what());
  }
  if (end > view.end)
    damaged(
        fmt::format("a tensor that reaches to byte {} of a storage of {} bytes", end, view.end));
}

void Decoder::take_flags(Tensor& tensor, NodeId flags) const {
  if (pickle_[flags].kind == NodeKind::none) return;
  const auto& items = node(flags, NodeKind::dict, "tensor flags of an unknown form").items;
  for (std::size_t i = 0; i + 1 < items.size(); i += 2) {
    const std::string_view name =
        node(items[i], NodeKind::string, "tensor flags of an unknown form").text;
    if (name != "conj" && name != "neg")
      throw Error(ErrorCode::unsupported,
                  fmt::format("{}, {}: a tensor with the flag {}, which perdure does not know",
                              origin_.name, format_path(path_), repr(Value(name))));
    (name == "conj" ? tensor.conj : tensor.neg) = boolean(items[i + 1]);
  }
  require(!tensor.conj || is_complex(tensor.dtype), "a conjugated tensor that is not complex");
}

// (storage, offset, size, stride[, requires_grad, hooks[, flags]])
Value Decoder::call_tensor(const Node&, const Arguments& arguments) {
  require(arguments.size() == 4 || arguments.size() == 6 || arguments.size() == 7,
          "a tensor of an unknown form");
  Tensor tensor;
  const StorageView view = storage(arguments[0]);
  tensor.dtype = view.typed.value_or(DType::uint8);
  take_storage(tensor, view, arguments);
  if (arguments.size() > 4) tensor.requires_grad = boolean(arguments[4]);
  if (arguments.size() > 6) take_flags(tensor, arguments[6]);
  return Value(std::move(tensor));
}

// (storage, offset, size, stride, requires_grad, hooks, dtype[, flags])
Value Decoder::call_tensor_v3(const Node&, const Arguments& arguments) {
  require(arguments.size() == 7 || arguments.size() == 8, "a tensor of an unknown form");
  Tensor tensor;
  tensor.dtype = dtype(arguments[6]);
  take_storage(tensor, storage(arguments[0]), arguments);
  tensor.requires_grad = boolean(arguments[4]);
  if (arguments.size() > 7) take_flags(tensor, arguments[7]);
  return Value(std::move(tensor));
}

// (dtype, size, stride, requires_grad)
Value Decoder::call_meta_tensor(const Node&, const Arguments& arguments) {
  require(arguments.size() == 4, "a meta tensor of an unknown form");
  Tensor tensor;
  tensor.dtype = dtype(arguments[0]);
  tensor.shape = integers(arguments[1]);
  tensor.strides = integers(arguments[2]);
  tensor.requires_grad = boolean(arguments[3]);
  tensor.storage = std::make_shared<TensorStorage>();
  tensor.storage->device = "meta";
  try {
    tensor.storage->size = tensor.byte_range().second;
  } catch (const Error& error) {
    damaged(error.what());
  }
  return Value(std::move(tensor));
}

// (tensor, requires_grad, hooks[, state])
Value Decoder::call_parameter(const Node&, const Arguments& arguments) {
  require(arguments.size() == 3 || arguments.size() == 4, "a parameter of an unknown form");
  const Value inner = decode(arguments[0]);
  if (inner.kind() == Kind::opaque) return inner;
  require(inner.kind() == Kind::tensor || inner.kind() == Kind::composite,
          "a parameter that is no tensor");
  const Value state = arguments.size() == 4 ? decode(arguments[3]) : Value();
  if (inner.kind() != Kind::tensor || !state.is_none())
    return composite(Form::parameter, {inner, boolean(arguments[1]), state});
  Tensor tensor = inner.as_tensor();
  tensor.parameter = true;
  tensor.requires_grad = boolean(arguments[1]);
  return Value(std::move(tensor));
}

}  // namespace perdure::format
