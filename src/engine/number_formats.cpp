#include "engine/number_formats.hpp"

#include <array>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

namespace perdure::engine {
namespace {

// The numbers of a format with an exponent of `exponent` bits and a mantissa of `mantissa`.
struct SmallFloat {
  unsigned exponent;
  unsigned mantissa;
  int bias;
  bool has_infinity;  // the largest exponent is that of infinity and NaN, as in IEEE 754
  bool only_nan;      // NaN is the pattern of a negative zero (fnuz)
};

float widen(std::uint32_t bits, const SmallFloat& f) {
  const std::uint32_t sign = bits >> (f.exponent + f.mantissa);
  const auto exponent = static_cast<int>((bits >> f.mantissa) & ((1U << f.exponent) - 1));
  const std::uint32_t mantissa = bits & ((1U << f.mantissa) - 1);
  const int largest = (1 << f.exponent) - 1;
  const float nan = std::numeric_limits<float>::quiet_NaN();
  if (f.only_nan && sign == 1 && exponent == 0 && mantissa == 0) return nan;
  if (f.has_infinity && exponent == largest && mantissa != 0) return sign != 0 ? -nan : nan;
  if (!f.has_infinity && !f.only_nan && exponent == largest && mantissa + 1 == 1U << f.mantissa)
    return sign != 0 ? -nan : nan;
  float value = 0;
  if (f.has_infinity && exponent == largest)
    value = std::numeric_limits<float>::infinity();
  else if (exponent == 0)
    value = std::ldexp(static_cast<float>(mantissa), 1 - f.bias - static_cast<int>(f.mantissa));
  else
    value = std::ldexp(static_cast<float>(mantissa + (1U << f.mantissa)),
                       exponent - f.bias - static_cast<int>(f.mantissa));
  return sign != 0 ? -value : value;
}

constexpr SmallFloat kE4M3Fn{4, 3, 7, false, false};
constexpr SmallFloat kE4M3Fnuz{4, 3, 8, false, true};
constexpr SmallFloat kE5M2{5, 2, 15, true, false};
constexpr SmallFloat kE5M2Fnuz{5, 2, 16, false, true};
constexpr SmallFloat kHalf{5, 10, 15, true, false};

template <std::size_t kSize>
std::array<float, kSize> table_of(const SmallFloat& f) {
  std::array<float, kSize> table{};
  for (std::uint32_t i = 0; i < kSize; ++i) table[i] = widen(i, f);
  return table;
}

std::uint16_t to_bfloat16(float x) {
  if (std::isnan(x)) return 0x7FC0;
  const auto bits = std::bit_cast<std::uint32_t>(x);
  return static_cast<std::uint16_t>((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16);
}

std::uint16_t to_half(float x) {
  const auto bits = std::bit_cast<std::uint32_t>(x);
  const std::uint32_t sign = (bits >> 16) & 0x8000, size = bits & 0x7FFFFFFF;
  if (size > 0x7F800000) return static_cast<std::uint16_t>(sign | 0x7E00);  // NaN
  if (size >= 0x47800000) return static_cast<std::uint16_t>(sign | 0x7C00);
  if (size < 0x38800000) {  // below the smallest normal one: the addition rounds
    const float tiny = std::bit_cast<float>(size) + 0.5F;
    return static_cast<std::uint16_t>(sign | (std::bit_cast<std::uint32_t>(tiny) - 0x3F000000));
  }
  const std::uint32_t rounded = size + 0xFFF + ((size >> 13) & 1);
  return static_cast<std::uint16_t>(sign | ((rounded - 0x38000000) >> 13));
}

template <class T>
T get(ConstBytes bytes, std::size_t i) {
  T x;
  std::memcpy(&x, bytes.data() + i * sizeof(T), sizeof(T));
  return x;
}
template <class T>
void put(MutableBytes bytes, std::size_t i, T x) {
  std::memcpy(bytes.data() + i * sizeof(T), &x, sizeof(T));
}

template <class Load>
void store_all(std::size_t count, const Load& load, DType dtype, MutableBytes to) {
  switch (dtype) {
    case DType::float64:
      for (std::size_t i = 0; i < count; ++i) put<double>(to, i, load(i));
      return;
    case DType::float32:
      for (std::size_t i = 0; i < count; ++i) put<float>(to, i, static_cast<float>(load(i)));
      return;
    case DType::float16:
      for (std::size_t i = 0; i < count; ++i)
        put<std::uint16_t>(to, i, to_half(static_cast<float>(load(i))));
      return;
    default:
      for (std::size_t i = 0; i < count; ++i)
        put<std::uint16_t>(to, i, to_bfloat16(static_cast<float>(load(i))));
  }
}

template <class T, std::size_t kSize>
void store_table(ConstBytes from, const std::array<float, kSize>& table, DType dtype,
                 MutableBytes to) {
  store_all(
      from.size() / sizeof(T), [&](std::size_t i) { return table[get<T>(from, i)]; }, dtype, to);
}

}  // namespace

void convert_numbers(DType from_dtype, ConstBytes from, DType to_dtype, MutableBytes to) {
  switch (from_dtype) {
    case DType::float64:
      return store_all(
          from.size() / 8, [&](std::size_t i) { return get<double>(from, i); }, to_dtype, to);
    case DType::float32:
      return store_all(
          from.size() / 4, [&](std::size_t i) { return get<float>(from, i); }, to_dtype, to);
    case DType::bfloat16:
      return store_all(
          from.size() / 2,
          [&](std::size_t i) {
            return std::bit_cast<float>(std::uint32_t{get<std::uint16_t>(from, i)} << 16);
          },
          to_dtype, to);
    case DType::float16: {
      static const auto table = table_of<65536>(kHalf);
      return store_table<std::uint16_t>(from, table, to_dtype, to);
    }
    case DType::float8_e4m3fn: {
      static const auto table = table_of<256>(kE4M3Fn);
      return store_table<std::uint8_t>(from, table, to_dtype, to);
    }
    case DType::float8_e4m3fnuz: {
      static const auto table = table_of<256>(kE4M3Fnuz);
      return store_table<std::uint8_t>(from, table, to_dtype, to);
    }
    case DType::float8_e5m2: {
      static const auto table = table_of<256>(kE5M2);
      return store_table<std::uint8_t>(from, table, to_dtype, to);
    }
    default: {
      static const auto table = table_of<256>(kE5M2Fnuz);
      return store_table<std::uint8_t>(from, table, to_dtype, to);
    }
  }
}

}  // namespace perdure::engine
