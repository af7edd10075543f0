// repair: what it says, what it refuses, and what it does about files that mean harm.
#include <cerrno>
#include <cstring>
#include <perdure/perdure.hpp>

#include "engine/owned_tensor.hpp"
#include "engine/run_fixture.hpp"
#include "engine/salvage_check.hpp"
#include "engine/structure.hpp"
#include "expect_error.hpp"
#include "format/zip_parts.hpp"

namespace perdure::test {
namespace {

namespace fs = std::filesystem;

Value two_layers(float first) {
  return Value(Dict{{"model", Dict{{"fc1", owned({first, 2, 3})}, {"fc2", owned({4, first})}}},
                    {"history", Value::list({owned({5}), 6})},
                    {"epoch", 3}});
}

std::string flipped(std::string file, const std::string& record) {
  const auto found = record_of(file, record);
  file[found.offset + found.size / 2] ^= 1;
  return file;
}
std::string cut_before(const std::string& file, const std::string& record) {
  return file.substr(0, record_of(file, record).offset);
}

std::vector<std::string> lost_paths(const RepairReport& report) {
  std::vector<std::string> paths;
  for (const Lost& lost : report.lost) paths.push_back(lost.path);
  return paths;
}

// ---- the report

TEST(Salvage, SaysWhatIsLostAndWhy) {
  const std::string file = file_of(two_layers(1));
  const auto found = salvaged(flipped(file, "data/1"));
  ASSERT_EQ(found.report.lost.size(), 1u);
  const Lost& lost = found.report.lost[0];
  EXPECT_EQ(lost.path, "state['model']['fc2']");
  EXPECT_EQ(lost.dtype, "float32");
  EXPECT_EQ(lost.shape, std::vector<std::int64_t>{2});
  EXPECT_EQ(lost.why, "8 bytes at offset " + std::to_string(record_of(file, "data/1").offset) +
                          " (record data/1) do not have the checksum that they were written with");
  EXPECT_EQ(found.report.saved.tensors, 2u);
  EXPECT_EQ(found.report.saved.bytes, 16u);
  EXPECT_FALSE(found.state["model"].contains("fc2"));
  EXPECT_EQ(found.state["epoch"].as_int(), 3);
}

TEST(Salvage, NoneStandsForWhatAListHasLost) {
  const auto found = salvaged(flipped(file_of(two_layers(1)), "data/2"));
  EXPECT_EQ(lost_paths(found.report), std::vector<std::string>{"state['history'][0]"});
  EXPECT_TRUE(found.state["history"][0].is_none());
  EXPECT_EQ(found.state["history"][1].as_int(), 6);
}

TEST(Salvage, KeepsWhatTheCheckpointSaysOfItself) {
  const std::string file = file_of(two_layers(1), info_of_step(42, {{"loss", 0.5}}));
  const auto found = salvaged(flipped(file, "data/1"));
  EXPECT_TRUE(found.has_info);
  EXPECT_EQ(found.info.step, 42);
  EXPECT_EQ(found.info.metrics, (Metrics{{"loss", 0.5}}));
  const auto without = salvaged(flipped(file, ".perdure/checkpoint.json"));
  EXPECT_FALSE(without.has_info);
  EXPECT_EQ(lost_paths(without.report), std::vector<std::string>{".perdure/checkpoint.json"});
  EXPECT_EQ(without.report.saved.tensors, 3u);
}

TEST(Salvage, ADamagedBlockCostsTheTensorsThatHaveBytesInIt) {
  constexpr std::size_t kSize = std::size_t{12} << 20;
  std::vector<std::uint8_t> bytes(kSize);
  for (std::size_t i = 0; i < kSize; ++i) bytes[i] = static_cast<std::uint8_t>(i * 31 >> 3);
  const Tensor whole = Tensor::over(bytes.data(), DType::uint8, {kSize});
  Tensor head = whole, middle = whole, tail = whole;
  head.shape = middle.shape = tail.shape = {1 << 20};
  middle.storage_offset = 5 << 20;
  tail.storage_offset = 11 << 20;
  const Value state(Dict{{"head", head}, {"middle", middle}, {"tail", tail}});
  std::string file = file_of(state);
  file[record_of(file, "data/0").offset + (std::size_t{6} << 20)] ^= 1;  // of the second block
  const auto found = salvaged(file);
  const SalvageCheck check(state, found);
  EXPECT_EQ(lost_paths(found.report), std::vector<std::string>{"state['middle']"});
  EXPECT_EQ(check.kept().size(), 2u);
  const std::byte* unproven = found.state["head"].as_tensor().storage->data + (6 << 20);
  EXPECT_EQ(*unproven, std::byte{0}) << "unproven bytes go along";
}

// ---- where the names come from

TEST(Salvage, TheIndexNamesTensorsWhereThePickleIsDamaged) {
  const auto found = salvaged(flipped(file_of(two_layers(1)), "data.pkl"));
  EXPECT_EQ(found.report.saved.tensors, 3u);
  EXPECT_EQ(lost_paths(found.report), std::vector<std::string>{"state"});
  EXPECT_EQ(Comparison::difference(found.state["model"]["fc1"], Value(owned({1, 2, 3}))), "");
  EXPECT_TRUE(found.state["history"].is_mapping());
  ASSERT_FALSE(found.report.notes.empty());
  EXPECT_NE(found.report.notes[0].find(".perdure/index"), std::string::npos);
}

TEST(Salvage, AnotherCheckpointLendsNamesAndNothingElse) {
  const std::string file = file_of(two_layers(1)), like = file_of(two_layers(9));
  const auto found = salvaged(cut_before(file, "data.pkl"), like);
  EXPECT_EQ(found.report.saved.tensors, 3u);
  EXPECT_EQ(Comparison::difference(found.state["model"], two_layers(1)["model"]), "");
  EXPECT_EQ(lost_paths(found.report),
            (std::vector<std::string>{"state['history'][1]", "state['epoch']",
                                      ".perdure/checkpoint.json"}));
  EXPECT_FALSE(found.state.contains("epoch"));
  EXPECT_TRUE(found.state["history"][1].is_none());
}

TEST(Salvage, WithoutNamesThereIsAnError) {
  EXPECT_THROW(salvaged(cut_before(file_of(two_layers(1)), "data.pkl")), engine::NamesLost);
}

TEST(Salvage, AnotherCheckpointIsNotLookedAtWhereTheFileHasItsOwnNames) {
  const auto found = salvaged(flipped(file_of(two_layers(1)), "data/0"), "no checkpoint at all");
  EXPECT_EQ(found.report.lost.size(), 1u);
}

TEST(Salvage, AnotherStructureIsRefused) {
  const std::string cut = cut_before(file_of(two_layers(1)), "data.pkl");
  const std::string larger = file_of(Dict{{"a", owned({1, 2, 3})}, {"b", owned({1, 2, 3, 4})}});
  EXPECT_ERROR(invalid, "record data/1 has 16 bytes there and 8 here", salvaged(cut, larger));
  EXPECT_ERROR(invalid, "record data/1 has no bytes there",
               salvaged(cut, file_of(Dict{{"a", owned({1, 2, 3})}})));
  EXPECT_ERROR(corrupt, "", salvaged(cut, "no checkpoint at all"));
}

TEST(Salvage, ARecordWhoseNameIsTornIsLostAndNoOtherStructure) {
  std::string cut = cut_before(file_of(two_layers(1)), "data.pkl");
  cut[cut.find("archive/data/1") + 13] = '\xa3';
  const auto found = salvaged(cut, file_of(two_layers(2)));
  EXPECT_EQ(found.report.saved.tensors, 2u);
  EXPECT_EQ(lost_paths(found.report)[0], "state['model']['fc2']");
}

// ---- a checkpoint in a checkpoint

// The bytes of a whole checkpoint of the same structure lie in a tensor: none of its records may be
// taken for one of the outer file's.
TEST(Salvage, AZipInATensorIsNoPartOfTheFile) {
  std::string inner = file_of(two_layers(9));
  const auto with_inner = [&](const char* place) {
    Value state = two_layers(1);
    Dict out;
    if (place == std::string("first"))
      out.set("inner",
              Tensor::over(inner.data(), DType::uint8, {static_cast<std::int64_t>(inner.size())}));
    for (const auto& [key, value] : state.as_dict()) out.set(key, value);
    if (place == std::string("last"))
      out.set("inner",
              Tensor::over(inner.data(), DType::uint8, {static_cast<std::int64_t>(inner.size())}));
    return Value(std::move(out));
  };
  for (const char* place : {"first", "last"}) {
    const Value state = with_inner(place);
    for (const std::string& file : {file_of(state), as_torch_writes(file_of(state))})
      for (std::size_t size = 1; size < file.size(); size += 7) {
        SCOPED_TRACE(std::string(place) + ", cut at " + std::to_string(size));
        try {
          const SalvageCheck check(state, salvaged(file.substr(0, size), file_of(state)));
        } catch (const Error& error) {
          EXPECT_EQ(error.code(), ErrorCode::corrupt) << error.what();
        }
        if (HasFailure()) return;
      }
  }
}

// ---- what cannot be repaired

TEST(Salvage, SaysWhatAFileIsThatHasNothing) {
  EXPECT_ERROR(corrupt, "the file is empty", salvaged(""));
  EXPECT_ERROR(corrupt, "does not begin as a PyTorch file", salvaged(std::string(5000, 'x')));
  EXPECT_ERROR(corrupt, "does not begin as a PyTorch file", salvaged(std::string(5000, '\0')));
  EXPECT_ERROR(
      unsupported, "legacy format",
      salvaged(std::string("\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19", 14)));
  std::string file = file_of(Dict{{"a", owned({1})}});
  EXPECT_ERROR(corrupt, "nothing in it could be saved: state['a']: 4 bytes at offset 64",
               salvaged(flipped(file, "data/0")));
}

TEST(Salvage, AFileWithoutChecksumsProvesNothing) {
  ZipParts zip;
  zip.entries = {streamed_entry("x/data.pkl", "pickle"), streamed_entry("x/data/0", "tensor!!")};
  for (ZipEntry& entry : zip.entries) {
    entry.central.crc32 = 0;
    entry.descriptor = descriptor_of(entry);
  }
  const std::string file = build(zip);
  EXPECT_ERROR(unsupported, "without checksums", salvaged(file));
  EXPECT_ERROR(unsupported, "without checksums", salvaged(file.substr(0, file.size() - 3)));
}

TEST(Salvage, ValuesThatAreNoPlainDataAreLost) {
  // {"a": m.C(), "epoch": 3}
  const std::string pickle("\x80\x02}(X\1\0\0\0acm\nC\n)RX\5\0\0\0epochK\3u.", 31);
  ZipParts zip;
  zip.entries = {streamed_entry("x/data.pkl", pickle), streamed_entry("x/version", "3\n")};
  zip.with_zip64 = true;
  const auto found = salvaged(build(zip));
  EXPECT_EQ(found.state["epoch"].as_int(), 3);
  ASSERT_EQ(found.report.lost.size(), 1u);
  EXPECT_EQ(found.report.lost[0].path, "state['a']");
  EXPECT_EQ(found.report.lost[0].why.find("<'m'.'C'>, which is not plain data"), 0u)
      << found.report.lost[0].why;
}

// The directory says of many records that all of them are one: no memory is taken for each.
TEST(Salvage, RecordsThatOverlapAreNotReadTwice) {
  constexpr int kTensors = 100;
  Dict many;
  for (int i = 0; i < kTensors; ++i) many.set(i, owned({1, 2, 3}));
  const std::string file = file_of(many);
  const auto first = record_of(file, "data/0"), pickle = record_of(file, "data.pkl");
  std::vector<format::ZipRecord> real, forged;
  format::append_record(real, "archive/data/0", first.size);
  format::append_record(real, "archive/data.pkl", pickle.size);
  std::string hostile;
  for (const auto& record : {first, pickle}) {
    format::ZipRecord& placed = real[record.name == "data/0" ? 0 : 1];
    placed.crc32 = record.crc32;
    hostile += format::local_header(placed) + file.substr(record.offset, record.size) +
               format::data_descriptor(placed);
  }
  for (int i = 0; i < kTensors; ++i) {
    forged.push_back(real[0]);
    forged.back().name = "archive/data/" + std::to_string(i);
  }
  const auto found = salvaged(hostile + format::central_directory(forged));
  EXPECT_EQ(found.report.saved.tensors, 1u);
  EXPECT_EQ(found.report.lost.size(), kTensors - 1 + 1u);  // and checkpoint.json
  EXPECT_NE(found.report.lost[0].why.find("overlaps"), std::string::npos);
}

// ---- bytes that the disk cannot read

class BadSector final : public Source {
 public:
  BadSector(std::string bytes, std::uint64_t at, int error)
      : bytes_(std::move(bytes)), at_(at), error_(error) {}
  std::uint64_t size() const override { return bytes_.size(); }
  const std::string& name() const override { return name_; }
  void read(std::uint64_t offset, MutableBytes into) const override {
    if (offset <= at_ && at_ - offset < into.size())
      throw Error(ErrorCode::io, "Input/output error", error_);
    std::memcpy(into.data(), bytes_.data() + offset, into.size());
  }

 private:
  std::string bytes_, name_ = "disk.pt";
  std::uint64_t at_;
  int error_;
};

TEST(Salvage, UnreadableBytesCostNoMoreThanThemselves) {
  std::vector<float> numbers(100'000, 1.5F);
  const Value state(Dict{{"a", owned(numbers)}, {"b", owned(numbers)}, {"c", owned({1})}});
  const std::string file = file_of(state);
  for (const char* record : {"data/0", "data/1", "data/2", ".perdure/index"}) {
    const auto source = std::make_shared<BadSector>(file, record_of(file, record).offset, EIO);
    try {
      const auto found = engine::salvage(source, nullptr);
      const SalvageCheck check(state, found);
      EXPECT_GE(check.kept().size(), 1u);
      EXPECT_FALSE(found.report.notes.empty());
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ErrorCode::corrupt) << error.what();
    }
  }
  EXPECT_ERROR(io, "Input/output",
               engine::salvage(std::make_shared<BadSector>(file, 100, EACCES), nullptr));
}

// ---- files

class Repair : public RunFixture {
 protected:
  const fs::path damaged = directory / "damaged.pt", out = directory / "out.pt";
};

TEST_F(Repair, WritesAWholeFile) {
  TemporaryDirectory::write(damaged, flipped(file_of(two_layers(1), info_of_step(7)), "data/1"));
  const RepairReport report = repair(damaged, out);
  EXPECT_EQ(report.path, damaged.string());
  EXPECT_EQ(lost_paths(report), std::vector<std::string>{"state['model']['fc2']"});
  EXPECT_EQ(verify(out).state, VerifyReport::State::good);
  EXPECT_EQ(CheckpointFile::open(out).info()->step, 7);
  EXPECT_EQ(Comparison::difference(load(out)["model"]["fc1"], Value(owned({1, 2, 3}))), "");
  EXPECT_EQ(directory.names(), (std::set<std::string>{"damaged.pt", "out.pt"}));
}

TEST_F(Repair, NeverWritesOverWhatItReads) {
  perdure::save(damaged, two_layers(1));
  perdure::save(directory / "like.pt", two_layers(2));
  fs::create_symlink(damaged, directory / "link.pt");
  fs::create_hard_link(damaged, directory / "hard.pt");
  const std::string before = TemporaryDirectory::content(damaged);
  for (const char* name : {"damaged.pt", "link.pt", "hard.pt"})
    EXPECT_ERROR(invalid, "are one file", repair(damaged, directory / name, {.force = true}));
  EXPECT_ERROR(
      invalid, "are one file",
      repair(damaged, directory / "like.pt", {.like = directory / "like.pt", .force = true}));
  EXPECT_ERROR(invalid, "are one file", repair(directory / "link.pt", damaged, {.force = true}));
  EXPECT_EQ(TemporaryDirectory::content(damaged), before);
}

TEST_F(Repair, ReplacesOnlyWhenTold) {
  perdure::save(damaged, two_layers(1));
  perdure::save(out, two_layers(2));
  EXPECT_ERROR(invalid, "exists already", repair(damaged, out));
  EXPECT_EQ(Comparison::difference(load(out), two_layers(2)), "");
  EXPECT_TRUE(repair(damaged, out, {.force = true}).lost.empty());
  EXPECT_EQ(Comparison::difference(load(out), two_layers(1)), "");
}

TEST_F(Repair, WritesNothingWhereThereIsNothing) {
  TemporaryDirectory::write(damaged, "no checkpoint");
  EXPECT_ERROR(corrupt, "damaged.pt", repair(damaged, out));
  EXPECT_ERROR(not_found, "none.pt", repair(directory / "none.pt", out));
  EXPECT_EQ(directory.names(), std::set<std::string>{"damaged.pt"});
}

TEST_F(Repair, NamesTheNearestCheckpointBesideTheFile) {
  CheckpointManager manager = open({.keep_last = 10});
  for (const std::int64_t step : {10, 20, 30, 40}) save(manager, step);
  manager.close();
  for (const fs::path& cut : {file(10, 1), file(30, 3)})
    fs::resize_file(cut, 900);  // behind the one tensor
  const Error error = error_of([&] { repair(file(10, 1), out); });
  EXPECT_EQ(error.code(), ErrorCode::corrupt);
  EXPECT_NE(std::string(error.what()).find(file(20, 2).string()), std::string::npos)
      << error.what();
  EXPECT_NE(std::string(error.what()).find("--like"), std::string::npos) << error.what();
  const RepairReport report = repair(file(10, 1), out, {.like = file(20, 2)});
  EXPECT_EQ(report.saved.tensors, 1u);
  const Value saved = load(out);
  const auto* weight =
      reinterpret_cast<const std::int64_t*>(saved["weight"].as_tensor().storage->data);
  EXPECT_EQ(weight[99], 10) << "a value of the other checkpoint";
}

}  // namespace
}  // namespace perdure::test
