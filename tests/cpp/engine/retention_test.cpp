#include "engine/retention.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

namespace perdure::engine {
namespace {

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
constexpr double kInfinity = std::numeric_limits<double>::infinity();
using Generations = std::vector<std::uint64_t>;

// Generation 1 has the first loss, and so on; in an order that is none.
std::vector<Checkpoint> with_losses(const std::vector<double>& losses) {
  std::vector<Checkpoint> checkpoints;
  for (std::size_t i = 0; i < losses.size(); ++i) {
    Checkpoint checkpoint;
    checkpoint.info.generation = i + 1;
    checkpoint.info.metrics["loss"] = losses[i];
    checkpoints.insert(i % 2 == 0 ? checkpoints.begin() : checkpoints.end(), checkpoint);
  }
  return checkpoints;
}

Generations prunable_of(const std::vector<double>& losses, std::size_t keep_last,
                        std::vector<Best> best = {}, const std::set<std::uint64_t>& needed = {}) {
  return prunable(with_losses(losses), keep_last, best, needed);
}

TEST(RetentionTest, KeepsTheLastByGeneration) {
  EXPECT_EQ(prunable_of({1, 2, 3, 4, 5}, 3), (Generations{1, 2}));
  EXPECT_EQ(prunable_of({1, 2}, 3), Generations{});
  EXPECT_EQ(prunable_of({}, 3), Generations{});
}

TEST(RetentionTest, NeverTakesTheNewest) { EXPECT_EQ(prunable_of({1, 2}, 0), (Generations{1})); }

TEST(RetentionTest, KeepsWhatIsNeeded) {
  EXPECT_EQ(prunable_of({1, 2, 3, 4}, 1, {}, {2}), (Generations{1, 3}));
  EXPECT_EQ(prunable_of({1, 2}, 1, {}, {0, 77}), (Generations{1}));
}

TEST(RetentionTest, KeepsTheBest) {
  EXPECT_EQ(prunable_of({3, 1, 2, 5, 4}, 1, {{"loss", Mode::min, 2}}), (Generations{1, 4}));
  EXPECT_EQ(prunable_of({3, 1, 2, 5, 4}, 1, {{"loss", Mode::max, 1}}), (Generations{1, 2, 3}));
  EXPECT_EQ(prunable_of({3, 1, 2, 5, 4}, 1, {{"loss", Mode::max, 1}, {"loss", Mode::min, 1}}),
            (Generations{1, 3}));
}

TEST(RetentionTest, NanIsNeverBestAndInfinityIsANumber) {
  EXPECT_EQ(prunable_of({kNan, 7, kNan, 9}, 1, {{"loss", Mode::min, 3}}), (Generations{1, 3}));
  EXPECT_EQ(prunable_of({kInfinity, kNan, kNan}, 1, {{"loss", Mode::min, 1}}), (Generations{2}));
  EXPECT_EQ(prunable_of({-kInfinity, 1, 2}, 1, {{"loss", Mode::min, 1}}), (Generations{2}));
}

TEST(RetentionTest, OfEqualOnesTheOlderIsKept) {
  EXPECT_EQ(prunable_of({1, 1, 1, 2}, 1, {{"loss", Mode::min, 1}}), (Generations{2, 3}));
  EXPECT_EQ(prunable_of({1, 1, 1, 0}, 1, {{"loss", Mode::max, 2}}), (Generations{3}));
}

TEST(RetentionTest, WithoutTheMetricItIsNotBest) {
  EXPECT_EQ(prunable_of({1, 2, 3}, 1, {{"accuracy", Mode::max, 5}}), (Generations{1, 2}));
}

}  // namespace
}  // namespace perdure::engine
