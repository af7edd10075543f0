// What is saved is what is loaded: every kind, every dtype, and what is shared with what.
#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstdint>
#include <functional>
#include <limits>
#include <random>

#include "expect_error.hpp"
#include "format/encoder.hpp"
#include "format/memory_source.hpp"
#include "format/same_value.hpp"

namespace perdure::test {
namespace {

using Shape = std::vector<std::int64_t>;
constexpr auto kInfinity = std::numeric_limits<double>::infinity();

void expect_round_trip(const Value& state) {
  const std::string file = file_of(state);
  const Value loaded = load_bytes(file);
  EXPECT_EQ(Comparison::difference(state, loaded), "");
  EXPECT_EQ(Comparison::difference(state, load_bytes(file_of(loaded))), "")
      << "after a second save";
  EXPECT_EQ(verify(source_of(file)).state, VerifyReport::State::good);
}

// Memory with bytes in it that no other byte of it has nearby.
std::shared_ptr<TensorStorage> memory(std::size_t size, unsigned seed = 1) {
  auto bytes = std::make_shared<std::vector<std::byte>>(std::max<std::size_t>(size, 1));
  for (std::size_t i = 0; i < size; ++i)
    (*bytes)[i] = static_cast<std::byte>((i * 31 + seed * 7) % 251);
  auto storage = std::make_shared<TensorStorage>();
  storage->data = bytes->data();
  storage->size = size;
  storage->owner = bytes;
  return storage;
}

Tensor view(std::shared_ptr<TensorStorage> storage, DType dtype, Shape shape, Shape strides,
            std::int64_t offset = 0) {
  Tensor tensor;
  tensor.storage = std::move(storage);
  tensor.dtype = dtype;
  tensor.shape = std::move(shape);
  tensor.strides = std::move(strides);
  tensor.storage_offset = offset;
  return tensor;
}

double nan_with_payload() { return std::bit_cast<double>(std::uint64_t{0xFFF4'0000'DEAD'BEEF}); }

TEST(RoundTrip, EveryScalar) {
  const std::int64_t limits[] = {0,
                                 1,
                                 -1,
                                 255,
                                 256,
                                 65535,
                                 65536,
                                 INT32_MAX,
                                 INT32_MIN,
                                 std::int64_t{INT32_MAX} + 1,
                                 std::int64_t{INT32_MIN} - 1,
                                 INT64_MAX,
                                 INT64_MIN};
  Value::Items items;
  for (const std::int64_t x : limits) items.emplace_back(x);
  for (int bit = 8; bit < 64; ++bit)
    items.emplace_back(std::int64_t{1} << bit),
        items.emplace_back(-(std::int64_t{1} << (bit - 1)) - 1);
  items.emplace_back(~std::uint64_t{0});
  items.emplace_back(BigInt{std::string(254, '\x42') + "\x01"});
  items.emplace_back(BigInt{std::string(30, '\0') + "\x80"});
  for (const double x :
       {0.0, -0.0, 0.1, -1e308, 5e-324, kInfinity, -kInfinity, std::nan(""), nan_with_payload()})
    items.emplace_back(x);
  items.emplace_back(std::complex<double>(-0.0, nan_with_payload()));
  items.emplace_back();
  items.emplace_back(true);
  items.emplace_back(false);
  expect_round_trip(Value::list(items));
}

TEST(RoundTrip, EveryText) {
  std::string all;
  for (int c = 0; c < 256; ++c) all += static_cast<char>(c);
  expect_round_trip(Value::list(
      {"", "plain", "with \n and \\", std::string("nul\0nul", 7), "h\xc3\xa9 \xf0\x9f\x94\xa5",
       "\xed\xa0\x80 lone", std::string(70000, 'x'), Value::bytes(""), Value::bytes(all),
       Value::bytes(std::string(70000, '\xff')), Value::bytearray(""), Value::bytearray(all)}));
}

TEST(RoundTrip, EveryContainer) {
  Dict ordered(Kind::ordered_dict);
  ordered.set("b", 1).set("a", 2);
  auto metadata = std::make_shared<Dict>();
  metadata->set("_metadata", Dict{{"", Dict{{"version", 1}}}});
  ordered.set_attributes(metadata);
  Dict counter(Kind::counter);
  counter.set("x", 3).set(Value::tuple({1, "y"}), -1);
  expect_round_trip(Value::list(
      {Value::list({}), Value::tuple({}), Value::tuple({1}), Value::tuple({1, 2}),
       Value::tuple({1, 2, 3}), Value::tuple({1, 2, 3, 4}), Value::set({}),
       Value::set({1, "a", Value::tuple({2})}), Value::size({}), Value::size({-1, 7, INT64_MAX}),
       Dict(), Dict(Kind::ordered_dict), Dict(Kind::counter), ordered, counter}));
}

TEST(RoundTrip, EveryKeyOfADict) {
  expect_round_trip(Dict{{Value(), 0},
                         {true, 1},
                         {-7, 2},
                         {0.5, 3},
                         {std::complex<double>(1, 2), 4},
                         {"s", 5},
                         {Value::bytes("s"), 6},
                         {Value::tuple({1, Value::tuple({"x"})}), 7},
                         {Value::size({2}), 8},
                         {DType::int8, 9},
                         {Value::device("cuda:1"), 10},
                         {Value::layout("torch.strided"), 11},
                         {~std::uint64_t{0}, 12}});
}

TEST(RoundTrip, TheNamesOfTorch) {
  Value::Items items = {Value::device("cpu"),           Value::device("cuda"),
                        Value::device("cuda:0"),        Value::device("mps:12"),
                        Value::layout("torch.strided"), Value::layout("torch.sparse_coo")};
  for (std::size_t i = 0; i < kDTypeCount; ++i) items.emplace_back(static_cast<DType>(i));
  expect_round_trip(Value::list(items));
}

TEST(RoundTrip, ContainersOfManyItems) {
  for (const std::size_t size : {999u, 1000u, 1001u, 2000u, 2001u}) {
    Value::Items items;
    Dict dict;
    for (std::size_t i = 0; i < size; ++i)
      items.emplace_back(i), dict.set(Value(i), "key " + std::to_string(i));
    expect_round_trip(
        Value::list({Value::list(items), Value::tuple(items), Value::set(items), dict}));
  }
}

TEST(RoundTrip, EveryDTypeInEveryGeometry) {
  for (std::size_t i = 0; i < kDTypeCount; ++i) {
    const auto dtype = static_cast<DType>(i);
    SCOPED_TRACE(dtype_name(dtype));
    const std::size_t item = itemsize(dtype);
    expect_round_trip(
        Dict{{"matrix", view(memory(6 * item), dtype, {2, 3}, {3, 1})},
             {"transposed", view(memory(6 * item, 2), dtype, {3, 2}, {1, 3})},
             {"scalar", view(memory(item, 3), dtype, {}, {})},
             {"empty", view(memory(0), dtype, {0}, {1})},
             {"empty in two ways", view(memory(0), dtype, {3, 0, 2}, {0, 2, 1})},
             {"repeated", view(memory(item, 4), dtype, {1000, 5}, {0, 0})},
             {"spread", view(memory(40 * item, 5), dtype, {3, 2}, {13, 7}, 2)},
             {"many dimensions", view(memory(item, 6), dtype, Shape(70, 1), Shape(70, 1))}});
  }
}

TEST(RoundTrip, FlagsOfTensors) {
  Value::Items items;
  for (const bool grad : {false, true}) {
    for (const bool parameter : {false, true}) {
      Tensor tensor = view(memory(16), DType::float32, {4}, {1});
      tensor.requires_grad = grad;
      tensor.parameter = parameter;
      items.emplace_back(tensor);
      if (!grad || parameter)
        tensor.dtype = DType::float8_e5m2, tensor.storage = memory(4), items.emplace_back(tensor);
    }
  }
  for (const auto& [conj, neg] : {std::pair(true, false), {false, true}, {true, true}}) {
    for (const DType dtype : {DType::complex64, DType::complex32}) {
      Tensor tensor = view(memory(64), dtype, {4}, {1});
      tensor.conj = conj;
      tensor.neg = neg;
      items.emplace_back(tensor);
    }
  }
  expect_round_trip(Value::list(items));
}

TEST(RoundTrip, MetaTensorsHaveNoBytes) {
  auto storage = std::make_shared<TensorStorage>();
  storage->device = "meta";
  storage->size = std::uint64_t{1} << 50;
  Tensor parameter = view(storage, DType::bfloat16, {1 << 20, 1 << 20}, {1 << 20, 1});
  parameter.parameter = parameter.requires_grad = true;
  const Value state(Dict{{"w", parameter}, {"b", view(storage, DType::float8_e5m2, {}, {})}});
  const Value loaded = load_bytes(file_of(state));
  EXPECT_EQ(Comparison::difference(state, loaded), "");
  EXPECT_EQ(loaded["w"].as_tensor().storage->data, nullptr);
  EXPECT_LT(file_of(state).size(), 4000u);
}

TEST(RoundTrip, WhatIsSharedStaysShared) {
  const Value list = Value::list({1});
  const Value tied(view(memory(48), DType::float32, {3, 4}, {4, 1}));
  const auto base = memory(64, 9);
  const Value state(Dict{{"a", list},
                         {"b", Value::tuple({list, list})},
                         {"wte", tied},
                         {"lm_head", tied},
                         {"row 1", view(base, DType::float32, {4}, {1}, 4)},
                         {"row 3", view(base, DType::float32, {4}, {1}, 12)}});
  expect_round_trip(state);
  const Value loaded = load_bytes(file_of(state));
  EXPECT_EQ(loaded["wte"].identity(), loaded["lm_head"].identity());
  EXPECT_EQ(loaded["row 1"].as_tensor().storage, loaded["row 3"].as_tensor().storage);
  EXPECT_EQ(loaded["row 1"].as_tensor().storage->size, 48u);  // from row 1 to row 3
}

TEST(RoundTrip, TwoViewsOfOneMemoryUnderTwoHandlesAreOneRecord) {
  float numbers[8] = {};
  const Value state(Dict{{"a", Tensor::over(numbers, DType::float32, {8})},
                         {"b", Tensor::over(numbers, DType::float32, {2, 4})}});
  EXPECT_EQ(CheckpointFile::open(source_of(file_of(state))).storages().size(), 1u);
}

TEST(RoundTrip, ALoneViewIsTrimmedToWhatItCovers) {
  const auto large = memory(1 << 20);
  const Value state(Dict{{"x", view(large, DType::float32, {10}, {1}, 1000)}});
  EXPECT_LT(file_of(state).size(), 4000u);
  const Value loaded = load_bytes(file_of(state));
  EXPECT_EQ(loaded["x"].as_tensor().storage->size, 40u);
  EXPECT_EQ(loaded["x"].as_tensor().storage_offset, 0);
  EXPECT_EQ(Comparison::difference(state, loaded), "");
}

TEST(RoundTrip, DTypesMayMixOnOneStorage) {
  const auto bytes = memory(64);
  // The odd byte in front makes the record begin before what anyone covers, so that wider items
  // stay aligned.
  const Value state(Dict{{"bytes", view(bytes, DType::uint8, {7}, {1}, 17)},
                         {"doubles", view(bytes, DType::float64, {2}, {1}, 4)},
                         {"halves", view(bytes, DType::bfloat16, {3}, {2}, 20)}});
  expect_round_trip(state);
  const Value loaded = load_bytes(file_of(state));
  EXPECT_EQ(loaded["bytes"].as_tensor().storage_offset, 1);
  EXPECT_EQ(loaded["bytes"].as_tensor().storage->size, 34u);
}

TEST(RoundTrip, AttributesOfAnOrderedDictMayHoldTensors) {
  Dict ordered(Kind::ordered_dict);
  auto attributes = std::make_shared<Dict>();
  attributes->set("_extra", Dict{{"scale", view(memory(4), DType::float32, {1}, {1})}});
  ordered.set_attributes(attributes);
  expect_round_trip(Dict{{"model", ordered}});
}

TEST(RoundTrip, AnySizeOfRecordAroundABlock) {
  for (const std::int64_t size :
       {0, 1, 63, 64, 65, (4 << 20) - 1, 4 << 20, (4 << 20) + 1, (8 << 20) + 7})
    expect_round_trip(
        Dict{{"x", view(memory(static_cast<std::size_t>(size)), DType::uint8, {size}, {1})},
             {"y", view(memory(3), DType::int8, {3}, {1})}});
}

TEST(RoundTrip, TheEncoderKnowsItsSizeAndRepeatsItself) {
  const Value state(Dict{{"x", view(memory(100), DType::float32, {25}, {1})}});
  const format::Encoder encoder(state, {});
  for (int i = 0; i < 2; ++i) {
    std::string out;
    encoder.write([&](ConstBytes bytes) {
      out.append(reinterpret_cast<const char*>(bytes.data()), bytes.size());
    });
    EXPECT_EQ(out.size(), encoder.file_size());
    EXPECT_TRUE(out == file_of(state));
  }
}

// ---- random states

class RandomState {
 public:
  explicit RandomState(unsigned seed) : random_(seed) {}
  Value make() { return container(4); }

 private:
  int below(int n) { return std::uniform_int_distribution<>(0, n - 1)(random_); }

  Value value(int depth) {
    if (!made_.empty() && below(8) == 0)
      return made_[static_cast<std::size_t>(below(static_cast<int>(made_.size())))];
    if (depth > 0 && below(3) == 0) return container(depth - 1);
    if (below(3) == 0) return tensor();
    return scalar();
  }
  std::string text() {
    std::string out;
    for (int i = below(12); i > 0; --i)
      out += below(9) == 0 ? "\xc3\xbc" : std::string(1, static_cast<char>('a' + below(26)));
    return out;
  }
  Value scalar() {
    switch (below(12)) {
      case 0:
        return {};
      case 1:
        return Value(below(2) == 0);
      case 2:
        return Value(static_cast<std::int64_t>(random_()) << below(33));
      case 3:
        return Value(BigInt{text() + text() + "\x01"});
      case 4:
        return Value(std::bit_cast<double>(std::uint64_t{random_()} << 32 | random_()));
      case 5:
        return Value(std::complex<double>(below(9), -below(9)));
      case 6:
        return Value::bytes(text());
      case 7:
        return Value::bytearray(text());
      case 8:
        return Value(static_cast<DType>(below(kDTypeCount)));
      case 9:
        return Value::device("cuda:" + std::to_string(below(8)));
      case 10:
        return Value::size({below(5), below(5)});
      default:
        return Value(text());
    }
  }
  Value tensor() {
    if (storages_.empty() || below(2) == 0)
      storages_.push_back(
          memory(static_cast<std::size_t>(below(400)), static_cast<unsigned>(random_())));
    const auto& storage =
        storages_[static_cast<std::size_t>(below(static_cast<int>(storages_.size())))];
    Tensor out = view(storage, static_cast<DType>(below(kDTypeCount)), {}, {});
    const auto items = static_cast<std::int64_t>(storage->size / itemsize(out.dtype));
    const std::int64_t size = below(4), stride = below(6), offset = below(20);
    out.shape = {size};
    out.strides = {stride};
    out.storage_offset = offset;
    if (size > 0 && offset + (size - 1) * stride >= items) out.shape = {0}, out.storage_offset = 0;
    out.parameter = below(3) == 0;
    out.requires_grad = out.parameter && below(2) == 0;
    out.neg = below(9) == 0;
    return keep(Value(out));
  }
  Value container(int depth) {
    switch (below(6)) {
      case 0:
        return keep(Value::list(items(depth)));
      case 1:
        return keep(Value::tuple(items(depth)));
      case 2:
        return keep(Value(dict(Kind::ordered_dict, depth)));
      case 3:
        return keep(Value(dict(Kind::counter, depth)));
      case 4:
        return keep(set());
      default:
        return keep(Value(dict(Kind::dict, depth)));
    }
  }
  Value::Items items(int depth) {
    Value::Items out;
    for (int i = below(6); i > 0; --i) out.push_back(value(depth));
    return out;
  }
  Value set() {
    Dict distinct;
    for (int i = below(5); i > 0; --i)
      distinct.set(below(2) == 0 ? Value(below(100)) : Value(text()), Value());
    Value::Items out;
    for (const auto& [key, unused] : distinct) out.push_back(key);
    return Value::set(out);
  }
  Dict dict(Kind kind, int depth) {
    Dict out(kind);
    for (int i = below(7); i > 0; --i)
      out.set(below(4) == 0 ? Value(below(50)) : Value(text()), value(depth));
    if (kind == Kind::ordered_dict && below(3) == 0)
      out.set_attributes(std::make_shared<Dict>(Dict{{text(), value(0)}}));
    return out;
  }
  Value keep(Value made) {
    made_.push_back(made);
    return made;
  }

  std::mt19937 random_;
  std::vector<Value> made_;
  std::vector<std::shared_ptr<TensorStorage>> storages_;
};

TEST(RoundTrip, RandomStates) {
  for (unsigned seed = 0; seed < 500; ++seed) {
    SCOPED_TRACE(seed);
    const Value state = RandomState(seed).make();
    const std::string file = file_of(state);
    EXPECT_EQ(Comparison::difference(state, load_bytes(file)), "");
    EXPECT_EQ(verify(source_of(file)).state, VerifyReport::State::good);
  }
}

// ---- what cannot be saved is refused with its place, and what is saved can be loaded

Value nested(int levels, const std::function<Value(Value)>& wrap) {
  Value out(view(memory(4), DType::float32, {}, {}));
  out.as_tensor().parameter = true;
  for (int i = 0; i < levels; ++i) out = wrap(std::move(out));
  return out;
}

TEST(Refusal, DepthHasTheSameLimitInWriterAndReader) {
  const std::function<Value(Value)> wraps[] = {
      [](Value x) { return Value::list({std::move(x)}); },
      [](Value x) { return Value::tuple({std::move(x)}); },
      [](Value x) { return Value(Dict{{"x", std::move(x)}}); },
      [](Value x) {
        Dict out(Kind::ordered_dict);
        return Value(out.set("x", std::move(x)));
      },
      [](Value x) {
        Dict out(Kind::counter);
        return Value(out.set("x", std::move(x)));
      }};
  for (const auto& wrap : wraps) {
    int deepest = 0;
    for (const int levels : {100, 166, 167, 499, 500, 501}) {
      try {
        load_bytes(file_of(nested(levels, wrap)));  // what the writer takes, the reader must take
        deepest = levels;
      } catch (const Error& error) {
        EXPECT_EQ(error.code(), ErrorCode::invalid) << error.what();
        EXPECT_NE(std::string(error.what()).find("nested more than 500 deep"), std::string::npos);
      }
    }
    EXPECT_GE(deepest, 166);
    EXPECT_LT(deepest, 501);
  }
}

TEST(Refusal, NamesThePlaceAndWhatToDo) {
  const auto with = [](Value x) { return file_of(Dict{{"model", Dict{{"x", std::move(x)}}}}); };
  EXPECT_ERROR(invalid, "state['model']['x']: <'a'.'B'> cannot be saved",
               with(Value::opaque({"a", "B", {}, {}})));
  EXPECT_ERROR(invalid, "more than 255 bytes", with(BigInt{std::string(256, '\1')}));
  EXPECT_ERROR(invalid, "more than 255 bytes",
               with(Dict{{Value::tuple({BigInt{std::string(256, '\1')}}), 1}}));
  EXPECT_ERROR(invalid, "no UTF-8; save it as bytes", with("\xff"));
  EXPECT_ERROR(invalid, "no UTF-8; save it as bytes", with(Dict{{"\xff", 1}}));
  EXPECT_ERROR(invalid, "no device", with(Value::device("cuda:one")));
  EXPECT_ERROR(invalid, "no device", with(Value::device("cuda:")));
  EXPECT_ERROR(invalid, "no device", with(Value::device("")));
  EXPECT_ERROR(invalid, "no device", with(Value::device("cuda:-1")));
  EXPECT_ERROR(invalid, "without a storage", with(Tensor()));
  EXPECT_ERROR(invalid, "state['model']['x']: a tensor that reaches outside",
               with(view(memory(12), DType::float32, {4}, {1})));
  EXPECT_ERROR(invalid, "negative stride", with(view(memory(12), DType::float32, {2}, {-1}, 2)));
  EXPECT_ERROR(invalid, "not complex", [&] {
    Tensor tensor = view(memory(4), DType::float32, {1}, {1});
    tensor.conj = true;
    with(tensor);
  }());
  auto unread = std::make_shared<TensorStorage>();
  unread->size = 4;
  EXPECT_ERROR(invalid, "read_all", with(view(unread, DType::float32, {1}, {1})));
  Dict plain;
  plain.set_attributes(std::make_shared<Dict>(Dict{{"a", 1}}));
  EXPECT_ERROR(invalid, "a dict with attributes", with(plain));
}

TEST(Refusal, GradientsThatTorchCannotRebuild) {
  Tensor tensor = view(memory(4), DType::float8_e5m2, {4}, {1});
  tensor.requires_grad = true;
  EXPECT_ERROR(invalid, "state['x']: a float8_e5m2 tensor that requires grad",
               file_of(Dict{{"x", tensor}}));
  const auto shared = memory(16);
  Tensor grad = view(shared, DType::float32, {4}, {1});
  grad.requires_grad = true;
  EXPECT_ERROR(invalid, "x.detach()",
               file_of(Dict{{"x", grad}, {"bits", view(shared, DType::int32, {4}, {1})}}));
}

TEST(Refusal, AValueThatContainsItself) {
  Value list = Value::list({});
  list.as_items().push_back(Dict{{"again", list}});
  EXPECT_ERROR(invalid, "state[0]['again']: contains itself", file_of(list));
  list.as_items().clear();
}

TEST(Refusal, ABombIsNotWritten) {
  Value bomb = Value::list({1, 2, 3});
  for (int i = 0; i < 60; ++i) bomb = Value::list({bomb, bomb});
  EXPECT_ERROR(invalid, "shared so often", file_of(bomb));
}

}  // namespace
}  // namespace perdure::test
