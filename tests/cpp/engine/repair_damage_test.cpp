// Files that were cut, and files in which one thing is wrong, at every place: what repair keeps is
// bit-equal, what it does not keep is in its list, and what was not touched is kept.
#include <gtest/gtest-spi.h>

#include <cstdlib>
#include <numeric>

#include "engine/salvage_check.hpp"
#include "format/torch_file.hpp"

namespace perdure::test {
namespace {

// Of bits and of places to cut at: with PERDURE_REPAIR_STEP=1 none is left out.
std::size_t step(std::size_t usual) {
  const char* given = std::getenv("PERDURE_REPAIR_STEP");
  return given == nullptr ? usual : std::max<std::size_t>(std::strtoull(given, nullptr, 10), 1);
}

// Keeps the bytes of the tensors that it makes, which differ from one to the next.
class Maker {
 public:
  explicit Maker(int seed) : seed_(seed) {}
  Tensor make(DType dtype, std::vector<std::int64_t> shape) {
    std::uint64_t size = itemsize(dtype);
    for (const std::int64_t x : shape) size *= static_cast<std::uint64_t>(x);
    auto bytes = std::make_shared<std::vector<std::uint8_t>>(size);
    for (std::uint8_t& byte : *bytes)
      byte = dtype == DType::boolean ? next() % 2 : static_cast<std::uint8_t>(next());
    Tensor tensor = Tensor::over(bytes->data(), dtype, std::move(shape));
    tensor.storage->owner = bytes;
    return tensor;
  }

 private:
  std::uint32_t next() { return seed_ = seed_ * 1664525u + 1013904223u, seed_ >> 24; }
  std::uint32_t seed_;
};

// Every dtype, nothing, views, shared storages and containers, and values of many kinds.
Value many_kinds(int seed) {
  Maker maker(seed);
  Dict dtypes;
  for (std::size_t i = 0; i < kDTypeCount; ++i) {
    const auto dtype = static_cast<DType>(i);
    dtypes.set(std::string(dtype_name(dtype)), maker.make(dtype, {3, 2}));
  }
  Tensor whole = maker.make(DType::float32, {6, 4}), row = whole, column = whole;
  row.shape = {4};
  row.strides = {1};
  row.storage_offset = 8;
  column.shape = {6};
  column.strides = {4};
  Tensor parameter = maker.make(DType::float32, {5});
  parameter.parameter = parameter.requires_grad = true;
  Tensor meta;
  meta.storage = std::make_shared<TensorStorage>();
  meta.storage->device = "meta";
  meta.shape = {2};
  meta.strides = {1};
  meta.storage->size = 8;
  Dict model(Kind::ordered_dict);
  model.set("weight", parameter);
  model.set("tied", parameter);
  model.set_attributes(std::make_shared<Dict>(Dict{{"_metadata", Dict{{"version", 1}}}}));
  const Value shared = Value::list({maker.make(DType::int64, {2}), 7});
  Value::Items flat{maker.make(DType::float16, {9}), Value(), Value("text"),
                    Value::tuple({maker.make(DType::int8, {40}), 1})};
  return Value(Dict{{"model", model},
                    {"dtypes", dtypes},
                    {"views", Value::tuple({whole, row, column})},
                    {"none", maker.make(DType::float64, {0, 3})},
                    {"scalar", maker.make(DType::float64, {})},
                    {"meta", meta},
                    {"list", Value::list(flat)},
                    {"one", shared},
                    {"two", shared},
                    {"numpy", Dict{{"__perdure__", "numpy.ndarray"},
                                   {"dtype", "<f8"},
                                   {"data", maker.make(DType::float64, {2})}}},
                    {"epoch", 3},
                    {"lr", 0.5},
                    {7, Value::set({1, 2})},
                    {"size", Value::size({1, 2})}});
}

CheckpointInfo some_info() {
  CheckpointInfo info;
  info.step = 7;
  info.generation = 3;
  info.metrics = {{"loss", 0.5}};
  info.writer = "test";
  return info;
}

struct NamedFile {
  const char* name;
  std::string bytes;
  std::string like;  // of the same structure, other values
};
// gtest prints parameters: it need not print the whole files.
void PrintTo(const NamedFile& file, std::ostream* out) { *out << file.name; }

std::string perdure_file(int seed = 1) { return file_of(many_kinds(seed), some_info()); }

class RepairDamage : public testing::TestWithParam<NamedFile> {
 protected:
  bool is_perdures() const { return record_of(file, "data.pkl").offset > file.size() / 4; }

  // Tensors of `state` by place, with the record that they are in.
  std::map<std::string, std::string> records_by_place() const {
    std::map<std::string, std::string> out;
    engine::for_each_tensor(whole, [&](const KeyPath& path, const Tensor& tensor) {
      const bool has_bytes = tensor.storage->record >= 0 && tensor.numel() > 0;
      out[format_path(path)] =
          has_bytes ? "data/" + std::to_string(tensor.storage->record) : "no record";
    });
    return out;
  }

  const std::string file = GetParam().bytes;
  const Value whole = load_bytes(file);
  const RecordMap map{file};
};

TEST_P(RepairDamage, OfAWholeFileNothingIsLost) {
  const engine::Salvage found = salvaged(file);
  EXPECT_TRUE(found.report.lost.empty()) << found.report.lost.front().path;
  EXPECT_TRUE(found.report.notes.empty()) << found.report.notes.front();
  EXPECT_EQ(Comparison::difference(whole, found.state), "");
  EXPECT_EQ(found.report.saved.tensors, records_by_place().size());
}

// Where the structure was not touched, only what has the flipped bit is lost.
TEST_P(RepairDamage, EveryFlippedBit) {
  const auto places = records_by_place();
  const std::size_t bits = file.size() * 8;
  for (std::size_t bit = 0; bit < bits; bit += step(61)) {
    std::string damaged = file;
    damaged[bit / 8] = static_cast<char>(damaged[bit / 8] ^ (1 << (bit % 8)));
    const std::string record = map.at(bit / 8);
    SCOPED_TRACE("bit " + std::to_string(bit) + " of " + GetParam().name + ", in " + record);
    if (record == "data.pkl" && !is_perdures()) {
      EXPECT_THROW(salvaged(damaged), Error);
      continue;
    }
    engine::Salvage found;
    ASSERT_NO_THROW(found = salvaged(damaged));
    const SalvageCheck check(whole, found);
    for (const auto& [place, in] : places)
      EXPECT_EQ(check.kept().contains(place), in != record)
          << place << (found.report.lost.empty() ? "" : ": " + found.report.lost.front().why);
    const bool harmless = !record.starts_with("data/") && record != "data.pkl" &&
                          record != ".perdure/checkpoint.json";
    EXPECT_EQ(found.report.lost.empty(), harmless)
        << (harmless ? found.report.lost.front().path : "");
    if (HasFailure()) return;
  }
}

// Records that were whole before the cut are kept; the names come from another file where
// perdure's are cut off.
TEST_P(RepairDamage, EveryTruncation) {
  const auto places = records_by_place();
  const auto records = CheckpointFile::open(source_of(file)).records();
  std::map<std::string, std::uint64_t> ends;
  for (const auto& record : records) ends[record.name] = record.offset + record.size + 16;
  for (std::size_t size = 0; size < file.size(); size += step(7)) {
    SCOPED_TRACE("cut at " + std::to_string(size) + " of " + GetParam().name);
    const std::string cut = file.substr(0, size);
    engine::Salvage found;
    try {
      found = salvaged(cut, GetParam().like);
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ErrorCode::corrupt) << error.what();
      EXPECT_LT(size, records.front().offset + records.front().size + 16);
      continue;
    }
    const SalvageCheck check(whole, found);
    for (const auto& [place, in] : places)
      EXPECT_TRUE(in == "no record" || check.kept().contains(place) == (ends.at(in) <= size))
          << place;
    if (HasFailure()) return;
  }
}

TEST_P(RepairDamage, WhatIsAppendedCostsNothing) {
  for (const std::string& tail : {std::string("x"), std::string(100, '\0'), std::string(70000, 'P'),
                                  file, file.substr(0, file.size() / 2), std::string("PK\5\6")}) {
    const engine::Salvage found = salvaged(file + tail);
    EXPECT_TRUE(found.report.lost.empty()) << found.report.lost.front().why;
    EXPECT_EQ(Comparison::difference(whole, found.state), "");
    EXPECT_EQ(found.report.notes.size(), 1u);
  }
}

INSTANTIATE_TEST_SUITE_P(Files, RepairDamage,
                         testing::Values(NamedFile{"perdure", perdure_file(), perdure_file(2)},
                                         NamedFile{
                                             "torch_order", as_torch_writes(perdure_file()), {}},
                                         NamedFile{"torch", kTorchFile, {}}),
                         [](const auto& instance) { return std::string(instance.param.name); });

TEST(SalvageCheck, SeesAWrongBitASilentLossAndAFalseOne) {
  const Value whole = load_bytes(perdure_file());
  engine::Salvage found = salvaged(perdure_file());
  const Tensor& tensor = found.state["dtypes"]["int16"].as_tensor();
  *tensor.storage->data ^= std::byte{1};
  EXPECT_NONFATAL_FAILURE(SalvageCheck(whole, found), "state['dtypes']['int16'] has other bytes");
  *tensor.storage->data ^= std::byte{1};
  found.report.lost.push_back({"state['dtypes']['int16']", "int16", {3, 2}, ""});
  EXPECT_NONFATAL_FAILURE(SalvageCheck(whole, found), "is kept and in the list");
  found.report.lost.clear();
  found.state.as_dict().set("epoch", Value());
  EXPECT_NONFATAL_FAILURE(SalvageCheck(whole, found), "state['epoch'] is missing and in no list");
}

// ---- pages

constexpr std::size_t kPage = 4096;

// Each record takes one page exactly, with the header in front of it and the descriptor behind it.
Value state_of_pages(std::int64_t first) {
  Maker maker(5);
  Dict out{{"first", maker.make(DType::uint8, {first})}};
  for (int i = 1; i <= 6; ++i)
    out.set("page" + std::to_string(i), maker.make(DType::float32, {1004}));
  out.set("long", maker.make(DType::uint8, {static_cast<std::int64_t>(3 * kPage)}));
  return Value(std::move(out));
}

// Where in a page the bytes of these records begin. 64: the header begins it, so pages that change
// places take whole records along. 0: they take bytes and descriptor along, and leave the header.
struct Phase {
  std::uint64_t begin = 0;
  bool in_torch_order = false;
};
void PrintTo(const Phase& phase, std::ostream* out) {
  *out << phase.begin << (phase.in_torch_order ? " in torch's order" : " in perdure's order");
}

class RepairPages : public testing::TestWithParam<Phase> {
 protected:
  static std::string make(std::int64_t first) {
    const std::string file = file_of(state_of_pages(first), some_info());
    return GetParam().in_torch_order ? as_torch_writes(file) : file;
  }
  static std::string make() {
    const std::uint64_t begin = record_of(make(64), "data/1").offset % kPage;
    const std::string file =
        make(static_cast<std::int64_t>(64 + (GetParam().begin + kPage - begin) % kPage));
    EXPECT_EQ(record_of(file, "data/1").offset % kPage, GetParam().begin);
    return file;
  }
  std::string page(std::size_t number) const { return file.substr(number * kPage, kPage); }
  std::size_t pages() const { return file.size() / kPage; }
  void expect_honest(const std::string& damaged) const {
    try {
      const SalvageCheck check(whole, salvaged(damaged));
      EXPECT_GT(check.kept().size(), 0u);
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ErrorCode::corrupt) << error.what();
    }
  }

  const std::string file = make();
  const Value whole = load_bytes(file);
};

TEST_P(RepairPages, EveryZeroedPage) {
  for (std::size_t i = 0; i < pages(); ++i) {
    SCOPED_TRACE("page " + std::to_string(i));
    std::string damaged = file;
    damaged.replace(i * kPage, kPage, kPage, '\0');
    expect_honest(damaged);
  }
}

TEST_P(RepairPages, EveryTwoPagesSwapped) {
  for (std::size_t i = 0; i < pages(); ++i)
    for (std::size_t j = i + 1; j < pages(); ++j) {
      SCOPED_TRACE("pages " + std::to_string(i) + " and " + std::to_string(j));
      std::string damaged = file;
      damaged.replace(i * kPage, kPage, page(j)).replace(j * kPage, kPage, page(i));
      expect_honest(damaged);
    }
}

TEST_P(RepairPages, EveryPageOverwrittenByAnother) {
  for (std::size_t i = 0; i < pages(); ++i)
    for (std::size_t j = 0; j < pages(); ++j) {
      SCOPED_TRACE("page " + std::to_string(j) + " over page " + std::to_string(i));
      expect_honest(std::string(file).replace(i * kPage, kPage, page(j)));
    }
}

INSTANTIATE_TEST_SUITE_P(Files, RepairPages,
                         testing::Values(Phase{64, false}, Phase{64, true}, Phase{0, false},
                                         Phase{0, true}, Phase{1984, false}, Phase{1984, true}));

}  // namespace
}  // namespace perdure::test
