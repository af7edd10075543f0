// The bytes of a file are a promise: the same state gives the same file, release after release.
// What changes here changes docs/format.md first.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <array>
#include <cstdint>

#include "format/crc32.hpp"
#include "format/encoder.hpp"
#include "format/memory_source.hpp"

namespace perdure::test {
namespace {

// Memory that the tensors below look into; its bytes follow from their place alone.
std::byte* memory() {
  static std::array<std::byte, 1 << 16> bytes = [] {
    std::array<std::byte, 1 << 16> made{};
    for (std::size_t i = 0; i < made.size(); ++i)
      made[i] = static_cast<std::byte>((i * 131 + (i >> 8)) % 253);
    return made;
  }();
  return bytes.data();
}

std::shared_ptr<TensorStorage> storage(std::size_t at, std::uint64_t size) {
  auto made = std::make_shared<TensorStorage>();
  made->data = memory() + at;
  made->size = size;
  return made;
}

Tensor view(std::shared_ptr<TensorStorage> storage, DType dtype, std::vector<std::int64_t> shape,
            std::vector<std::int64_t> strides, std::int64_t offset = 0) {
  Tensor tensor;
  tensor.storage = std::move(storage);
  tensor.dtype = dtype;
  tensor.shape = std::move(shape);
  tensor.strides = std::move(strides);
  tensor.storage_offset = offset;
  return tensor;
}

Value scalars() {
  return Value::list({Value(),
                      true,
                      false,
                      0,
                      255,
                      256,
                      65535,
                      65536,
                      -1,
                      INT32_MIN,
                      INT64_MAX,
                      INT64_MIN,
                      ~std::uint64_t{0},
                      BigInt{std::string(100, '\x42')},
                      0.1,
                      -0.0,
                      std::complex<double>(1.5, -2),
                      "text",
                      "text",
                      "\xC3\xA9",
                      "0",
                      "cpu",
                      Value::bytes("\x01\xFF"),
                      Value::bytearray("\x02\xFE"),
                      DType::bfloat16,
                      Value::device("cuda:1"),
                      Value::device("cpu"),
                      Value::layout("torch.strided")});
}

Value containers() {
  const Value shared = Value::list({1, "text"});
  Dict ordered(Kind::ordered_dict);
  ordered.set("b", shared).set("a", Value::tuple({}));
  auto attributes = std::make_shared<Dict>();
  attributes->set("_metadata", Value(Dict{{"version", 2}}));
  ordered.set_attributes(std::move(attributes));
  Dict counter(Kind::counter);
  counter.set("x", 3);
  Value::Items many;
  for (int i = 0; i < 2500; ++i) many.emplace_back(i % 300);
  Dict keys{{1, "int"}, {2.5, "real"}, {Value(), "none"}, {true, "one"}, {DType::int8, 1}};
  keys.set(Value::tuple({1, "a", 2.0, Value()}), Value::tuple({1, 2, 3, 4}));
  keys.set(Value::bytes("k"),
           Value(Dict{{"deep", Value(Tensor::over(memory(), DType::int8, {3}))}}));
  return Value::list({shared, shared, Value(std::move(ordered)), Value(std::move(counter)),
                      Value::set({1, "a"}), Value::size({2, 3}), Value::tuple({1}),
                      Value::tuple({1, 2}), Value::list(std::move(many)), Value(std::move(keys)),
                      Value::list({}), Value(Dict{})});
}

// Every dtype; trimmed, shared, empty, mixed and meta storages; every flag.
Value tensors() {
  Dict out;
  for (std::size_t i = 0; i < kDTypeCount; ++i) {
    const auto dtype = static_cast<DType>(i);
    out.set(dtype_name(dtype), Value(Tensor::over(memory() + 1024 * i, dtype, {2, 3})));
  }
  const auto both = storage(32768, 4096);
  out.set("trimmed", Value(view(storage(40000, 4000), DType::float32, {2, 5}, {10, 1}, 100)));
  out.set("left", Value(view(both, DType::float32, {4}, {2}, 16)));
  out.set("right", Value(view(both, DType::float32, {2, 2}, {1, 2}, 600)));
  out.set("again", Value(view(storage(32768, 4096), DType::float32, {1}, {1}, 3)));  // same memory
  const auto mixed = storage(45000, 512);
  out.set("mixed a", Value(view(mixed, DType::int64, {2}, {1}, 3)));
  out.set("mixed b", Value(view(mixed, DType::int8, {2}, {1}, 5)));
  out.set("empty", Value(Tensor::over(nullptr, DType::float32, {0, 7})));
  const auto meta = std::make_shared<TensorStorage>();
  meta->size = 64;
  meta->device = "meta";
  out.set("meta", Value(view(meta, DType::float32, {16}, {1})));
  Tensor parameter = Tensor::over(memory() + 50000, DType::float32, {3});
  parameter.parameter = parameter.requires_grad = true;
  const Value tied(std::move(parameter));
  out.set("tied a", tied).set("tied b", tied);
  Tensor lazy = Tensor::over(memory() + 51200, DType::complex64, {3});
  lazy.conj = lazy.neg = true;
  out.set("lazy", Value(std::move(lazy)));
  auto cuda = storage(52000, 64);
  cuda->device = "cuda:0";
  out.set("cuda", Value(view(cuda, DType::float64, {2, 2, 2, 1}, {4, 2, 1, 1})));
  return Value(std::move(out));
}

// As an optimizer's: more records and strings than fit the short opcodes.
Value many_tensors() {
  Dict model(Kind::ordered_dict), moments;
  for (int i = 0; i < 1500; ++i) {
    std::byte* at = memory() + 16 * i;
    model.set(fmt::format("layers.{}.weight", i), Value(Tensor::over(at, DType::float32, {2, 2})));
    Dict own{{"step", Value(Tensor::over(memory() + 30000 + 4 * i, DType::float32, {}))}};
    moments.set(i, Value(std::move(own)));
  }
  return Value(Dict{{"model", Value(std::move(model))}, {"state", Value(std::move(moments))}});
}

std::string fingerprint(const Value& state) {
  const std::string file = file_of(state);
  return fmt::format("{} {:08x}", file.size(), format::crc32(std::as_bytes(std::span(file))));
}

TEST(Golden, Scalars) { EXPECT_EQ(fingerprint(scalars()), "2027 4cd9c83d"); }
TEST(Golden, Containers) { EXPECT_EQ(fingerprint(containers()), "7679 ba50dfdc"); }
TEST(Golden, Tensors) { EXPECT_EQ(fingerprint(tensors()), "16759 e5b20c71"); }
TEST(Golden, ManyTensors) { EXPECT_EQ(fingerprint(many_tensors()), "1039133 759baa0e"); }

TEST(Golden, CheckpointOfARun) {
  CheckpointInfo info;
  info.step = 7;
  info.generation = 3;
  info.parent = 2;
  info.created = 1.5;
  info.metrics = {{"loss", 0.5}};
  info.optimizers["optimizer"] = {"AdamW", {{"layers.0.weight"}, {}}};
  std::string file;
  const Value state(Dict{{"a", tensors()}, {"b", containers()}, {"c", scalars()}});
  format::Encoder(state, info).write([&](ConstBytes bytes) {
    file.append(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  });
  EXPECT_EQ(fmt::format("{} {:08x}", file.size(), format::crc32(std::as_bytes(std::span(file)))),
            "23484 19281866");
}

}  // namespace
}  // namespace perdure::test
