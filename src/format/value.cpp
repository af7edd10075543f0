#include "perdure/value.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <random>

#include "format/utf8.hpp"

namespace perdure {
namespace {

struct DTypeFacts {
  std::string_view name;
  std::uint8_t size;
};

// In the order of DType.
constexpr std::array<DTypeFacts, kDTypeCount> kDTypes = {{
    {"float64", 8},        {"float32", 4},
    {"float16", 2},        {"bfloat16", 2},
    {"complex128", 16},    {"complex64", 8},
    {"complex32", 4},      {"int64", 8},
    {"int32", 4},          {"int16", 2},
    {"int8", 1},           {"uint64", 8},
    {"uint32", 4},         {"uint16", 2},
    {"uint8", 1},          {"bool", 1},
    {"float8_e4m3fn", 1},  {"float8_e4m3fnuz", 1},
    {"float8_e5m2", 1},    {"float8_e5m2fnuz", 1},
    {"float8_e8m0fnu", 1}, {"float4_e2m1fn_x2", 1},
    {"bits8", 1},          {"bits16", 2},
    {"bits1x8", 1},        {"bits2x4", 1},
    {"bits4x2", 1},
}};

constexpr std::array<std::string_view, 21> kKindNames = {
    "None",         "bool",         "int",          "float",       "complex",
    "str",          "bytes",        "bytearray",    "list",        "tuple",
    "set",          "torch.Size",   "dict",         "OrderedDict", "Counter",
    "torch.dtype",  "torch.device", "torch.layout", "tensor",      "composite tensor",
    "opaque object"};

template <class T>
std::string raw_bytes(const T& x) {
  std::string out(sizeof x, '\0');
  std::memcpy(out.data(), &x, sizeof x);
  return out;
}

// A whole number of 2^63 or more, or less than -2^63: its mantissa (an int64) shifted left.
BigInt big_integer(double x) {
  int exponent = 0;
  const auto mantissa = static_cast<std::int64_t>(std::ldexp(std::frexp(x, &exponent), 53));
  exponent -= 53;  // above 0, so nothing is lost; the mantissa leaves the 7 bits free that it is
                   // shifted into
  BigInt out{std::string(static_cast<std::size_t>(exponent / 8), '\0')};
  const auto shifted = static_cast<std::uint64_t>(mantissa) << (exponent % 8);
  for (int i = 0; i < 8; ++i) out.bytes += static_cast<char>((shifted >> (8 * i)) & 0xFF);
  return out;
}

// Doubles that are whole numbers compare equal to ints in Python, and so must hash alike.
std::string canonical_real(double x) {
  constexpr double kLimit = 9223372036854775808.0;  // 2^63
  if (!std::isfinite(x) || x != std::floor(x)) return "f" + raw_bytes(x);
  if (x >= -kLimit && x < kLimit) return fmt::format("i{}", static_cast<std::int64_t>(x));
  return "I" + Value(big_integer(x)).as_big_int()->bytes;
}

std::string canonical_key(const Value& key);

// A tuple is written out in full, and a small one can stand for a huge one when its members are
// shared.
constexpr std::size_t kMaxTupleKey = std::size_t{1} << 20;

std::string canonical_tuple(const Value::Items& items) {
  std::string out = fmt::format("t{}:", items.size());
  for (const Value& item : items) {
    const std::string part = canonical_key(item);
    out += fmt::format("{}:{}", part.size(), part);
    if (out.size() > kMaxTupleKey)
      throw Error(ErrorCode::invalid,
                  "a tuple of more than 1 MiB cannot be a key of a dict or a member of a set");
  }
  return out;
}

std::string canonical_complex(std::complex<double> x) {
  return x.imag() == 0 ? canonical_real(x.real()) : "c" + raw_bytes(x);
}

// A string that is equal for two keys exactly where Python says that they are the same key.
std::string canonical_key(const Value& key) {
  switch (key.kind()) {
    case Kind::none:
      return "n";
    case Kind::boolean:
      return key.as_bool() ? "i1" : "i0";
    case Kind::integer:
      if (const BigInt* big = key.as_big_int()) return "I" + big->bytes;
      return fmt::format("i{}", key.as_int());
    case Kind::real:
      return canonical_real(key.as_double());
    case Kind::complex:
      return canonical_complex(key.as_complex());
    case Kind::string:
      return "s" + key.as_string();
    case Kind::bytes:
      return "b" + key.as_string();
    case Kind::tuple:
    case Kind::size:
      return canonical_tuple(key.as_items());
    case Kind::dtype:
      return "d" + std::string(dtype_name(key.as_dtype()));
    case Kind::device:
      return "D" + key.as_string();
    case Kind::layout:
      return "l" + key.as_string();
    default:
      throw Error(ErrorCode::invalid,
                  fmt::format("a {} cannot be a key of a dict or a member of a set: use str or int",
                              kind_name(key.kind())));
  }
}

// One character as Python's repr prints it; what is no UTF-8, byte by byte as \xNN.
std::string escape(std::string_view bytes, format::CodePoint point) {
  const std::uint32_t c = point.value;
  if (point.length == 0) return fmt::format("\\x{:02x}", static_cast<unsigned char>(bytes[0]));
  if (c == '\'' || c == '\\') return fmt::format("\\{}", static_cast<char>(c));
  if (c == '\n') return "\\n";
  if (c < 0x20 || (c >= 0x7F && c < 0xA0)) return fmt::format("\\x{:02x}", c);
  if (point.is_surrogate() || format::is_invisible(c)) return fmt::format("\\u{:04x}", c);
  return std::string(bytes);
}

// Python-like quoting: whatever the text, what comes out is printable UTF-8, so that a hostile file
// cannot write to a terminal.
std::string quote(std::string_view text, std::size_t limit, bool utf8) {
  std::string out = "'";
  for (std::size_t at = 0; at < text.size();) {
    if (out.size() >= limit) return out + "...'";
    const bool ascii = static_cast<unsigned char>(text[at]) < 0x80;
    const format::CodePoint point =
        utf8 || ascii ? format::code_point(text, at) : format::CodePoint{};
    const std::size_t length = std::max<std::size_t>(point.length, 1);
    out += escape(text.substr(at, length), point);
    at += length;
  }
  return out + "'";
}

std::string repr_real(double x) {
  if (std::isnan(x)) return "nan";
  if (std::isinf(x)) return x > 0 ? "inf" : "-inf";
  std::string out = fmt::format("{}", x);
  return out.find_first_of(".e") == std::string::npos ? out + ".0" : out;
}

std::string repr_big(const BigInt& x) {
  std::string out;
  for (auto it = x.bytes.rbegin(); it != x.bytes.rend() && out.size() < 64; ++it)
    out += fmt::format("{:02x}", static_cast<unsigned char>(*it));
  return fmt::format("int(0x{}{}, {} bytes)", out, x.bytes.size() > 32 ? "..." : "",
                     x.bytes.size());
}

std::string repr_tuple(const Value::Items& items, std::size_t limit) {
  std::string out = "(";
  for (const Value& item : items) {
    if (out.size() >= limit) return out + "...)";
    out += repr(item, limit) + (items.size() == 1 ? "," : &item == &items.back() ? "" : ", ");
  }
  return out + ")";
}

std::string repr_opaque(const Opaque& x) {
  return fmt::format("<{}.{}>", quote(x.module, 60, true), quote(x.name, 60, true));
}

std::uint64_t checked_size(std::int64_t size) {
  if (size < 0)
    throw Error(ErrorCode::invalid, fmt::format("a tensor with a negative size, {}", size));
  return static_cast<std::uint64_t>(size);
}

std::uint64_t checked_mul(std::uint64_t a, std::uint64_t b) {
  std::uint64_t out = 0;
  if (__builtin_mul_overflow(a, b, &out))
    throw Error(ErrorCode::invalid, "a tensor whose size overflows 64 bits");
  return out;
}

std::uint64_t checked_add(std::uint64_t a, std::uint64_t b) {
  std::uint64_t out = 0;
  if (__builtin_add_overflow(a, b, &out))
    throw Error(ErrorCode::invalid, "a tensor whose extent overflows 64 bits");
  return out;
}

}  // namespace

const char* error_code_name(ErrorCode code) noexcept {
  switch (code) {
    case ErrorCode::io:
      return "io";
    case ErrorCode::corrupt:
      return "corrupt";
    case ErrorCode::not_found:
      return "not_found";
    case ErrorCode::invalid:
      return "invalid";
    case ErrorCode::unsupported:
      return "unsupported";
    case ErrorCode::cancelled:
      return "cancelled";
    case ErrorCode::full:
      return "full";
    case ErrorCode::locked:
      return "locked";
  }
  return "unknown";
}

std::size_t itemsize(DType dtype) noexcept { return kDTypes[static_cast<std::size_t>(dtype)].size; }
std::string_view dtype_name(DType dtype) noexcept {
  return kDTypes[static_cast<std::size_t>(dtype)].name;
}
std::optional<DType> dtype_from_name(std::string_view name) noexcept {
  for (std::size_t i = 0; i < kDTypes.size(); ++i)
    if (kDTypes[i].name == name) return static_cast<DType>(i);
  return std::nullopt;
}
std::string_view kind_name(Kind kind) noexcept {
  return kKindNames[static_cast<std::size_t>(kind)];
}

std::uint64_t Tensor::numel() const {
  // Checked even where an earlier size is 0, so that no shape is taken that torch could not hold.
  std::uint64_t out = 1;
  for (const std::int64_t size : shape) out = checked_mul(out, checked_size(size));
  return out;
}

std::pair<std::uint64_t, std::uint64_t> Tensor::byte_range() const {
  if (strides.size() != shape.size())
    throw Error(ErrorCode::invalid,
                fmt::format("a tensor with {} sizes but {} strides", shape.size(), strides.size()));
  if (storage_offset < 0)
    throw Error(ErrorCode::invalid,
                fmt::format("a tensor with a negative offset, {}", storage_offset));
  auto last = static_cast<std::uint64_t>(storage_offset);
  const std::uint64_t first = last;
  for (std::size_t i = 0; i < shape.size(); ++i) {
    if (strides[i] < 0) throw Error(ErrorCode::invalid, "a tensor with a negative stride");
    if (shape[i] > 0)
      last = checked_add(last, checked_mul(static_cast<std::uint64_t>(shape[i] - 1),
                                           static_cast<std::uint64_t>(strides[i])));
  }
  if (numel() == 0) return {0, 0};
  const std::uint64_t size = itemsize(dtype);
  return {checked_mul(first, size), checked_mul(checked_add(last, 1), size)};
}

Tensor Tensor::over(void* data, DType dtype, std::vector<std::int64_t> shape) {
  Tensor tensor;
  tensor.dtype = dtype;
  tensor.shape = std::move(shape);
  const std::uint64_t size = checked_mul(tensor.numel(), itemsize(dtype));
  tensor.strides.resize(tensor.shape.size());
  std::int64_t stride = 1;
  for (std::size_t i = tensor.shape.size(); i-- > 0;) {
    tensor.strides[i] = stride;
    stride *= std::max<std::int64_t>(tensor.shape[i], 1);
  }
  tensor.storage = std::make_shared<TensorStorage>();
  tensor.storage->data = static_cast<std::byte*>(data);
  tensor.storage->size = size;
  return tensor;
}

Value::Value(BigInt x) : kind_(Kind::integer) {
  // Cut sign bytes that say nothing, as Python does.
  auto redundant = [](const std::string& b) {
    const auto top = static_cast<unsigned char>(b[b.size() - 1]);
    const bool next_negative = (static_cast<unsigned char>(b[b.size() - 2]) & 0x80) != 0;
    return (top == 0 && !next_negative) || (top == 0xFF && next_negative);
  };
  while (x.bytes.size() > 1 && redundant(x.bytes)) x.bytes.pop_back();
  if (x.bytes.size() > 8) {
    data_ = std::move(x);
    return;
  }
  const bool negative =
      !x.bytes.empty() && (static_cast<unsigned char>(x.bytes.back()) & 0x80) != 0;
  x.bytes.resize(8, negative ? '\xff' : '\0');
  std::int64_t small = 0;
  for (std::size_t i = 8; i-- > 0;)
    small = static_cast<std::int64_t>((static_cast<std::uint64_t>(small) << 8) |
                                      static_cast<unsigned char>(x.bytes[i]));
  data_ = small;
}

Value Value::from_unsigned(std::uint64_t x) {
  if (x <= static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max()))
    return Value(static_cast<std::int64_t>(x));
  BigInt big;
  for (int i = 0; i < 8; ++i) big.bytes += static_cast<char>((x >> (8 * i)) & 0xFF);
  big.bytes += '\0';
  return Value(std::move(big));
}

Value::Value(Dict x) : kind_(x.kind()) { data_ = std::make_shared<Dict>(std::move(x)); }
Value::Value(Tensor x) : data_(std::make_shared<Tensor>(std::move(x))), kind_(Kind::tensor) {}

Value Value::bytes(std::string x) {
  Value v(std::move(x));
  v.kind_ = Kind::bytes;
  return v;
}
Value Value::bytearray(std::string x) {
  Value v(std::move(x));
  v.kind_ = Kind::bytearray;
  return v;
}
Value Value::device(std::string name) {
  Value v(std::move(name));
  v.kind_ = Kind::device;
  return v;
}
Value Value::layout(std::string name) {
  Value v(std::move(name));
  v.kind_ = Kind::layout;
  return v;
}
Value Value::list(Items items) {
  Value v;
  v.data_ = std::make_shared<Items>(std::move(items));
  v.kind_ = Kind::list;
  return v;
}
Value Value::tuple(Items items) {
  Value v = list(std::move(items));
  v.kind_ = Kind::tuple;
  return v;
}
Value Value::set(Items items) {
  Dict seen;
  for (const Value& item : items) seen.set(item, Value());
  if (seen.size() != items.size())
    throw Error(ErrorCode::invalid, "a set in which a member stands twice");
  Value v = list(std::move(items));
  v.kind_ = Kind::set;
  return v;
}
Value Value::size(std::vector<std::int64_t> sizes) {
  Value v = list(Items(sizes.begin(), sizes.end()));
  v.kind_ = Kind::size;
  return v;
}
Value Value::opaque(Opaque x) {
  Value v;
  v.data_ = std::make_shared<Opaque>(std::move(x));
  v.kind_ = Kind::opaque;
  return v;
}

bool Value::is_mapping() const noexcept {
  return kind_ == Kind::dict || kind_ == Kind::ordered_dict || kind_ == Kind::counter ||
         kind_ == Kind::composite;
}
bool Value::is_sequence() const noexcept {
  return kind_ == Kind::list || kind_ == Kind::tuple || kind_ == Kind::set || kind_ == Kind::size;
}

void Value::wrong_kind(std::string_view wanted) const {
  throw Error(ErrorCode::invalid,
              fmt::format("expected {}, found {}{}", wanted, kind_name(kind_),
                          kind_ <= Kind::string && !is_none() ? " " + repr(*this) : ""));
}

bool Value::as_bool() const {
  if (kind_ != Kind::boolean) wrong_kind("a bool");
  return std::get<bool>(data_);
}
std::int64_t Value::as_int() const {
  if (kind_ == Kind::boolean) return std::get<bool>(data_) ? 1 : 0;
  if (kind_ != Kind::integer || !std::holds_alternative<std::int64_t>(data_))
    wrong_kind("an int of at most 64 bits");
  return std::get<std::int64_t>(data_);
}
double Value::as_double() const {
  if (kind_ == Kind::real) return std::get<double>(data_);
  if (kind_ != Kind::integer) wrong_kind("a float");
  return static_cast<double>(as_int());
}
std::complex<double> Value::as_complex() const {
  if (kind_ != Kind::complex) return as_double();
  return std::get<std::complex<double>>(data_);
}
const std::string& Value::as_string() const {
  const auto* text = std::get_if<std::string>(&data_);
  if (text == nullptr) wrong_kind("a str");
  return *text;
}
DType Value::as_dtype() const {
  if (kind_ != Kind::dtype) wrong_kind("a torch.dtype");
  return std::get<DType>(data_);
}
const BigInt* Value::as_big_int() const noexcept { return std::get_if<BigInt>(&data_); }
const Value::Items& Value::as_items() const {
  if (!is_sequence()) wrong_kind("a list or tuple");
  return *std::get<std::shared_ptr<Items>>(data_);
}
Value::Items& Value::as_items() {
  if (!is_sequence()) wrong_kind("a list or tuple");
  return *std::get<std::shared_ptr<Items>>(data_);
}
const Dict& Value::as_dict() const {
  if (!is_mapping()) wrong_kind("a dict");
  return *std::get<std::shared_ptr<Dict>>(data_);
}
Dict& Value::as_dict() {
  if (!is_mapping()) wrong_kind("a dict");
  return *std::get<std::shared_ptr<Dict>>(data_);
}
const Tensor& Value::as_tensor() const {
  if (kind_ != Kind::tensor) wrong_kind("a tensor");
  return *std::get<std::shared_ptr<Tensor>>(data_);
}
Tensor& Value::as_tensor() {
  if (kind_ != Kind::tensor) wrong_kind("a tensor");
  return *std::get<std::shared_ptr<Tensor>>(data_);
}
const Opaque& Value::as_opaque() const {
  if (kind_ != Kind::opaque) wrong_kind("an opaque object");
  return *std::get<std::shared_ptr<Opaque>>(data_);
}

const Value& Value::operator[](std::string_view key) const { return as_dict().at(Value(key)); }
const Value& Value::at_integer(std::int64_t index) const {
  if (is_mapping()) return as_dict().at(Value(index));
  const Items& items = as_items();
  if (index < 0 || static_cast<std::size_t>(index) >= items.size())
    throw Error(ErrorCode::not_found,
                fmt::format("index {} of a {} of {}", index, kind_name(kind_), items.size()));
  return items[static_cast<std::size_t>(index)];
}
bool Value::contains(std::string_view key) const {
  return is_mapping() && as_dict().find(Value(key)) != nullptr;
}

const void* Value::identity() const noexcept {
  return std::visit(
      [](const auto& x) -> const void* {
        if constexpr (requires {
                        x.get();
                        x.use_count();
                      })
          return x.get();
        else
          return nullptr;
      },
      data_);
}
long Value::use_count() const noexcept {
  if (const auto* dict = std::get_if<std::shared_ptr<Dict>>(&data_))
    return (*dict)->structure() != 0 ? 1 : dict->use_count();
  if (const auto* tensor = std::get_if<std::shared_ptr<Tensor>>(&data_)) return tensor->use_count();
  if (const auto* items = std::get_if<std::shared_ptr<Items>>(&data_)) return items->use_count();
  const auto* opaque = std::get_if<std::shared_ptr<Opaque>>(&data_);
  return opaque == nullptr ? 0 : opaque->use_count();
}

namespace {

constexpr std::size_t kSmallDict = 8;

// The key of the index. std::hash of a string can be made to give one number for any number of
// texts, and a file of a few MB to take minutes: not where nobody knows what is hashed.
std::string index_key(const Value& key) {
  static const std::uint64_t mask = [] {
    std::random_device random;
    return std::uint64_t{random()} << 32 | random();
  }();
  std::string out = canonical_key(key);
  for (std::size_t i = 0; i < out.size(); ++i)
    out[i] = static_cast<char>(out[i] ^ static_cast<char>(mask >> (8 * (i % 8))));
  return out;
}

bool is_string(const Value& key, const std::string& text) {
  return key.kind() == Kind::string && key.as_string() == text;
}

std::size_t first_place(const std::vector<Dict::Entry>& entries, const std::string& canonical) {
  const auto it = std::ranges::find_if(
      entries, [&](const Dict::Entry& entry) { return canonical_key(entry.first) == canonical; });
  return static_cast<std::size_t>(it - entries.begin());
}

}  // namespace

Dict::Dict(std::initializer_list<Entry> entries) : kind_(Kind::dict) {
  for (const auto& [key, value] : entries) set(key, value);
}

Dict& Dict::set(Value key, Value value) {
  const std::size_t place = place_of(key);
  if (place < size()) {
    entries_[place].second = std::move(value);
    return *this;
  }
  entries_.emplace_back(std::move(key), std::move(value));
  if (size() == kSmallDict)
    for (const Entry& entry : entries_) index_.try_emplace(index_key(entry.first), index_.size());
  else if (size() > kSmallDict)
    index_.try_emplace(index_key(entries_.back().first), place);
  return *this;
}
std::size_t Dict::place_of(const Value& key) const {
  if (size() >= kSmallDict) {
    const auto it = index_.find(index_key(key));
    return it == index_.end() ? size() : it->second;
  }
  if (key.kind() != Kind::string) return first_place(entries_, canonical_key(key));
  std::size_t place = 0;
  while (place < size() && !is_string(entries_[place].first, key.as_string())) ++place;
  return place;
}
const Value* Dict::find(const Value& key) const {
  const std::size_t place = place_of(key);
  return place == size() ? nullptr : &entries_[place].second;
}
Value* Dict::find(const Value& key) {
  return const_cast<Value*>(static_cast<const Dict*>(this)->find(key));
}
const Value& Dict::at(const Value& key) const {
  if (const Value* found = find(key)) return *found;
  std::string known;
  for (const auto& [name, value] : entries_) {
    if (known.size() > 300) {
      known += ", ...";
      break;
    }
    known += (known.empty() ? "" : ", ") + repr(name);
  }
  throw Error(ErrorCode::not_found, fmt::format("there is no key {}; the keys are: {}", repr(key),
                                                known.empty() ? "(none)" : known));
}

std::string format_path(const KeyPath& path) {
  if (path.empty()) return "the state itself";
  std::string out = "state";
  for (const Value& key : path) out += fmt::format("[{}]", repr(key));
  return out;
}

std::string repr(const Value& value, std::size_t limit) {
  switch (value.kind()) {
    case Kind::none:
      return "None";
    case Kind::boolean:
      return value.as_bool() ? "True" : "False";
    case Kind::integer:
      if (const BigInt* big = value.as_big_int()) return repr_big(*big);
      return fmt::format("{}", value.as_int());
    case Kind::real:
      return repr_real(value.as_double());
    case Kind::complex:
      return fmt::format("({}{:+}j)", value.as_complex().real(), value.as_complex().imag());
    case Kind::string:
      return quote(value.as_string(), limit, true);
    case Kind::bytes:
      return "b" + quote(value.as_string(), limit, false);
    case Kind::bytearray:
      return "bytearray(b" + quote(value.as_string(), limit, false) + ")";
    case Kind::tuple:
      return repr_tuple(value.as_items(), limit);
    case Kind::size:
      return "torch.Size(" + repr_tuple(value.as_items(), limit) + ")";
    case Kind::dtype:
      return fmt::format("torch.{}", dtype_name(value.as_dtype()));
    case Kind::device:
      return fmt::format("torch.device({})", quote(value.as_string(), limit, true));
    case Kind::layout:
      return quote(value.as_string(), limit, true);
    case Kind::opaque:
      return repr_opaque(value.as_opaque());
    case Kind::tensor:
      return fmt::format("tensor({})", dtype_name(value.as_tensor().dtype));
    default:
      return fmt::format("{}", kind_name(value.kind()));
  }
}

}  // namespace perdure
