// The kernels, on every level of the processor, against arithmetic in long double that is written
// as it is defined: for every dtype, with every special value that it has.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <map>
#include <random>

#include "engine/gather.hpp"
#include "engine/number_kernels.hpp"
#include "engine/tally.hpp"

namespace perdure::test {
namespace {

using engine::kChunk;
using engine::Moments;
using engine::NumberKernels;

// A float of any format, from its definition.
long double decoded(std::uint64_t bits, int exponent_bits, int mantissa_bits, int bias,
                    bool has_inf, bool fnuz) {
  const int width = 1 + exponent_bits + mantissa_bits;
  const bool negative = (bits >> (width - 1)) != 0;
  const std::uint64_t magnitude = bits & ((std::uint64_t{1} << (width - 1)) - 1);
  const auto exponent = static_cast<int>(magnitude >> mantissa_bits);
  const std::uint64_t mantissa = magnitude & ((std::uint64_t{1} << mantissa_bits) - 1);
  const bool top = exponent == (1 << exponent_bits) - 1;
  if (fnuz && negative && magnitude == 0) return NAN;
  if (has_inf && top) return mantissa != 0 ? NAN : negative ? -INFINITY : INFINITY;
  if (!has_inf && !fnuz && magnitude == (std::uint64_t{1} << (width - 1)) - 1) return NAN;
  const long double value =
      exponent == 0
          ? std::ldexp(static_cast<long double>(mantissa), 1 - bias - mantissa_bits)
          : std::ldexp(static_cast<long double>(mantissa | (std::uint64_t{1} << mantissa_bits)),
                       exponent - bias - mantissa_bits);
  return negative ? -value : value;
}

template <class T>
T raw(const std::byte* from) {
  T out;
  std::memcpy(&out, from, sizeof out);
  return out;
}

// The numbers of one element.
std::vector<long double> reference(DType dtype, const std::byte* x) {
  constexpr long double kFloat4[] = {0, 0.5, 1, 1.5, 2, 3, 4, 6};
  const auto byte = raw<std::uint8_t>(x);
  const auto half = [](const std::byte* at) {
    return decoded(raw<std::uint16_t>(at), 5, 10, 15, true, false);
  };
  const auto nibble = [&](unsigned bits) {
    return (bits & 8U) != 0 ? -kFloat4[bits & 7] : kFloat4[bits & 7];
  };
  switch (dtype) {
    case DType::float64:
      return {raw<double>(x)};
    case DType::float32:
      return {raw<float>(x)};
    case DType::float16:
      return {half(x)};
    case DType::bfloat16:
      return {decoded(raw<std::uint16_t>(x), 8, 7, 127, true, false)};
    case DType::complex128:
      return {raw<double>(x), raw<double>(x + 8)};
    case DType::complex64:
      return {raw<float>(x), raw<float>(x + 4)};
    case DType::complex32:
      return {half(x), half(x + 2)};
    case DType::int64:
      return {static_cast<long double>(raw<std::int64_t>(x))};
    case DType::int32:
      return {static_cast<long double>(raw<std::int32_t>(x))};
    case DType::int16:
      return {static_cast<long double>(raw<std::int16_t>(x))};
    case DType::int8:
      return {static_cast<long double>(raw<std::int8_t>(x))};
    case DType::uint64:
      return {static_cast<long double>(raw<std::uint64_t>(x))};
    case DType::uint32:
      return {static_cast<long double>(raw<std::uint32_t>(x))};
    case DType::uint16:
    case DType::bits16:
      return {static_cast<long double>(raw<std::uint16_t>(x))};
    case DType::boolean:
      return {byte != 0 ? 1.0L : 0.0L};
    case DType::float8_e4m3fn:
      return {decoded(byte, 4, 3, 7, false, false)};
    case DType::float8_e4m3fnuz:
      return {decoded(byte, 4, 3, 8, false, true)};
    case DType::float8_e5m2:
      return {decoded(byte, 5, 2, 15, true, false)};
    case DType::float8_e5m2fnuz:
      return {decoded(byte, 5, 2, 16, false, true)};
    case DType::float8_e8m0fnu:
      return {byte == 255 ? NAN : std::ldexp(1.0L, byte - 127)};
    case DType::float4_e2m1fn_x2:
      return {nibble(byte & 15U), nibble(byte >> 4U)};
    default:
      return {static_cast<long double>(byte)};
  }
}

std::vector<DType> all_dtypes() {
  std::vector<DType> out;
  for (std::size_t i = 0; i < kDTypeCount; ++i) out.push_back(static_cast<DType>(i));
  return out;
}

// Every pattern of a dtype of 8 or 16 bits; of wider ones random patterns, and all that is special.
std::vector<std::byte> patterns(DType dtype, unsigned seed) {
  const std::size_t size = itemsize(dtype);
  std::mt19937_64 random(seed);
  std::vector<std::byte> out(size * (size <= 2 ? std::size_t{1} << (8 * size) : 4096));
  if (size <= 2) {
    for (std::size_t i = 0; i < out.size() / size; ++i)
      std::memcpy(out.data() + i * size, &i, size);
    return out;
  }
  for (std::size_t at = 0; at < out.size(); ++at) out[at] = static_cast<std::byte>(random());
  const double specials[] = {0.0, -0.0, NAN, INFINITY, -INFINITY, 5e-324, -1e-310, 1.7e308, 1, -1};
  const float small[] = {0.0F, -0.0F, NAN, INFINITY, -INFINITY, 1e-45F, -1e-40F, 3.4e38F, 1, -1};
  for (std::size_t i = 0; i < 10; ++i) {
    const bool wide = dtype == DType::float64 || dtype == DType::complex128;
    std::memcpy(out.data() + 24 * size * i,
                wide ? static_cast<const void*>(&specials[i]) : &small[i],
                wide ? 8 : std::min<std::size_t>(size, 4));
  }
  return out;
}

bool same(double a, long double b) {
  if (std::isnan(a) || std::isnan(b)) return std::isnan(a) && std::isnan(b);
  return a == static_cast<double>(b) && std::signbit(a) == std::signbit(b);
}

class NumbersTest : public testing::TestWithParam<std::tuple<std::size_t, DType>> {
 protected:
  const NumberKernels& kernels = engine::kernels_of_level(std::get<0>(GetParam()));
  DType dtype = std::get<1>(GetParam());
};

TEST_P(NumbersTest, WidensEveryPattern) {
  const std::vector<std::byte> data = patterns(dtype, 1);
  const std::size_t numbers = engine::numbers_in(dtype);
  for (const std::size_t count : {data.size() / itemsize(dtype), std::size_t{7}, std::size_t{1}}) {
    std::vector<double> out(count * numbers + 1, 77);
    kernels.widen(dtype, data.data(), count, out.data());
    for (std::size_t i = 0; i < count; ++i) {
      const auto wanted = reference(dtype, data.data() + i * itemsize(dtype));
      ASSERT_EQ(wanted.size(), numbers);
      for (std::size_t k = 0; k < numbers; ++k)
        ASSERT_TRUE(same(out[i * numbers + k], wanted[k]))
            << "element " << i << ": " << out[i * numbers + k] << ", not " << wanted[k];
    }
    EXPECT_EQ(out.back(), 77);  // nothing behind the end
  }
}

INSTANTIATE_TEST_SUITE_P(All, NumbersTest,
                         testing::Combine(testing::Range(std::size_t{0}, engine::kernel_levels()),
                                          testing::ValuesIn(all_dtypes())),
                         [](const auto& instance) {
                           return std::string(
                                      engine::kernels_of_level(std::get<0>(instance.param)).name) +
                                  "_" + std::string(dtype_name(std::get<1>(instance.param)));
                         });

class LevelTest : public testing::TestWithParam<std::size_t> {
 protected:
  const NumberKernels& kernels = engine::kernels_of_level(GetParam());
  static bool close(double a, long double b, long double scale) {
    return std::abs(a - b) <= 1e-13L * scale;
  }
};
INSTANTIATE_TEST_SUITE_P(All, LevelTest, testing::Range(std::size_t{0}, engine::kernel_levels()),
                         [](const auto& i) { return engine::kernels_of_level(i.param).name; });

TEST_P(LevelTest, SumsOfAnyLength) {
  std::mt19937 random(3);
  std::normal_distribution<double> normal(0.5, 100);
  for (std::size_t count = 1; count <= kChunk; count = count < 70 ? count + 1 : count * 2 - 37) {
    std::vector<double> x(count);
    for (double& value : x) value = random() % 5 == 0 ? 0 : normal(random);
    long double sum = 0, squares = 0, size = 0;
    std::uint64_t zeros = 0;
    for (const double value : x) {
      sum += value;
      squares += static_cast<long double>(value) * value;
      size += std::abs(value);
      zeros += value == 0 ? 1 : 0;
    }
    engine::ChunkSums out;
    kernels.sum(x.data(), count, out);
    EXPECT_TRUE(close(out.sum, sum, size)) << count;
    EXPECT_TRUE(close(out.sum_of_squares, squares, squares)) << count;
    EXPECT_EQ(out.min, *std::ranges::min_element(x));
    EXPECT_EQ(out.max, *std::ranges::max_element(x));
    EXPECT_EQ(out.zeros, zeros);
    for (const double special : {static_cast<double>(NAN), static_cast<double>(INFINITY),
                                 static_cast<double>(-INFINITY)}) {
      std::vector<double> bad = x;
      bad[random() % count] = special;
      kernels.sum(bad.data(), count, out);
      EXPECT_FALSE(std::isfinite(out.sum_of_squares)) << count;
    }
  }
}

TEST_P(LevelTest, WideIntegersAreExact) {
  std::mt19937_64 random(5);
  for (const bool is_unsigned : {false, true})
    for (const std::size_t count : {std::size_t{1}, std::size_t{9}, kChunk}) {
      std::vector<std::uint64_t> x(count);
      for (std::uint64_t& value : x) value = random() % 7 == 0 ? 0 : random();
      x[count / 2] = std::uint64_t{1} << 63;
      Moments::Wide sum = 0;
      const std::uint64_t flip = is_unsigned ? std::uint64_t{1} << 63 : 0;
      for (const std::uint64_t value : x) sum += static_cast<std::int64_t>(value ^ flip);
      engine::WideSums out;
      kernels.sum_wide(reinterpret_cast<const std::byte*>(x.data()), count, is_unsigned, out);
      EXPECT_TRUE((Moments::Wide{out.sum_of_high} << 32) + out.sum_of_low == sum);
      EXPECT_EQ(out.zeros, static_cast<std::uint64_t>(std::ranges::count(x, 0U)));
    }
}

TEST_P(LevelTest, DistancesOfAnyLength) {
  std::mt19937 random(9);
  std::normal_distribution<double> normal(0, 10);
  for (std::size_t count = 1; count <= kChunk; count = count < 40 ? count + 1 : count * 2 - 37) {
    std::vector<double> a(count), b(count);
    for (std::size_t i = 0; i < count; ++i) {
      a[i] = random() % 9 == 0 ? 0 : normal(random);
      b[i] = random() % 3 == 0 ? a[i] : a[i] + 1e-3 * normal(random);
    }
    long double dot = 0, scale = 0;
    double absolute = 0, relative = 0;
    std::uint64_t beyond = 0, unequal = 0;
    for (std::size_t i = 0; i < count; ++i) {
      const double apart = std::abs(a[i] - b[i]);
      dot += static_cast<long double>(a[i]) * b[i];
      scale += std::abs(a[i] * b[i]);
      absolute = std::max(absolute, apart);
      if (apart > 0)
        relative = std::max(relative, apart / std::max(std::abs(a[i]), std::abs(b[i])));
      beyond += apart > 1e-3 + 1e-4 * std::abs(b[i]) ? 1 : 0;
      unequal += a[i] != b[i] ? 1 : 0;
    }
    engine::ChunkDistance out;
    kernels.compare(a.data(), b.data(), count, 1e-3, 1e-4, out);
    EXPECT_TRUE(out.finite);
    EXPECT_EQ(out.max_absolute, absolute);
    EXPECT_DOUBLE_EQ(out.max_relative, relative);
    EXPECT_TRUE(close(out.dot, dot, scale + 1e-300L));
    EXPECT_EQ(out.beyond, beyond) << count;
    EXPECT_EQ(out.unequal, unequal);
    a[count / 2] = NAN;
    kernels.compare(a.data(), b.data(), count, 0, 0, out);
    EXPECT_FALSE(out.finite);
  }
}

// A float's number among all of its dtype, by counting: the patterns sorted by value.
TEST_P(LevelTest, StepsBetweenFloatsOf8And16Bits) {
  for (const DType dtype : {DType::float16, DType::bfloat16, DType::float8_e4m3fn,
                            DType::float8_e4m3fnuz, DType::float8_e5m2, DType::float8_e5m2fnuz}) {
    SCOPED_TRACE(std::string(dtype_name(dtype)));
    const std::size_t size = itemsize(dtype);
    const std::vector<std::byte> all = patterns(dtype, 0);
    std::map<long double, std::uint64_t> steps;
    for (std::size_t i = 0; i < all.size() / size; ++i)
      if (const long double x = reference(dtype, all.data() + i * size)[0]; !std::isnan(x))
        steps[x];
    std::uint64_t number = 0;
    for (auto& [value, step] : steps) step = number++;
    std::mt19937 random(1);
    for (int i = 0; i < 3000; ++i) {
      const std::byte* a = all.data() + random() % (all.size() / size) * size;
      const std::byte* b = all.data() + random() % (all.size() / size) * size;
      const long double x = reference(dtype, a)[0];
      const long double y = reference(dtype, b)[0];
      engine::BitDistance out;
      kernels.compare_bits(dtype, a, b, 1, out);
      EXPECT_EQ(out.changed, std::memcmp(a, b, size) != 0 ? 1U : 0U);
      const bool is_nan = std::isnan(x) || std::isnan(y);
      EXPECT_EQ(out.max_steps,
                is_nan ? 0 : std::max(steps[x], steps[y]) - std::min(steps[x], steps[y]))
          << static_cast<double>(x) << " and " << static_cast<double>(y);
    }
  }
}

TEST_P(LevelTest, BitsOfManyElementsAreThoseOfEach) {
  for (const DType dtype : all_dtypes()) {
    SCOPED_TRACE(std::string(dtype_name(dtype)));
    const std::size_t size = itemsize(dtype);
    const std::vector<std::byte> a = patterns(dtype, 1);
    std::vector<std::byte> b = patterns(dtype, 2);
    std::mt19937 random(3);
    for (std::size_t i = 0; i + size <= b.size(); i += size)
      if (random() % 2 == 0)
        std::copy_n(a.begin() + static_cast<std::ptrdiff_t>(i), size,
                    b.begin() + static_cast<std::ptrdiff_t>(i));
      else
        b[i] ^= std::byte{1};
    engine::BitDistance each, all;
    for (std::size_t i = 0; i + size <= b.size(); i += size) {
      engine::BitDistance one;
      kernels.compare_bits(dtype, a.data() + i, b.data() + i, 1, one);
      each.changed += one.changed;
      each.max_steps = std::max(each.max_steps, one.max_steps);
    }
    kernels.compare_bits(dtype, a.data(), b.data(), a.size() / size, all);
    EXPECT_EQ(all.changed, each.changed);
    EXPECT_EQ(all.max_steps, each.max_steps);
    EXPECT_GT(all.changed, a.size() / size / 4);
  }
}

// ---- moments

TEST(MomentsTest, EveryDTypeAgainstTheDefinition) {
  for (const DType dtype : all_dtypes()) {
    SCOPED_TRACE(std::string(dtype_name(dtype)));
    const std::vector<std::byte> data = patterns(dtype, 17);
    const std::size_t count = data.size() / itemsize(dtype);
    Moments wanted;
    long double size = 0;
    for (std::size_t i = 0; i < count; ++i) {
      const auto numbers = reference(dtype, data.data() + i * itemsize(dtype));
      const std::size_t step = engine::is_complex(dtype) ? 2 : 1;
      for (std::size_t k = 0; k < numbers.size(); k += step) {
        const long double re = numbers[k], im = step == 2 ? numbers[k + 1] : 0;
        ++wanted.elements;
        const bool is_nan = std::isnan(re) || std::isnan(im);
        const bool is_inf = std::isinf(re) || std::isinf(im);
        wanted.nan += is_nan ? 1 : 0;
        if (is_inf) ++(step == 1 && re < 0 ? wanted.neg_inf : wanted.pos_inf);
        if (is_nan || is_inf) continue;
        ++wanted.finite;
        wanted.zeros += re == 0 && im == 0 ? 1 : 0;
        const long double magnitude = step == 2 ? std::hypot(re, im) : re;
        wanted.min = std::min(wanted.min, static_cast<double>(magnitude));
        wanted.max = std::max(wanted.max, static_cast<double>(magnitude));
        wanted.sum += re;
        wanted.sum_imag += im;
        wanted.sum_of_squares += re * re + im * im;
        size += std::abs(re) + std::abs(im);
      }
    }
    Moments found;
    found.add(dtype, data.data(), count / 3);
    Moments rest;
    rest.add(dtype, data.data() + count / 3 * itemsize(dtype), count - count / 3);
    found.add(rest);
    EXPECT_EQ(found.elements, wanted.elements);
    EXPECT_EQ(found.nan, wanted.nan);
    EXPECT_EQ(found.pos_inf, wanted.pos_inf);
    EXPECT_EQ(found.neg_inf, wanted.neg_inf);
    EXPECT_EQ(found.zeros, wanted.zeros);
    EXPECT_EQ(found.finite, wanted.finite);
    EXPECT_DOUBLE_EQ(found.min, wanted.min);
    EXPECT_DOUBLE_EQ(found.max, wanted.max);
    EXPECT_LE(std::abs(found.sum - wanted.sum), 1e-13L * size);
    EXPECT_LE(std::abs(found.sum_imag - wanted.sum_imag), 1e-13L * size);
    EXPECT_LE(std::abs(found.sum_of_squares - wanted.sum_of_squares),
              1e-13L * wanted.sum_of_squares);
  }
}

// Squares beyond and below what a double holds.
TEST(MomentsTest, NormsOfTheLargestAndTheSmallest) {
  for (const double x : {1.7e308, 1e-308, 3e-200, 1e200}) {
    const std::vector<double> data(100, x);
    Moments moments;
    moments.add(DType::float64, reinterpret_cast<const std::byte*>(data.data()), data.size());
    EXPECT_NEAR(figures_of(moments, DType::float64).rms.as_double() / x, 1, 1e-14);
    Moments complex;
    complex.add(DType::complex128, reinterpret_cast<const std::byte*>(data.data()), 50);
    if (x < 1e308) {
      EXPECT_NEAR(figures_of(complex, DType::complex128).rms.as_double() / x, std::sqrt(2.0),
                  1e-14);
    }
  }
}

TEST(MomentsTest, IntegersAreExact) {
  const std::uint64_t data[] = {std::numeric_limits<std::uint64_t>::max(), 0, 5};
  Moments moments;
  moments.add(DType::uint64, reinterpret_cast<const std::byte*>(data), 3);
  const Figures figures = figures_of(moments, DType::uint64);
  EXPECT_EQ(figures.min.as_int(), 0);
  EXPECT_EQ(repr(figures.max), repr(Value(data[0])));
  const std::int64_t more[] = {std::numeric_limits<std::int64_t>::min(),
                               std::numeric_limits<std::int64_t>::max()};
  Moments signed_ones;
  signed_ones.add(DType::int64, reinterpret_cast<const std::byte*>(more), 2);
  EXPECT_EQ(figures_of(signed_ones, DType::int64).mean.as_double(), -0.5);
  EXPECT_EQ(figures_of(signed_ones, DType::int64).min.as_int(), more[0]);
}

// ---- strided tensors

// Every element of a tensor, by its indices.
template <class Visit>
void for_each_place(const Tensor& tensor, Visit&& visit) {
  std::vector<std::int64_t> index(tensor.shape.size());
  for (std::uint64_t i = 0; i < tensor.numel(); ++i) {
    std::int64_t place = tensor.storage_offset;
    for (std::size_t d = 0; d < index.size(); ++d) place += index[d] * tensor.strides[d];
    visit(static_cast<std::uint64_t>(place));
    for (std::size_t d = index.size(); d-- > 0;) {
      if (++index[d] < tensor.shape[d]) break;
      index[d] = 0;
    }
  }
}

TEST(TallyTest, RandomStridesCountEachElementAsOftenAsItIsThere) {
  const char* given = std::getenv("PERDURE_SEED");
  const unsigned first = given != nullptr ? static_cast<unsigned>(std::atoi(given)) : 0;
  for (unsigned seed = first; seed < first + (given != nullptr ? 1 : 300); ++seed) {
    SCOPED_TRACE("PERDURE_SEED=" + std::to_string(seed));
    std::mt19937 random(seed);
    Tensor tensor;
    tensor.dtype = DType::int32;
    tensor.storage_offset = random() % 50;
    for (std::size_t d = random() % 5; d > 0; --d) {
      tensor.shape.push_back(random() % 17 == 0 ? 0 : 1 + random() % 9);
      tensor.strides.push_back(random() % 5 == 0 ? 0 : random() % 200);
    }
    const auto [begin, end] = tensor.byte_range();
    std::vector<std::int32_t> data(end / 4 + random() % 20);
    for (std::int32_t& x : data) x = static_cast<std::int32_t>(random() % 1000) - 300;
    std::int64_t sum = 0;
    std::uint64_t zeros = 0;
    for_each_place(tensor, [&](std::uint64_t place) {
      sum += data.at(place);
      zeros += data.at(place) == 0 ? 1 : 0;
    });
    engine::Tally tally(tensor);
    tally.take(0, std::as_bytes(std::span(data)));
    const Moments total = tally.total();
    EXPECT_EQ(total.elements, tensor.numel());
    EXPECT_EQ(total.sum, static_cast<long double>(sum));
    EXPECT_EQ(total.zeros, zeros);
    // In runs: which places are in which, whatever they are cut into.
    const engine::StridedElements elements(tensor);
    std::uint64_t found = 0;
    const std::uint64_t step = 1 + random() % 97;
    for (std::uint64_t at = 0; at < data.size(); at += step)
      elements.runs(at, at + step,
                    [&](std::uint64_t place, std::uint64_t count, std::uint64_t stride) {
                      EXPECT_GE(place, at);
                      EXPECT_LT(place + (count - 1) * stride, at + step);
                      found += count;
                    });
    EXPECT_EQ(found * elements.repeats(), tensor.numel());
  }
}

TEST(GatherTest, AnyPartOfAnyStridesInItsOwnOrder) {
  const char* given = std::getenv("PERDURE_SEED");
  const unsigned start = given != nullptr ? static_cast<unsigned>(std::atoi(given)) : 0;
  for (unsigned seed = start; seed < start + (given != nullptr ? 1 : 300); ++seed) {
    SCOPED_TRACE("PERDURE_SEED=" + std::to_string(seed));
    std::mt19937 random(seed);
    Tensor tensor;
    tensor.dtype = DType::int16;
    tensor.storage_offset = random() % 50;
    for (std::size_t d = random() % 5; d > 0; --d) {
      tensor.shape.push_back(1 + random() % 9);
      tensor.strides.push_back(random() % 5 == 0 ? 0 : random() % 200);
    }
    std::vector<std::int16_t> data(tensor.byte_range().second / 2 + random() % 20);
    for (std::int16_t& x : data) x = static_cast<std::int16_t>(random());
    std::vector<std::int16_t> wanted;
    for_each_place(tensor, [&](std::uint64_t place) { wanted.push_back(data.at(place)); });
    const std::uint64_t first = random() % wanted.size();
    const std::uint64_t last = first + 1 + random() % (wanted.size() - first);
    std::vector<std::int16_t> found(last - first + 1, 77);
    const engine::Gather gather(tensor, first, last, reinterpret_cast<std::byte*>(found.data()));
    const std::uint64_t step = 1 + random() % 97;
    for (std::uint64_t at = 0; at < data.size(); at += step)
      gather.take(
          2 * at,
          std::as_bytes(std::span(data)).subspan(2 * at, 2 * std::min(step, data.size() - at)));
    EXPECT_TRUE(std::equal(found.begin(), found.end() - 1,
                           wanted.begin() + static_cast<std::ptrdiff_t>(first)));
    EXPECT_EQ(found.back(), 77);
  }
}

TEST(TallyTest, WhatOverlapsWithoutEndIsRefused) {
  Tensor tensor;
  tensor.dtype = DType::uint8;
  tensor.shape = {1 << 20, 1 << 20, 1 << 20};
  tensor.strides = {1, 1, 1};
  try {
    engine::Tally tally(tensor);
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::unsupported);
  }
}

}  // namespace
}  // namespace perdure::test
