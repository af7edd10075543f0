#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <map>
#include <mutex>
#include <perdure/npy.hpp>

#include "engine/gather.hpp"
#include "engine/leaves.hpp"
#include "engine/name_pattern.hpp"
#include "engine/number_kernels.hpp"
#include "io/fresh_memory.hpp"

namespace perdure {
namespace {

using engine::is_bits;
using engine::is_complex;
using engine::is_integer;
using engine::is_wide_integer;

constexpr std::uint64_t kWindow = std::uint64_t{32} << 20;

// numpy's name, or "".
std::string_view descr_of(DType dtype) {
  switch (dtype) {
    case DType::float64:
      return "<f8";
    case DType::float32:
      return "<f4";
    case DType::float16:
      return "<f2";
    case DType::complex128:
      return "<c16";
    case DType::complex64:
      return "<c8";
    case DType::int64:
      return "<i8";
    case DType::int32:
      return "<i4";
    case DType::int16:
      return "<i2";
    case DType::int8:
      return "|i1";
    case DType::uint64:
      return "<u8";
    case DType::uint32:
      return "<u4";
    case DType::uint16:
      return "<u2";
    case DType::uint8:
      return "|u1";
    case DType::boolean:
      return "|b1";
    default:
      return "";
  }
}

bool has_meaning(DType dtype) { return !is_bits(dtype) && dtype != DType::float4_e2m1fn_x2; }

// Whether the bytes stay as they are.
bool is_same_bits(DType from, DType to) {
  if (from == to) return true;
  const bool is_unsigned = to == DType::uint8 || to == DType::uint16 || to == DType::uint32;
  return is_unsigned && descr_of(from).empty() && itemsize(from) == itemsize(to);
}

bool widens_exactly(DType from, DType to) {
  if (!has_meaning(from) || is_wide_integer(from)) return false;
  if (is_complex(from) != is_complex(to) || itemsize(from) >= itemsize(to)) return false;
  return to == DType::float64 || to == DType::float32 || to == DType::complex128 ||
         to == DType::complex64;
}

std::string_view advice_for(DType dtype) {
  if (dtype == DType::complex32) return "complex64";
  if (dtype == DType::bits16) return "uint16";
  return has_meaning(dtype) ? "float32" : "uint8";
}

DType target_of(const std::string& what, DType from, const std::optional<DType>& wanted) {
  const DType to = wanted.value_or(from);
  if (descr_of(to).empty())
    throw Error(ErrorCode::unsupported,
                fmt::format("{}: numpy has no {}; ask for a dtype that holds every value exactly: "
                            "--dtype {}",
                            what, dtype_name(to), advice_for(from)));
  if (!is_same_bits(from, to) && !widens_exactly(from, to))
    throw Error(ErrorCode::unsupported, fmt::format("{}: {} does not hold every value of {}", what,
                                                    dtype_name(to), dtype_name(from)));
  return to;
}

std::string header_of(DType dtype, const std::vector<std::int64_t>& shape, bool fortran) {
  std::string sizes;
  for (const std::int64_t size : shape) sizes += fmt::format("{}, ", size);
  if (shape.size() > 1) sizes.resize(sizes.size() - 2);
  if (shape.size() == 1) sizes.pop_back();
  std::string text = fmt::format("{{'descr': '{}', 'fortran_order': {}, 'shape': ({}), }}",
                                 descr_of(dtype), fortran ? "True" : "False", sizes);
  const bool is_long = text.size() + 128 > 0xFFFF;
  const std::size_t before = is_long ? 12 : 10;
  text.append(63 - (before + text.size()) % 64, ' ');
  text += '\n';
  std::string out =
      is_long ? std::string("\x93NUMPY\x02\x00", 8) : std::string("\x93NUMPY\x01\x00", 8);
  for (std::size_t i = 8; i < before; ++i)
    out += static_cast<char>((text.size() >> (8 * (i - 8))) & 0xFF);
  return out + text;
}

bool is_row_major(const Tensor& tensor, bool reversed) {
  std::int64_t expected = 1;
  for (std::size_t k = tensor.shape.size(); k-- > 0;) {
    const std::size_t i = reversed ? tensor.shape.size() - 1 - k : k;
    if (tensor.shape[i] != 1 && tensor.strides[i] != expected) return false;
    expected *= tensor.shape[i];
  }
  return true;
}

class NpyWriter {
 public:
  NpyWriter(const CheckpointFile& file, const Tensor& tensor, DType to,
            const std::function<void(ConstBytes)>& sink)
      : file_(file), tensor_(tensor), to_(to), sink_(sink) {}

  void write() {
    const bool contiguous = is_row_major(tensor_, false);
    const bool fortran = !contiguous && is_row_major(tensor_, true);
    const std::string header = header_of(to_, tensor_.shape, fortran);
    sink_(std::as_bytes(std::span(header)));
    if (tensor_.numel() == 0) return;
    if (contiguous || fortran)
      write_in_order_of_storage();
    else
      write_windows();
  }

 private:
  template <class Take>
  void stream(Take&& take) {
    const TensorStorage& storage = *tensor_.storage;
    if (storage.data != nullptr) return take(0, ConstBytes(storage.data, storage.size));
    file_.stream({static_cast<std::size_t>(storage.record)},
                 [&](std::size_t, std::uint64_t at, ConstBytes bytes) { take(at, bytes); });
  }

  // The runs come from several threads, each about in its turn: those that are early are kept.
  void write_in_order_of_storage() {
    const auto [begin, end] = tensor_.byte_range();
    std::mutex mutex;
    std::uint64_t next = begin;
    std::map<std::uint64_t, std::vector<std::byte>> early;
    stream([&](std::uint64_t at, ConstBytes bytes) {
      const std::uint64_t first = std::max<std::uint64_t>(at, begin);
      const std::uint64_t last = std::min<std::uint64_t>(at + bytes.size(), end);
      if (first >= last) return;
      const ConstBytes ours = bytes.subspan(first - at, last - first);
      const std::lock_guard lock(mutex);
      if (first != next) {
        early.emplace(first, std::vector<std::byte>(ours.begin(), ours.end()));
        return;
      }
      put(ours);
      next = last;
      for (auto it = early.begin(); it != early.end() && it->first == next; it = early.erase(it)) {
        put(it->second);
        next += it->second.size();
      }
    });
  }

  void write_windows() {
    const std::uint64_t size = itemsize(tensor_.dtype);
    const std::uint64_t count = tensor_.numel();
    const std::uint64_t step = kWindow / size;
    const std::shared_ptr<std::byte> memory =
        io::allocate_fresh(std::min<std::uint64_t>(count, step) * size);
    for (std::uint64_t first = 0; first < count; first += step) {
      const std::uint64_t last = std::min(count, first + step);
      const engine::Gather gather(tensor_, first, last, memory.get());
      stream([&](std::uint64_t at, ConstBytes bytes) { gather.take(at, bytes); });
      put({memory.get(), (last - first) * size});
    }
  }

  void put(ConstBytes bytes) {
    if (tensor_.conj || tensor_.neg) {
      std::vector<std::byte> changed(bytes.begin(), bytes.end());
      flip_signs(changed);
      return put_converted(changed);
    }
    put_converted(bytes);
  }

  void flip_signs(MutableBytes bytes) const {
    const std::size_t parts = engine::numbers_in(tensor_.dtype);
    const std::size_t size = itemsize(tensor_.dtype) / parts;
    if (is_integer(tensor_.dtype)) return negate_integers(bytes, size);
    for (std::size_t i = 0; i * size < bytes.size(); ++i)
      if (tensor_.neg != (tensor_.conj && i % parts == 1))
        bytes[(i + 1) * size - 1] ^= std::byte{0x80};
  }
  // Two's complement: all bits the other way round, and 1 more.
  static void negate_integers(MutableBytes bytes, std::size_t size) {
    for (std::size_t begin = 0; begin < bytes.size(); begin += size) {
      unsigned carry = 1;
      for (std::byte& byte : bytes.subspan(begin, size)) {
        carry += 0xFFU & static_cast<unsigned>(~byte);
        byte = static_cast<std::byte>(carry & 0xFFU);
        carry >>= 8U;
      }
    }
  }

  void put_converted(ConstBytes bytes) {
    if (is_same_bits(tensor_.dtype, to_)) return sink_(bytes);
    const std::size_t size = itemsize(tensor_.dtype);
    const std::size_t parts = engine::numbers_in(tensor_.dtype);
    const std::size_t step = engine::kChunk / parts;
    std::array<double, engine::kChunk> wide;
    std::vector<std::byte> out;
    out.reserve(bytes.size() / size * itemsize(to_));
    for (std::size_t done = 0; done < bytes.size() / size; done += step) {
      const std::size_t count = std::min(step, bytes.size() / size - done);
      engine::kernels().widen(tensor_.dtype, bytes.data() + done * size, count, wide.data());
      append(out, wide.data(), count * parts);
    }
    sink_(out);
  }

  void append(std::vector<std::byte>& out, const double* numbers, std::size_t count) const {
    const auto put_bytes = [&out](const auto& x) {
      const auto* from = reinterpret_cast<const std::byte*>(&x);
      out.insert(out.end(), from, from + sizeof x);
    };
    const bool is_double = to_ == DType::float64 || to_ == DType::complex128;
    for (std::size_t i = 0; i < count; ++i)
      if (is_double)
        put_bytes(numbers[i]);
      else
        put_bytes(static_cast<float>(numbers[i]));
  }

  const CheckpointFile& file_;
  const Tensor& tensor_;
  DType to_;
  const std::function<void(ConstBytes)>& sink_;
};

const Tensor& find_tensor(const CheckpointFile& file, const std::string& name,
                          const std::vector<engine::Leaf>& leaves) {
  std::vector<std::string> names;
  for (const engine::Leaf& leaf : leaves) {
    if (leaf.value->kind() == Kind::tensor) {
      if (leaf.name == name) return leaf.value->as_tensor();
      names.push_back(leaf.name);
    } else if (leaf.name == name) {
      throw Error(ErrorCode::invalid, fmt::format("{}: '{}' is no tensor: it is {}", file.name(),
                                                  name, repr(*leaf.value)));
    }
  }
  std::string similar;
  for (const std::string& other : engine::similar_names(name, names))
    similar += (similar.empty() ? "; did you mean " : " or ") + fmt::format("'{}'", other);
  throw Error(ErrorCode::not_found, fmt::format("{}: no tensor is called '{}'{}", file.name(), name,
                                                similar.empty() ? "" : similar + "?"));
}

}  // namespace

void write_npy(const CheckpointFile& file, const std::string& name,
               const std::function<void(ConstBytes)>& sink, const NpyOptions& options) {
  const std::vector<engine::Leaf> leaves = engine::leaves_of(file.value());
  const Tensor& tensor = find_tensor(file, name, leaves);
  const std::string what = fmt::format("{}: '{}'", file.name(), name);
  const DType to = target_of(what, tensor.dtype, options.dtype);
  const TensorStorage& storage = *tensor.storage;
  if (tensor.numel() > 0 && storage.data == nullptr &&
      (storage.record < 0 || storage.device == "meta"))
    throw Error(ErrorCode::unsupported, what + ": the file has no data for it");
  NpyWriter(file, tensor, to, sink).write();
}

}  // namespace perdure
