// What a checkpoint holds: a tree of plain Python-like values with tensors as leaves.
//
// A Value is a handle, as a name is in Python: copying one copies scalars and shares containers,
// tensors and storages. Sharing is meaningful (tied weights, a list that is in two places) and
// survives a save and a load. Values are not synchronised: share them between threads for reading
// only. std-only: LibTorch tensors enter through perdure/torch.hpp, Python's through the perdure
// module.
#pragma once

#include <complex>
#include <concepts>
#include <cstdint>
#include <initializer_list>
#include <memory>
#include <optional>
#include <perdure/error.hpp>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <variant>
#include <vector>

namespace perdure {

// Every dtype that torch.load (2.13) gives back. The numbers stand in files (.perdure/index):
// append only.
enum class DType : std::uint8_t {
  float64 = 0,
  float32 = 1,
  float16 = 2,
  bfloat16 = 3,
  complex128 = 4,
  complex64 = 5,
  complex32 = 6,
  int64 = 7,
  int32 = 8,
  int16 = 9,
  int8 = 10,
  uint64 = 11,
  uint32 = 12,
  uint16 = 13,
  uint8 = 14,
  boolean = 15,
  float8_e4m3fn = 16,
  float8_e4m3fnuz = 17,
  float8_e5m2 = 18,
  float8_e5m2fnuz = 19,
  float8_e8m0fnu = 20,
  float4_e2m1fn_x2 = 21,
  bits8 = 22,
  bits16 = 23,
  bits1x8 = 24,
  bits2x4 = 25,
  bits4x2 = 26,
};
inline constexpr std::size_t kDTypeCount = 27;

std::size_t itemsize(DType dtype) noexcept;  // bytes of one element
std::string_view dtype_name(
    DType dtype) noexcept;  // as in torch, without "torch.": "float32", "bool"
std::optional<DType> dtype_from_name(std::string_view name) noexcept;

// Brings bytes to the CPU from where it cannot read them: the memory of a GPU. One for each device;
// perdure/torch.hpp has it for all that LibTorch knows. Called by the thread that saves and by the
// one that writes, also at once.
class DeviceCopier {
 public:
  virtual ~DeviceCopier() = default;
  // What the calling thread has set going on the device comes before all that is copied from now
  // on.
  virtual void catch_up() = 0;
  // Begins to copy from an address of the device's; `to` has the bytes after finish().
  virtual void copy(MutableBytes to, const std::byte* from) = 0;
  // Waits for what the calling thread has begun.
  virtual void finish() = 0;
};

// A run of memory that one or more tensors look into; the counterpart of torch's UntypedStorage.
struct TensorStorage {
  std::byte* data = nullptr;  // null: known by size only (not read yet, or on the meta device)
  // Where it is set, `data` is an address of a device's, which only the copier can read.
  std::shared_ptr<DeviceCopier> copier;
  std::uint64_t size = 0;      // bytes
  std::string device = "cpu";  // "cpu", "cuda:0", "meta", ...: where it lived, or should live
  std::shared_ptr<const void> owner;  // keeps data alive; null where the caller does
  std::int64_t record = -1;  // number of its record (data/N) in the file it came from; -1: none
  // Of a restore: nobody but the object that takes it needs this memory, so it may keep it.
  bool may_be_kept = false;
};

// What the bytes of a tensor in a state_dict are to the object that gave it.
enum class Liveness : std::uint8_t {
  detached,  // nothing is known: maybe a copy, maybe changed at any moment
  live,      // the object's own: a restore may write straight into them
  stepped,   // the same, and between two steps of a registered optimizer they do not change
};

// A strided view into a storage. Shape, strides and storage_offset count elements, as in torch.
struct Tensor {
  std::shared_ptr<TensorStorage> storage;
  DType dtype = DType::float32;
  std::vector<std::int64_t> shape;
  std::vector<std::int64_t> strides;
  std::int64_t storage_offset = 0;
  bool requires_grad = false;
  bool parameter = false;                  // torch.nn.Parameter
  bool conj = false;                       // lazily conjugated (complex only)
  bool neg = false;                        // lazily negated
  Liveness liveness = Liveness::detached;  // of a state_dict's; stands in no file

  std::uint64_t numel() const;
  // First and one past the last byte of the storage that the elements touch; {0, 0} without
  // elements. Throws Error(invalid) for negative sizes or strides and where the arithmetic
  // overflows.
  std::pair<std::uint64_t, std::uint64_t> byte_range() const;
  // A C-contiguous tensor over memory of the caller's, which must outlive the use of the tensor.
  static Tensor over(void* data, DType dtype, std::vector<std::int64_t> shape);
};

class Value;
class Dict;

// An integer outside of int64: little-endian two's complement, as few bytes as hold it (Python's
// LONG1).
struct BigInt {
  std::string bytes;
  bool operator==(const BigInt&) const = default;
};

// A thing in a pickle that perdure gives no meaning to. It can be shown; load refuses it. Never
// executed.
struct Opaque;

// Turns a foreign type into a Value: specialise with `static Value convert(const T&)`. torch.hpp
// does it for at::Tensor, so that perdure::Dict{{"w", torch::ones({3})}} is written as it reads.
template <class T>
struct ToValue;

template <class T>
concept ConvertibleToValue = requires(const T& x) {
  { ToValue<T>::convert(x) } -> std::same_as<Value>;
};

// The kinds, and what they are in Python.
enum class Kind : std::uint8_t {
  none,
  boolean,
  integer,
  real,
  complex,  // None bool int float complex
  string,
  bytes,
  bytearray,  // str (UTF-8, lone surrogates kept) bytes bytearray
  list,
  tuple,
  set,
  size,  // list tuple set torch.Size
  dict,
  ordered_dict,
  counter,  // dict OrderedDict (+ attributes) Counter
  dtype,
  device,
  layout,     // torch.dtype torch.device torch.layout
  tensor,     // torch.Tensor, torch.nn.Parameter
  composite,  // a tensor that is made of others: sparse, quantized, nested, with attributes
  opaque,     // anything else: only ever read, never written
};
std::string_view kind_name(Kind kind) noexcept;  // "dict", "torch.Size", ...: the Python name

class Value {
 public:
  using Items = std::vector<Value>;

  Value() noexcept = default;        // None
  Value(std::nullptr_t) noexcept {}  // None
  template <std::same_as<bool> T>
  Value(T x) : data_(static_cast<bool>(x)), kind_(Kind::boolean) {}
  template <std::integral T>
    requires(!std::same_as<T, bool> && !std::same_as<T, char>)
  Value(T x) : Value(from_integer(x)) {}
  Value(BigInt x);  // normalised: small ones become int64
  Value(double x) : data_(x), kind_(Kind::real) {}
  Value(std::complex<double> x) : data_(x), kind_(Kind::complex) {}
  Value(const char* x) : Value(std::string(x)) {}
  Value(std::string_view x) : Value(std::string(x)) {}
  Value(std::string x) : data_(std::move(x)), kind_(Kind::string) {}
  Value(DType x) : data_(x), kind_(Kind::dtype) {}
  Value(Dict x);  // the kind is the dict's own
  Value(Tensor x);
  template <ConvertibleToValue T>
  Value(const T& x) : Value(ToValue<T>::convert(x)) {}

  static Value bytes(std::string x);
  static Value bytearray(std::string x);
  static Value list(Items items);
  static Value tuple(Items items);
  static Value set(Items items);                       // items must be hashable and distinct
  static Value size(std::vector<std::int64_t> sizes);  // torch.Size
  static Value device(std::string name);               // "cuda:0"
  static Value layout(std::string name);               // "torch.strided"
  static Value opaque(Opaque x);

  Kind kind() const noexcept { return kind_; }
  bool is_none() const noexcept { return kind_ == Kind::none; }
  bool is_mapping() const noexcept;   // dict, ordered_dict, counter, composite
  bool is_sequence() const noexcept;  // list, tuple, set, size

  // Each throws Error(invalid), naming the kind that is there, where the kind is another.
  bool as_bool() const;
  std::int64_t as_int() const;  // also of a bool; not of a BigInt
  double as_double() const;     // of a real or an integer
  std::complex<double> as_complex() const;
  const std::string& as_string() const;  // string, bytes, bytearray, device, layout
  DType as_dtype() const;
  const BigInt* as_big_int() const noexcept;  // null where the integer fits an int64
  const Items& as_items() const;              // list, tuple, set, size
  Items& as_items();
  const Dict& as_dict() const;  // what is_mapping()
  Dict& as_dict();
  const Tensor& as_tensor() const;
  Tensor& as_tensor();
  const Opaque& as_opaque() const;

  // Element of a mapping, or of a list or tuple. Error(not_found) names the key and those that are
  // there.
  const Value& operator[](std::string_view key) const;
  const Value& operator[](const char* key) const { return (*this)[std::string_view(key)]; }
  template <std::integral T>
  const Value& operator[](T index) const {
    return at_integer(static_cast<std::int64_t>(index));
  }
  bool contains(std::string_view key) const;  // false too where this is no mapping

  // Identity of the container or tensor behind this handle (Python's `is`); null for scalars.
  const void* identity() const noexcept;
  // How many handles share it, this one included; 0 for scalars. 1 for a dict that is kept (see
  // Dict::keep_as), whoever has a handle of it.
  long use_count() const noexcept;

 private:
  template <std::integral T>
  static Value from_integer(T x) {
    if constexpr (std::is_unsigned_v<T> && sizeof(T) == 8) return from_unsigned(x);
    Value v;
    v.data_ = static_cast<std::int64_t>(x);
    v.kind_ = Kind::integer;
    return v;
  }
  static Value from_unsigned(std::uint64_t x);
  const Value& at_integer(std::int64_t index) const;
  [[noreturn]] void wrong_kind(std::string_view wanted) const;

  std::variant<std::monostate, bool, std::int64_t, BigInt, double, std::complex<double>,
               std::string, DType, std::shared_ptr<Items>, std::shared_ptr<Dict>,
               std::shared_ptr<Tensor>, std::shared_ptr<Opaque>>
      data_;
  Kind kind_ = Kind::none;
};

struct Opaque {
  std::string module;  // "__main__"
  std::string name;    // "Config"
  Value
      arguments;  // what it would have been called with: a tuple, or None where it is a bare global
  Value state;    // what BUILD would have set, or None
};

// A mapping in insertion order. Keys compare as in Python: 1, 1.0 and True are one key.
// Lookup is by hash; entries() is in order.
class Dict {
 public:
  using Entry = std::pair<Value, Value>;

  // dict, ordered_dict, counter; or composite, which has the entry "form" and then the parts that
  // docs/format.md names for it: {"form": "sparse_csr", "crow_indices": tensor, ...}.
  explicit Dict(Kind kind = Kind::dict) : kind_(kind) {}
  Dict(std::initializer_list<Entry> entries);

  Kind kind() const noexcept { return kind_; }
  std::size_t size() const noexcept { return entries_.size(); }
  bool empty() const noexcept { return entries_.empty(); }
  const std::vector<Entry>& entries() const noexcept { return entries_; }
  auto begin() const noexcept { return entries_.begin(); }
  auto end() const noexcept { return entries_.end(); }

  // Sets or replaces. Error(invalid) where the key is not hashable (list, dict, set, bytearray) or
  // a tensor.
  Dict& set(Value key, Value value);
  const Value* find(const Value& key) const;  // null where absent
  Value* find(const Value& key);
  Value& value_at(std::size_t place) { return entries_[place].second; }
  const Value& at(const Value& key) const;  // Error(not_found) names the keys that are there

  // Instance attributes of an OrderedDict, such as a state_dict's _metadata; empty for nearly all.
  const std::shared_ptr<Dict>& attributes() const noexcept { return attributes_; }
  void set_attributes(std::shared_ptr<Dict> attributes) { attributes_ = std::move(attributes); }

  // For who makes the same tree at every save and keeps a handle of it: a number, unique in the
  // process, that stands for all that is below but its numbers. As long as it is the same, only
  // None, bools, ints and floats that are no keys are changed, each for another of these. The
  // keeper sees to that, and that this dict stands once in a state and what is below in nothing
  // else. 0: nothing is promised. Copies have none.
  void keep_as(std::uint64_t structure) { structure_.number = structure; }
  std::uint64_t structure() const noexcept { return structure_.number; }

 private:
  struct Structure {
    std::uint64_t number = 0;
    Structure() = default;
    Structure(const Structure&) noexcept {}
    Structure& operator=(const Structure&) noexcept { return number = 0, *this; }
  };
  std::size_t place_of(const Value& key) const;  // size() where it is not there

  Kind kind_;
  std::vector<Entry> entries_;
  // Canonical key -> place in entries_. Empty for a small dict, where looking at all of them is
  // quicker than a table is made.
  std::unordered_map<std::string, std::size_t> index_;
  std::shared_ptr<Dict> attributes_;
  Structure structure_;
};

// A place in a tree, for messages: ["optimizer"]["state"][0]["exp_avg"].
using KeyPath = std::vector<Value>;
std::string format_path(const KeyPath& path);
// A key or scalar as Python's repr would print it, cut to about `limit` bytes.
std::string repr(const Value& value, std::size_t limit = 80);

}  // namespace perdure
