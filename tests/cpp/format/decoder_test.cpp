// From a parsed pickle to values: what has a meaning, what stays inert, and what geometry is
// refused.
#include "format/decoder.hpp"

#include <gtest/gtest.h>

#include <cstdint>
#include <cstring>

#include "expect_error.hpp"
#include "format/memory_source.hpp"
#include "format/pickle_text.hpp"
#include "format/torch_file.hpp"
#include "format/zip_parts.hpp"

namespace perdure::test {
namespace {

using namespace text;
constexpr auto kMax = std::int64_t{0x7FFFFFFFFFFFFFFF};

// As if the file had data/0 of 24 bytes and data/empty of none.
std::optional<std::uint64_t> record_size(std::string_view key) {
  if (key == "0") return 24;
  if (key == "empty") return 0;
  return std::nullopt;
}

Value decoded(const std::string& body, bool allow_opaque = false) {
  const std::string bytes = pickle(body);
  return format::decode(format::read_pickle(bytes), record_size, allow_opaque).value;
}

const std::string kFloats = storage("FloatStorage", "0", 6);
const std::string kBytes = storage("UntypedStorage", "0", 24, "cpu", "torch.storage");

// ---- what has a meaning

TEST(Decoder, GivesTensorsTheirGeometry) {
  const Value value = decoded(list({tensor(kFloats, 1, {2, 2}, {3, 1})}));
  const Tensor& tensor = value[0].as_tensor();
  EXPECT_EQ(tensor.dtype, DType::float32);
  EXPECT_EQ(tensor.shape, (std::vector<std::int64_t>{2, 2}));
  EXPECT_EQ(tensor.strides, (std::vector<std::int64_t>{3, 1}));
  EXPECT_EQ(tensor.storage_offset, 1);
  EXPECT_EQ(tensor.storage->size, 24u);
  EXPECT_EQ(tensor.storage->record, 0);
  EXPECT_EQ(tensor.storage->data, nullptr);
}

// A damaged file has lost its records: the pickle says how large they were.
TEST(Decoder, TakesThePicklesWordWhereThereAreNoRecords) {
  const auto sizes = [](const std::string& body) {
    const std::string bytes = pickle(body);
    return format::decode(format::read_pickle(bytes), {}, false).storages;
  };
  const std::string other = storage("DoubleStorage", "gone", 5);
  const auto storages = sizes(list({tensor(kFloats, 0, {6}, {1}), tensor(other, 0, {5}, {1})}));
  ASSERT_EQ(storages.size(), 2u);
  EXPECT_EQ(storages[0]->size, 24u);
  EXPECT_EQ(storages[1]->size, 40u);
  EXPECT_ERROR(corrupt, "has 40 bytes, not 4 elements",
               sizes(list({tensor(other, 0, {5}, {1}),
                           tensor(storage("DoubleStorage", "gone", 4), 0, {1}, {1})})));
  EXPECT_ERROR(corrupt, "reaches to byte 48", sizes(tensor(other, 0, {6}, {1})));
  EXPECT_ERROR(corrupt, "elements of 8 bytes",
               sizes(tensor(storage("DoubleStorage", "huge", kMax), 0, {1}, {1})));
  EXPECT_ERROR(corrupt, "-1 elements", sizes(tensor(storage("ByteStorage", "0", -1), 0, {0}, {1})));
}

TEST(Decoder, KnowsEverySpellingOfTorch) {
  const std::string hooks = kHooks;
  EXPECT_EQ(decoded(call("torch._utils", "_rebuild_tensor",
                         {kFloats, integer(0), integers({6}), integers({1})}))
                .as_tensor()
                .numel(),
            6u);
  EXPECT_TRUE(decoded(call("torch._utils", "_rebuild_tensor_v2",
                           {kFloats, integer(0), integers({6}), integers({1}), kTrue, hooks}))
                  .as_tensor()
                  .requires_grad);
  const std::string complex = storage("ComplexFloatStorage", "0", 3);
  EXPECT_TRUE(decoded(call("torch._utils", "_rebuild_tensor_v2",
                           {complex, integer(0), integers({3}), integers({1}), kFalse, hooks,
                            dict({string("conj"), kTrue})}))
                  .as_tensor()
                  .conj);
  const Value v3 = decoded(call("torch._utils", "_rebuild_tensor_v3",
                                {kBytes, integer(0), integers({12}), integers({1}), kFalse, hooks,
                                 global("torch", "uint16"), dict({string("neg"), kTrue})}));
  EXPECT_EQ(v3.as_tensor().dtype, DType::uint16);
  EXPECT_TRUE(v3.as_tensor().neg);
  const Value parameter = decoded(
      call("torch._utils", "_rebuild_parameter", {tensor(kFloats, 0, {6}, {1}), kTrue, hooks}));
  EXPECT_TRUE(parameter.as_tensor().parameter && parameter.as_tensor().requires_grad);
  const Value meta =
      decoded(call("torch._utils", "_rebuild_meta_tensor_no_storage",
                   {global("torch", "float16"), integers({3, 4}), integers({4, 1}), kFalse}));
  EXPECT_EQ(meta.as_tensor().storage->device, "meta");
  EXPECT_EQ(meta.as_tensor().storage->size, 24u);
  const Value sized =
      decoded(call("torch._utils", "_rebuild_tensor",
                   {kFloats, integer(0), call("torch", "Size", {integers({6})}), integers({1})}));
  EXPECT_EQ(sized.as_tensor().shape, std::vector<std::int64_t>{6});
}

TEST(Decoder, KnowsTheTypesOfPlainData) {
  for (const char* builtins : {"builtins", "__builtin__"}) {
    EXPECT_EQ(decoded(call(builtins, "set", {list({integer(1), integer(2)})})).as_items().size(),
              2u);
    EXPECT_EQ(decoded(call(builtins, "set", {})).kind(), Kind::set);
    EXPECT_EQ(decoded(call(builtins, "bytes", {})).as_string(), "");
    EXPECT_EQ(decoded(call(builtins, "bytearray", {})).kind(), Kind::bytearray);
    EXPECT_EQ(
        decoded(call(builtins, "bytearray", {string("\xc3\xbf"), string("latin-1")})).as_string(),
        "\xff");
    EXPECT_EQ(decoded(call(builtins, "bytearray",
                           {call("_codecs", "encode", {string("\xc2\x80"), string("latin1")})}))
                  .as_string(),
              "\x80");
    EXPECT_EQ(decoded(call(builtins, "complex",
                           {"G\x3f\xf0" + std::string(6, '\0'), "G" + std::string(8, '\0')}))
                  .as_complex(),
              std::complex<double>(1));
  }
  EXPECT_EQ(decoded(call("_codecs", "encode", {string("a\xc3\xa9"), string("latin1")})).as_string(),
            "a\xe9");
  EXPECT_EQ(decoded(call("torch", "device", {string("cuda"), integer(1)})).as_string(), "cuda:1");
  EXPECT_EQ(decoded(call("torch", "device", {string("cpu")})).as_string(), "cpu");
  EXPECT_EQ(decoded(call("torch.serialization", "_get_layout", {string("torch.strided")})).kind(),
            Kind::layout);
  EXPECT_EQ(decoded(global("torch", "float8_e4m3fn")).as_dtype(), DType::float8_e4m3fn);
  EXPECT_EQ(
      decoded(call("collections", "Counter", {dict({string("a"), integer(2)})}))["a"].as_int(), 2);
  EXPECT_EQ(decoded(call(
                "collections", "OrderedDict",
                {list({list({string("a"), integer(2)}), tuple({string("b"), integer(3)})})}))["b"]
                .as_int(),
            3);
  // As Python 2 wrote a state_dict.
  const Value old =
      decoded(call("collections", "OrderedDict", {list({list({string("a"), integer(1)})})}) +
              dict({string("_metadata"), integer(7)}) + "b");
  EXPECT_EQ(old["a"].as_int(), 1);
  EXPECT_EQ(old.as_dict().attributes()->find("_metadata")->as_int(), 7);
  const Value ordered = decoded(call("collections", "OrderedDict", {}) + string("a") + integer(1) +
                                "s" + dict({string("_metadata"), integer(5)}) + "b");
  EXPECT_EQ(ordered.kind(), Kind::ordered_dict);
  EXPECT_EQ(ordered.as_dict().attributes()->at("_metadata").as_int(), 5);
}

TEST(Decoder, TheFileOfTorchSaveLoads) {
  const Value state = load_bytes(kTorchFile);
  EXPECT_EQ(state["epoch"].as_int(), 3);
  const Tensor &w = state["w"].as_tensor(), &row = state["row"].as_tensor();
  EXPECT_EQ(w.storage, row.storage);
  EXPECT_EQ(row.storage_offset, 3);
  float numbers[6];
  ASSERT_EQ(w.storage->size, sizeof numbers);
  std::memcpy(numbers, w.storage->data, sizeof numbers);
  for (int i = 0; i < 6; ++i) EXPECT_EQ(numbers[i], static_cast<float>(i));
}

// ---- geometry

TEST(Decoder, NoTensorReachesOutsideOfItsRecord) {
  const std::pair<const char*, std::string> cases[] = {
      {"reaches to byte 28 of a storage of 24", tensor(kFloats, 0, {7}, {1})},
      {"reaches to byte 28", tensor(kFloats, 1, {6}, {1})},
      {"reaches to byte 28", tensor(kFloats, 6, {}, {})},
      {"reaches to byte 28", tensor(kFloats, 0, {2}, {6})},
      {"reaches to byte 28", tensor(kFloats, 0, {2, 2}, {3, 3})},
      {"negative size", tensor(kFloats, 0, {-1}, {1})},
      {"negative stride", tensor(kFloats, 5, {2}, {-1})},
      {"negative offset", tensor(kFloats, -1, {1}, {1})},
      {"2 sizes but 1 strides", tensor(kFloats, 0, {1, 1}, {1})},
      {"overflows", tensor(kFloats, 0, {kMax, kMax}, {1, 1})},
      {"overflows", tensor(kFloats, 0, {kMax, kMax}, {0, 0})},
      {"overflows", tensor(kFloats, kMax, {2}, {kMax})},
      {"overflows", tensor(kFloats, 0, {3}, {kMax})},
      {"overflows", tensor(kFloats, kMax, {1}, {1})},
      {"overflows", tensor(kFloats, 0, {std::int64_t{1} << 62}, {4})},
      {"reaches to byte 4 of a storage of 0",
       tensor(storage("FloatStorage", "empty", 0), 0, {1}, {1})},
  };
  for (const auto& [message, body] : cases) {
    EXPECT_ERROR(corrupt, message, decoded(dict({string("w"), body})));
    EXPECT_ERROR(corrupt, "state['w']", decoded(dict({string("w"), body})));
    EXPECT_ERROR(corrupt, message, decoded(body, true));
  }
  EXPECT_EQ(decoded(tensor(storage("FloatStorage", "empty", 0), 0, {0}, {1})).as_tensor().numel(),
            0u);
  EXPECT_EQ(decoded(tensor(kFloats, 5, {1000, 1}, {0, 77})).as_tensor().numel(), 1000u);
}

TEST(Decoder, WidthsOfV3AreThoseOfTheDtype) {
  const auto wide = [](std::int64_t offset, std::int64_t size, const char* dtype) {
    return call("torch._utils", "_rebuild_tensor_v3",
                {kBytes, integer(offset), integers({size}), integers({1}), kFalse, kHooks,
                 global("torch", dtype)});
  };
  EXPECT_EQ(decoded(wide(0, 3, "uint64")).as_tensor().numel(), 3u);
  EXPECT_ERROR(corrupt, "reaches to byte 32", decoded(wide(1, 3, "uint64")));
  EXPECT_ERROR(corrupt, "reaches to byte 26", decoded(wide(0, 13, "uint16")));
  EXPECT_ERROR(unsupported, "torch.quint128", decoded(wide(0, 1, "quint128")));
}

TEST(Decoder, TheRecordHasTheSizeThatTheStorageClaims) {
  const std::string storages[] = {storage("FloatStorage", "0", 5),
                                  storage("FloatStorage", "0", 7),
                                  storage("FloatStorage", "0", -1),
                                  storage("FloatStorage", "0", kMax),
                                  storage("FloatStorage", "0", (std::int64_t{1} << 62) + 6),
                                  storage("DoubleStorage", "0", 6),
                                  storage("ComplexDoubleStorage", "0", 1),
                                  storage("UntypedStorage", "0", 6, "cpu", "torch.storage"),
                                  storage("FloatStorage", "empty", 1)};
  for (const std::string& of : storages)
    EXPECT_ERROR(corrupt, "the record 'data/", decoded(tensor(of, 0, {0}, {1})));
  EXPECT_ERROR(corrupt, "'data/1' is not in the file",
               decoded(tensor(storage("FloatStorage", "1", 6), 0, {6}, {1})));
  EXPECT_ERROR(corrupt, "is not in the file",
               decoded(tensor(storage("FloatStorage", "../0", 6), 0, {6}, {1})));
}

TEST(Decoder, StoragesOfOneKeyAreOne) {
  const Value pair = decoded(tuple({tensor(kFloats, 0, {6}, {1}), tensor(kFloats, 2, {1}, {1})}));
  EXPECT_EQ(pair[0].as_tensor().storage, pair[1].as_tensor().storage);
}

// torch.load would give all of them the type that comes first.
TEST(Decoder, ARecordIsAStorageOfOneType) {
  const std::string ints = storage("IntStorage", "0", 6);
  EXPECT_ERROR(corrupt, "state[1]: its record is a storage of another type",
               decoded(list({tensor(kFloats, 0, {6}, {1}), tensor(ints, 0, {6}, {1})})));
  EXPECT_ERROR(corrupt, "another type",
               decoded(list({tensor(kBytes, 0, {24}, {1}), tensor(kFloats, 0, {6}, {1})})));
  // To torch an untyped one has bytes; so torch.save writes a uint8 tensor and a view of it.
  const std::string bytes = storage("ByteStorage", "0", 24);
  EXPECT_NO_THROW(decoded(list({tensor(kBytes, 0, {24}, {1}), tensor(bytes, 0, {24}, {1})})));
}

TEST(Decoder, KnownCallsWithImpossibleArgumentsAreDamage) {
  const std::string bodies[] = {
      call("torch._utils", "_rebuild_tensor_v2", {}),
      call("torch._utils", "_rebuild_tensor_v2", {kFloats}),
      call("torch._utils", "_rebuild_tensor_v2",
           {kNone, integer(0), integers({1}), integers({1}), kFalse, kHooks}),
      call("torch._utils", "_rebuild_tensor_v2",
           {kFloats, kNone, integers({1}), integers({1}), kFalse, kHooks}),
      call("torch._utils", "_rebuild_tensor_v2",
           {kFloats, integer(0), list({integer(1)}), integers({1}), kFalse, kHooks}),
      call("torch._utils", "_rebuild_tensor_v2",
           {kFloats, integer(0), tuple({string("1")}), integers({1}), kFalse, kHooks}),
      call("torch._utils", "_rebuild_tensor_v2",
           {kFloats, integer(0), tuple({kTrue}), integers({1}), kFalse, kHooks}),
      call("torch._utils", "_rebuild_tensor_v2",
           {kFloats, integer(0), integers({1}), integers({1}), integer(1), kHooks}),
      call("torch._utils", "_rebuild_tensor_v2",
           {kFloats, integer(0), integers({1}), integers({1}), kFalse, kHooks,
            dict({string("conj"), kTrue})}),
      call("torch._utils", "_rebuild_tensor_v2",
           {kFloats, integer(0), integers({1}), integers({1}), kFalse, kHooks, list({})}),
      call("torch._utils", "_rebuild_tensor_v3",
           {kBytes, integer(0), integers({1}), integers({1}), kFalse, kHooks, string("uint8")}),
      call("torch._utils", "_rebuild_parameter", {integer(1), kTrue, kHooks}),
      call("torch._utils", "_rebuild_parameter", {tensor(kFloats, 0, {6}, {1})}),
      tensor(integer(0) + "Q", 0, {1}, {1}),
      tensor(tuple({string("storage")}) + "Q", 0, {1}, {1}),
      tensor(tuple({string("module"), global("torch", "FloatStorage"), string("0"), string("cpu"),
                    integer(6)}) +
                 "Q",
             0, {1}, {1}),
      tensor(tuple({string("storage"), string("FloatStorage"), string("0"), string("cpu"),
                    integer(6)}) +
                 "Q",
             0, {1}, {1}),
      tensor(tuple({string("storage"), global("torch", "FloatStorage"), integer(0), string("cpu"),
                    integer(6)}) +
                 "Q",
             0, {1}, {1}),
      tensor(tuple({string("storage"), global("torch", "FloatStorage"), string("0"), kNone,
                    integer(6)}) +
                 "Q",
             0, {1}, {1}),
      call("collections", "OrderedDict", {integer(1)}),
      call("collections", "OrderedDict", {list({integer(1)})}),
      call("collections", "OrderedDict", {list({tuple({integer(1)})})}),
      call("collections", "Counter", {list({})}),
      call("builtins", "set", {tuple({integer(1)})}),
      call("builtins", "bytes", {integer(1)}),
      call("builtins", "bytearray", {integer(1'000'000'000'000)}),
      call("builtins", "complex", {integer(1), integer(2)}),
      call("_codecs", "encode", {string("a"), string("rot13")}),
      call("_codecs", "encode", {string("\xc4\x80"), string("latin1")}),
      call("_codecs", "encode", {string("\xc3"), string("latin1")}),
      call("torch", "Size", {integers({1}), integers({1})}),
      call("torch", "Size", {list({})}),
      call("torch", "device", {}),
      call("torch", "device", {integer(1)}),
      call("torch", "device", {string("")}),
      call("torch", "device", {string("\x1b[2J")}),
      call("torch", "device", {string("\xed\xa0\x80")}),
      call("torch.serialization", "_get_layout", {string("torch strided")}),
      tensor(storage("FloatStorage", "0", 6, std::string(101, 'x')), 0, {1}, {1}),
      string("\xff"),
      dict({list({}), integer(1)}),
      dict({string("a"), integer(1), string("a"), integer(2)}),
      dict({kTrue, integer(1), integer(1), integer(2)}),
      call("builtins", "set", {list({integer(1), kTrue})}),
      call("builtins", "set", {list({list({})})}),
      call("collections", "OrderedDict", {}) + list({}) + "b",
  };
  for (const std::string& body : bodies) {
    SCOPED_TRACE(testing::PrintToString(body));
    EXPECT_ERROR(corrupt, "data.pkl, ", decoded(body));
  }
}

// ---- what stays inert

TEST(Decoder, WhatIsNotPlainDataIsUnsupportedWithItsPlace) {
  const std::pair<const char*, std::string> cases[] = {
      {"<'posix'.'system'>", call("posix", "system", {string("touch /tmp/x")})},
      {"<'__builtin__'.'eval'>", call("__builtin__", "eval", {string("1")})},
      {"<'__main__'.'Config'>",
       global("__main__", "Config") + ")\x81" + dict({string("lr"), integer(1)}) + "b"},
      {"<'os'.'system'>", global("os", "system")},
      {"<'torch.float32'.''>", global("torch.float32", "")},
      {"frozenset", "(" + integer(1) + "\x91"},
      {"storage without a tensor", kFloats},
      {"a call of something that is no name", call("a", "b", {}) + ")R"},
      // Whole names only: a dotted walk from another module is another thing.
      {"<'torch'.'_utils._rebuild_tensor_v2'>",
       call("torch", "_utils._rebuild_tensor_v2",
            {kFloats, integer(0), integers({6}), integers({1}), kFalse, kHooks})},
      {"<'torch._utils '.'_rebuild_tensor'>",
       call("torch._utils ", "_rebuild_tensor",
            {kFloats, integer(0), integers({6}), integers({1})})},
      {"<'evil'.'OrderedDict'>", call("evil", "OrderedDict", {})},
      {"evil.FloatStorage", tensor(storage("FloatStorage", "0", 6, "cpu", "evil"), 0, {6}, {1})},
      {"torch.QInt8Storage", tensor(storage("QInt8Storage", "0", 24), 0, {6}, {1})},
      // __new__ alone makes other values than the call.
      {"<'builtins'.'set'>", global("builtins", "set") + tuple({list({integer(1)})}) + "\x81"},
      {"<'collections'.'OrderedDict'>", global("collections", "OrderedDict") + ")\x81"},
      {"<'collections'.'OrderedDict'>",
       global("collections", "OrderedDict") + ")" + dict({string("a"), integer(1)}) + "\x92"},
      {"<'builtins'.'set'>",
       call("builtins", "set", {list({integer(1)})}) + dict({string("a"), integer(1)}) + "b"},
      {"<'builtins'.'bytes'>",
       call("builtins", "bytes", {}) + dict({string("a"), integer(1)}) + "b"},
      {"the flag 'requires_execution'",
       call("torch._utils", "_rebuild_tensor_v2",
            {kFloats, integer(0), integers({6}), integers({1}), kFalse, kHooks,
             dict({string("requires_execution"), kTrue})})},
  };
  for (const auto& [name, body] : cases) {
    EXPECT_ERROR(unsupported, name, decoded(dict({string("config"), body})));
    EXPECT_ERROR(unsupported, "state['config']", decoded(dict({string("config"), body})));
    EXPECT_EQ(decoded(dict({string("config"), body}), true)["config"].kind(), Kind::opaque) << name;
  }
}

TEST(Decoder, OpaqueThingsShowWhatTheyWouldHaveBeen) {
  const Value value = decoded(global("a", "B") + tuple({integer(7)}) + "\x81" +
                                  dict({string("w"), tensor(kFloats, 0, {6}, {1})}) + "b",
                              true);
  const Opaque& opaque = value.as_opaque();
  EXPECT_EQ(opaque.module, "a");
  EXPECT_EQ(opaque.name, "B");
  EXPECT_EQ(opaque.arguments[0].as_int(), 7);
  EXPECT_EQ(opaque.state["w"].as_tensor().numel(), 6u);
  EXPECT_ERROR(invalid, "<'a'.'B'> cannot be saved", file_of(value));
}

TEST(Decoder, OpaqueThingsMayBeKeysAndMembersOfWhatIsShown) {
  const std::string member = global("a", "Color") + tuple({integer(1)}) + "R";
  const Value keyed =
      decoded(dict({member, string("red"), "(" + integer(1) + "\x91", string("frozen")}), true);
  ASSERT_EQ(keyed.as_dict().size(), 2u);
  // An opaque too, so that nothing writes it with that text for its key.
  EXPECT_EQ(keyed["<'a'.'Color'>"].as_opaque().arguments.as_string(), "red");
  const Value set = decoded(call("builtins", "set", {list({member})}), true);
  EXPECT_EQ(set.as_opaque().name, "set");
  EXPECT_EQ(set.as_opaque().arguments[0].kind(), Kind::opaque);
  EXPECT_ERROR(unsupported, "Color", decoded(dict({member, string("red")})));
}

TEST(Decoder, AKeyTwiceIsDamageAlsoWhereItIsShown) {
  for (const bool allow_opaque : {false, true})
    EXPECT_ERROR(corrupt, "the key 'a' twice",
                 decoded(dict({string("a"), integer(1), string("a"), integer(2)}), allow_opaque));
}

TEST(Decoder, ADtypeThatIsNotKnownHidesNothingElse) {
  const Value state = decoded(dict({string("a"),
                                    call("torch._utils", "_rebuild_tensor_v3",
                                         {kBytes, integer(0), integers({1}), integers({1}), kFalse,
                                          kHooks, global("torch", "float2")}),
                                    string("b"), tensor(kBytes, 0, {6}, {1})}),
                              true);
  EXPECT_EQ(state["a"].kind(), Kind::opaque);
  EXPECT_EQ(state["b"].kind(), Kind::tensor);
}

// Names may be any bytes, and as many as there is room for: texts of errors are for people.
TEST(Decoder, NamesThatAreNotKnownAreQuotedAndCut) {
  const std::string name = "\xff\x1b[2J" + std::string(10'000, 'x');
  for (const std::string& body : {tensor(storage(name, "0", 6), 0, {1}, {1}),
                                  call("torch._utils", "_rebuild_tensor_v3",
                                       {kBytes, integer(0), integers({1}), integers({1}), kFalse,
                                        kHooks, global("torch", name)}),
                                  call(name, "x", {})}) {
    const Error error = error_of([&] { decoded(body); });
    EXPECT_EQ(error.code(), ErrorCode::unsupported);
    const std::string what = error.what();
    EXPECT_LT(what.size(), 1000U);
    EXPECT_NE(what.find("\\xff\\x1b[2J"), what.npos) << what;
  }
}

// ---- small files that ask for all memory

TEST(Decoder, ATextInManyPlacesIsCounted) {
  const std::string megabyte(1 << 20, 'x');
  std::string body = "(" + string(megabyte) + std::string("q\0", 2);
  for (int i = 0; i < 3000; ++i) body += std::string("h\0", 2);
  EXPECT_ERROR(unsupported, "would fill memory", decoded(body + "t"));
  // The same through everything else that holds text.
  const std::string put("q\0", 2), get("h\0", 2);
  const std::string kinds[] = {
      "B" + string(megabyte).substr(1), "\x8b" + string(megabyte).substr(1),
      call("_codecs", "encode", {string(megabyte), string("latin1")}), global(megabyte, "x")};
  for (const std::string& kind : kinds) {
    std::string all = "(" + kind + put;
    for (int i = 0; i < 3000; ++i) all += get;
    EXPECT_ERROR(unsupported, "would fill memory", decoded(all + "t", true));
  }
}

TEST(Decoder, ItemsThatCallsUnpackAgainAreCounted) {
  std::string items = "](";
  for (int i = 0; i < 50'000; ++i)
    items += "M" + std::string{static_cast<char>(i & 0xFF), static_cast<char>(i >> 8)};
  const std::string put("q\0", 2), get("h\0", 2);
  std::string sets = "(" + items + "e" + put;
  for (int i = 0; i < 5000; ++i) sets += global("builtins", "set") + get + "\x85R";
  EXPECT_ERROR(unsupported, "shared so often", decoded(sets + "t"));
}

TEST(Decoder, NestedCallsThatFailAreNotTriedAgainAndAgain) {
  // Shown, an unknown dtype is an opaque; the budget's end must not be retried at each of 200
  // levels.
  std::string body;
  const std::string megabyte(1 << 20, 'x');
  for (int i = 0; i < 60; ++i) body += global("torch._utils", "_rebuild_parameter");
  body += "(" + string(megabyte) + std::string("q\0", 2);
  for (int i = 0; i < 3000; ++i) body += std::string("h\0", 2);
  body += "t";
  for (int i = 0; i < 60; ++i) body += kTrue + kHooks + "\x87R";
  EXPECT_ERROR(unsupported, "would fill memory", decoded(body, true));
}

// ---- whole files

TEST(ForeignFile, APlainZipOfPythonLoads) {
  ZipParts zip;
  zip.entries = {
      plain_entry("m/data.pkl", pickle(dict({string("w"), tensor(kFloats, 0, {6}, {1})}))),
      plain_entry("m/data/0", std::string(24, '\1')), plain_entry("m/version", "3\n")};
  const auto file = CheckpointFile::open(source_of(build(zip)));
  EXPECT_TRUE(file.has_checksums());
  EXPECT_FALSE(file.has_block_checksums());
  EXPECT_FALSE(file.info().has_value());
  file.read_all(file.value());
  EXPECT_EQ(file.value()["w"].as_tensor().storage->data[23], std::byte{1});
  EXPECT_EQ(verify(source_of(build(zip))).state, VerifyReport::State::good);
}

ZipParts small_file(const std::string& key = "0") {
  ZipParts zip;
  zip.entries = {
      streamed_entry(
          "m/data.pkl",
          pickle(dict({string("w"), tensor(storage("FloatStorage", key, 2), 0, {2}, {1})}))),
      streamed_entry("m/data/" + key, "8 bytes!"), streamed_entry("m/version", "3\n")};
  return zip;
}

TEST(ForeignFile, KeysOfStoragesNeedNotBeNumbers) {
  const Value state = load_bytes(build(small_file("model.weight")));
  EXPECT_EQ(std::memcmp(state["w"].as_tensor().storage->data, "8 bytes!", 8), 0);
}

TEST(ForeignFile, WithoutAnyChecksumIsReadAndSaidToBeUnchecked) {
  ZipParts zip = small_file();
  for (ZipEntry& entry : zip.entries)
    entry.central.crc32 = 0, entry.descriptor = descriptor_of(entry);
  const auto file = CheckpointFile::open(source_of(build(zip)));
  EXPECT_FALSE(file.has_checksums());
  file.read_all(file.value());
  EXPECT_EQ(std::memcmp(file.storages()[0]->data, "8 bytes!", 8), 0);
  const VerifyReport report = verify(source_of(build(zip)));
  EXPECT_EQ(report.state, VerifyReport::State::unchecked);
  EXPECT_TRUE(report.findings.empty());
  EXPECT_EQ(report.tensors, 1u);
}

TEST(ForeignFile, OneChecksumMakesAllOfThemCount) {
  ZipParts zip = small_file();
  zip.entries[1].central.crc32 = 0;
  zip.entries[1].descriptor = descriptor_of(zip.entries[1]);
  EXPECT_ERROR(corrupt, "state['w'] is damaged: 8 bytes at offset", load_bytes(build(zip)));
  const VerifyReport report = verify(source_of(build(zip)));
  EXPECT_EQ(report.state, VerifyReport::State::damaged);
  ASSERT_EQ(report.findings.size(), 1u);
  EXPECT_EQ(report.findings[0].record, "data/0");
  EXPECT_EQ(report.findings[0].tensor, "state['w']");
}

TEST(ForeignFile, OtherFormatsAreNamed) {
  const auto open = [](const std::string& bytes) { CheckpointFile::open(source_of(bytes)); };
  EXPECT_ERROR(corrupt, "the file is empty", open(""));
  EXPECT_ERROR(corrupt, "does not begin as a PyTorch file", open(std::string(4096, '\0')));
  EXPECT_ERROR(unsupported, "tar format",
               open(std::string(257, '\0') + "ustar" + std::string(800, '\0')));
  EXPECT_ERROR(corrupt, "or is something else: a plain pickle",
               open(std::string("\x80\x04K\x01.")));
  EXPECT_ERROR(corrupt, "an HDF5 file", open("\x89HDF\r\n\x1a\n"));
  ZipParts zip = small_file();
  zip.entries.push_back(streamed_entry("m/constants.pkl", "\x80\x02)."));
  EXPECT_EQ(CheckpointFile::open(source_of(build(zip))).format(), "TorchScript");
  zip.entries.back() = streamed_entry("m/byteorder", "big");
  EXPECT_ERROR(unsupported, "big-endian", open(build(zip)));
  zip.entries.back() = streamed_entry("m/byteorder", "little");
  EXPECT_NO_THROW(open(build(zip)));
  zip.entries[2] = streamed_entry("m/version", "11\n");
  EXPECT_ERROR(unsupported, "version '11", open(build(zip)));
  zip.entries[2] = streamed_entry("m/other", "3\n");
  EXPECT_ERROR(unsupported, "without a version", open(build(zip)));
  zip.entries[2] = streamed_entry("m/.data/version", "6\n");
  EXPECT_NO_THROW(open(build(zip)));
  zip.entries[0] = streamed_entry("m/other.pkl", "");
  EXPECT_ERROR(unsupported, "without data.pkl", open(build(zip)));
}

TEST(ForeignFile, StructureThatIsWrongUnderAGoodChecksumNamesTheFile) {
  ZipParts zip = small_file();
  zip.entries[0] = streamed_entry(
      "m/data.pkl",
      pickle(dict({string("w"), tensor(storage("FloatStorage", "0", 2), 0, {3}, {1})})));
  EXPECT_ERROR(corrupt, "memory.pt: data.pkl, state['w']: a tensor that reaches to byte 12",
               load_bytes(build(zip)));
  EXPECT_EQ(verify(source_of(build(zip))).state, VerifyReport::State::damaged);
  zip.entries[0] = streamed_entry("m/data.pkl", "no pickle");
  EXPECT_ERROR(corrupt, "memory.pt: does not begin as a pickle", load_bytes(build(zip)));
}

// .perdure/index of a hostile file: it may not make the reader compare less, or read outside of its
// lists.
std::string index_bytes(std::uint64_t size, std::uint64_t offset, const std::string& content,
                        std::uint32_t block_size) {
  std::string out = "PERDUREX";
  put<std::uint32_t>(out, 1);
  put<std::uint32_t>(out, block_size);
  put<std::uint64_t>(out, 1);
  put<std::uint64_t>(out, 0);
  put<std::uint64_t>(out, offset);
  put<std::uint64_t>(out, size);
  put<std::uint32_t>(out, crc_of(content));
  for (std::size_t at = 0; at < content.size(); at += block_size)
    put<std::uint32_t>(out, crc_of(content.substr(at, block_size)));
  return out;
}

// The file with an index of data/0, whose offset is known once the file has been put together.
std::string file_with_index(ZipParts zip, std::uint32_t block_size,
                            const std::string& content = "8 bytes!", std::int64_t shift = 0) {
  zip.entries.push_back(streamed_entry("m/.perdure/index", index_bytes(8, 0, content, block_size)));
  const auto offset =
      static_cast<std::uint64_t>(static_cast<std::int64_t>(build(zip).find("8 bytes!")) + shift);
  zip.entries.back() =
      streamed_entry("m/.perdure/index", index_bytes(8, offset, content, block_size));
  return build(zip);
}

TEST(HostileIndex, AnyBlockSizeThatAgreesIsTaken) {
  for (const std::uint32_t block_size : {1u, 3u, 8u, 0xFFFFFFFFu}) {
    const std::string file = file_with_index(small_file(), block_size);
    EXPECT_EQ(std::memcmp(load_bytes(file)["w"].as_tensor().storage->data, "8 bytes!", 8), 0);
    EXPECT_EQ(verify(source_of(file)).state, VerifyReport::State::good);
  }
}

TEST(HostileIndex, ContradictionsAreDamage) {
  EXPECT_ERROR(corrupt, "memory.pt: .perdure/index contradicts",
               load_bytes(file_with_index(small_file(), 3, "8 bytes?")));
  EXPECT_ERROR(corrupt, "contradicts", load_bytes(file_with_index(small_file(), 3, "8 bytes!", 1)));
  ZipParts zip = small_file("1");  // the index speaks of data/0, which is not there
  EXPECT_ERROR(corrupt, "contradicts", load_bytes(file_with_index(zip, 3)));
  EXPECT_EQ(verify(source_of(file_with_index(zip, 3))).state, VerifyReport::State::damaged);
}

TEST(HostileIndex, ARecordOfAnotherSpellingIsNotTheIndexedOne) {
  // data/00 is longer than data/0 and has no blocks: it is compared as a whole.
  ZipParts zip = small_file();
  const std::string large(1000, 'x');
  zip.entries[0] = streamed_entry(
      "m/data.pkl",
      pickle(dict({string("w"), tensor(storage("FloatStorage", "00", 250), 0, {2}, {1}),
                   string("v"), tensor(storage("FloatStorage", "0", 2), 0, {2}, {1})})));
  zip.entries.push_back(streamed_entry("m/data/00", large));
  const std::string file = file_with_index(zip, 1);
  EXPECT_EQ(load_bytes(file)["w"].as_tensor().storage->size, 1000u);
  EXPECT_EQ(verify(source_of(file)).findings.size(),
            1u);  // two storages in data.pkl, one in the index
}

TEST(CheckpointFileApi, MisuseIsAnError) {
  const auto file = CheckpointFile::open(source_of(kTorchFile));
  const auto other = CheckpointFile::open(source_of(kTorchFile));
  std::byte memory[24];
  EXPECT_ERROR(invalid, "storage 1 of 1", file.read(1, memory));
  EXPECT_ERROR(invalid, "23 bytes to read record data/0 of 24",
               file.read(0, MutableBytes(memory, 23)));
  EXPECT_ERROR(invalid, "state['w'] is a tensor of another file", file.read_all(other.value()));
  EXPECT_NO_THROW(file.read(0, memory));
}

TEST(CheckpointFileApi, ReadsOnlyWhatIsAskedFor) {
  float a[2] = {1, 2}, b[3] = {3, 4, 5};
  const auto file = CheckpointFile::open(source_of(file_of(Dict{
      {"a", Tensor::over(a, DType::float32, {2})}, {"b", Tensor::over(b, DType::float32, {3})}})));
  file.read_all(file.value()["b"]);
  EXPECT_EQ(file.value()["a"].as_tensor().storage->data, nullptr);
  EXPECT_EQ(std::memcmp(file.value()["b"].as_tensor().storage->data, b, sizeof b), 0);
}

TEST(CheckpointFileApi, OpensAHundredThousandTensorsInLinearTime) {
  constexpr int kCount = 100'000;
  Dict state;
  auto byte = std::make_shared<std::vector<std::byte>>(kCount);
  for (int i = 0; i < kCount; ++i)
    state.set("layer" + std::to_string(i), Tensor::over(byte->data() + i, DType::uint8, {1}));
  const auto file = CheckpointFile::open(source_of(file_of(state)));
  EXPECT_EQ(file.storages().size(), static_cast<std::size_t>(kCount));
  EXPECT_EQ(file.records().size(), static_cast<std::size_t>(kCount) + 7);
  file.read_all(file.value());
}

}  // namespace
}  // namespace perdure::test
