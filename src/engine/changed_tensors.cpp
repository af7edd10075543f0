#include "engine/changed_tensors.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <unordered_map>

#include "engine/block_writer.hpp"
#include "engine/file_records.hpp"
#include "engine/number_formats.hpp"
#include "engine/strided_source.hpp"
#include "engine/virtual_memory.hpp"
#include "format/safetensors_file.hpp"

namespace perdure::engine {
namespace {

void copy_from(const TensorStorage& storage, std::uint64_t offset, MutableBytes to) {
  if (storage.copier) {
    storage.copier->copy(to, storage.data + offset);
    storage.copier->finish();
  } else if (!to.empty()) {
    std::memcpy(to.data(), storage.data + offset, to.size());
  }
}

// A storage whose bytes are made of another's. The address is only for counting.
template <class Copier>
std::shared_ptr<TensorStorage> storage_of(std::uint64_t size, const TensorStorage& like,
                                          std::shared_ptr<Copier> copier) {
  auto storage = std::make_shared<TensorStorage>();
  storage->size = size;
  storage->device = like.device;
  storage->data = reserve_addresses(size);
  copier->begin = storage->data;
  storage->copier = std::move(copier);
  return storage;
}

class InCOrder final : public DeviceCopier {
 public:
  explicit InCOrder(Tensor tensor) : tensor_(std::move(tensor)) {}
  InCOrder(const InCOrder&) = delete;
  InCOrder& operator=(const InCOrder&) = delete;
  ~InCOrder() override { loaded_->forget(this); }
  const std::byte* begin = nullptr;

  void catch_up() override {
    if (tensor_.storage->copier) tensor_.storage->copier->catch_up();
  }
  void copy(MutableBytes to, const std::byte* from) override {
    const auto bytes = loaded_->get(this, this, [this] { return load(); });
    std::memcpy(to.data(), bytes->data() + (from - begin), to.size());
  }
  void finish() override {}

 private:
  std::vector<std::byte> load() const {
    const auto [first, end] = tensor_.byte_range();
    const std::uint64_t item = itemsize(tensor_.dtype);
    Tensor tensor = tensor_;
    tensor.storage_offset -= static_cast<std::int64_t>(first / item);
    std::vector<std::byte> storage(end - first);
    copy_from(*tensor_.storage, first, storage);
    std::vector<std::byte> out(bytes_of(tensor_));
    copy_elements(tensor, storage, out);
    return out;
  }
  // One for the thread: whichever tensor it copies, the one before is done with.
  static std::shared_ptr<LastLoaded> slot() {
    thread_local const auto last = std::make_shared<LastLoaded>();
    return last;
  }

  Tensor tensor_;
  std::shared_ptr<LastLoaded> loaded_ = slot();
};

class InDType final : public DeviceCopier {
 public:
  InDType(std::shared_ptr<TensorStorage> storage, DType from, DType to)
      : storage_(std::move(storage)), from_(from), to_(to) {}
  const std::byte* begin = nullptr;

  void catch_up() override {
    if (storage_->copier) storage_->copier->catch_up();
  }
  // Blocks of a file begin anywhere, also within an element.
  void copy(MutableBytes to, const std::byte* from) override {
    const std::uint64_t item = itemsize(to_);
    const auto offset = static_cast<std::uint64_t>(from - begin);
    const std::uint64_t first = offset / item, end = (offset + to.size() + item - 1) / item;
    constexpr std::uint64_t kAtOnce = std::uint64_t{1} << 18;
    for (std::uint64_t at = first; at < end; at += kAtOnce) {
      const std::uint64_t count = std::min(kAtOnce, end - at);
      read_.resize(count * itemsize(from_));
      made_.resize(count * item);
      copy_from(*storage_, at * itemsize(from_), read_);
      convert_numbers(from_, read_, to_, made_);
      const std::uint64_t low = std::max(at * item, offset);
      const std::uint64_t high = std::min((at + count) * item, offset + to.size());
      std::memcpy(to.data() + (low - offset), made_.data() + (low - at * item), high - low);
    }
  }
  void finish() override {}

 private:
  std::shared_ptr<TensorStorage> storage_;
  DType from_, to_;
  std::vector<std::byte> read_, made_;
};

// What means something else with tensors of another dtype in it: NumPy arrays, which say their own
// beside them, and quantized tensors, whose scales are part of the numbers.
bool is_of_one_dtype(const Value& value) {
  if (array_in(value) != nullptr) return true;
  return value.kind() == Kind::composite && value["form"].as_string().starts_with("quantized");
}

class DTypeChange {
 public:
  explicit DTypeChange(const Value& state, DType dtype) : dtype_(dtype) {
    for_each_tensor(state, [&](const KeyPath& path, const Tensor& tensor) {
      const auto [it, fresh] = dtypes_.try_emplace(tensor.storage.get(), tensor.dtype);
      if (it->second != tensor.dtype && (is_real(it->second) || is_real(tensor.dtype)))
        throw Error(ErrorCode::invalid,
                    fmt::format("dtype: {} shares its storage with a tensor of another dtype, so "
                                "neither can be changed",
                                format_path(path)));
    });
  }

  Value change(const Value& value) {
    if (value.kind() == Kind::tensor) return change(value.as_tensor());
    if (is_of_one_dtype(value)) return value;
    if (!value.is_mapping() && value.kind() != Kind::list && value.kind() != Kind::tuple)
      return value;
    if (const auto it = done_.find(value.identity()); it != done_.end()) return it->second;
    Value out = value.is_mapping() ? Value(change(value.as_dict())) : items(value);
    done_.emplace(value.identity(), out);
    return out;
  }

 private:
  Dict change(const Dict& dict) {
    Dict out(dict.kind());
    out.set_attributes(dict.attributes());
    for (const auto& [key, item] : dict) out.set(key, change(item));
    return out;
  }
  Value items(const Value& value) {
    Value::Items out;
    for (const Value& item : value.as_items()) out.push_back(change(item));
    return value.kind() == Kind::list ? Value::list(std::move(out)) : Value::tuple(std::move(out));
  }
  Value change(const Tensor& tensor) {
    if (!is_real(tensor.dtype) || tensor.dtype == dtype_) return tensor;
    std::shared_ptr<TensorStorage>& storage = changed_[tensor.storage.get()];
    if (!storage) {
      const std::uint64_t count = tensor.storage->size / itemsize(tensor.dtype);
      storage = storage_of(count * itemsize(dtype_), *tensor.storage,
                           std::make_shared<InDType>(tensor.storage, tensor.dtype, dtype_));
    }
    Tensor out = tensor;
    out.storage = storage;
    out.dtype = dtype_;
    return out;
  }

  DType dtype_;
  std::unordered_map<const TensorStorage*, DType> dtypes_;
  std::unordered_map<const TensorStorage*, std::shared_ptr<TensorStorage>> changed_;
  std::unordered_map<const void*, Value> done_;
};

}  // namespace

bool is_contiguous(const Tensor& tensor) noexcept {
  if (tensor.numel() == 0) return true;
  std::int64_t stride = 1;
  for (std::size_t i = tensor.shape.size(); i-- > 0;) {
    if (tensor.shape[i] != 1 && tensor.strides[i] != stride) return false;
    stride *= tensor.shape[i];
  }
  return true;
}

bool is_real(DType dtype) noexcept {
  switch (dtype) {
    case DType::float64:
    case DType::float32:
    case DType::float16:
    case DType::bfloat16:
    case DType::float8_e4m3fn:
    case DType::float8_e4m3fnuz:
    case DType::float8_e5m2:
    case DType::float8_e5m2fnuz:
      return true;
    default:
      return false;
  }
}

// Of a view that repeats its elements there can be more than any file holds.
Tensor in_c_order(const Tensor& tensor) try {
  if (is_contiguous(tensor)) return tensor;
  Tensor out = format::contiguous_tensor(tensor.dtype, tensor.shape);
  out.storage = storage_of(bytes_of(tensor), *tensor.storage, std::make_shared<InCOrder>(tensor));
  return out;
} catch (const Error& error) {
  if (error.code() != ErrorCode::corrupt) throw;
  throw Error(ErrorCode::invalid,
              fmt::format("a view of {} repeats its elements, and would take more bytes than there "
                          "can be where the format knows no views; leave it out (only)",
                          repr(Value::size(tensor.shape))));
}

Value in_dtype(const Value& state, DType dtype) { return DTypeChange(state, dtype).change(state); }

}  // namespace perdure::engine
