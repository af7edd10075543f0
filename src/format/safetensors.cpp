#include "format/safetensors.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <limits>
#include <nlohmann/json.hpp>

#include "format/coding.hpp"
#include "format/json.hpp"

namespace perdure::format {
namespace {

constexpr std::uint64_t kLengthSize = sizeof(std::uint64_t);
// More than any program uses; PyTorch itself stops at 64 in most of what it does.
constexpr std::size_t kMaxDimensions = 1000;

struct KnownDType {
  std::string_view name;
  unsigned bits;
  std::optional<DType> dtype;  // nullopt: PyTorch has none
};

// In the order of the library of the format, by which it sorts.
constexpr KnownDType kDTypes[] = {
    {"BOOL", 8, DType::boolean},
    {"F4", 4, DType::float4_e2m1fn_x2},
    {"F6_E2M3", 6, std::nullopt},
    {"F6_E3M2", 6, std::nullopt},
    {"U8", 8, DType::uint8},
    {"I8", 8, DType::int8},
    {"F8_E5M2", 8, DType::float8_e5m2},
    {"F8_E4M3", 8, DType::float8_e4m3fn},
    {"F8_E8M0", 8, DType::float8_e8m0fnu},
    {"F8_E4M3FNUZ", 8, DType::float8_e4m3fnuz},
    {"F8_E5M2FNUZ", 8, DType::float8_e5m2fnuz},
    {"I16", 16, DType::int16},
    {"U16", 16, DType::uint16},
    {"F16", 16, DType::float16},
    {"BF16", 16, DType::bfloat16},
    {"I32", 32, DType::int32},
    {"U32", 32, DType::uint32},
    {"F32", 32, DType::float32},
    {"C64", 64, DType::complex64},
    {"F64", 64, DType::float64},
    {"I64", 64, DType::int64},
    {"U64", 64, DType::uint64},
};

const KnownDType* known_dtype(std::string_view name) {
  const auto* it = std::ranges::find(kDTypes, name, &KnownDType::name);
  return it == std::end(kDTypes) ? nullptr : it;
}
const KnownDType* known_dtype(DType dtype) {
  const auto* it = std::ranges::find(kDTypes, std::optional(dtype), &KnownDType::dtype);
  return it == std::end(kDTypes) ? nullptr : it;
}

[[noreturn]] void damaged(const std::string& what) { throw Error(ErrorCode::corrupt, what); }

std::string named(std::string_view name) { return repr(Value(name)); }

// One tensor as its members say, before anything of it is believed.
struct Claim {
  std::string name;
  const KnownDType* dtype = nullptr;
  bool has_shape = false;
  bool has_offsets = false;
  std::vector<std::uint64_t> shape;
  std::vector<std::uint64_t> offsets;
};

// Takes the events of the parser for the one form that a header has, so that nothing else is ever
// in memory, however it is nested.
class HeaderReader final : public nlohmann::json::json_sax_t {
 public:
  std::vector<Claim> tensors;
  TextMap metadata;

  bool null() override { return fail("a null"); }
  bool boolean(bool) override { return fail("a boolean"); }
  bool number_integer(number_integer_t) override { return fail("a negative number"); }
  bool number_float(number_float_t, const string_t&) override { return fail("a fraction"); }
  bool binary(binary_t&) override { return fail("binary data"); }
  bool number_unsigned(number_unsigned_t x) override {
    if (!numbers_) fail("a number");
    if (numbers_->size() >= kMaxDimensions) fail("more numbers than a tensor has dimensions");
    numbers_->push_back(x);
    return true;
  }
  bool string(string_t& x) override;
  bool start_object(std::size_t) override;
  bool end_object() override;
  bool start_array(std::size_t) override;
  bool end_array() override {
    numbers_ = nullptr;
    member_.clear();
    return true;
  }
  bool key(string_t& name) override;
  bool parse_error(std::size_t position, const std::string&,
                   const nlohmann::json::exception&) override {
    damaged(fmt::format("the header is no JSON, from offset {} on",
                        kLengthSize + std::max<std::size_t>(position, 1) - 1));
  }

 private:
  enum class Place { outside, top, metadata, tensor };
  static constexpr std::string_view kMetadata = "__metadata__";

  [[noreturn]] bool fail(std::string_view found) const {
    const std::string where = place_ == Place::outside ? "the header"
                              : place_ == Place::top
                                  ? "the header at " + named(member_)
                                  : fmt::format("{} at {}", named(name_), named(member_));
    damaged(fmt::format("{} holds {}, where the format has something else", where, found));
  }
  [[noreturn]] void twice(std::string_view name) const {
    damaged(fmt::format("the header has {} twice", named(name)));
  }
  bool tensor_key(const std::string& name);

  Place place_ = Place::outside;
  std::string name_;    // of the tensor, or __metadata__
  std::string member_;  // where a value is awaited: the key that was read; "" behind it
  bool has_metadata_ = false;
  std::vector<std::uint64_t>* numbers_ = nullptr;
};

bool HeaderReader::start_object(std::size_t) {
  if (place_ == Place::outside) {
    place_ = Place::top;
    return true;
  }
  if (place_ != Place::top) fail("an object");
  name_ = member_;
  if (name_ == kMetadata) {
    if (std::exchange(has_metadata_, true)) twice(kMetadata);
    place_ = Place::metadata;
  } else {
    if (tensors.size() >= kMaxSafetensors)
      throw Error(ErrorCode::unsupported,
                  fmt::format("the header names more than {} tensors", kMaxSafetensors));
    tensors.emplace_back().name = name_;
    place_ = Place::tensor;
  }
  return true;
}

bool HeaderReader::end_object() {
  if (place_ == Place::tensor) {
    const Claim& claim = tensors.back();
    if (claim.dtype == nullptr || !claim.has_shape || claim.offsets.size() != 2)
      damaged(fmt::format("{} does not have a dtype, a shape and two data_offsets", named(name_)));
  }
  place_ = place_ == Place::top ? Place::outside : Place::top;
  return true;
}

bool HeaderReader::start_array(std::size_t) {
  if (place_ != Place::tensor || numbers_ != nullptr) fail("an array");
  Claim& claim = tensors.back();
  if (member_ == "shape") {
    claim.has_shape = true;
    numbers_ = &claim.shape;
  } else if (member_ == "data_offsets") {
    claim.has_offsets = true;
    numbers_ = &claim.offsets;
  } else {
    fail("an array");
  }
  return true;
}

bool HeaderReader::key(string_t& name) {
  member_ = std::move(name);
  if (place_ == Place::metadata && metadata.contains(member_)) twice(member_);
  return place_ != Place::tensor || tensor_key(member_);
}

bool HeaderReader::tensor_key(const std::string& name) {
  const Claim& claim = tensors.back();
  const bool there = name == "dtype"          ? claim.dtype != nullptr
                     : name == "shape"        ? claim.has_shape
                     : name == "data_offsets" ? claim.has_offsets
                                              : (fail("a member of that name"), false);
  if (there) damaged(fmt::format("{} has {} twice", named(name_), named(name)));
  return true;
}

bool HeaderReader::string(string_t& x) {
  if (place_ == Place::metadata) {
    metadata[member_] = std::move(x);
    return true;
  }
  if (place_ != Place::tensor || member_ != "dtype") fail("a string");
  const KnownDType* dtype = known_dtype(x);
  if (dtype == nullptr)
    throw Error(ErrorCode::unsupported, fmt::format("{} has the dtype {}, which perdure does not "
                                                    "know",
                                                    named(name_), named(x)));
  tensors.back().dtype = dtype;
  return true;
}

std::uint64_t bytes_of(const Claim& claim) {
  std::uint64_t count = 1;
  for (const std::uint64_t size : claim.shape)
    if (size > std::numeric_limits<std::int64_t>::max() ||
        __builtin_mul_overflow(count, size, &count))
      damaged(fmt::format("{} has a shape of more elements than there can be", named(claim.name)));
  std::uint64_t bits = 0;
  if (__builtin_mul_overflow(count, std::uint64_t{claim.dtype->bits}, &bits))
    damaged(fmt::format("{} has a shape of more elements than there can be", named(claim.name)));
  if (bits % 8 != 0)
    damaged(fmt::format("{} does not end at a byte: {} elements of {} bits", named(claim.name),
                        count, claim.dtype->bits));
  return bits / 8;
}

std::vector<std::int64_t> torch_shape(const Claim& claim) {
  std::vector<std::int64_t> shape(claim.shape.begin(), claim.shape.end());
  // PyTorch has no type for half a byte, and counts pairs of them.
  if (claim.dtype->bits == 4) {
    if (shape.empty() || shape.back() % 2 != 0)
      throw Error(ErrorCode::unsupported,
                  fmt::format("{} is of F4 with an odd last dimension, for which PyTorch has no "
                              "tensor",
                              named(claim.name)));
    shape.back() /= 2;
  }
  return shape;
}

SafetensorsEntry checked(const Claim& claim, std::uint64_t data_size) {
  const std::uint64_t begin = claim.offsets[0], end = claim.offsets[1];
  if (end < begin || end > data_size)
    damaged(fmt::format("{} has its bytes at {} to {} of the {} that there are", named(claim.name),
                        begin, end, data_size));
  if (const std::uint64_t size = bytes_of(claim); size != end - begin)
    damaged(fmt::format("{} has {} bytes, but its dtype and shape take {}", named(claim.name),
                        end - begin, size));
  if (!claim.dtype->dtype)
    throw Error(ErrorCode::unsupported, fmt::format("{} has the dtype {}, which PyTorch has not",
                                                    named(claim.name), claim.dtype->name));
  return {claim.name, *claim.dtype->dtype, torch_shape(claim), begin, end - begin};
}

void check_unique(const std::vector<SafetensorsEntry>& tensors) {
  std::vector<std::string_view> names;
  names.reserve(tensors.size());
  for (const SafetensorsEntry& tensor : tensors) names.push_back(tensor.name);
  std::ranges::sort(names);
  if (const auto it = std::ranges::adjacent_find(names); it != names.end())
    damaged(fmt::format("the header has {} twice", named(*it)));
}

void check_contiguous(const std::vector<SafetensorsEntry>& tensors, std::uint64_t data_size) {
  std::uint64_t end = 0;
  for (const SafetensorsEntry& tensor : tensors) {
    if (tensor.offset != end)
      damaged(fmt::format(
          "{} begins at byte {} of the data, where {}", named(tensor.name), tensor.offset,
          tensor.offset < end ? "another tensor has not ended" : "a hole is in front of it"));
    end += tensor.size;
  }
  if (end != data_size)
    damaged(fmt::format("the tensors take {} bytes, but {} follow the header", end, data_size));
}

// As serde_json, which the library of the format writes with.
void append_json_string(std::string& out, std::string_view text) {
  out += '"';
  for (const char c : text) {
    constexpr std::string_view kShort = "\"\\\b\f\n\r\t", kLetters = "\"\\bfnrt";
    if (const std::size_t i = kShort.find(c); i != kShort.npos)
      out += {'\\', kLetters[i]};
    else if (static_cast<unsigned char>(c) < 0x20)
      fmt::format_to(std::back_inserter(out), "\\u{:04x}", static_cast<unsigned>(c));
    else
      out += c;
  }
  out += '"';
}

void append_entry(std::string& out, const SafetensorsEntry& tensor) {
  const KnownDType& dtype = *known_dtype(tensor.dtype);
  append_json_string(out, tensor.name);
  fmt::format_to(std::back_inserter(out), ":{{\"dtype\":\"{}\",\"shape\":[", dtype.name);
  for (std::size_t i = 0; i < tensor.shape.size(); ++i) {
    const bool doubled = dtype.bits == 4 && i + 1 == tensor.shape.size();
    fmt::format_to(std::back_inserter(out), "{}{}", i == 0 ? "" : ",",
                   tensor.shape[i] * (doubled ? 2 : 1));
  }
  fmt::format_to(std::back_inserter(out), "],\"data_offsets\":[{},{}]}}", tensor.offset,
                 tensor.offset + tensor.size);
}

}  // namespace

bool is_safetensors(std::string_view head) noexcept {
  if (head.size() <= kLengthSize || head[kLengthSize] != '{' || head.starts_with("PK\x03\x04"))
    return false;
  const auto length = get<std::uint64_t>(head.data());
  return length >= 2 && length <= kMaxSafetensorsHeader;
}

Safetensors parse_safetensors_header(std::string_view header, std::uint64_t data_size) {
  if (!header.starts_with('{')) damaged("the header does not begin with '{' (offset 8)");
  // The library takes a NUL for the end, whatever is behind it.
  if (header.find('\0') != header.npos) damaged("the header has a NUL in it, so it is no JSON");
  HeaderReader reader;
  nlohmann::json::sax_parse(header, &reader);
  Safetensors out{.tensors = {},
                  .metadata = std::move(reader.metadata),
                  .data_begin = kLengthSize + header.size()};
  out.tensors.reserve(reader.tensors.size());
  for (const Claim& claim : reader.tensors) out.tensors.push_back(checked(claim, data_size));
  check_unique(out.tensors);
  std::ranges::stable_sort(out.tensors, {}, [](const SafetensorsEntry& tensor) {
    return std::pair(tensor.offset, tensor.size);
  });
  check_contiguous(out.tensors, data_size);
  return out;
}

Safetensors read_safetensors(const Source& source) try {
  if (source.size() < kLengthSize)
    damaged(fmt::format("ends after {} bytes, in front of its header", source.size()));
  std::array<char, kLengthSize> begin;
  source.read(0, std::as_writable_bytes(std::span(begin)));
  const auto length = get<std::uint64_t>(begin.data());
  if (length > kMaxSafetensorsHeader)
    damaged(
        fmt::format("a header of {} bytes; the format allows {}", length, kMaxSafetensorsHeader));
  if (length > source.size() - kLengthSize)
    damaged(fmt::format("is cut off: its header has {} bytes, and the file ends after {}", length,
                        source.size()));
  std::string header(length, '\0');
  source.read(kLengthSize, std::as_writable_bytes(std::span(header)));
  return parse_safetensors_header(header, source.size() - kLengthSize - length);
} catch (const Error& error) {
  if (error.code() != ErrorCode::corrupt && error.code() != ErrorCode::unsupported) throw;
  throw Error(error.code(), source.name() + ": " + error.what());
}

std::string_view safetensors_dtype(DType dtype) noexcept {
  const KnownDType* known = known_dtype(dtype);
  return known == nullptr ? std::string_view() : known->name;
}

std::string lay_out_safetensors(std::vector<SafetensorsEntry>& tensors, const TextMap& metadata) {
  std::ranges::sort(tensors, [](const SafetensorsEntry& a, const SafetensorsEntry& b) {
    const KnownDType *x = known_dtype(a.dtype), *y = known_dtype(b.dtype);
    return x != y ? x > y : a.name < b.name;
  });
  std::string json = "{";
  if (!metadata.empty()) {
    json += "\"__metadata__\":{";
    for (const auto& [key, value] : metadata) {
      if (json.back() != '{') json += ',';
      append_json_string(json, key);
      json += ':';
      append_json_string(json, value);
    }
    json += '}';
  }
  std::uint64_t end = 0;
  for (SafetensorsEntry& tensor : tensors) {
    tensor.offset = std::exchange(end, end + tensor.size);
    if (json.size() > 1) json += ',';
    append_entry(json, tensor);
  }
  json += '}';
  json.append((kLengthSize - json.size() % kLengthSize) % kLengthSize, ' ');
  std::string out;
  put(out, static_cast<std::uint64_t>(json.size()));
  return out + json;
}

}  // namespace perdure::format
