// safetensors: what the format allows is read, and everything that it forbids is refused.
#include "format/safetensors.hpp"

#include <gtest/gtest.h>

#include <cstdint>

#include "expect_error.hpp"
#include "format/coding.hpp"
#include "format/memory_source.hpp"
#include "format/safetensors_file.hpp"

namespace perdure::test {
namespace {

using namespace format;

std::string file_with(const std::string& header, std::size_t data) {
  std::string out;
  put(out, static_cast<std::uint64_t>(header.size()));
  return out + header + std::string(data, '\1');
}

std::string entry(const std::string& name, const std::string& dtype, const std::string& shape,
                  std::uint64_t begin, std::uint64_t end) {
  return "\"" + name + "\":{\"dtype\":\"" + dtype + "\",\"shape\":" + shape +
         ",\"data_offsets\":[" + std::to_string(begin) + "," + std::to_string(end) + "]}";
}

Safetensors parsed(const std::string& members, std::uint64_t data) {
  return parse_safetensors_header("{" + members + "}", data);
}

TEST(Safetensors, ReadsTensorsInTheOrderOfTheirBytes) {
  const MemorySource source(file_with("{" + entry("b", "F32", "[2]", 1, 9) + "," +
                                          entry("a", "U8", "[1]", 0, 1) + "," +
                                          entry("scalar", "BF16", "[]", 9, 11) +
                                          ",\"__metadata__\":{\"format\":\"pt\",\"é\":\"\"}}  ",
                                      11));
  const Safetensors file = read_safetensors(source);
  ASSERT_EQ(file.tensors.size(), 3u);
  EXPECT_EQ(file.tensors[0].name, "a");
  EXPECT_EQ(file.tensors[1].name, "b");
  EXPECT_EQ(file.tensors[1].dtype, DType::float32);
  EXPECT_EQ(file.tensors[1].shape, std::vector<std::int64_t>{2});
  EXPECT_EQ(file.tensors[1].offset, 1u);
  EXPECT_EQ(file.tensors[1].size, 8u);
  EXPECT_TRUE(file.tensors[2].shape.empty());
  EXPECT_EQ(file.metadata, (TextMap{{"format", "pt"}, {"é", ""}}));
  EXPECT_EQ(file.data_begin + 11, source.size());
}

TEST(Safetensors, ReadsEmptyFilesAndEmptyTensors) {
  EXPECT_TRUE(parse_safetensors_header("{}", 0).tensors.empty());
  const Safetensors file =
      parsed(entry("a", "F32", "[2]", 0, 8) + "," + entry("none", "F64", "[3,0]", 0, 0) + "," +
                 entry("end", "I8", "[0]", 8, 8),
             8);
  ASSERT_EQ(file.tensors.size(), 3u);
  EXPECT_EQ(file.tensors[0].name, "none");
  EXPECT_EQ(file.tensors[0].shape, (std::vector<std::int64_t>{3, 0}));
}

TEST(Safetensors, KnowsEveryDTypeThatPyTorchHas) {
  for (std::size_t i = 0; i < kDTypeCount; ++i) {
    const auto dtype = static_cast<DType>(i);
    const std::string name(safetensors_dtype(dtype));
    if (name.empty()) continue;
    const bool half = dtype == DType::float4_e2m1fn_x2;
    const Safetensors file = parsed(
        entry("x", name, half ? "[3,4]" : "[3,2]", 0, 6 * itemsize(dtype)), 6 * itemsize(dtype));
    EXPECT_EQ(file.tensors[0].dtype, dtype) << name;
    EXPECT_EQ(file.tensors[0].shape, (std::vector<std::int64_t>{3, 2})) << name;
  }
  EXPECT_EQ(safetensors_dtype(DType::complex128), "");
  EXPECT_EQ(safetensors_dtype(DType::complex64), "C64");
  EXPECT_ERROR(unsupported, "PyTorch has not", parsed(entry("x", "F6_E2M3", "[4]", 0, 3), 3));
  EXPECT_ERROR(unsupported, "odd last dimension", parsed(entry("x", "F4", "[2,3]", 0, 3), 3));
  EXPECT_ERROR(unsupported, "'F128', which perdure does not know",
               parsed(entry("x", "F128", "[1]", 0, 16), 16));
}

TEST(Safetensors, RefusesWhatContradictsItself) {
  const auto refused = [](const char* what, const std::string& members, std::uint64_t data) {
    EXPECT_ERROR(corrupt, what, parsed(members, data));
  };
  refused("'x' has 4 bytes, but its dtype and shape take 8", entry("x", "F32", "[2]", 0, 4), 4);
  refused("its bytes at 8 to 4", entry("x", "F32", "[1]", 8, 4), 8);
  refused("its bytes at 0 to 8 of the 4", entry("x", "F32", "[2]", 0, 8), 4);
  refused("a hole is in front", entry("x", "F32", "[1]", 4, 8), 8);
  refused("another tensor has not ended",
          entry("x", "F32", "[2]", 0, 8) + "," + entry("y", "F32", "[1]", 4, 8), 8);
  refused("take 4 bytes, but 6 follow", entry("x", "F32", "[1]", 0, 4), 6);
  refused("'x' twice", entry("x", "U8", "[1]", 0, 1) + "," + entry("x", "U8", "[1]", 1, 2), 2);
  refused("more elements", entry("x", "U8", "[4294967296,4294967296,2]", 0, 1), 1);
  refused("more elements", entry("x", "F64", "[2305843009213693952]", 0, 1), 1);
  refused("more elements", entry("x", "U8", "[9223372036854775808]", 0, 1), 1);
  refused("does not end at a byte", entry("x", "F4", "[1]", 0, 1), 1);
}

TEST(Safetensors, RefusesOtherForms) {
  const auto refused = [](const char* what, const std::string& members) {
    EXPECT_ERROR(corrupt, what, parsed(members, 1));
  };
  refused("a dtype, a shape and two data_offsets", "\"x\":{}");
  refused("a dtype, a shape and two data_offsets",
          "\"x\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0]}");
  refused("a dtype, a shape and two data_offsets",
          "\"x\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1,1]}");
  refused("'x' has 'dtype' twice", "\"x\":{\"dtype\":\"U8\",\"dtype\":\"U8\"}");
  refused("'x' has 'shape' twice", "\"x\":{\"shape\":[],\"shape\":[]}");
  refused("'x' has 'data_offsets' twice", "\"x\":{\"data_offsets\":[0],\"data_offsets\":[1]}");
  refused("'x' has 'data_offsets' twice", "\"x\":{\"data_offsets\":[],\"data_offsets\":[0,1]}");
  refused("'x' at 'more' holds a member", "\"x\":{\"more\":1}");
  refused("holds a negative number", "\"x\":{\"dtype\":\"U8\",\"shape\":[-1]}");
  refused("holds a fraction", "\"x\":{\"dtype\":\"U8\",\"shape\":[1.0]}");
  refused("holds a fraction", "\"x\":{\"dtype\":\"U8\",\"shape\":[18446744073709551616]}");
  refused("holds a boolean", "\"x\":true");
  refused("holds a null", "\"x\":null");
  refused("holds a number", "\"x\":1");
  refused("holds a string", "\"x\":\"F32\"");
  refused("holds an array", "\"x\":[]");
  refused("holds an array", "\"x\":{\"shape\":[[1]]}");
  refused("holds an array", "\"x\":{\"dtype\":[1]}");
  refused("holds an object", "\"x\":{\"shape\":{}}");
  refused("holds a number", "\"__metadata__\":{\"a\":1}");
  refused("'a' twice", "\"__metadata__\":{\"a\":\"\",\"a\":\"\"}");
  refused("'__metadata__' twice", "\"__metadata__\":{},\"__metadata__\":{}");
  refused("no JSON, from offset", "\"x\":");
  refused("no JSON", "\"\xff\":{}");
  EXPECT_ERROR(corrupt, "does not begin with '{'", parse_safetensors_header(" {}", 0));
  EXPECT_ERROR(corrupt, "no JSON", parse_safetensors_header("{}{}", 0));
  EXPECT_ERROR(corrupt, "NUL", parse_safetensors_header(std::string_view("{}\0 ", 4), 0));
}

TEST(Safetensors, NoTensorHasMoreBytesThanThereCanBe) {
  const std::int64_t large = std::int64_t{1} << 61;
  EXPECT_EQ(contiguous_tensor(DType::int16, {large}).strides, std::vector<std::int64_t>{1});
  EXPECT_ERROR(corrupt, "more bytes", contiguous_tensor(DType::float32, {large}));
  EXPECT_ERROR(corrupt, "more elements", contiguous_tensor(DType::uint8, {0, large, large}));
}

TEST(Safetensors, ListsOfNumbersCostLittleMemory) {
  std::string shape = "[1", offsets = "[0";
  for (int i = 0; i < 2000; ++i) shape += ",1", offsets += ",0";
  EXPECT_ERROR(corrupt, "more numbers",
               parsed("\"x\":{\"dtype\":\"U8\",\"shape\":" + shape + "]}", 1));
  EXPECT_ERROR(corrupt, "more numbers",
               parsed("\"x\":{\"dtype\":\"U8\",\"data_offsets\":" + offsets + "]}", 1));
}

TEST(Safetensors, NestingCostsNoMemory) {
  std::string deep = "{\"x\":{\"shape\":";
  deep.append(1 << 20, '[');
  EXPECT_ERROR(corrupt, "holds an array", parse_safetensors_header(deep, 0));
}

TEST(Safetensors, SaysWhereAFileIsCut) {
  const std::string whole = file_with("{" + entry("x", "F32", "[2]", 0, 8) + "}", 8);
  for (std::size_t size = 0; size < whole.size(); ++size) {
    const Error error =
        error_of([&] { read_safetensors(MemorySource(whole.substr(0, size), "cut.safetensors")); });
    EXPECT_EQ(error.code(), ErrorCode::corrupt);
    EXPECT_TRUE(std::string(error.what()).starts_with("cut.safetensors: ")) << error.what();
  }
  std::string large;
  put(large, std::uint64_t{100'000'001});
  EXPECT_ERROR(corrupt, "the format allows 100000000", read_safetensors(MemorySource(large)));
}

TEST(Safetensors, IsKnownByItsBeginning) {
  EXPECT_TRUE(is_safetensors(file_with("{}", 0)));
  EXPECT_FALSE(is_safetensors(""));
  EXPECT_FALSE(is_safetensors(std::string("PK\3\4\0\0\0\0{", 9)));
  EXPECT_FALSE(is_safetensors(file_with(" {}", 0)));
}

TEST(Safetensors, IsReadAsItWasLaidOut) {
  std::vector<SafetensorsEntry> tensors{{"a", DType::uint8, {3}, 0, 3},
                                        {"b\"\n\x01", DType::int64, {}, 0, 8},
                                        {"c", DType::float4_e2m1fn_x2, {2, 1}, 0, 2},
                                        {"b", DType::int64, {1}, 0, 8}};
  const std::string begin = lay_out_safetensors(tensors, {{"k", "v"}, {"l", "w"}});
  EXPECT_EQ(begin.size() % 8, 0u);
  EXPECT_EQ(tensors[0].name, "b");
  EXPECT_EQ(tensors[1].offset, 8u);
  const Safetensors again = parse_safetensors_header(begin.substr(8), 21);
  EXPECT_EQ(again.metadata, (TextMap{{"k", "v"}, {"l", "w"}}));
  ASSERT_EQ(again.tensors.size(), 4u);
  for (std::size_t i = 0; i < 4; ++i) {
    EXPECT_EQ(again.tensors[i].name, tensors[i].name);
    EXPECT_EQ(again.tensors[i].shape, tensors[i].shape);
    EXPECT_EQ(again.tensors[i].offset, tensors[i].offset);
  }
}

TEST(SafetensorsIndex, SaysWhichFileHasATensor) {
  const SafetensorsIndex index = parse_safetensors_index(
      R"({"metadata": {"total_size": 12, "by": "me", "n": 1}, "weight_map": {"a": "1.st", "b": "2.st", "c": "1.st"}})");
  EXPECT_EQ(index.files, (std::vector<std::string>{"1.st", "2.st"}));
  EXPECT_EQ(index.places, (std::map<std::string, std::size_t>{{"a", 0}, {"b", 1}, {"c", 0}}));
  EXPECT_EQ(index.metadata, (TextMap{{"by", "me"}, {"n", "1"}}));
  const SafetensorsIndex again = parse_safetensors_index(write_safetensors_index(index, 12));
  EXPECT_EQ(again.places, index.places);
  EXPECT_EQ(again.metadata, index.metadata);
}

TEST(SafetensorsIndex, RefusesOtherForms) {
  const auto refused = [](const char* what, const std::string& text) {
    EXPECT_ERROR(corrupt, what, parse_safetensors_index(text));
  };
  refused("no JSON", "{");
  refused("no JSON object", "[]");
  refused("no weight_map", "{}");
  refused("no weight_map", R"({"weight_map": []})");
  refused("no file name", R"({"weight_map": {"a": 1}})");
  refused("metadata is no object", R"({"weight_map": {}, "metadata": 1})");
  refused("twice", R"({"weight_map": {"a": "1", "a": "2"}})");
  refused("no file has a name of 256 bytes",
          R"({"weight_map": {"a": ")" + std::string(256, 'x') + R"("}})");
  for (const char* name : {"../a", "/etc/passwd", "..", ".", "", "a/b", "a\\\\b", "a\\u0000b"})
    EXPECT_ERROR(invalid, "never read",
                 parse_safetensors_index(std::string(R"({"weight_map": {"a": ")") + name + "\"}}"));
}

}  // namespace
}  // namespace perdure::test
