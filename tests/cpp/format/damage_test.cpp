// A file that was cut, or in which one bit has flipped, is refused with an error that says where,
// or loads equal. Nothing crashes, nothing loads wrong, and verify never calls good what load would
// not give back.
#include <gtest/gtest.h>

#include <cstdint>
#include <functional>

#include "expect_error.hpp"
#include "format/memory_source.hpp"
#include "format/same_value.hpp"
#include "format/torch_file.hpp"

namespace perdure::test {
namespace {

std::string perdure_file() {
  static float weight[6] = {1, 2, 3, 4, 5, 6};
  static std::uint8_t random[5] = {9, 8, 7, 6, 5};
  Tensor parameter = Tensor::over(weight, DType::float32, {2, 3});
  parameter.parameter = parameter.requires_grad = true;
  Dict model(Kind::ordered_dict);
  model.set("fc.weight", parameter);
  model.set_attributes(std::make_shared<Dict>(Dict{{"_metadata", Dict{{"version", 1}}}}));
  const Value state(Dict{{"model", model},
                         {"epoch", 3},
                         {"loss", 0.5},
                         {"rng", Tensor::over(random, DType::uint8, {5})},
                         {"name", "run"}});
  return file_of(state, {.format_version = 1,
                         .step = 7,
                         .generation = 3,
                         .parent = 0,
                         .metrics = {{"loss", 0.5}},
                         .created = 0,
                         .reason = "regular",
                         .writer = "test",
                         .libraries = {},
                         .optimizers = {}});
}

// `damaged` is refused with a place, or it is as good as the whole file.
void expect_refused_or_equal(const std::string& damaged, const Value& whole) {
  bool loaded = false;
  try {
    EXPECT_EQ(Comparison::difference(whole, load_bytes(damaged)), "") << "loaded wrong";
    loaded = true;
  } catch (const Error& error) {
    const std::string what = error.what();
    EXPECT_EQ(error.code(), ErrorCode::corrupt) << what;
    EXPECT_NE(what.find("memory.pt: "), what.npos) << what;
    EXPECT_TRUE(what.find("offset ") != what.npos || what.find("the file is empty") != what.npos)
        << what;
  }
  const VerifyReport report = verify(source_of(damaged));
  // verify also looks at records that load has no use for, such as .format_version.
  EXPECT_EQ(report.state == VerifyReport::State::good, report.findings.empty());
  EXPECT_TRUE(loaded || report.state == VerifyReport::State::damaged);
}

struct NamedFile {
  const char* name;
  std::string bytes;
};

class Damage : public testing::TestWithParam<NamedFile> {
 protected:
  const std::string& file() const { return GetParam().bytes; }
};

TEST_P(Damage, CutAtEveryByte) {
  const Value whole = load_bytes(file());
  for (std::size_t size = 0; size < file().size(); ++size) {
    EXPECT_ERROR(corrupt, "memory.pt: ", load_bytes(file().substr(0, size)));
    expect_refused_or_equal(file().substr(0, size), whole);
  }
}

TEST_P(Damage, EverySingleBitFlipped) {
  const Value whole = load_bytes(file());
  for (std::size_t at = 0; at < file().size(); ++at) {
    for (int bit = 0; bit < 8; ++bit) {
      SCOPED_TRACE(testing::Message() << "bit " << bit << " of byte " << at);
      std::string damaged = file();
      damaged[at] = static_cast<char>(damaged[at] ^ (1 << bit));
      expect_refused_or_equal(damaged, whole);
      if (HasFailure()) return;
    }
  }
}

TEST_P(Damage, ZerosInPlaceOfEveryRun) {
  const Value whole = load_bytes(file());
  for (const std::size_t run : {2u, 4u, 16u, 64u, 512u}) {
    for (std::size_t at = 0; at + run <= file().size(); at += run / 2) {
      SCOPED_TRACE(testing::Message() << run << " zeros at " << at);
      std::string damaged = file();
      damaged.replace(at, run, run, '\0');
      expect_refused_or_equal(damaged, whole);
      if (HasFailure()) return;
    }
  }
}

TEST_P(Damage, BytesPutInOrTakenOut) {
  const Value whole = load_bytes(file());
  for (std::size_t at = 0; at < file().size(); ++at) {
    SCOPED_TRACE(at);
    expect_refused_or_equal(std::string(file()).insert(at, 1, 'Z'), whole);
    expect_refused_or_equal(std::string(file()).erase(at, 1), whole);
    if (HasFailure()) return;
  }
}

// gtest prints parameters: it need not print the whole files.
void PrintTo(const NamedFile& file, std::ostream* out) { *out << file.name; }

INSTANTIATE_TEST_SUITE_P(Files, Damage,
                         testing::Values(NamedFile{"perdure", perdure_file()},
                                         NamedFile{"torch", kTorchFile}),
                         [](const auto& instance) { return std::string(instance.param.name); });

// ---- what an error and a report say

std::size_t data_offset(const std::string& file, const std::string& name) {
  const auto opened = CheckpointFile::open(source_of(file));
  for (const auto& record : opened.records())
    if (record.name == name) return record.offset;
  return std::string::npos;
}

TEST(DamageReport, NamesTensorRecordAndOffset) {
  std::string file = perdure_file();
  const std::size_t offset = data_offset(file, "data/0");
  file[offset + 5] ^= 1;
  EXPECT_ERROR(corrupt,
               "state['model']['fc.weight'] is damaged: 24 bytes at offset " +
                   std::to_string(offset) + " (record data/0)",
               load_bytes(file));
  const VerifyReport report = verify(source_of(file));
  EXPECT_EQ(report.state, VerifyReport::State::damaged);
  ASSERT_EQ(report.findings.size(), 1u);
  EXPECT_EQ(report.findings[0].record, "data/0");
  EXPECT_EQ(report.findings[0].tensor, "state['model']['fc.weight']");
  EXPECT_EQ(report.findings[0].offset, offset);
}

TEST(DamageReport, ListsEveryDamagedBlock) {
  std::string bytes(12 << 20, 'x');
  bytes += "tail";
  const Value state(Dict{{"large", Tensor::over(bytes.data(), DType::uint8,
                                                {static_cast<std::int64_t>(bytes.size())})},
                         {"small", Tensor::over(bytes.data() + 1, DType::uint8, {7})}});
  std::string file = file_of(state);
  const std::size_t large = data_offset(file, "data/0"), small = data_offset(file, "data/1");
  for (const std::size_t at :
       {large + 5, large + 6, large + (9 << 20), large + (12 << 20) + 3, small})
    file[at] ^= 0x40;
  const VerifyReport report = verify(source_of(file));
  ASSERT_EQ(report.findings.size(), 4u);
  EXPECT_EQ(report.findings[0].offset, large);
  EXPECT_EQ(report.findings[1].offset, large + (8 << 20));
  EXPECT_EQ(report.findings[2].offset, large + (12 << 20));
  EXPECT_EQ(report.findings[3].tensor, "state['small']");
}

TEST(DamageReport, WithoutTheStructureTensorsAreNamedFromTheIndex) {
  std::string file = perdure_file();
  file[data_offset(file, "data.pkl") + 3] ^= 1;
  file[data_offset(perdure_file(), "data/1")] ^= 1;
  const VerifyReport report = verify(source_of(file));
  ASSERT_EQ(report.findings.size(), 2u);
  EXPECT_EQ(report.findings[0].record, "data.pkl");
  EXPECT_EQ(report.findings[1].tensor, "state['rng']");
}

TEST(DamageReport, ADamagedIndexDoesNotHideTheRest) {
  std::string file = perdure_file();
  file[data_offset(file, ".perdure/index") + 40] ^= 1;
  file[data_offset(perdure_file(), "data/1")] ^= 1;
  const VerifyReport report = verify(source_of(file));
  ASSERT_EQ(report.findings.size(), 2u);
  EXPECT_EQ(report.findings[0].record, ".perdure/index");
  EXPECT_EQ(report.findings[1].record, "data/1");
}

TEST(DamageReport, ARecordOfManyTensorsNamesAFew) {
  const auto storage = std::make_shared<TensorStorage>();
  std::byte memory[1] = {};
  storage->data = memory;
  storage->size = 1;
  Value::Items views;
  for (int i = 0; i < 1000; ++i) {
    Tensor view = Tensor::over(memory, DType::uint8, {1});
    view.storage = storage;
    views.emplace_back(view);
  }
  std::string file = file_of(Value::list(views));
  file[data_offset(file, "data/0")] ^= 1;
  const VerifyReport report = verify(source_of(file));
  ASSERT_EQ(report.findings.size(), 1u);
  EXPECT_EQ(report.findings[0].tensor.substr(0, 18), "state[0], state[1]");
  EXPECT_EQ(report.findings[0].tensor.substr(report.findings[0].tensor.size() - 5), ", ...");
  EXPECT_LT(report.findings[0].tensor.size(), 600u);
}

TEST(DamageReport, AGoodFileIsCounted) {
  const VerifyReport report = verify(source_of(perdure_file()));
  EXPECT_EQ(report.state, VerifyReport::State::good);
  EXPECT_EQ(report.tensors, 2u);
  EXPECT_EQ(report.path, "memory.pt");
  EXPECT_GT(report.bytes, 29u);
}

}  // namespace
}  // namespace perdure::test
