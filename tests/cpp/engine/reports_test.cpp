// entries, stats, diff, convert and write_npy as a C++ program calls them. What their figures must
// be is tested against torch, by tests/python.
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <limits>
#include <memory>
#include <perdure/perdure.hpp>

#include "engine/owned_tensor.hpp"
#include "expect_error.hpp"
#include "storage/temporary_directory.hpp"

namespace perdure::test {
namespace {

namespace fs = std::filesystem;

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kInfinity = std::numeric_limits<float>::infinity();

class ReportsTest : public testing::Test {
 protected:
  fs::path saved(const std::string& name, const Value& value) {
    save(folder / name, value);
    return folder / name;
  }
  Tensor tied = owned({3, 4});
  Value state =
      Dict{{"model", Dict{{"a", owned({1, -2, 0, kNan, kInfinity, 2})}, {"b", tied}, {"c", tied}}},
           {"optimizer",
            Dict{{"state", Dict{{0, Dict{{"exp_avg", owned({1, 1, 1, 1, 1, 1})}}}}},
                 {"param_groups",
                  Value::list({Value(Dict{{"lr", 0.5}, {"params", Value::list({Value(0)})}})})}}},
           {"epoch", 7}};
  TemporaryDirectory folder;
};

std::vector<std::string> names(const std::vector<Entry>& entries) {
  std::vector<std::string> result;
  for (const Entry& entry : entries) result.push_back(entry.name);
  return result;
}

TEST_F(ReportsTest, EntriesAreWhatIsInTheFileByName) {
  const CheckpointFile file = CheckpointFile::open(saved("x.pt", state));
  const std::vector<Entry> found = entries(file);
  EXPECT_EQ(names(found),
            (std::vector<std::string>{"model.a", "model.b", "model.c", "optimizer.state.0.exp_avg",
                                      "optimizer.param_groups.0.lr",
                                      "optimizer.param_groups.0.params", "epoch"}));
  EXPECT_EQ(found[1].value.as_tensor().storage, found[2].value.as_tensor().storage);
  EXPECT_EQ(found[1].value.as_tensor().storage->data, nullptr) << "it was read";
  EXPECT_EQ(format_path(found[3].path), "state['optimizer']['state'][0]['exp_avg']");
  EXPECT_EQ(found[6].value.as_int(), 7);
  EXPECT_EQ(names(entries(file, "*.exp_*")), std::vector<std::string>{"optimizer.state.0.exp_avg"});
  EXPECT_TRUE(entries(file, "mode").empty());
}

TEST_F(ReportsTest, StatsCountWhatIsNotFiniteAndTellTiedTensorsOnce) {
  const StatsReport report = stats(saved("x.pt", state));
  ASSERT_EQ(report.tensors.size(), 4u);
  const Figures& a = report.tensors[0].figures;
  EXPECT_EQ(a.elements, 6u);
  EXPECT_EQ(a.nan, 1u);
  EXPECT_EQ(a.pos_inf, 1u);
  EXPECT_EQ(a.neg_inf, 0u);
  EXPECT_EQ(a.zeros, 1u);
  EXPECT_EQ(a.min.as_double(), -2);
  EXPECT_EQ(a.max.as_double(), 2);
  EXPECT_EQ(a.mean.as_double(), 0.25);
  EXPECT_EQ(a.norm.as_double(), 3);
  EXPECT_EQ(a.rms.as_double(), 1.5);
  EXPECT_EQ(report.tensors[2].same_as, "model.b");
  ASSERT_FALSE(report.groups.empty());
  EXPECT_EQ(report.groups[0].name, "model");
  EXPECT_EQ(report.groups[0].figures.elements, 8u);
}

TEST_F(ReportsTest, StatsOfAPatternThatMatchesNothing) {
  const fs::path path = saved("x.pt", state);
  EXPECT_ERROR(not_found, "no tensor's name matches 'absent'", stats(path, {.pattern = "absent"}));
}

TEST_F(ReportsTest, AReportThatIsCancelledEnds) {
  const fs::path path = saved("x.pt", state);
  struct Enough {};
  const auto enough = [](std::uint64_t) { throw Enough(); };
  EXPECT_THROW(stats(path, {.progress = enough}), Enough);
  EXPECT_THROW(diff(path, path, {.full = true, .progress = enough}), Enough);
}

TEST_F(ReportsTest, DiffOfEqualFilesReadsNothing) {
  const DiffReport report = diff(saved("x.pt", state), saved("y.pt", state));
  EXPECT_TRUE(report.equal());
  EXPECT_EQ(report.tensors, 4u);
  EXPECT_EQ(report.by_checksum, 4u);
}

TEST_F(ReportsTest, DiffTellsWhatDiffersAndHowFar) {
  const Dict before{{"a", owned({1, 2, 4})}, {"gone", 1}, {"lr", 0.5}};
  const Dict after{{"a", owned({1, 2.5, 4})}, {"lr", 0.25}, {"fresh", owned({1})}};
  const fs::path x = saved("x.pt", before);
  const fs::path y = saved("y.pt", after);
  const DiffReport report = diff(x, y);
  EXPECT_FALSE(report.equal());
  ASSERT_EQ(report.differences.size(), 4u);
  const Difference& a = report.differences[0];
  EXPECT_EQ(a.name, "a");
  EXPECT_EQ(a.what, Difference::What::tensor);
  ASSERT_TRUE(a.distance);
  EXPECT_EQ(a.distance->elements, 3u);
  EXPECT_EQ(a.distance->changed, 1u);
  EXPECT_EQ(a.distance->max_absolute, 0.5);
  EXPECT_EQ(a.distance->max_relative, 0.2);
  EXPECT_EQ(a.distance->max_ulp, std::uint64_t{1} << 21);  // a quarter of the 2^23 floats in [2, 4)
  EXPECT_EQ(report.differences[1].what, Difference::What::removed);
  EXPECT_EQ(report.differences[2].before, "0.5");
  EXPECT_EQ(report.differences[2].after, "0.25");
  EXPECT_EQ(report.differences[3].name, "fresh");
  EXPECT_EQ(report.differences[3].what, Difference::What::added);
  const DiffReport close = diff(x, y, {.pattern = "a", .atol = 0.5});
  EXPECT_TRUE(close.equal());
  EXPECT_EQ(close.within_tolerance, 1u);
}

TEST_F(ReportsTest, ConvertThereAndBackIsEqual) {
  const Dict tensors{{"a", owned({1, kNan, 3})}, {"b", owned({})}};
  const fs::path x = saved("x.pt", tensors);
  const ConvertReport there = convert(x, folder / "x.safetensors");
  EXPECT_EQ(there.format, FileFormat::safetensors);
  EXPECT_EQ(there.tensors, 2u);
  EXPECT_EQ(there.bytes, 12u);
  convert(folder / "x.safetensors", folder / "dcp");
  convert(folder / "dcp", folder / "back.pt");
  EXPECT_TRUE(diff(x, folder / "back.pt").equal());
}

TEST_F(ReportsTest, ConvertChoosesRenamesAndStrips) {
  const fs::path x = saved("x.pt", state);
  const ConvertReport report = convert(x, folder / "y.pt", {.strip_optimizer = true});
  EXPECT_EQ(report.left_out, std::vector<std::string>{"optimizer"});
  EXPECT_FALSE(load(folder / "y.pt").contains("optimizer"));
  convert(x, folder / "z.pt",
          {.only = {"model.b"}, .rename = {{"model.*", "net.*"}}, .dtype = DType::float16});
  const Value z = load(folder / "z.pt");
  EXPECT_EQ(z.as_dict().size(), 1u);
  EXPECT_EQ(z["net.b"].as_tensor().dtype, DType::float16);
}

TEST_F(ReportsTest, ConvertLeavesNothingWhereItDoesNotEnd) {
  const fs::path x = saved("x.pt", state);
  EXPECT_ERROR(invalid, "exists", convert(x, saved("there.pt", 1)));
  EXPECT_ERROR(invalid, "shares memory", convert(x, folder / "x.safetensors"));
  EXPECT_ERROR(cancelled, "nothing was written",
               convert(x, folder / "c.pt",
                       {.progress = [](std::uint64_t, std::uint64_t) { return false; }}));
  std::vector<std::string> left;
  for (const auto& entry : fs::directory_iterator(folder / ""))
    left.push_back(entry.path().filename());
  std::ranges::sort(left);
  EXPECT_EQ(left, (std::vector<std::string>{"there.pt", "x.pt"}));
  EXPECT_EQ(load(folder / "there.pt").as_int(), 1);
}

TEST_F(ReportsTest, ATensorAsNpy) {
  const CheckpointFile file = CheckpointFile::open(saved("x.pt", state));
  std::string npy;
  write_npy(file, "model.b", [&](ConstBytes bytes) {
    npy.append(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  });
  EXPECT_TRUE(npy.starts_with("\x93NUMPY"));
  EXPECT_NE(npy.find("'descr': '<f4'"), std::string::npos);
  EXPECT_NE(npy.find("(2,)"), std::string::npos);
  const float numbers[] = {3, 4};
  EXPECT_TRUE(
      npy.ends_with(std::string_view(reinterpret_cast<const char*>(numbers), sizeof numbers)));
  EXPECT_ERROR(invalid, "epoch", write_npy(file, "epoch", [](ConstBytes) {}));
  EXPECT_ERROR(not_found, "model.d", write_npy(file, "model.d", [](ConstBytes) {}));
}

}  // namespace
}  // namespace perdure::test
