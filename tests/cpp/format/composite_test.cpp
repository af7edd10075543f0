// Sparse, quantized and nested tensors and those with attributes: read from the calls that torch
// writes, and written as them again.
#include "format/composite.hpp"

#include <gtest/gtest.h>

#include "expect_error.hpp"
#include "format/memory_source.hpp"
#include "format/pickle_text.hpp"
#include "format/same_value.hpp"
#include "format/zip_parts.hpp"

namespace perdure::test {
namespace {

using namespace text;
using format::Form;
using format::make_composite;

const std::string kFloats = storage("FloatStorage", "0", 6);
const std::string kLongs = storage("LongStorage", "1", 6);
const std::string kValues = tensor(kFloats, 0, {6}, {1});
const std::string kIndices = tensor(kLongs, 0, {1, 6}, {6, 1});
const std::string kCount = tensor(kLongs, 0, {6}, {1});
const std::string kSize = call("torch", "Size", {integers({9})});
const std::string kZero = std::string("G") + std::string(8, '\0');

std::string layout(std::string_view name) {
  return call("torch.serialization", "_get_layout", {string(name)});
}
std::string sparse(std::string_view name, std::initializer_list<std::string> parts) {
  return call("torch._utils", "_rebuild_sparse_tensor", {layout(name), tuple(parts)});
}
std::string quantized(std::string_view storage_class, const std::string& scheme) {
  return call("torch._utils", "_rebuild_qtensor",
              {storage(storage_class, "2", 6), integer(0), integers({2, 3}), integers({3, 1}),
               scheme, kFalse, kHooks});
}
std::string per_tensor() {
  return tuple({global("torch", "per_tensor_affine"), kZero, integer(3)});
}
std::string from_type(std::string_view function, std::string_view type_module,
                      std::string_view type, const std::string& arguments,
                      const std::string& state) {
  return call("torch._tensor", "_rebuild_from_type_v2",
              {global("torch._utils", function), global(type_module, type), arguments, state});
}
std::string plain_arguments() {
  return tuple({kFloats, integer(0), integers({6}), integers({1}), kFalse, kHooks});
}

std::string file_with(const std::string& body) {
  ZipParts zip;
  zip.entries = {
      streamed_entry("x/data.pkl", pickle(body)), streamed_entry("x/data/0", std::string(24, 'f')),
      streamed_entry("x/data/1", std::string(48, 'l')),
      streamed_entry("x/data/2", std::string(6, 'q')), streamed_entry("x/version", "3\n")};
  return build(zip);
}

struct Case {
  const char* form;
  std::string body;
};

std::vector<Case> cases() {
  const std::string keywords =
      dict({string("values"), kValues, string("offsets"), kCount, string("lengths"), kNone,
            string("_ragged_idx"), integer(1), string("_metadata_cache"), "}",
            string("requires_grad"), kFalse});
  return {
      {"sparse_coo", sparse("torch.sparse_coo", {kIndices, kValues, kSize, kTrue})},
      {"sparse_csr", sparse("torch.sparse_csr", {kCount, kCount, kValues, kSize})},
      {"sparse_csc", sparse("torch.sparse_csc", {kCount, kCount, kValues, kSize})},
      {"sparse_bsr", sparse("torch.sparse_bsr", {kCount, kCount, kValues, kSize})},
      {"sparse_bsc", sparse("torch.sparse_bsc", {kCount, kCount, kValues, kSize})},
      {"quantized_per_tensor", quantized("QInt8Storage", per_tensor())},
      {"quantized_per_tensor", quantized("QUInt8Storage", per_tensor())},
      {"quantized_per_channel",
       quantized("QInt8Storage",
                 tuple({global("torch", "per_channel_affine"), kValues, kCount, integer(0)}))},
      {"nested", call("torch._utils", "_rebuild_nested_tensor", {kValues, kCount, kCount, kCount})},
      {"jagged", call("torch._tensor", "_rebuild_from_type_v2",
                      {global("torch.nested._internal.nested_tensor", "_rebuild_njt"),
                       global("torch.nested._internal.nested_tensor", "NestedTensor"),
                       tuple({keywords}), "}"})},
      {"parameter",
       call("torch._utils", "_rebuild_parameter",
            {sparse("torch.sparse_coo", {kIndices, kValues, kSize, kTrue}), kTrue, kHooks})},
      {"parameter", call("torch._utils", "_rebuild_parameter_with_state",
                         {kValues, kTrue, kHooks, dict({string("a"), integer(1)})})},
      {"with_attributes", from_type("_rebuild_tensor_v2", "torch", "Tensor", plain_arguments(),
                                    dict({string("a"), kValues}))},
      {"with_attributes",
       from_type("_rebuild_sparse_tensor", "torch", "Tensor",
                 tuple({layout("torch.sparse_coo"), tuple({kIndices, kValues, kSize, kTrue})}),
                 dict({string("a"), integer(1)}))},
  };
}

TEST(Composite, IsReadAndWrittenAsTheCallThatItIs) {
  for (const auto& [form, body] : cases()) {
    SCOPED_TRACE(form);
    const Value state = load_bytes(file_with(dict({string("x"), body})));
    ASSERT_EQ(state["x"].kind(), Kind::composite);
    EXPECT_EQ(state["x"]["form"].as_string(), form);
    EXPECT_EQ(Comparison::difference(state, load_bytes(file_of(state))), "");
    EXPECT_EQ(file_of(state), file_of(load_bytes(file_of(state))));
  }
}

TEST(Composite, ItsPartsAreTensorsOfTheTree) {
  const std::string bytes =
      file_with(dict({string("x"), sparse("torch.sparse_csr", {kCount, kCount, kValues, kSize}),
                      string("values"), kValues}));
  const Value state = load_bytes(bytes);
  EXPECT_EQ(state["x"]["values"].as_tensor().storage, state["values"].as_tensor().storage);
  EXPECT_EQ(state["x"]["size"][0].as_int(), 9);
  EXPECT_EQ(verify(source_of(bytes)).tensors, 4u);
}

TEST(Composite, OldFilesDoNotSayWhetherTheyAreCoalesced) {
  const Value state = load_bytes(file_with(sparse("torch.sparse_coo", {kIndices, kValues, kSize})));
  EXPECT_TRUE(state["is_coalesced"].is_none());
  EXPECT_EQ(Comparison::difference(state, load_bytes(file_of(state))), "");
}

TEST(Composite, WhatTheCompilerNotedIsNoAttribute) {
  const auto noted = [](const std::string& state) {
    return load_bytes(
        file_with(from_type("_rebuild_tensor_v2", "torch", "Tensor", plain_arguments(), state)));
  };
  EXPECT_EQ(noted(dict({string("_dynamo_dynamic_indices"), "]"})).kind(), Kind::tensor);
  EXPECT_EQ(noted(dict({string("_specialize_on"), "}", string("a"), kTrue}))["attributes"]
                .as_dict()
                .size(),
            1u);
}

TEST(Composite, OfUnknownFormItIsOpaqueAndItsTensorsAreSeen) {
  const std::string bodies[] = {
      sparse("torch.sparse_coo", {kIndices, kValues}),
      sparse("torch.sparse_coo", {kIndices, kValues, kSize, kTrue, kTrue}),
      sparse("torch.sparse_coo", {kIndices, kNone, kSize, kTrue}),
      sparse("torch.sparse_xyz", {kIndices, kValues, kSize, kTrue}),
      sparse("torch.sparse_csr", {kCount, kCount, kSize, kValues}),
      call("torch._utils", "_rebuild_nested_tensor", {kValues, kCount, kCount}),
      call("torch._tensor", "_rebuild_from_type_v2",
           {global("os", "system"), global("torch", "Tensor"), tuple({kValues}), "}"}),
      call("torch._tensor", "_rebuild_from_type_v2",
           {global("torch._utils", "_rebuild_from_type_v2"), global("torch", "Tensor"),
            tuple({kValues}), "}"}),
      from_type("_rebuild_tensor_v2", "mine", "Tensor", plain_arguments(),
                dict({string("a"), integer(1)})),
  };
  for (const std::string& body : bodies) {
    const std::string file = file_with(body);
    EXPECT_EQ(error_of([&] { load_bytes(file); }).code(), ErrorCode::unsupported);
    const CheckpointFile shown = CheckpointFile::open(source_of(file), true);
    EXPECT_EQ(shown.value().kind(), Kind::opaque);
    EXPECT_GT(verify(source_of(file)).tensors, 0u);
  }
}

TEST(Composite, QuantizedStoragesAreNoOthers) {
  const std::string both = dict({string("q"), quantized("QInt8Storage", per_tensor()), string("i"),
                                 tensor(storage("CharStorage", "2", 6), 0, {6}, {1})});
  EXPECT_ERROR(corrupt, "a storage of another type elsewhere", load_bytes(file_with(both)));
  EXPECT_ERROR(unsupported, "which perdure does not know",
               load_bytes(file_with(quantized("CharStorage", per_tensor()))));
  EXPECT_ERROR(unsupported, "quantized in a way",
               load_bytes(file_with(
                   quantized("QInt8Storage", tuple({global("torch", "per_moon_affine"), kZero})))));
}

TEST(Composite, PartsThatAreOfNoFormAreNotSaved) {
  float numbers[] = {1, 2};
  const Value x = Tensor::over(numbers, DType::float32, {2});
  const auto refused = [](Dict dict) {
    EXPECT_ERROR(invalid, "not those of any form", file_of(Dict{{"x", std::move(dict)}}));
  };
  refused(Dict(Kind::composite));
  refused(Dict(Kind::composite).set("form", "sparse_coo"));
  refused(Dict(Kind::composite).set("form", "no such").set("values", x));
  Dict wrong(Kind::composite);
  wrong.set("form", "nested").set("buffer", x).set("sizes", x).set("strides", x).set("offsets", 3);
  refused(wrong);
  EXPECT_TRUE(make_composite(Form::nested, {x, x, x}).is_none());
  // The integers of a quantized tensor are of three dtypes, and no other tensor's.
  EXPECT_TRUE(make_composite(Form::quantized_per_tensor, {x, 0.5, 1, false}).is_none());
  std::int8_t integers[] = {1, 2};
  const Value i = Tensor::over(integers, DType::int8, {2});
  const Value q = make_composite(Form::quantized_per_tensor, {i, 0.5, 1, false});
  EXPECT_NO_THROW(file_of(Dict{{"q", q}}));
  EXPECT_ERROR(invalid, "shares its memory with a quantized tensor",
               file_of(Dict{{"q", q}, {"i", i}}));
}

}  // namespace
}  // namespace perdure::test
