// perdure.json of a checkpoint of several ranks: what it says is read again, and no damage of it is
// taken for anything else.
#include "format/ranks_json.hpp"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <limits>
#include <nlohmann/json.hpp>

#include "expect_error.hpp"
#include "format/coding.hpp"
#include "format/crc32.hpp"

namespace perdure::test {
namespace {

using format::RanksRecord;
using format::read_ranks_json;
using format::write_ranks_json;

RanksRecord full() {
  RanksRecord record;
  record.info.step = 1'000'000'000'000;
  record.info.generation = 999'999'999'999'999'999;
  record.info.parent = 41;
  record.info.metrics = {{"loss", 0.1},
                         {"nan", std::nan("")},
                         {"inf", -std::numeric_limits<double>::infinity()},
                         {"\"quoted\"", -0.0}};
  record.info.created = 1234567890.25;
  record.info.reason = "preemption";
  record.info.writer = "perdure 0.1.0";
  record.info.libraries = {{"torch", "2.13.0"}};
  record.info.optimizers = {{"optimizer", {"AdamW", {{"a.weight", "a.bias"}, {}}}}};
  record.ranks = 1024;
  record.bytes = std::uint64_t{10} << 40;
  record.metadata_size = std::uint64_t{1} << 32;
  record.metadata_crc32 = 0xFFFFFFFF;
  return record;
}

// `json` with the checksum that it needs.
std::string signed_again(nlohmann::json json) {
  json.erase("crc32");
  std::string text = json.dump();
  text.pop_back();
  return fmt::format("{},\"crc32\":\"{:08x}\"}}\n", text, format::crc32(format::as_bytes(text)));
}

std::string with(const std::string& pointer, const nlohmann::json& value) {
  auto json = nlohmann::json::parse(write_ranks_json(full()));
  json[nlohmann::json::json_pointer(pointer)] = value;
  return signed_again(json);
}

TEST(RanksJson, KeepsEveryField) {
  const RanksRecord record = read_ranks_json(write_ranks_json(full()));
  EXPECT_EQ(record.ranks, 1024U);
  EXPECT_EQ(record.bytes, std::uint64_t{10} << 40);
  EXPECT_EQ(record.metadata_size, std::uint64_t{1} << 32);
  EXPECT_EQ(record.metadata_crc32, 0xFFFFFFFF);
  const CheckpointInfo& info = record.info;
  EXPECT_EQ(info.step, 1'000'000'000'000);
  EXPECT_EQ(info.generation, 999'999'999'999'999'999U);
  EXPECT_EQ(info.parent, 41U);
  EXPECT_EQ(info.metrics.size(), 4U);
  EXPECT_EQ(info.metrics.at("loss"), 0.1);
  EXPECT_TRUE(std::isnan(info.metrics.at("nan")));
  EXPECT_EQ(info.metrics.at("inf"), -std::numeric_limits<double>::infinity());
  EXPECT_TRUE(std::signbit(info.metrics.at("\"quoted\"")));
  EXPECT_EQ(info.created, 1234567890.25);
  EXPECT_EQ(info.reason, "preemption");
  EXPECT_EQ(info.writer, "perdure 0.1.0");
  EXPECT_EQ(info.libraries.at("torch"), "2.13.0");
  EXPECT_EQ(info.optimizers.at("optimizer").class_name, "AdamW");
  EXPECT_EQ(info.optimizers.at("optimizer").param_names[0][1], "a.bias");
}

TEST(RanksJson, IsJsonAndIgnoresWhatItDoesNotKnow) {
  const auto json = nlohmann::json::parse(write_ranks_json(full()));
  EXPECT_EQ(json.at("format_version"), 1);
  EXPECT_EQ(json.at("ranks"), 1024);
  EXPECT_EQ(json.at("checkpoint").at("metrics").at("nan"), "nan");
  EXPECT_EQ(read_ranks_json(signed_again(json)).ranks, 1024U);
  EXPECT_EQ(read_ranks_json(with("/new", {{"a", 1}})).info.parent, 41U);
}

TEST(RanksJson, NoBitMayBeAnotherOne) {
  const std::string whole = write_ranks_json(full());
  for (std::size_t bit = 0; bit < 8 * whole.size(); ++bit) {
    std::string text = whole;
    text[bit / 8] = static_cast<char>(text[bit / 8] ^ (1 << bit % 8));
    EXPECT_ERROR(corrupt, "perdure.json: ", read_ranks_json(text));
  }
}

TEST(RanksJson, NothingMayBeMissingOrFollow) {
  const std::string whole = write_ranks_json(full());
  for (std::size_t size = 0; size < whole.size(); ++size) {
    EXPECT_ERROR(corrupt, "perdure.json: ", read_ranks_json(whole.substr(0, size)));
    EXPECT_ERROR(corrupt, "perdure.json: ", read_ranks_json(whole.substr(whole.size() - size)));
  }
  for (const char* more : {" ", "\n", "}", "{}"})
    EXPECT_ERROR(corrupt, "perdure.json: ", read_ranks_json(whole + more));
  EXPECT_ERROR(corrupt, "perdure.json: ", read_ranks_json(whole + whole));
}

TEST(RanksJson, ANewerVersionIsUnsupported) {
  EXPECT_ERROR(unsupported, "take a newer one", read_ranks_json(with("/format_version", 2)));
  EXPECT_ERROR(unsupported, "take a newer one",
               read_ranks_json(with("/format_version", ~std::uint64_t{0})));
  EXPECT_ERROR(unsupported, "take a newer one",
               read_ranks_json(signed_again({{"format_version", 7}, {"ranks", "in a new way"}})));
  EXPECT_ERROR(unsupported, "update perdure",
               read_ranks_json(with("/checkpoint/format_version", 2)));
}

// Though it has the checksum that it needs.
TEST(RanksJson, WhatIsNoSuchRecordIsDamaged) {
  for (const char* name : {"format_version", "ranks", "bytes", "metadata", "checkpoint"}) {
    auto json = nlohmann::json::parse(write_ranks_json(full()));
    json.erase(name);
    EXPECT_ERROR(corrupt, name, read_ranks_json(signed_again(json)));
  }
  for (const char* place :
       {"/format_version", "/ranks", "/bytes", "/metadata/size", "/metadata/crc32"})
    for (const nlohmann::json& value : {nlohmann::json(-1), nlohmann::json("1"),
                                        nlohmann::json(1.5), nlohmann::json(), nlohmann::json("")})
      EXPECT_ERROR(corrupt, "perdure.json", read_ranks_json(with(place, value)));
  EXPECT_ERROR(corrupt, "contradicts", read_ranks_json(with("/ranks", 0)));
  EXPECT_ERROR(corrupt, "contradicts",
               read_ranks_json(with("/metadata/crc32", std::uint64_t{1} << 32)));
  for (const nlohmann::json& value :
       {nlohmann::json(1), nlohmann::json::array(), nlohmann::json::object(), nlohmann::json()}) {
    EXPECT_ERROR(corrupt, "", read_ranks_json(with("/checkpoint", value)));
    EXPECT_ERROR(corrupt, "perdure.json", read_ranks_json(with("/metadata", value)));
  }
  EXPECT_ERROR(corrupt, "step", read_ranks_json(with("/checkpoint/step", "7")));
}

}  // namespace
}  // namespace perdure::test
