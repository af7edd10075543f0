// at::Tensor <-> perdure::Tensor. Part of perdure/torch.hpp: include that.
#pragma once

#include <torch/types.h>

#include <array>
#include <cstdint>
#include <cstring>
#include <memory>
#include <mutex>
#include <optional>
#include <perdure/state.hpp>
#include <perdure/torch/device.hpp>
#include <perdure/value.hpp>
#include <string>
#include <unordered_map>
#include <utility>

namespace perdure {

// While one of these lives, tensors that this thread converts and that share a storage share one
// TensorStorage. state_dict() opens one by itself.
class SharedStorages {
 public:
  SharedStorages() : outermost_(current() == nullptr) {
    if (outermost_) current() = this;
  }
  ~SharedStorages() {
    if (outermost_) current() = nullptr;
  }
  SharedStorages(const SharedStorages&) = delete;
  SharedStorages& operator=(const SharedStorages&) = delete;

  static std::shared_ptr<TensorStorage> convert(const at::Tensor& tensor);

 private:
  struct Known {
    c10::Storage original;  // held, so that its address is nobody else's meanwhile
    std::shared_ptr<TensorStorage> converted;
  };
  static SharedStorages*& current() {
    thread_local SharedStorages* scope = nullptr;
    return scope;
  }

  bool outermost_;
  std::unordered_map<const c10::StorageImpl*, Known> known_;
};

namespace detail {

// In the order of DType.
inline constexpr std::array<c10::ScalarType, kDTypeCount> kScalarTypes{c10::kDouble,
                                                                       c10::kFloat,
                                                                       c10::kHalf,
                                                                       c10::kBFloat16,
                                                                       c10::kComplexDouble,
                                                                       c10::kComplexFloat,
                                                                       c10::kComplexHalf,
                                                                       c10::kLong,
                                                                       c10::kInt,
                                                                       c10::kShort,
                                                                       c10::kChar,
                                                                       c10::kUInt64,
                                                                       c10::kUInt32,
                                                                       c10::kUInt16,
                                                                       c10::kByte,
                                                                       c10::kBool,
                                                                       c10::kFloat8_e4m3fn,
                                                                       c10::kFloat8_e4m3fnuz,
                                                                       c10::kFloat8_e5m2,
                                                                       c10::kFloat8_e5m2fnuz,
                                                                       c10::kFloat8_e8m0fnu,
                                                                       c10::kFloat4_e2m1fn_x2,
                                                                       c10::kBits8,
                                                                       c10::kBits16,
                                                                       c10::kBits1x8,
                                                                       c10::kBits2x4,
                                                                       c10::kBits4x2};

inline c10::ScalarType scalar_type(DType dtype) {
  return kScalarTypes.at(static_cast<std::size_t>(dtype));
}

inline std::optional<DType> dtype_of(c10::ScalarType type) {
  for (std::size_t i = 0; i < kScalarTypes.size(); ++i)
    if (kScalarTypes[i] == type) return static_cast<DType>(i);
  return std::nullopt;
}

inline void throw_if_any(const Problems& problems, const std::string& what) {
  if (problems.empty()) return;
  std::string text = "the state does not fit " + what + "; nothing was changed:";
  for (const std::string& problem : problems) text += "\n  " + problem;
  throw Error(ErrorCode::invalid, text);
}

// Refuses what a strided view of one storage cannot say.
inline void require_strided(const at::Tensor& tensor) {
  if (!tensor.defined())
    throw Error(ErrorCode::invalid,
                "an undefined tensor cannot be saved: leave it out, or save perdure::Value(), "
                "Python's None");
  if (tensor.is_nested())
    throw Error(ErrorCode::unsupported,
                "a nested tensor cannot be saved: save tensor.unbind() as a list");
  if (tensor.is_quantized())
    throw Error(
        ErrorCode::unsupported,
        "a quantized tensor cannot be saved: save int_repr(), q_scale() and q_zero_point()");
  if (tensor.layout() != c10::kStrided || !tensor.has_storage())
    throw Error(ErrorCode::unsupported,
                "a sparse tensor cannot be saved: save its indices() and values(), or to_dense()");
  if (!dtype_of(tensor.scalar_type()))
    throw Error(ErrorCode::unsupported, std::string("a tensor of type ") +
                                            c10::toString(tensor.scalar_type()) +
                                            " cannot be saved: torch.load does not give it back");
}

// All bytes of a storage, as a tensor on its device.
inline at::Tensor bytes_of(const c10::Storage& storage) {
  at::Tensor bytes = at::empty({0}, at::TensorOptions(c10::kByte).device(storage.device()));
  bytes.set_(storage, 0, {static_cast<std::int64_t>(storage.nbytes())}, {1});
  return bytes;
}

inline std::shared_ptr<TensorStorage> convert_storage(c10::Storage storage) {
  auto result = std::make_shared<TensorStorage>();
  result->size = storage.nbytes();
  result->device = storage.device().str();
  if (storage.device().is_meta()) return result;
  if (!storage.device().is_cpu()) {
    result->copier = copier_of(storage.device());
    // All of the storage, so that views of it stay views of one thing.
    if (!result->copier) storage = bytes_of(storage).cpu().storage();
  }
  result->data = const_cast<std::byte*>(static_cast<const std::byte*>(storage.data()));
  result->owner = std::make_shared<c10::Storage>(std::move(storage));
  return result;
}

// A storage over the bytes where they are: on the host whatever its device says, but for those that
// came from a live tensor on a GPU.
inline c10::Storage present_storage(const std::shared_ptr<TensorStorage>& storage) {
  if (storage->data == nullptr && storage->size != 0)
    throw Error(ErrorCode::invalid,
                "the tensor has no data: it was loaded to \"meta\", or its file was only opened");
  const at::Device device = storage->copier ? at::Device(storage->device) : at::Device(at::kCPU);
  c10::DataPtr data = c10::InefficientStdFunctionContext::makeDataPtr(
      storage->data, [storage](void*) {}, device);  // the closure keeps the memory
  return {c10::Storage::use_byte_size_t(), storage->size, std::move(data),
          /*allocator=*/nullptr, /*resizable=*/false};
}

inline c10::Storage device_storage(const std::shared_ptr<TensorStorage>& storage) {
  const at::Device device(storage->device);
  if (device.is_meta())
    return at::empty({static_cast<std::int64_t>(storage->size)},
                     at::TensorOptions(c10::kByte).device(device))
        .storage();
  c10::Storage present = present_storage(storage);
  if (device == present.device()) return present;
  try {
    return bytes_of(present).to(device).storage();
  } catch (const c10::Error& error) {
    throw Error(ErrorCode::unsupported,
                "a tensor of the device " + storage->device + " cannot be placed there: " +
                    error.what_without_backtrace() + "; load with map_location = \"cpu\"");
  }
}

// One c10::Storage per TensorStorage as long as both are in use, so that what was shared is shared
// again.
class StorageCache {
 public:
  c10::Storage get(const std::shared_ptr<TensorStorage>& storage) {
    const std::lock_guard lock(mutex_);
    if (entries_.size() > limit_) purge();
    Entry& entry = entries_[storage.get()];
    if (entry.from.lock() == storage && entry.data == storage->data)
      if (auto known = entry.to.lock()) return c10::Storage(std::move(known));
    c10::Storage made = device_storage(storage);
    entry = {storage, storage->data, made.getWeakStorageImpl()};
    return made;
  }

 private:
  struct Entry {
    std::weak_ptr<TensorStorage> from;
    const void* data = nullptr;  // a storage that was read since is another one
    c10::weak_intrusive_ptr<c10::StorageImpl> to{c10::intrusive_ptr<c10::StorageImpl>()};
  };
  void purge() {
    std::erase_if(entries_, [](const auto& item) { return item.second.to.expired(); });
    limit_ = 2 * entries_.size() + 64;
  }

  std::mutex mutex_;
  std::unordered_map<const TensorStorage*, Entry> entries_;
  std::size_t limit_ = 64;
};

inline c10::Storage shared_storage(const std::shared_ptr<TensorStorage>& storage) {
  static StorageCache cache;
  return cache.get(storage);
}

inline at::Tensor view_of(const c10::Storage& storage, const Tensor& tensor) {
  if (tensor.byte_range().second > tensor.storage->size)
    throw Error(ErrorCode::invalid, "a tensor reaches past the end of its storage");
  at::Tensor view =
      at::empty({0}, at::TensorOptions(scalar_type(tensor.dtype)).device(storage.device()));
  view.set_(storage, tensor.storage_offset, tensor.shape, tensor.strides);
  if (tensor.conj) view._set_conj(true);
  if (tensor.neg) view._set_neg(true);
  return view;
}

inline bool has_data(const Tensor& tensor) {
  return tensor.storage->data != nullptr || tensor.storage->size == 0;
}

// The same elements in the same places: copying one into the other would change nothing.
inline bool is_same_memory(const at::Tensor& a, const at::Tensor& b) {
  return a.device() == b.device() && a.const_data_ptr() == b.const_data_ptr() &&
         a.scalar_type() == b.scalar_type() && a.sizes() == b.sizes() &&
         a.strides() == b.strides() && a.is_conj() == b.is_conj() && a.is_neg() == b.is_neg();
}

// Whether a state_dict may look at the bytes of a tensor. While a restore checks what fits, those
// that it is going to read straight into live tensors are still in the file (TrainingState::Entry).
enum class Bytes { there, later };

// A tensor's bytes where they are: to copy from, whatever device they are meant for.
inline at::Tensor present_tensor(const Tensor& tensor) {
  return view_of(present_storage(tensor.storage), tensor);
}

inline std::string format_shape(c10::IntArrayRef shape) {
  std::string text;
  for (std::int64_t size : shape) text += (text.empty() ? "" : ", ") + std::to_string(size);
  return "[" + text + "]";
}

// A key of a dict, as messages show it.
inline std::string quote(const Value& key) {
  return key.kind() == Kind::string ? "\"" + key.as_string() + "\"" : repr(key);
}

inline std::string describe_value(const Value& value) {
  return "a " + std::string(kind_name(value.kind()));
}

// What keeps `value` from being copied into `live`, bit for bit; "" where nothing does.
inline std::string compare_tensor(const Value& value, const at::Tensor& live,
                                  Bytes bytes = Bytes::there) {
  if (value.kind() != Kind::tensor) return describe_value(value) + " in the file, a tensor here";
  const Tensor& tensor = value.as_tensor();
  if (c10::IntArrayRef(tensor.shape) != live.sizes())
    return "shape " + format_shape(tensor.shape) + " in the file, " + format_shape(live.sizes()) +
           " here";
  if (scalar_type(tensor.dtype) != live.scalar_type())
    return std::string(dtype_name(tensor.dtype)) + " in the file, " +
           std::string(dtype_of(live.scalar_type()) ? dtype_name(*dtype_of(live.scalar_type()))
                                                    : c10::toString(live.scalar_type())) +
           " here";
  if (bytes == Bytes::there && !has_data(tensor))
    return "the tensor in the file has no data (loaded to \"meta\"?)";
  return "";
}

// Also true of two NaNs with the same payload, and false of 0.0 and -0.0.
inline bool same_bits(const at::Tensor& a, const at::Tensor& b) {
  const auto bytes = [](const at::Tensor& x) {
    return x.resolve_conj().resolve_neg().cpu().contiguous();
  };
  const at::Tensor x = bytes(a), y = bytes(b);
  return x.nbytes() == y.nbytes() &&
         (x.nbytes() == 0 || std::memcmp(x.const_data_ptr(), y.const_data_ptr(), x.nbytes()) == 0);
}

}  // namespace detail

inline std::shared_ptr<TensorStorage> SharedStorages::convert(const at::Tensor& tensor) {
  const c10::Storage& storage = tensor.storage();
  if (current() == nullptr) return detail::convert_storage(storage);
  Known& known = current()->known_[storage.unsafeGetStorageImpl()];
  if (known.converted == nullptr) known = {storage, detail::convert_storage(storage)};
  return known.converted;
}

// A strided tensor as a Value that looks into the same memory (a copy for devices without streams).
// Error(unsupported) for sparse, nested and quantized tensors and dtypes that torch.load does not
// give back.
template <>
struct ToValue<at::Tensor> {
  static Value convert(const at::Tensor& x) {
    detail::require_strided(x);
    Tensor tensor;
    tensor.storage = SharedStorages::convert(x);
    tensor.dtype = *detail::dtype_of(x.scalar_type());
    tensor.shape = x.sizes().vec();
    tensor.strides = x.strides().vec();
    tensor.storage_offset = x.storage_offset();
    tensor.requires_grad = x.requires_grad();
    tensor.conj = x.is_conj();
    tensor.neg = x.is_neg();
    return Value(std::move(tensor));
  }
};

namespace detail {

// The live tensor as a Value. A restore may read into what is in the memory of the CPU.
inline Value live_value(const at::Tensor& tensor) {
  Value value(tensor.detach());
  Tensor& live = value.as_tensor();
  if (tensor.is_cpu() || live.storage->copier) live.liveness = Liveness::live;
  return value;
}

}  // namespace detail

// The tensor on its storage's device ("cpu": over the loaded memory itself, which it keeps; "meta":
// no data). Tensors that share a TensorStorage share a storage afterwards. Error(unsupported) where
// there is no such device.
inline at::Tensor to_tensor(const Tensor& tensor) {
  at::Tensor result = detail::view_of(detail::shared_storage(tensor.storage), tensor);
  if (tensor.requires_grad) result.set_requires_grad(true);
  return result;
}
inline at::Tensor to_tensor(const Value& value) { return to_tensor(value.as_tensor()); }

}  // namespace perdure
