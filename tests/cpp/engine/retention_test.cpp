#include "engine/retention.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <random>

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
                        std::vector<Best> best = {}, const Needed& needed = {}) {
  ManagerOptions options;
  options.keep_last = keep_last;
  options.keep_best = std::move(best);
  return prunable(plan_retention(with_losses(losses), options, needed));
}

struct Saved {
  std::int64_t step;
  double created = 0;
};

// Generations in the order of the list; the newest is kept in any case.
Generations prunable_every(const std::vector<Saved>& saves, Every every) {
  std::vector<Checkpoint> checkpoints;
  for (const Saved& save : saves) {
    Checkpoint checkpoint;
    checkpoint.info.step = save.step;
    checkpoint.info.created = save.created;
    checkpoint.info.generation = checkpoints.size() + 1;
    checkpoints.push_back(checkpoint);
  }
  ManagerOptions options;
  options.keep_last = 1;
  options.keep_every = every;
  return prunable(plan_retention(checkpoints, options, {}));
}

TEST(RetentionTest, KeepsTheLastByGeneration) {
  EXPECT_EQ(prunable_of({1, 2, 3, 4, 5}, 3), (Generations{1, 2}));
  EXPECT_EQ(prunable_of({1, 2}, 3), Generations{});
  EXPECT_EQ(prunable_of({}, 3), Generations{});
}

TEST(RetentionTest, NeverTakesTheNewest) { EXPECT_EQ(prunable_of({1, 2}, 0), (Generations{1})); }

TEST(RetentionTest, KeepsWhatIsNeeded) {
  EXPECT_EQ(prunable_of({1, 2, 3, 4}, 1, {}, {{2, "pinned"}}), (Generations{1, 3}));
  EXPECT_EQ(prunable_of({1, 2}, 1, {}, {{0, "x"}, {77, "y"}}), (Generations{1}));
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

TEST(RetentionTest, KeepsTheFirstAtEachMultipleOfSteps) {
  const Every every{.steps = 100};
  EXPECT_EQ(prunable_every({{50}, {99}, {100}, {150}, {250}, {299}, {310}, {320}}, every),
            (Generations{1, 2, 4, 6}));
  EXPECT_EQ(prunable_every({{100}, {200}, {300}}, every), Generations{});
}

TEST(RetentionTest, OfAStepThatWasSavedTwiceTheNewerIsKept) {
  const Every every{.steps = 100};
  EXPECT_EQ(prunable_every({{100}, {150}, {100}, {120}, {130}}, every), (Generations{1, 2, 4}));
  // The run went back and came by again at another step: the lower one stays.
  EXPECT_EQ(prunable_every({{110}, {150}, {105}, {120}, {130}}, every), (Generations{1, 2, 4}));
}

TEST(RetentionTest, KeepsOneForEachSpanOfTime) {
  const Every every{.time = std::chrono::hours(1)};
  const double hour = 3600;
  EXPECT_EQ(prunable_every({{1, 10 * hour},
                            {2, 10.5 * hour},
                            {3, 11 * hour},
                            {4, 11.9 * hour},
                            {5, 12.5 * hour},
                            {6, 12.6 * hour},
                            {7, 12.7 * hour}},
                           every),
            (Generations{2, 4, 6}));
  // Put back, a clock begins anew; a file of unknown age is nothing to go by.
  EXPECT_EQ(prunable_every(
                {{1, 10 * hour}, {2, 3 * hour}, {3, 3.5 * hour}, {4, 0}, {5, 3.6 * hour}}, every),
            (Generations{3, 4}));
}

TEST(RetentionTest, SaysWhy) {
  auto checkpoints = with_losses({3, 1, 2});
  for (Checkpoint& checkpoint : checkpoints)
    checkpoint.info.step = static_cast<std::int64_t>(checkpoint.generation()) * 500;
  ManagerOptions options;
  options.keep_last = 2;
  options.keep_best = {{"loss", Mode::min, 1}};
  options.keep_every.steps = 1000;
  const auto plan = plan_retention(checkpoints, options, {{2, "pinned: for the paper"}});
  ASSERT_EQ(plan.size(), 3U);
  using Reasons = std::vector<std::string>;
  EXPECT_EQ(plan[0].reasons, (Reasons{"last 2"}));
  EXPECT_EQ(plan[1].reasons,
            (Reasons{"last 2", "best by loss (min)", "every 1000 steps", "pinned: for the paper"}));
  EXPECT_EQ(plan[2].reasons, Reasons{});
}

// Whatever the history: what must stay stays, and pruning twice is pruning once, so that nothing is
// kept today and gone tomorrow without a newer save.
TEST(RetentionTest, HoldsForRandomHistories) {
  std::mt19937 random(20261124);
  const auto pick = [&](int from, int to) {
    return std::uniform_int_distribution<int>(from, to)(random);
  };
  for (int round = 0; round < 3000; ++round) {
    std::vector<Checkpoint> checkpoints;
    std::int64_t step = 0;
    double clock = 1e9;
    for (int i = 0, count = pick(1, 25); i < count; ++i) {
      step = pick(0, 9) == 0 ? pick(0, 100) : step + pick(0, 20);  // sometimes back
      clock += pick(0, 9) == 0 ? -5000 : pick(0, 3000);
      Checkpoint checkpoint;
      checkpoint.info.step = step;
      checkpoint.info.created = clock;
      checkpoint.info.generation = static_cast<std::uint64_t>(2 * i + 1 + pick(0, 1));
      const double losses[] = {kNan, kInfinity, -kInfinity, 1, 2, 3, 3};
      if (pick(0, 3) != 0) checkpoint.info.metrics["loss"] = losses[pick(0, 6)];
      checkpoints.push_back(checkpoint);
    }
    std::shuffle(checkpoints.begin(), checkpoints.end(), random);
    ManagerOptions options;
    options.keep_last = static_cast<std::size_t>(pick(1, 4));
    options.keep_best = {
        {"loss", pick(0, 1) ? Mode::min : Mode::max, static_cast<std::size_t>(pick(1, 3))}};
    options.keep_every = {.steps = pick(0, 30), .time = std::chrono::seconds(pick(0, 4000))};
    const std::uint64_t pinned = checkpoints[pick(0, int(checkpoints.size()) - 1)].generation();
    const std::uint64_t restored = checkpoints[pick(0, int(checkpoints.size()) - 1)].generation();
    const Needed needed{{pinned, "pinned"}, {restored, "restored from"}};

    const auto gone = prunable(plan_retention(checkpoints, options, needed));
    const auto is_gone = [&](std::uint64_t generation) {
      return std::find(gone.begin(), gone.end(), generation) != gone.end();
    };
    std::uint64_t newest = 0;
    for (const Checkpoint& item : checkpoints) newest = std::max(newest, item.generation());
    ASSERT_FALSE(is_gone(newest) || is_gone(pinned) || is_gone(restored)) << "round " << round;
    const auto best = ranked(checkpoints, "loss", options.keep_best[0].mode);
    for (std::size_t i = 0; i < std::min(best.size(), options.keep_best[0].count); ++i) {
      ASSERT_FALSE(std::isnan(best[i]->info.metrics.at("loss")));
      ASSERT_FALSE(is_gone(best[i]->generation())) << "round " << round;
    }
    std::erase_if(checkpoints, [&](const Checkpoint& c) { return is_gone(c.generation()); });
    ASSERT_EQ(prunable(plan_retention(checkpoints, options, needed)), Generations{})
        << "round " << round;
  }
}

}  // namespace
}  // namespace perdure::engine
