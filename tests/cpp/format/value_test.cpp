// What Value, Dict and Tensor promise by themselves, without any file.
#include <gtest/gtest.h>

#include <chrono>
#include <cmath>
#include <cstdint>
#include <functional>
#include <limits>
#include <perdure/value.hpp>

#include "expect_error.hpp"
#include "format/utf8.hpp"

namespace perdure::test {
namespace {

using std::numeric_limits;

BigInt big(std::initializer_list<int> bytes) {
  BigInt out;
  for (const int byte : bytes) out.bytes += static_cast<char>(byte);
  return out;
}

bool same_key(const Value& a, const Value& b) {
  Dict dict;
  dict.set(a, 1);
  return dict.find(b) != nullptr;
}

TEST(Value, KnowsItsKind) {
  EXPECT_EQ(Value().kind(), Kind::none);
  EXPECT_EQ(Value(nullptr).kind(), Kind::none);
  EXPECT_EQ(Value(true).kind(), Kind::boolean);
  EXPECT_EQ(Value(7).kind(), Kind::integer);
  EXPECT_EQ(Value(std::uint8_t{7}).kind(), Kind::integer);
  EXPECT_EQ(Value(0.5).kind(), Kind::real);
  EXPECT_EQ(Value(0.5f).kind(), Kind::real);
  EXPECT_EQ(Value(std::complex<double>(1, 2)).kind(), Kind::complex);
  EXPECT_EQ(Value("a").kind(), Kind::string);
  EXPECT_EQ(Value::bytes("a").kind(), Kind::bytes);
  EXPECT_EQ(Value::bytearray("a").kind(), Kind::bytearray);
  EXPECT_EQ(Value::list({}).kind(), Kind::list);
  EXPECT_EQ(Value::tuple({}).kind(), Kind::tuple);
  EXPECT_EQ(Value::set({}).kind(), Kind::set);
  EXPECT_EQ(Value::size({1, 2}).kind(), Kind::size);
  EXPECT_EQ(Value(Dict()).kind(), Kind::dict);
  EXPECT_EQ(Value(Dict(Kind::ordered_dict)).kind(), Kind::ordered_dict);
  EXPECT_EQ(Value(Dict(Kind::counter)).kind(), Kind::counter);
  EXPECT_EQ(Value(DType::bfloat16).kind(), Kind::dtype);
  EXPECT_EQ(Value::device("cuda:0").kind(), Kind::device);
  EXPECT_EQ(Value::layout("torch.strided").kind(), Kind::layout);
  EXPECT_EQ(Value(Tensor()).kind(), Kind::tensor);
  EXPECT_EQ(Value::opaque({"os", "system", {}, {}}).kind(), Kind::opaque);
}

TEST(Value, KeepsEveryIntegerExactly) {
  EXPECT_EQ(Value(numeric_limits<std::int64_t>::min()).as_int(),
            numeric_limits<std::int64_t>::min());
  EXPECT_EQ(Value(std::uint64_t{1} << 62).as_int(), std::int64_t{1} << 62);
  const Value large(numeric_limits<std::uint64_t>::max());
  ASSERT_NE(large.as_big_int(), nullptr);
  EXPECT_EQ(*large.as_big_int(), big({255, 255, 255, 255, 255, 255, 255, 255, 0}));
  EXPECT_ERROR(invalid, "64 bits", large.as_int());
}

TEST(Value, NormalisesBigIntegers) {
  EXPECT_EQ(Value(BigInt{}).as_int(), 0);
  EXPECT_EQ(Value(big({5, 0, 0, 0, 0, 0, 0, 0, 0, 0})).as_int(), 5);
  EXPECT_EQ(Value(big({0xFE, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF})).as_int(), -2);
  EXPECT_EQ(Value(big({0x80})).as_int(), -128);
  EXPECT_EQ(Value(big({0, 0, 0, 0, 0, 0, 0, 0x80})).as_int(), numeric_limits<std::int64_t>::min());
  // 2^63: eight bytes would be negative.
  const Value limit(big({0, 0, 0, 0, 0, 0, 0, 0x80, 0, 0, 0}));
  ASSERT_NE(limit.as_big_int(), nullptr);
  EXPECT_EQ(limit.as_big_int()->bytes.size(), 9u);
}

TEST(Value, AccessorsNameWhatIsThere) {
  EXPECT_ERROR(invalid, "found str 'three'", Value("three").as_int());
  EXPECT_ERROR(invalid, "found int 3", Value(3).as_string());
  EXPECT_ERROR(invalid, "found list", Value::list({}).as_dict());
  EXPECT_ERROR(invalid, "found dict", Value(Dict()).as_items());
  EXPECT_ERROR(invalid, "found None", Value().as_tensor());
  EXPECT_ERROR(invalid, "found float 0.5", Value(0.5).as_bool());
  EXPECT_ERROR(invalid, "found tensor", Value(Tensor()).as_double());
  EXPECT_ERROR(invalid, "found bool True", Value(true).as_complex());
  EXPECT_EQ(Value(true).as_int(), 1);
  EXPECT_EQ(Value(3).as_double(), 3.0);
  EXPECT_EQ(Value(3).as_complex(), std::complex<double>(3));
}

TEST(Value, ElementsAreFoundOrNamed) {
  const Value state(Dict{{"epoch", 3}, {2, "two"}, {"items", Value::list({1, 2})}});
  EXPECT_EQ(state["epoch"].as_int(), 3);
  EXPECT_EQ(state[2].as_string(), "two");
  EXPECT_EQ(state["items"][1].as_int(), 2);
  EXPECT_TRUE(state.contains("epoch"));
  EXPECT_FALSE(state.contains("loss"));
  EXPECT_FALSE(Value(3).contains("loss"));
  EXPECT_ERROR(not_found, "no key 'loss'; the keys are: 'epoch', 2, 'items'", state["loss"]);
  EXPECT_ERROR(not_found, "index 2 of a list of 2", state["items"][2]);
  EXPECT_ERROR(not_found, "index -1", state["items"][-1]);
  EXPECT_ERROR(invalid, "found int", state["epoch"]["x"]);
}

TEST(Value, CopiesShareContainersAndCopyScalars) {
  Value list = Value::list({1});
  const Value same = list;
  list.as_items().push_back(2);
  EXPECT_EQ(same.as_items().size(), 2u);
  EXPECT_EQ(same.identity(), list.identity());
  EXPECT_EQ(same.use_count(), 2);
  EXPECT_EQ(Value(1).identity(), nullptr);
  EXPECT_EQ(Value("text").use_count(), 0);
}

TEST(Dict, KeysCompareAsInPython) {
  EXPECT_TRUE(same_key(1, true));
  EXPECT_TRUE(same_key(1, 1.0));
  EXPECT_TRUE(same_key(0.0, -0.0));
  EXPECT_TRUE(same_key(0, false));
  EXPECT_TRUE(same_key(std::complex<double>(2, 0), 2));
  EXPECT_TRUE(same_key(Value::tuple({1, "a"}), Value::tuple({1.0, "a"})));
  EXPECT_TRUE(same_key(Value::size({2, 3}), Value::tuple({2, 3})));
  EXPECT_TRUE(same_key(std::uint64_t{1} << 63, std::ldexp(1.0, 63)));
  EXPECT_TRUE(same_key(Value(big({0, 0, 0, 0, 0, 0, 0, 0, 0, 0xFC})), -std::ldexp(1.0, 74)));
  EXPECT_TRUE(same_key(-std::ldexp(1.0, 63), numeric_limits<std::int64_t>::min()));
  EXPECT_FALSE(same_key(std::uint64_t{1} << 63, std::ldexp(1.0, 64)));
  EXPECT_FALSE(same_key(numeric_limits<std::int64_t>::max(), std::ldexp(1.0, 63)));
  EXPECT_FALSE(same_key("1", 1));
  EXPECT_FALSE(same_key("a", Value::bytes("a")));
  EXPECT_FALSE(same_key(Value(), 0));
  EXPECT_FALSE(same_key(1, 1.5));
  EXPECT_FALSE(same_key(std::complex<double>(2, 1), 2));
  EXPECT_FALSE(same_key(Value::tuple({"ab", "c"}), Value::tuple({"a", "bc"})));
  EXPECT_FALSE(same_key(Value::tuple({1}), Value::tuple({Value::tuple({1})})));
  EXPECT_FALSE(same_key(Value::device("cuda"), "cuda"));
  EXPECT_FALSE(same_key(Value(DType::float32), "float32"));
}

TEST(Dict, KeepsFirstKeyLastValueAndOrder) {
  Dict dict{{"b", 1}, {"a", 2}, {true, 3}};
  dict.set("b", 4).set(1, 5);
  ASSERT_EQ(dict.size(), 3u);
  EXPECT_EQ(dict.entries()[0].first.as_string(), "b");
  EXPECT_EQ(dict.entries()[0].second.as_int(), 4);
  EXPECT_EQ(dict.entries()[2].first.kind(), Kind::boolean);
  EXPECT_EQ(dict.at(1.0).as_int(), 5);
}

// Of two blocks of MurmurHash64A, a difference in the top bit of the first is undone by that of the
// second, whatever the hash was before. Behind a prefix of one byte.
std::string colliding_key(std::uint64_t number, std::size_t pairs) {
  constexpr std::uint64_t kMul = 0xC6A4A7935BD1E995, kInverse = 0x5F7A0EA7E59B19BD;
  static_assert(kMul * kInverse == 1);
  std::string key(7, 'x');
  for (std::size_t i = 0; i < pairs; ++i) {
    const std::uint64_t mixed = ((i + 1) ^ (number >> i & 1) << 63) * kInverse;
    const std::uint64_t block = (mixed ^ mixed >> 47) * kInverse;
    for (int twice = 0; twice < 2; ++twice)
      key.append(reinterpret_cast<const char*>(&block), sizeof block);
  }
  return key;
}

TEST(Dict, KeysThatAreMadeToCollideTakeNoTimeToSpeakOf) {
  const std::hash<std::string> hash;
  EXPECT_EQ(hash("b" + colliding_key(0, 17)), hash("b" + colliding_key(0x1ABCD, 17)));
  const auto begin = std::chrono::steady_clock::now();
  Dict dict;
  for (std::uint64_t i = 0; i < 1 << 17; ++i) dict.set(Value::bytes(colliding_key(i, 17)), i);
  EXPECT_EQ(dict.size(), std::size_t{1} << 17);
  EXPECT_EQ(dict.at(Value::bytes(colliding_key(12345, 17))).as_int(), 12345);
  EXPECT_LT(std::chrono::steady_clock::now() - begin, std::chrono::seconds(20));  // else minutes
}

TEST(Dict, RefusesWhatPythonCannotHash) {
  Dict dict;
  EXPECT_ERROR(invalid, "a list cannot be a key", dict.set(Value::list({}), 1));
  EXPECT_ERROR(invalid, "a dict cannot be a key", dict.set(Dict(), 1));
  EXPECT_ERROR(invalid, "a set cannot be a key", dict.set(Value::set({}), 1));
  EXPECT_ERROR(invalid, "a bytearray cannot be a key", dict.set(Value::bytearray("x"), 1));
  EXPECT_ERROR(invalid, "a tensor cannot be a key", dict.set(Tensor(), 1));
  EXPECT_ERROR(invalid, "a list cannot be a key", dict.set(Value::tuple({Value::list({})}), 1));
  EXPECT_TRUE(dict.empty());
  EXPECT_ERROR(invalid, "twice", Value::set({1, 2, true}));
  EXPECT_ERROR(invalid, "a list cannot be", Value::set({Value::list({})}));
}

TEST(Dict, ATupleThatIsSmallInMemoryAndHugeWrittenOutIsNoKey) {
  Value tuple = Value::tuple({0});
  for (int i = 0; i < 60; ++i) tuple = Value::tuple({tuple, tuple});
  Dict dict;
  EXPECT_ERROR(invalid, "1 MiB", dict.set(tuple, 1));
}

TEST(Repr, PrintsAsPythonDoes) {
  EXPECT_EQ(repr(Value()), "None");
  EXPECT_EQ(repr(Value(true)), "True");
  EXPECT_EQ(repr(Value(2.0)), "2.0");
  EXPECT_EQ(repr(Value(1e300)), "1e+300");
  EXPECT_EQ(repr(Value(-numeric_limits<double>::infinity())), "-inf");
  EXPECT_EQ(repr(Value("it's")), "'it\\'s'");
  EXPECT_EQ(repr(Value::bytes("a\xff")), "b'a\\xff'");
  EXPECT_EQ(repr(Value::tuple({1})), "(1,)");
  EXPECT_EQ(repr(Value::tuple({1, "a"})), "(1, 'a')");
  EXPECT_EQ(repr(Value(DType::float32)), "torch.float32");
  EXPECT_EQ(repr(Value(std::string(1000, 'x'))).size(), 84u);
}

TEST(Repr, HoldsNothingThatATerminalWouldObeyAndIsAlwaysUtf8) {
  EXPECT_EQ(repr(Value("\x1b[2J\x7f\n")), "'\\x1b[2J\\x7f\\n'");
  EXPECT_EQ(repr(Value("\xc2\x9b")), "'\\x9b'");        // CSI as a C1 control
  EXPECT_EQ(repr(Value("\x9b\xff")), "'\\x9b\\xff'");   // no UTF-8
  EXPECT_EQ(repr(Value("\xed\xb2\x80")), "'\\udc80'");  // a lone surrogate
  EXPECT_EQ(repr(Value("\xe2\x80\xae")), "'\\u202e'");  // right-to-left override
  EXPECT_EQ(repr(Value("h\xc3\xa9\xf0\x9f\x94\xa5")), "'h\xc3\xa9\xf0\x9f\x94\xa5'");
  EXPECT_EQ(repr(Value::opaque({"\x1b", "\xff", {}, {}})), "<'\\x1b'.'\\xff'>");
}

TEST(FormatPath, ShowsThePlaceInPythonsWords) {
  EXPECT_EQ(format_path({}), "the state itself");
  EXPECT_EQ(format_path({"optimizer", "state", 0}), "state['optimizer']['state'][0]");
}

TEST(Utf8, IsStrict) {
  for (const char* good : {"", "abc", "\xc3\xa9", "\xe2\x82\xac", "\xf0\x9f\x94\xa5",
                           "\xf4\x8f\xbf\xbf", "\xed\xa0\x80"})
    EXPECT_TRUE(format::is_utf8(good)) << repr(Value(good));
  for (const char* bad : {"\x80", "\xc3", "\xc0\x80", "\xc1\xbf", "\xe0\x80\x80", "\xe2\x82",
                          "\xe2\x28\xa1", "\xf0\x80\x80\x80", "\xf4\x90\x80\x80",
                          "\xf5\x80\x80\x80", "\xff", "a\xc3(", "\xf0\x9f\x94"})
    EXPECT_FALSE(format::is_utf8(bad)) << repr(Value(bad));
}

TEST(Utf8, SurrogatesAreForPythonAlone) {
  for (const char* good : {"", "abc", "\xed\x9f\xbf", "\xee\x80\x80", "\xf0\x9f\x94\xa5"})
    EXPECT_TRUE(format::is_strict_utf8(good)) << repr(Value(good));
  for (const char* bad : {"\xed\xa0\x80", "a\xed\xbf\xbf", "\xed", "\xed\x80", "\xff"})
    EXPECT_FALSE(format::is_strict_utf8(bad)) << repr(Value(bad));
}

TEST(Utf8, WhatIsPrintableHoldsNothingThatATerminalWouldObey) {
  EXPECT_EQ(format::printable("a\nb \xc3\xa9 \\ '"), "a\nb \xc3\xa9 \\ '");
  EXPECT_EQ(format::printable("\x1b[2J\r\x7f\xc2\x9b"), "\\x1b[2J\\x0d\\x7f\\x9b");
  EXPECT_EQ(format::printable("\xff\xed\xa0\x80\xe2\x80\xae"), "\\xff\\ud800\\u202e");
}

TEST(DTypes, NamesGoBothWays) {
  for (std::size_t i = 0; i < kDTypeCount; ++i) {
    const auto dtype = static_cast<DType>(i);
    EXPECT_EQ(dtype_from_name(dtype_name(dtype)), dtype);
    EXPECT_GE(itemsize(dtype), 1u);
    EXPECT_LE(itemsize(dtype), 16u);
  }
  EXPECT_EQ(dtype_from_name("float"), std::nullopt);
  EXPECT_EQ(dtype_from_name(""), std::nullopt);
  EXPECT_EQ(itemsize(DType::complex32), 4u);
  EXPECT_EQ(itemsize(DType::bfloat16), 2u);
  EXPECT_EQ(itemsize(DType::complex128), 16u);
}

Tensor view(std::vector<std::int64_t> shape, std::vector<std::int64_t> strides,
            std::int64_t offset = 0, DType dtype = DType::float32) {
  Tensor tensor;
  tensor.shape = std::move(shape);
  tensor.strides = std::move(strides);
  tensor.storage_offset = offset;
  tensor.dtype = dtype;
  return tensor;
}

using Range = std::pair<std::uint64_t, std::uint64_t>;

TEST(Tensor, ByteRangeIsWhatTheElementsTouch) {
  EXPECT_EQ(view({2, 3}, {3, 1}).byte_range(), Range(0, 24));
  EXPECT_EQ(view({2, 3}, {1, 2}, 5).byte_range(), Range(20, 44));
  EXPECT_EQ(view({}, {}, 3).byte_range(), Range(12, 16));
  EXPECT_EQ(view({4}, {0}, 3).byte_range(), Range(12, 16));
  EXPECT_EQ(view({3, 2}, {10, 4}).byte_range(), Range(0, 100));
  EXPECT_EQ(view({5, 0, 3}, {100, 100, 100}, 77).byte_range(), Range(0, 0));
  EXPECT_EQ(view({3}, {1}, 1, DType::complex128).byte_range(), Range(16, 64));
}

TEST(Tensor, ByteRangeRefusesWhatCannotBe) {
  const auto max = numeric_limits<std::int64_t>::max();
  EXPECT_ERROR(invalid, "negative size", view({-1}, {1}).byte_range());
  EXPECT_ERROR(invalid, "negative size", view({0, -1}, {1, 1}).byte_range());
  EXPECT_ERROR(invalid, "negative stride", view({2}, {-1}, 4).byte_range());
  EXPECT_ERROR(invalid, "negative offset, -1", view({2}, {1}, -1).byte_range());
  EXPECT_ERROR(invalid, "2 sizes but 1 strides", view({2, 2}, {1}).byte_range());
  EXPECT_ERROR(invalid, "overflows", view({max, max}, {1, 1}).byte_range());
  EXPECT_ERROR(invalid, "overflows", view({3, 3}, {max, max}).byte_range());
  EXPECT_ERROR(invalid, "overflows", view({max}, {1}).byte_range());
  EXPECT_ERROR(invalid, "overflows", view({2}, {1}, max).byte_range());
  EXPECT_ERROR(invalid, "overflows", view({max, max, 0}, {1, 1, 1}).numel());
}

TEST(Tensor, OverIsContiguous) {
  float memory[6] = {};
  const Tensor tensor = Tensor::over(memory, DType::float32, {2, 3});
  EXPECT_EQ(tensor.strides, (std::vector<std::int64_t>{3, 1}));
  EXPECT_EQ(tensor.storage->size, sizeof memory);
  EXPECT_EQ(Tensor::over(memory, DType::float32, {0, 3}).strides,
            (std::vector<std::int64_t>{3, 1}));
  const auto max = numeric_limits<std::int64_t>::max();
  EXPECT_ERROR(invalid, "overflows", Tensor::over(memory, DType::float32, {max, max}));
  EXPECT_ERROR(invalid, "negative size", Tensor::over(memory, DType::float32, {-1}));
}

TEST(ErrorCodes, HaveTheNamesOfTheEnumeration) {
  EXPECT_STREQ(error_code_name(ErrorCode::corrupt), "corrupt");
  EXPECT_STREQ(error_code_name(ErrorCode::locked), "locked");
}

TEST(Value, EveryKindHasAName) {
  for (int kind = 0; kind <= static_cast<int>(Kind::opaque); ++kind)
    EXPECT_FALSE(kind_name(static_cast<Kind>(kind)).empty()) << kind;
  EXPECT_EQ(kind_name(Kind::opaque), "opaque object");
}

}  // namespace
}  // namespace perdure::test
