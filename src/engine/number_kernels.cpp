#include "engine/number_kernels.hpp"

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <limits>
#include <type_traits>

// The vector types are the compiler's own: eight numbers, whatever registers there are. Functions
// that take part in several levels are inlined into the one that names the level.
#define PERDURE_INLINE [[gnu::always_inline]] static inline

namespace perdure::engine {
namespace {

constexpr std::size_t kLanes = 8;
using Doubles [[gnu::vector_size(64)]] = double;
using Longs [[gnu::vector_size(64)]] = std::int64_t;
using UnsignedLongs [[gnu::vector_size(64)]] = std::uint64_t;
using Floats [[gnu::vector_size(32)]] = float;
using Words [[gnu::vector_size(32)]] = std::uint32_t;
using SignedWords [[gnu::vector_size(32)]] = std::int32_t;
using Halves [[gnu::vector_size(16)]] = std::uint16_t;
using SignedHalves [[gnu::vector_size(16)]] = std::int16_t;

// ---- eight elements to eight doubles

template <class Raw>
struct Plain {
  static constexpr std::size_t kBytes = sizeof(Raw);
  PERDURE_INLINE void load(const std::byte* from, Doubles& out) {
    Raw raw;
    std::memcpy(&raw, from, sizeof raw);
    if constexpr (sizeof(Raw) < sizeof(Words))
      out = __builtin_convertvector(__builtin_convertvector(raw, SignedWords), Doubles);
    else
      out = __builtin_convertvector(raw, Doubles);
  }
};

struct BFloat16 {
  static constexpr std::size_t kBytes = 16;
  PERDURE_INLINE void load(const std::byte* from, Doubles& out) {
    Halves raw;
    std::memcpy(&raw, from, sizeof raw);
    out = __builtin_convertvector((Floats)(__builtin_convertvector(raw, Words) << 16), Doubles);
  }
};

struct Float16 {
  static constexpr std::size_t kBytes = 16;
  PERDURE_INLINE void load(const std::byte* from, Doubles& out) {
    Halves raw;
    std::memcpy(&raw, from, sizeof raw);
    const Words bits = __builtin_convertvector(raw, Words);
    const Words magnitude = bits & 0x7FFF;
    const Words normal = (magnitude << 13) + (112U << 23);
    const Floats subnormal = __builtin_convertvector((SignedWords)magnitude, Floats) * 0x1p-24F;
    Words result = (magnitude >> 10) == 0 ? (Words)subnormal : normal;
    result = magnitude >= 0x7C00 ? (magnitude << 13) | 0x7F800000 : result;  // infinities and NaN
    result |= (bits & 0x8000) << 16;
    out = __builtin_convertvector((Floats)result, Doubles);
  }
};

// ---- bytes, by table

// What a float of 8 bits has beside its numbers.
enum class Special {
  ieee,       // infinities and NaN where all bits of the exponent are set
  one_nan,    // "fn": NaN where all bits but the sign are set
  zero_sign,  // "fnuz": NaN is what would be -0
};
constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();
constexpr double kInfinity = std::numeric_limits<double>::infinity();

constexpr double power_of_two(int exponent) {
  return std::bit_cast<double>(static_cast<std::uint64_t>(exponent + 1023) << 52);
}

constexpr double small_float(unsigned bits, int mantissa_bits, int bias, Special special) {
  const unsigned magnitude = bits & 0x7F;
  const auto exponent = static_cast<int>(magnitude >> mantissa_bits);
  const unsigned ones = (1U << mantissa_bits) - 1;
  const unsigned mantissa = magnitude & ones;
  if (special == Special::zero_sign && bits == 0x80) return kNaN;
  if (special == Special::one_nan && magnitude == 0x7F) return kNaN;
  const double sign = bits >= 0x80 ? -1 : 1;
  if (special == Special::ieee && exponent == (0x7F >> mantissa_bits))
    return mantissa != 0 ? kNaN : sign * kInfinity;
  const double unit = power_of_two(std::max(exponent, 1) - bias - mantissa_bits);
  return sign * unit * (exponent == 0 ? mantissa : mantissa + ones + 1);
}

using ByteTable = std::array<double, 256>;
template <class Value>
constexpr ByteTable table_of(Value&& value) {
  ByteTable table{};
  for (unsigned i = 0; i < table.size(); ++i) table[i] = value(i);
  return table;
}
constexpr ByteTable kUnsigned = table_of([](unsigned x) -> double { return x; });
constexpr ByteTable kSigned =
    table_of([](unsigned x) -> double { return static_cast<std::int8_t>(x); });
constexpr ByteTable kBool = table_of([](unsigned x) -> double { return x != 0; });
constexpr ByteTable kE4M3 =
    table_of([](unsigned x) { return small_float(x, 3, 7, Special::one_nan); });
constexpr ByteTable kE4M3Z =
    table_of([](unsigned x) { return small_float(x, 3, 8, Special::zero_sign); });
constexpr ByteTable kE5M2 =
    table_of([](unsigned x) { return small_float(x, 2, 15, Special::ieee); });
constexpr ByteTable kE5M2Z =
    table_of([](unsigned x) { return small_float(x, 2, 16, Special::zero_sign); });
constexpr ByteTable kE8M0 =
    table_of([](unsigned x) { return x == 255 ? kNaN : power_of_two(static_cast<int>(x) - 127); });

PERDURE_INLINE void look_up(const ByteTable& table, const std::byte* from, std::size_t count,
                            double* to) {
  for (std::size_t i = 0; i < count; ++i) to[i] = table[std::to_integer<unsigned>(from[i])];
}

// ---- the loops

template <class Load>
PERDURE_INLINE void widen_as(const std::byte* from, std::size_t count, double* to) {
  constexpr std::size_t kSize = Load::kBytes / kLanes;
  Doubles out;
  for (; count >= kLanes; count -= kLanes, from += Load::kBytes, to += kLanes) {
    Load::load(from, out);
    std::memcpy(to, &out, sizeof out);
  }
  if (count == 0) return;
  std::array<std::byte, Load::kBytes> last{};
  std::memcpy(last.data(), from, count * kSize);
  Load::load(last.data(), out);
  std::memcpy(to, &out, count * sizeof(double));
}

// Two in a byte, the first one in the lower bits.
PERDURE_INLINE void widen_float4(const std::byte* from, std::size_t count, double* to) {
  constexpr std::array<double, 16> kValues = {0,   0.5,  1,  1.5,  2,  3,  4,  6,
                                              -0., -0.5, -1, -1.5, -2, -3, -4, -6};
  for (std::size_t i = 0; i < count; ++i) {
    to[2 * i] = kValues[std::to_integer<unsigned>(from[i]) & 15];
    to[2 * i + 1] = kValues[std::to_integer<unsigned>(from[i]) >> 4];
  }
}

PERDURE_INLINE void widen(DType dtype, const std::byte* from, std::size_t count, double* to) {
  switch (dtype) {
    case DType::complex128:
      count *= 2;
      [[fallthrough]];
    case DType::float64:
      std::memcpy(to, from, count * sizeof(double));
      return;
    case DType::complex64:
      count *= 2;
      [[fallthrough]];
    case DType::float32:
      return widen_as<Plain<Floats>>(from, count, to);
    case DType::complex32:
      count *= 2;
      [[fallthrough]];
    case DType::float16:
      return widen_as<Float16>(from, count, to);
    case DType::bfloat16:
      return widen_as<BFloat16>(from, count, to);
    case DType::int64:
      return widen_as<Plain<Longs>>(from, count, to);
    case DType::int32:
      return widen_as<Plain<SignedWords>>(from, count, to);
    case DType::int16:
      return widen_as<Plain<SignedHalves>>(from, count, to);
    case DType::uint64:
      return widen_as<Plain<UnsignedLongs>>(from, count, to);
    case DType::uint32:
      return widen_as<Plain<Words>>(from, count, to);
    case DType::uint16:
    case DType::bits16:
      return widen_as<Plain<Halves>>(from, count, to);
    case DType::boolean:
      return look_up(kBool, from, count, to);
    case DType::float8_e4m3fn:
      return look_up(kE4M3, from, count, to);
    case DType::float8_e4m3fnuz:
      return look_up(kE4M3Z, from, count, to);
    case DType::float8_e5m2:
      return look_up(kE5M2, from, count, to);
    case DType::float8_e5m2fnuz:
      return look_up(kE5M2Z, from, count, to);
    case DType::float8_e8m0fnu:
      return look_up(kE8M0, from, count, to);
    case DType::float4_e2m1fn_x2:
      return widen_float4(from, count, to);
    case DType::int8:
      return look_up(kSigned, from, count, to);
    case DType::uint8:
    case DType::bits8:
    case DType::bits1x8:
    case DType::bits2x4:
    case DType::bits4x2:
      break;
  }
  look_up(kUnsigned, from, count, to);
}

// As many numbers as a register of the level holds: of more, GCC takes some apart one by one.
template <std::size_t kWidth>
struct Vectors {
  using Doubles [[gnu::vector_size(kWidth * 8)]] = double;
  using Longs [[gnu::vector_size(kWidth * 8)]] = std::int64_t;
};

template <class Vector>
PERDURE_INLINE void load(const double* from, Vector& out) {
  std::memcpy(&out, from, sizeof out);
}

// Two of each, so that one addition need not wait for the one before.
template <std::size_t kWidth>
struct SumLanes {
  using Doubles = typename Vectors<kWidth>::Doubles;
  Doubles sum{}, squares{}, min, max;
  typename Vectors<kWidth>::Longs zeros{};
  PERDURE_INLINE void start(SumLanes& lanes, double first) {
    lanes.min = lanes.max = Doubles{} + first;
  }
  PERDURE_INLINE void add(SumLanes& lanes, const Doubles& x) {
    lanes.sum += x;
    lanes.squares += x * x;
    lanes.min = x < lanes.min ? x : lanes.min;
    lanes.max = x > lanes.max ? x : lanes.max;
    lanes.zeros -= x == 0;
  }
};

template <std::size_t kWidth>
PERDURE_INLINE void sum(const double* from, std::size_t count, ChunkSums& out) {
  using Lanes = SumLanes<kWidth>;
  std::array<Lanes, 2> lanes;
  Lanes::start(lanes[0], from[0]);
  Lanes::start(lanes[1], from[0]);
  typename Lanes::Doubles x;
  std::size_t i = 0;
  for (; i + 2 * kWidth <= count; i += 2 * kWidth) {
    load(from + i, x);
    Lanes::add(lanes[0], x);
    load(from + i + kWidth, x);
    Lanes::add(lanes[1], x);
  }
  out = {0, 0, from[0], from[0], 0};
  for (const Lanes& part : lanes)
    for (std::size_t lane = 0; lane < kWidth; ++lane) {
      out.sum += part.sum[lane];
      out.sum_of_squares += part.squares[lane];
      out.min = part.min[lane] < out.min ? part.min[lane] : out.min;
      out.max = part.max[lane] > out.max ? part.max[lane] : out.max;
      out.zeros += static_cast<std::uint64_t>(part.zeros[lane]);
    }
  for (; i < count; ++i) {
    out.sum += from[i];
    out.sum_of_squares += from[i] * from[i];
    out.min = from[i] < out.min ? from[i] : out.min;
    out.max = from[i] > out.max ? from[i] : out.max;
    out.zeros += from[i] == 0 ? 1 : 0;
  }
}

PERDURE_INLINE void sum_wide(const std::byte* from, std::size_t count, bool is_unsigned,
                             WideSums& out) {
  const std::uint64_t flip = is_unsigned ? std::uint64_t{1} << 63 : 0;
  const double shift = is_unsigned ? 9223372036854775808.0 : 0;  // 2^63
  out = {};
  out.min = std::numeric_limits<std::int64_t>::max();
  out.max = std::numeric_limits<std::int64_t>::min();
  std::array<double, kLanes> squares{};
  for (std::size_t i = 0; i < count; ++i) {
    std::uint64_t bits = 0;
    std::memcpy(&bits, from + i * sizeof bits, sizeof bits);
    const auto x = static_cast<std::int64_t>(bits ^ flip);
    out.min = x < out.min ? x : out.min;
    out.max = x > out.max ? x : out.max;
    out.sum_of_high += x >> 32;
    out.sum_of_low += static_cast<std::int64_t>(static_cast<std::uint64_t>(x) & 0xFFFFFFFF);
    out.zeros += bits == 0 ? 1 : 0;
    const double value = static_cast<double>(x) + shift;
    squares[i % kLanes] += value * value;
  }
  for (const double part : squares) out.sum_of_squares += part;
}

template <std::size_t kWidth>
struct DistanceLanes {
  using Doubles = typename Vectors<kWidth>::Doubles;
  using Longs = typename Vectors<kWidth>::Longs;
  Doubles absolute{}, relative{}, dot{}, squares_a{}, squares_b{};
  Longs beyond{}, unequal{};
  PERDURE_INLINE void absolute_of(const Doubles& x, Doubles& out) {
    out = (Doubles)((Longs)x & std::numeric_limits<std::int64_t>::max());
  }
  PERDURE_INLINE void add(DistanceLanes& lanes, const Doubles& a, const Doubles& b, double atol,
                          double rtol) {
    Doubles size_a, size_b, apart;
    absolute_of(a, size_a);
    absolute_of(b, size_b);
    absolute_of(a - b, apart);
    const Doubles larger = size_a > size_b ? size_a : size_b;
    const Doubles relative = apart / (larger > 0 ? larger : Doubles{} + 1);
    lanes.absolute = apart > lanes.absolute ? apart : lanes.absolute;
    lanes.relative = relative > lanes.relative ? relative : lanes.relative;
    lanes.dot += a * b;
    lanes.squares_a += a * a;
    lanes.squares_b += b * b;
    lanes.beyond -= apart > atol + rtol * size_b;
    lanes.unequal -= a != b;
  }
};

template <std::size_t kWidth>
PERDURE_INLINE void compare(const double* a, const double* b, std::size_t count, double atol,
                            double rtol, ChunkDistance& out) {
  using Lanes = DistanceLanes<kWidth>;
  Lanes lanes;
  typename Lanes::Doubles x, y;
  for (std::size_t i = 0; i < count; i += kWidth) {
    if (i + kWidth <= count) {
      load(a + i, x);
      load(b + i, y);
    } else {  // zeros, which are equal and add nothing
      x = y = typename Lanes::Doubles{};
      std::memcpy(&x, a + i, (count - i) * sizeof(double));
      std::memcpy(&y, b + i, (count - i) * sizeof(double));
    }
    Lanes::add(lanes, x, y, atol, rtol);
  }
  out = {};
  for (std::size_t lane = 0; lane < kWidth; ++lane) {
    out.max_absolute = std::max(out.max_absolute, lanes.absolute[lane]);
    out.max_relative = std::max(out.max_relative, lanes.relative[lane]);
    out.dot += lanes.dot[lane];
    out.squares_a += lanes.squares_a[lane];
    out.squares_b += lanes.squares_b[lane];
    out.beyond += static_cast<std::uint64_t>(lanes.beyond[lane]);
    out.unequal += static_cast<std::uint64_t>(lanes.unequal[lane]);
  }
  constexpr double kMost = std::numeric_limits<double>::max();
  out.finite = out.squares_a <= kMost && out.squares_b <= kMost;
}

// ---- bits

// Where the NaN of a float begin among its patterns without the sign.
template <class U>
struct NaNs {
  U from = std::numeric_limits<U>::max();
  bool negative_zero = false;
};

// Numbers the values of a dtype in their order, -0 and 0 alike. `none` is all ones where there is
// no value.
template <class U, class Vector>
PERDURE_INLINE void number_floats(const Vector& x, NaNs<U> nan, Vector& place, Vector& none) {
  constexpr U kSign = static_cast<U>(U{1} << (8 * sizeof(U) - 1));
  const Vector size = x & static_cast<U>(~kSign);
  place = (x & kSign) != 0 ? kSign - size : kSign + size;
  none = (Vector)(size >= nan.from);
  if (nan.negative_zero) none |= (Vector)(x == kSign);
}

// `flip`: the bit of the sign, of integers that have one.
template <std::size_t kWidth, class U>
PERDURE_INLINE void compare_values(const std::byte* a, const std::byte* b, std::size_t count,
                                   bool is_float, NaNs<U> nan, U flip, BitDistance& out) {
  using Vector [[gnu::vector_size(kWidth * 8)]] = U;
  constexpr std::size_t kEach = sizeof(Vector) / sizeof(U);
  constexpr std::size_t kCounted = 128;  // turns that a counter of 8 bits can take
  Vector most{};
  for (std::size_t begin = 0; begin < count;) {
    Vector changed{};
    const std::size_t end = std::min(count, begin + kCounted * kEach);
    for (; begin < end; begin += kEach) {
      Vector x{};  // zeros behind the end, which are equal
      Vector y{};
      const std::size_t bytes = std::min(kEach, end - begin) * sizeof(U);
      if (bytes == sizeof(Vector)) {
        std::memcpy(&x, a + begin * sizeof(U), sizeof(Vector));
        std::memcpy(&y, b + begin * sizeof(U), sizeof(Vector));
      } else {
        std::memcpy(&x, a + begin * sizeof(U), bytes);
        std::memcpy(&y, b + begin * sizeof(U), bytes);
      }
      changed -= (Vector)(x != y);
      Vector none_x{}, none_y{}, place_x, place_y;
      if (is_float) {
        number_floats<U>(x, nan, place_x, none_x);
        number_floats<U>(y, nan, place_y, none_y);
      } else {
        place_x = x ^ flip;
        place_y = y ^ flip;
      }
      const Vector apart =
          (place_x > place_y ? place_x - place_y : place_y - place_x) & ~(none_x | none_y);
      most = apart > most ? apart : most;
    }
    for (std::size_t lane = 0; lane < kEach; ++lane) out.changed += changed[lane];
  }
  for (std::size_t lane = 0; lane < kEach; ++lane)
    out.max_steps = std::max<std::uint64_t>(out.max_steps, most[lane]);
}

template <std::size_t kWidth, class U>
PERDURE_INLINE void compare_floats(const std::byte* a, const std::byte* b, std::size_t count,
                                   NaNs<U> nan, BitDistance& out) {
  compare_values<kWidth, U>(a, b, count, true, nan, U{0}, out);
}

template <std::size_t kWidth, class T>
PERDURE_INLINE void compare_integers(const std::byte* a, const std::byte* b, std::size_t count,
                                     BitDistance& out) {
  using U = std::make_unsigned_t<T>;
  constexpr U kFlip = std::is_signed_v<T> ? static_cast<U>(U{1} << (8 * sizeof(U) - 1)) : U{0};
  compare_values<kWidth, U>(a, b, count, false, NaNs<U>{}, kFlip, out);
}

template <std::size_t kWidth, class U>
PERDURE_INLINE void compare_parts(const std::byte* a, const std::byte* b, std::size_t count,
                                  NaNs<U> nan, BitDistance& out) {
  compare_floats<kWidth, U>(a, b, 2 * count, nan, out);
  out.changed = 0;  // an element changes once
  for (std::size_t i = 0; i < count; ++i)
    out.changed += std::memcmp(a + 2 * i * sizeof(U), b + 2 * i * sizeof(U), 2 * sizeof(U)) != 0;
}

template <std::size_t kWidth>
PERDURE_INLINE void compare_bits(DType dtype, const std::byte* a, const std::byte* b,
                                 std::size_t count, BitDistance& out) {
  constexpr NaNs<std::uint64_t> kNaN64{0x7FF0000000000001};
  constexpr NaNs<std::uint32_t> kNaN32{0x7F800001};
  constexpr NaNs<std::uint16_t> kNaN16{0x7C01};
  out = {};
  switch (dtype) {
    case DType::float64:
      return compare_floats<kWidth>(a, b, count, kNaN64, out);
    case DType::float32:
      return compare_floats<kWidth>(a, b, count, kNaN32, out);
    case DType::float16:
      return compare_floats<kWidth>(a, b, count, kNaN16, out);
    case DType::bfloat16:
      return compare_floats<kWidth>(a, b, count, NaNs<std::uint16_t>{0x7F81}, out);
    case DType::complex128:
      return compare_parts<kWidth>(a, b, count, kNaN64, out);
    case DType::complex64:
      return compare_parts<kWidth>(a, b, count, kNaN32, out);
    case DType::complex32:
      return compare_parts<kWidth>(a, b, count, kNaN16, out);
    case DType::float8_e4m3fn:
      return compare_floats<kWidth>(a, b, count, NaNs<std::uint8_t>{0x7F}, out);
    case DType::float8_e5m2:
      return compare_floats<kWidth>(a, b, count, NaNs<std::uint8_t>{0x7D}, out);
    case DType::float8_e4m3fnuz:
    case DType::float8_e5m2fnuz:
      return compare_floats<kWidth>(a, b, count, NaNs<std::uint8_t>{0xFF, true}, out);
    case DType::int64:
      return compare_integers<kWidth, std::int64_t>(a, b, count, out);
    case DType::int32:
      return compare_integers<kWidth, std::int32_t>(a, b, count, out);
    case DType::int16:
      return compare_integers<kWidth, std::int16_t>(a, b, count, out);
    case DType::int8:
      return compare_integers<kWidth, std::int8_t>(a, b, count, out);
    case DType::uint64:
      return compare_integers<kWidth, std::uint64_t>(a, b, count, out);
    case DType::uint32:
      return compare_integers<kWidth, std::uint32_t>(a, b, count, out);
    case DType::uint16:
    case DType::bits16:
      return compare_integers<kWidth, std::uint16_t>(a, b, count, out);
    default:
      return compare_integers<kWidth, std::uint8_t>(a, b, count, out);
  }
}

// ---- the levels

#define PERDURE_LEVEL(name, width, target)                                                         \
  namespace name {                                                                                 \
  target void widen(DType dtype, const std::byte* from, std::size_t count, double* to) {           \
    engine::widen(dtype, from, count, to);                                                         \
  }                                                                                                \
  target void sum(const double* from, std::size_t count, ChunkSums& out) {                         \
    engine::sum<width>(from, count, out);                                                          \
  }                                                                                                \
  target void sum_wide(const std::byte* from, std::size_t count, bool is_unsigned,                 \
                       WideSums& out) {                                                            \
    engine::sum_wide(from, count, is_unsigned, out);                                               \
  }                                                                                                \
  target void compare(const double* a, const double* b, std::size_t count, double atol,            \
                      double rtol, ChunkDistance& out) {                                           \
    engine::compare<width>(a, b, count, atol, rtol, out);                                          \
  }                                                                                                \
  target void compare_bits(DType dtype, const std::byte* a, const std::byte* b, std::size_t count, \
                           BitDistance& out) {                                                     \
    engine::compare_bits<width>(dtype, a, b, count, out);                                          \
  }                                                                                                \
  constexpr NumberKernels kAll = {#name, widen, sum, sum_wide, compare, compare_bits};             \
  }

PERDURE_LEVEL(portable, 2, )
#if defined(__x86_64__)
PERDURE_LEVEL(avx2, 4, [[gnu::target("avx2,fma")]])
PERDURE_LEVEL(avx512, 8, [[gnu::target("avx512f,avx512dq,avx512bw,avx512vl,avx2,fma")]])

std::size_t level_of_processor() noexcept {
  if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) return 0;
  const bool wide = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
                    __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl");
  return wide ? 2 : 1;
}
constexpr std::array kLevels = {&portable::kAll, &avx2::kAll, &avx512::kAll};
#else
std::size_t level_of_processor() noexcept { return 0; }
constexpr std::array kLevels = {&portable::kAll};
#endif

}  // namespace

std::size_t kernel_levels() noexcept { return level_of_processor() + 1; }
const NumberKernels& kernels_of_level(std::size_t level) noexcept { return *kLevels[level]; }
const NumberKernels& kernels() noexcept {
  static const NumberKernels& best = *kLevels[level_of_processor()];
  return best;
}

bool is_complex(DType dtype) noexcept {
  return dtype == DType::complex128 || dtype == DType::complex64 || dtype == DType::complex32;
}
bool is_bits(DType dtype) noexcept { return dtype >= DType::bits8 && dtype <= DType::bits4x2; }
bool is_wide_integer(DType dtype) noexcept {
  return dtype == DType::int64 || dtype == DType::uint64;
}
bool is_integer(DType dtype) noexcept { return dtype >= DType::int64 && dtype <= DType::boolean; }
std::size_t numbers_in(DType dtype) noexcept {
  return is_complex(dtype) || dtype == DType::float4_e2m1fn_x2 ? 2 : 1;
}

}  // namespace perdure::engine
