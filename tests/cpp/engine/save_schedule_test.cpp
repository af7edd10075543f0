#include "engine/save_schedule.hpp"

#include <gtest/gtest.h>

#include <cstdint>
#include <random>

namespace perdure::engine {
namespace {

using Clock = SaveSchedule::Clock;
using Seconds = SaveSchedule::Seconds;

Clock::duration ticks(double seconds) {
  return std::chrono::duration_cast<Clock::duration>(Seconds(seconds));
}

// A training by a clock of its own. While a save is written, each step takes longer.
class Training {
  Clock::time_point now_{};
  Clock::time_point written_{};
  std::mt19937 random_{1};

 public:
  Training(Every every, double overhead) : schedule(every, overhead, now_) {}

  double step_time = 0.1;
  double stall = 0;
  double writing = 0;   // how long the writer works
  double slowdown = 1;  // of steps meanwhile
  double spent = 0;     // seconds that saving cost, in truth
  std::int64_t step = 0;
  std::vector<std::int64_t> saves;
  SaveSchedule schedule;

  double seconds() const { return Seconds(now_.time_since_epoch()).count(); }
  bool is_writing() const { return now_ < written_; }

  void run(int steps, double noise = 0) {
    for (int i = 0; i < steps; ++i) {
      const double usual =
          step_time * std::uniform_real_distribution<double>(1 - noise, 1 + noise)(random_);
      const double took = is_writing() ? usual * slowdown : usual;
      spent += took - usual;
      now_ += ticks(took);
      ++step;
      if (schedule.due(step, now_, is_writing())) save();
    }
  }
  void save() {
    const auto begin = now_;
    now_ += ticks(stall);
    spent += stall;
    written_ = now_ + ticks(writing);
    schedule.saved(step, begin, now_);
    saves.push_back(step);
  }
};

using Steps = std::vector<std::int64_t>;

TEST(SaveScheduleTest, EverySoManySteps) {
  Training training({.steps = 10}, 0);
  training.run(35);
  EXPECT_EQ(training.saves, (Steps{10, 20, 30}));
}

TEST(SaveScheduleTest, StepsGoOnAfterARestart) {
  Training training({.steps = 10}, 0);
  training.step = 17;
  training.schedule.goes_on_from(17, {});
  training.run(5);
  EXPECT_EQ(training.saves, (Steps{20}));
  training.step = 13;  // an older one was restored
  training.schedule.goes_on_from(13, {});
  training.run(8);
  EXPECT_EQ(training.saves, (Steps{20, 20}));
}

TEST(SaveScheduleTest, ASaveInBetweenDoesNotShiftTheMultiples) {
  Training training({.steps = 10}, 0);
  training.run(12);
  training.save();
  training.run(10);
  EXPECT_EQ(training.saves, (Steps{10, 12, 20}));
}

TEST(SaveScheduleTest, WhatWasNotSavedStaysDue) {
  SaveSchedule schedule({.steps = 10}, 0, {});
  EXPECT_FALSE(schedule.due(9, {}, false));
  EXPECT_TRUE(schedule.due(10, {}, false));
  EXPECT_TRUE(schedule.due(11, {}, false));
  schedule.saved(11, {}, {});
  EXPECT_FALSE(schedule.due(12, {}, false));
}

TEST(SaveScheduleTest, StepsThatAreSkippedOverAreDue) {
  SaveSchedule schedule({.steps = 10}, 0, {});
  EXPECT_TRUE(schedule.due(25, {}, false));
}

TEST(SaveScheduleTest, EverySoMuchTime) {
  Training training({.time = std::chrono::seconds(1)}, 0);
  training.run(35);
  EXPECT_EQ(training.saves, (Steps{10, 20, 30}));
}

TEST(SaveScheduleTest, EitherOfTheTwo) {
  Training training({.steps = 25, .time = std::chrono::seconds(1)}, 0);
  training.run(40);
  EXPECT_EQ(training.saves, (Steps{10, 20, 25, 35}));
}

TEST(SaveScheduleTest, KeepsToTheOverheadOfAStall) {
  Training training({}, 0.02);
  training.stall = 0.5;
  training.run(5000);
  EXPECT_NEAR(training.spent / training.seconds(), 0.02, 0.002);
  EXPECT_NEAR(training.schedule.interval().value().count(), 25, 0.5);
}

TEST(SaveScheduleTest, KeepsToTheOverheadOfASlowWriter) {
  Training training({}, 0.02);
  training.stall = 0.01;
  training.writing = 4;
  training.slowdown = 1.3;
  training.run(20000, 0.2);
  EXPECT_GT(training.spent / training.seconds(), 0.01);
  EXPECT_LT(training.spent / training.seconds(), 0.03);
}

TEST(SaveScheduleTest, ANearlyFreeSaveIsMadeOnceASecond) {
  Training training({}, 0.02);
  training.writing = 0.35;
  training.run(1000);
  EXPECT_EQ(training.schedule.interval(), SaveSchedule::Seconds(1));
  EXPECT_NEAR(static_cast<double>(training.saves.size()), 100, 5);
}

TEST(SaveScheduleTest, FollowsACostThatChanges) {
  Training training({}, 0.05);
  training.stall = 0.1;
  training.run(2000);
  EXPECT_NEAR(training.schedule.interval().value().count(), 2, 0.2);
  training.stall = 1;
  training.run(5000);
  EXPECT_NEAR(training.schedule.interval().value().count(), 20, 1);
}

TEST(SaveScheduleTest, AnEvaluationBesideASaveIsNotItsCost) {
  Training training({}, 0.05);
  training.stall = 0.2;
  for (int i = 0; i < 200; ++i) {
    training.run(20);
    training.step_time = 10;  // an evaluation, in a step that may have saved
    training.run(1);
    training.step_time = 0.1;
  }
  EXPECT_LT(training.schedule.cost().count(), 0.6);
}

TEST(SaveScheduleTest, TellsWhatItPickedAndWhenThatChanges) {
  Training training({}, 0.02);
  training.stall = 0.1;
  training.run(4);
  EXPECT_FALSE(training.schedule.take_news());
  training.run(20);
  EXPECT_NEAR(training.schedule.take_news().value().count(), 5, 0.1);
  training.run(1000);
  EXPECT_FALSE(training.schedule.take_news());
  training.stall = 1;
  training.run(5000);
  EXPECT_NEAR(training.schedule.take_news().value().count(), 50, 5);
}

TEST(SaveScheduleTest, AskingTwiceInAStepIsAskingOnce) {
  SaveSchedule schedule({}, 0.02, {});
  Clock::time_point now{};
  for (std::int64_t step = 1; step < 20; ++step) {
    now += ticks(0.1);
    schedule.due(step, now, false);
    schedule.due(step, now, false);
  }
  EXPECT_NEAR(schedule.step_time().count(), 0.1, 1e-6);
}

}  // namespace
}  // namespace perdure::engine
