// .perdure/index: byte for byte what docs/format.md says, and nothing else is taken.
#include "format/block_index.hpp"

#include <gtest/gtest.h>

#include <cstdint>

#include "expect_error.hpp"
#include "format/coding.hpp"
#include "format/crc32.hpp"
#include "format/memory_source.hpp"

namespace perdure::test {
namespace {

using namespace format;

// Two storages, one of more than a block, and four tensors, one of them on the meta device.
struct Sample {
  std::string large = std::string(kBlockSize + 8, '\7');
  float small[4] = {1, 2, 3, 4};
  Value state;

  Sample() {
    Tensor weight =
        Tensor::over(large.data(), DType::float32, {static_cast<std::int64_t>(large.size() / 4)});
    weight.parameter = weight.requires_grad = true;
    Tensor row = Tensor::over(small, DType::float32, {4});
    row.shape = {2};
    row.strides = {2};
    row.storage_offset = 1;
    Tensor meta;
    meta.storage = std::make_shared<TensorStorage>();
    meta.storage->device = "meta";
    meta.dtype = DType::bfloat16;
    meta.shape = {7};
    meta.strides = {1};
    state = Dict{{"model", Dict{{"weight", weight}, {7, row}}}, {Value::tuple({1, "x"}), meta}};
  }
};

std::string index_of(const Sample& sample) {
  const CheckpointFile file = CheckpointFile::open(source_of(file_of(sample.state)));
  const std::string bytes = file_of(sample.state);
  for (const auto& record : file.records())
    if (record.name == ".perdure/index") return bytes.substr(record.offset, record.size);
  return {};
}

TEST(BlockIndex, HoldsEveryTensorAndChecksum) {
  const Sample sample;
  const BlockIndex index = read_index(index_of(sample));
  EXPECT_EQ(index.block_size, kBlockSize);
  ASSERT_EQ(index.storages.size(), 2u);
  const StorageChecksums& large = index.storages[0];
  EXPECT_EQ(large.size, sample.large.size());
  EXPECT_EQ(large.crc32, crc32(as_bytes(sample.large)));
  ASSERT_EQ(large.blocks.size(), 2u);
  EXPECT_EQ(large.blocks[1], crc32(as_bytes(sample.large.substr(kBlockSize))));
  EXPECT_EQ(index.storages[1].size, 12u);  // from the first to the last byte of the view

  ASSERT_EQ(index.tensors.size(), 3u);
  const IndexedTensor& weight = index.tensors[0];
  EXPECT_EQ(format_path(weight.path), "state['model']['weight']");
  EXPECT_TRUE(weight.geometry.parameter && weight.geometry.requires_grad && !weight.geometry.conj);
  const IndexedTensor& row = index.tensors[1];
  EXPECT_EQ(format_path(row.path), "state['model'][7]");
  EXPECT_EQ(row.record, 1);
  EXPECT_EQ(row.geometry.shape, std::vector<std::int64_t>{2});
  EXPECT_EQ(row.geometry.strides, std::vector<std::int64_t>{2});
  EXPECT_EQ(row.geometry.storage_offset, 0);
  const IndexedTensor& meta = index.tensors[2];
  EXPECT_EQ(meta.record, -1);
  EXPECT_EQ(meta.geometry.dtype, DType::bfloat16);
  EXPECT_EQ(meta.path[0].as_string(), "(1, 'x')");
}

TEST(BlockIndex, NamesEveryOtherDeviceThanTheCpu) {
  Sample sample;
  for (auto& [key, tensor] : sample.state.as_dict().find("model")->as_dict())
    if (key.kind() == Kind::integer) tensor.as_tensor().storage->device = "cuda:1";
  const std::string bytes = index_of(sample);
  const BlockIndex index = read_index(bytes);
  EXPECT_EQ(index.tensors[0].device, "cpu");
  EXPECT_EQ(index.tensors[1].device, "cuda:1");
  EXPECT_EQ(index.tensors[2].device, "meta");
  const std::size_t at = bytes.find("cuda:1");
  EXPECT_EQ(bytes.find("cuda:1", at + 1), std::string::npos);
  EXPECT_EQ(get<std::uint32_t>(&bytes[at - 4]), 6u);
  EXPECT_EQ(index_of(Sample()).size(), bytes.size() - 10);
  EXPECT_EQ(find_tensor(bytes, "model.7")->storage->device, "cuda:1");
}

TEST(BlockIndex, FindsTheOneTensorThatANameIsOf) {
  const Sample sample;
  const std::string bytes = index_of(sample);
  const Tensor weight = find_tensor(bytes, "model.weight").value();
  EXPECT_EQ(weight.dtype, DType::float32);
  EXPECT_TRUE(weight.parameter);
  EXPECT_EQ(weight.shape, std::vector<std::int64_t>{(kBlockSize + 8) / 4});
  EXPECT_EQ(weight.storage->record, 0);
  EXPECT_EQ(weight.storage->size, kBlockSize + 8);
  EXPECT_EQ(weight.storage->device, "cpu");
  const Tensor row = find_tensor(bytes, "model.7").value();
  EXPECT_EQ(row.storage->record, 1);
  EXPECT_EQ(row.storage->size, 12u);
  EXPECT_EQ(row.strides, std::vector<std::int64_t>{2});
  const Tensor meta = find_tensor(bytes, "(1, 'x')").value();
  EXPECT_EQ(meta.storage->record, -1);
  EXPECT_EQ(meta.storage->device, "meta");
  EXPECT_EQ(meta.storage->size, 14u);
  for (const char* name : {"", "model", "model.", "model.weigh", "model.weight.", "model.weights",
                           "model.weight.x", ".model.weight", "weight", "7", "model.70", "state"})
    EXPECT_FALSE(find_tensor(bytes, name)) << name;
}

TEST(BlockIndex, FindsNothingWhereANameCouldBeOfSeveral) {
  float number = 1;
  const Tensor one = Tensor::over(&number, DType::float32, {1});
  const Value state = Dict{{"a", Dict{{"b", one}, {"c", one}, {"", one}}},
                           {"a.b", one},
                           {"d", one},
                           {"d.e", Dict{{"f", one}}},
                           {1, one},
                           {"1", one}};
  const std::string file = file_of(state);
  const auto source = source_of(file);
  EXPECT_TRUE(find_tensor(*source, "a.c"));
  EXPECT_TRUE(find_tensor(*source, "a.''"));
  EXPECT_TRUE(find_tensor(*source, "d.e.f"));
  for (const char* name : {"a.b", "a", "d", "1", "a.", "d.e"})
    EXPECT_FALSE(find_tensor(*source, name)) << name;
}

TEST(BlockIndex, NothingIsFoundInADamagedFile) {
  const std::string whole = file_of(Sample().state);
  const CheckpointFile file = CheckpointFile::open(source_of(whole));
  for (const auto& record : file.records()) {
    if (record.name != ".perdure/index") continue;
    for (std::size_t at = record.offset - 40; at < whole.size(); ++at) {
      std::string damaged = whole;
      damaged[at] = static_cast<char>(damaged[at] ^ 4);
      const auto found = find_tensor(*source_of(damaged), "model.weight");
      if (at >= record.offset && at < record.offset + record.size) {
        EXPECT_FALSE(found) << at;
      }
      if (found) {
        EXPECT_EQ(found->storage->size, kBlockSize + 8);
      }
    }
  }
  EXPECT_TRUE(find_tensor(*source_of(whole), "model.weight"));
  EXPECT_FALSE(find_tensor(*source_of(whole.substr(0, whole.size() - 1)), "model.weight"));
  EXPECT_FALSE(find_tensor(*source_of("no zip at all"), "model.weight"));
}

TEST(BlockIndex, HasTheBytesThatTheFormatSays) {
  const Sample sample;
  const std::string bytes = index_of(sample);
  ByteReader in(bytes, "index");
  EXPECT_EQ(in.take_bytes(8), "PERDUREX");
  EXPECT_EQ(in.take<std::uint32_t>(), 1u);
  EXPECT_EQ(in.take<std::uint32_t>(), 4u << 20);
  EXPECT_EQ(in.take<std::uint64_t>(), 2u);
  EXPECT_EQ(in.take<std::uint64_t>(), 3u);
  EXPECT_EQ(in.take<std::uint64_t>(), 64u);  // the first record's data
  EXPECT_EQ(in.take<std::uint64_t>(), sample.large.size());
  in.take<std::uint32_t>();
  in.take_bytes(20);
  in.take_bytes(4 * 3);                     // two blocks and one
  EXPECT_EQ(in.take<std::uint64_t>(), 0u);  // record
  EXPECT_EQ(in.take<std::uint8_t>(), 1u);   // float32
  EXPECT_EQ(in.take<std::uint8_t>(), 1u | 2u);
  EXPECT_EQ(in.take<std::uint16_t>(), 2u);  // keys
  EXPECT_EQ(in.take<std::uint32_t>(), 1u);  // dimensions
  EXPECT_EQ(in.take<std::uint64_t>(), 0u);
  EXPECT_EQ(in.take<std::uint64_t>(), sample.large.size() / 4);
  EXPECT_EQ(in.take<std::uint64_t>(), 1u);
  EXPECT_EQ(in.take<std::uint8_t>(), 0u);  // a str
  EXPECT_EQ(in.take_bytes(in.take<std::uint32_t>()), "model");
}

TEST(BlockIndex, ANewerVersionIsUnsupported) {
  std::string bytes = index_of(Sample());
  for (const char version : {'\0', '\2', '\xff'}) {
    bytes[8] = version;
    EXPECT_ERROR(unsupported, "update perdure", read_index(bytes));
  }
}

TEST(BlockIndex, CutOrLongerIsDamaged) {
  const std::string bytes = index_of(Sample());
  for (std::size_t size = 0; size < bytes.size(); ++size)
    EXPECT_ERROR(corrupt, ".perdure/index", read_index(bytes.substr(0, size)));
  EXPECT_ERROR(corrupt, "bytes after its end", read_index(bytes + "x"));
}

std::string header(std::uint32_t block_size, std::uint64_t storages, std::uint64_t tensors) {
  std::string out = "PERDUREX";
  put<std::uint32_t>(out, 1);
  put<std::uint32_t>(out, block_size);
  put<std::uint64_t>(out, storages);
  put<std::uint64_t>(out, tensors);
  return out;
}

std::string storage(std::uint64_t size) {
  std::string out;
  put<std::uint64_t>(out, 64);
  put<std::uint64_t>(out, size);
  put<std::uint32_t>(out, 0);
  return out;
}

std::string tensor(std::uint64_t record, std::uint8_t dtype, std::uint16_t keys,
                   std::uint32_t dimensions) {
  std::string out;
  put<std::uint64_t>(out, record);
  put<std::uint8_t>(out, dtype);
  put<std::uint8_t>(out, 0);
  put<std::uint16_t>(out, keys);
  put<std::uint32_t>(out, dimensions);
  put<std::uint64_t>(out, 0);
  return out;
}

std::string key(std::uint8_t kind, std::uint32_t length, std::string_view text) {
  std::string out;
  put<std::uint8_t>(out, kind);
  put<std::uint32_t>(out, length);
  return out.append(text);
}

TEST(BlockIndex, HostileNumbersAreComparedWithTheBytesBeforeMemoryIsTaken) {
  const std::uint64_t huge = ~std::uint64_t{0};
  const struct {
    const char* message;
    std::string bytes;
  } cases[] = {
      {"block size of 0", header(0, 0, 0)},
      {"more entries than bytes", header(1, huge, 0)},
      {"more entries than bytes", header(1, 0, huge)},
      {"more entries than bytes", header(1, huge / 20, 1)},
      {"more blocks than bytes", header(1, 1, 0) + storage(huge)},
      {"more blocks than bytes", header(1, 1, 0) + storage(huge - 1)},
      {"more blocks than bytes", header(4u << 20, 1, 0) + storage(huge)},
      {"record that is not there", header(1, 0, 1) + tensor(0, 1, 0, 0)},
      {"record that is not there", header(1, 0, 1) + tensor(huge - 1, 1, 0, 0)},
      {"unknown dtype", header(1, 0, 1) + tensor(huge, 27, 0, 0)},
      {"more dimensions than bytes", header(1, 0, 1) + tensor(huge, 1, 0, 0xFFFFFFFF)},
      {"ends in the middle", header(1, 0, 1) + tensor(huge, 1, 0xFFFF, 0)},
      {"ends in the middle", header(1, 0, 1) + tensor(huge, 1, 1, 0) + key(0, 0xFFFFFFFF, "x")},
      {"unknown kind", header(1, 0, 1) + tensor(huge, 1, 1, 0) + key(3, 1, "x")},
      {"integer key that is none", header(1, 0, 1) + tensor(huge, 1, 1, 0) + key(1, 1, "x")},
      {"integer key that is none", header(1, 0, 1) + tensor(huge, 1, 1, 0) + key(1, 2, "1x")},
      {"integer key that is none", header(1, 0, 1) + tensor(huge, 1, 1, 0) + key(1, 0, "")},
      {"integer key that is none",
       header(1, 0, 1) + tensor(huge, 1, 1, 0) + key(1, 20, "99999999999999999999")},
      {"no UTF-8", header(1, 0, 1) + tensor(huge, 1, 1, 0) + key(0, 1, "\xff")},
      {"does not begin as an index", std::string("PERDUREY") + header(1, 0, 0).substr(8)},
  };
  for (const auto& [message, bytes] : cases) {
    EXPECT_ERROR(corrupt, message, read_index(bytes));
    try {  // looks at less, and at nothing else than read_index
      EXPECT_FALSE(find_tensor(bytes, "x")) << message;
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ErrorCode::corrupt) << message;
    }
  }
  EXPECT_NO_THROW(read_index(header(1, 0, 1) + tensor(huge, 1, 1, 0) + key(1, 2, "-7")));
}

TEST(BlockIndex, ASearchCountsBlocksWithoutOverflow) {
  const std::uint64_t huge = ~std::uint64_t{0};
  EXPECT_ERROR(corrupt, "more blocks than bytes",
               find_tensor(header(1, 2, 0) + storage(1) + storage(huge), "x"));
}

TEST(BlockIndex, BlocksAreCountedWithoutOverflow) {
  EXPECT_EQ(block_count(0, 4), 0u);
  EXPECT_EQ(block_count(1, 4), 1u);
  EXPECT_EQ(block_count(4, 4), 1u);
  EXPECT_EQ(block_count(5, 4), 2u);
  EXPECT_EQ(block_count(~std::uint64_t{0}, 2), std::uint64_t{1} << 63);
}

}  // namespace
}  // namespace perdure::test
