// .perdure/checkpoint.json: what a checkpoint says of itself.
#include "format/checkpoint_json.hpp"

#include <gtest/gtest.h>

#include <chrono>
#include <cmath>
#include <cstdint>
#include <limits>
#include <nlohmann/json.hpp>

#include "expect_error.hpp"

namespace perdure::test {
namespace {

using format::read_checkpoint_json;
using format::write_checkpoint_json;

CheckpointInfo full() {
  CheckpointInfo info;
  info.step = 1'000'000'000'000;
  info.generation = ~std::uint64_t{0};
  info.parent = 41;
  info.metrics = {{"loss", 0.1},
                  {"nan", std::nan("")},
                  {"inf", std::numeric_limits<double>::infinity()},
                  {"\"quoted\"", -0.0}};
  info.created = 1234567890.25;
  info.reason = "preemption";
  info.writer = "perdure 0.1.0";
  info.libraries = {{"torch", "2.13.0"}};
  info.optimizers = {{"optimizer", {"AdamW", {{"a.weight", "a.bias"}, {}}}}};
  return info;
}

TEST(CheckpointJson, KeepsEveryField) {
  const CheckpointInfo info = read_checkpoint_json(write_checkpoint_json(full()));
  EXPECT_EQ(info.step, 1'000'000'000'000);
  EXPECT_EQ(info.generation, ~std::uint64_t{0});
  EXPECT_EQ(info.parent, 41u);
  EXPECT_EQ(info.metrics.at("loss"), 0.1);
  EXPECT_TRUE(std::isnan(info.metrics.at("nan")));
  EXPECT_EQ(info.metrics.at("inf"), std::numeric_limits<double>::infinity());
  EXPECT_TRUE(std::signbit(info.metrics.at("\"quoted\"")));
  EXPECT_EQ(info.created, 1234567890.25);
  EXPECT_EQ(info.reason, "preemption");
  EXPECT_EQ(info.writer, "perdure 0.1.0");
  EXPECT_EQ(info.libraries.at("torch"), "2.13.0");
  EXPECT_EQ(info.optimizers.at("optimizer").class_name, "AdamW");
  EXPECT_EQ(info.optimizers.at("optimizer").param_names[0][1], "a.bias");
}

TEST(CheckpointJson, IsJsonAndIgnoresWhatItDoesNotKnow) {
  auto json = nlohmann::json::parse(write_checkpoint_json(full()));
  EXPECT_EQ(json.at("metrics").at("nan"), "nan");
  EXPECT_EQ(json.at("format_version"), 1);
  json["journal"] = {{"since", 7}};
  EXPECT_EQ(read_checkpoint_json(json.dump()).parent, 41u);
}

TEST(CheckpointJson, NamesThatAreNoUtf8CostNoCheckpoint) {
  CheckpointInfo info = full();
  info.metrics["\xff"] = 1;
  EXPECT_EQ(read_checkpoint_json(write_checkpoint_json(info)).metrics.size(), 5u);
}

std::string with(const std::string& name, const nlohmann::json& value) {
  auto json = nlohmann::json::parse(write_checkpoint_json(full()));
  json[name] = value;
  return json.dump();
}

TEST(CheckpointJson, ANewerVersionIsUnsupported) {
  EXPECT_ERROR(unsupported, "update perdure", read_checkpoint_json(with("format_version", 2)));
  EXPECT_ERROR(unsupported, "update perdure",
               read_checkpoint_json(with("format_version", (std::int64_t{1} << 32) + 1)));
  EXPECT_ERROR(unsupported, "update perdure",
               read_checkpoint_json(with("format_version", ~std::uint64_t{0})));
  EXPECT_ERROR(unsupported, "update perdure",
               read_checkpoint_json(R"({"format_version": 7, "step": "in a new way"})"));
}

TEST(CheckpointJson, WhatIsNoSuchRecordIsDamaged) {
  for (const char* text : {"", "{", "[]", "3", "null", "{}", "\xff", "{\"format_version\": 1}"})
    EXPECT_ERROR(corrupt, ".perdure/checkpoint.json", read_checkpoint_json(text));
  for (const nlohmann::json& version : {nlohmann::json(0), nlohmann::json(-1), nlohmann::json("1"),
                                        nlohmann::json(1.5), nlohmann::json()})
    EXPECT_ERROR(corrupt, ".perdure/checkpoint.json",
                 read_checkpoint_json(with("format_version", version)));
  for (const char* name : {"step", "generation", "parent"}) {
    EXPECT_ERROR(corrupt, name, read_checkpoint_json(with(name, 1e30)));
    EXPECT_ERROR(corrupt, name, read_checkpoint_json(with(name, "7")));
    EXPECT_ERROR(corrupt, name, read_checkpoint_json(with(name, 0.5)));
  }
  EXPECT_ERROR(corrupt, "step", read_checkpoint_json(with("step", ~std::uint64_t{0})));
  EXPECT_ERROR(corrupt, "generation", read_checkpoint_json(with("generation", -1)));
  EXPECT_ERROR(corrupt, "'much' is no number",
               read_checkpoint_json(with("metrics", {{"loss", "much"}})));
  EXPECT_ERROR(corrupt, "json", read_checkpoint_json(with("metrics", {{"loss", {1}}})));
  EXPECT_ERROR(corrupt, "metrics is no object", read_checkpoint_json(with("metrics", {1, 2})));
  EXPECT_ERROR(corrupt, "json", read_checkpoint_json(with("optimizers", {{"optimizer", "AdamW"}})));
  EXPECT_ERROR(corrupt, "json", read_checkpoint_json(with("libraries", {{"torch", 2}})));
  const std::string nul = write_checkpoint_json(full()) + '\0';
  EXPECT_ERROR(corrupt, "NUL", read_checkpoint_json(nul));
  EXPECT_ERROR(corrupt, "NUL", read_checkpoint_json(nul + "{}"));
  const std::string deep = std::string(100'000, '[');
  EXPECT_ERROR(corrupt, "json", read_checkpoint_json(deep));
}

TEST(CheckpointJson, AMemberThatStandsTwiceIsDamage) {
  const std::string text = write_checkpoint_json(full());
  const auto with_first = [&](const std::string& member) {
    return std::string(text).insert(text.find('{') + 1, member + ",");
  };
  EXPECT_ERROR(corrupt, "'step' stands there twice",
               read_checkpoint_json(with_first("\"step\": 7")));
  EXPECT_ERROR(corrupt, "'a' stands there twice",
               read_checkpoint_json(with_first(R"("new": {"a": 1, "b": {"a": 2}, "a": 3})")));
  // The same name in several objects is several members.
  EXPECT_EQ(read_checkpoint_json(with_first(R"("new": [{"a": 1}, {"a": {"a": 2}}])")).parent, 41U);
}

TEST(CheckpointJson, ErrorsAreNoLongerThanPeopleRead) {
  for (const std::string& text :
       {"{\"" + std::string(1'000'000, '\xff'), "{" + std::string(1'000'000, 'x'),
        with("metrics", {{"loss", std::string(1'000'000, '\x1b')}})})
    EXPECT_LT(std::string(error_of([&] { read_checkpoint_json(text); }).what()).size(), 1000U);
}

TEST(CheckpointJson, ManyMembersTakeNoTimeToSpeakOf) {
  CheckpointInfo info = full();
  for (int i = 0; i < 200'000; ++i) info.metrics["metric " + std::to_string(i)] = i;
  nlohmann::json json;
  json["new"] = info.metrics;
  const std::string inner = json.dump();
  const std::string text = write_checkpoint_json(full());
  const auto begin = std::chrono::steady_clock::now();
  read_checkpoint_json(inner.substr(0, inner.size() - 1) + "," + text.substr(text.find('{') + 1));
  EXPECT_LT(std::chrono::steady_clock::now() - begin, std::chrono::seconds(20));  // hours, squared
}

}  // namespace
}  // namespace perdure::test
