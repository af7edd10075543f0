#include "engine/save_schedule.hpp"

#include <algorithm>
#include <cstdint>
#include <vector>

namespace perdure::engine {
namespace {

constexpr std::size_t kPlainSteps = 31;
// So many steps are seen before the first save is due by overhead.
constexpr std::size_t kEnoughSteps = 5;
constexpr std::size_t kCosts = 5;
// A step that takes so many times what others do had something else in it (an evaluation).
constexpr double kOutlier = 3;
// What is worth a word: a change of the interval by this factor.
constexpr double kNews = 1.5;
// A small state could be saved many times a second, for nothing but the wear of the disk.
constexpr SaveSchedule::Seconds kShortest{1};

SaveSchedule::Seconds median(const std::deque<SaveSchedule::Seconds>& values) {
  if (values.empty()) return {};
  std::vector<SaveSchedule::Seconds> sorted(values.begin(), values.end());
  const auto middle = sorted.begin() + static_cast<std::ptrdiff_t>(sorted.size() / 2);
  std::nth_element(sorted.begin(), middle, sorted.end());
  return *middle;
}

void push(std::deque<SaveSchedule::Seconds>& values, SaveSchedule::Seconds value,
          std::size_t limit) {
  values.push_back(value);
  if (values.size() > limit) values.pop_front();
}

}  // namespace

SaveSchedule::SaveSchedule(Every every, double overhead, Clock::time_point now)
    : every_(every), overhead_(overhead), last_save_(now) {}

void SaveSchedule::goes_on_from(std::int64_t step, Clock::time_point now) {
  last_step_ = step;
  last_save_ = now;
  previous_.reset();
}

void SaveSchedule::observe(Clock::time_point now, bool writing) {
  if (previous_) {
    const Seconds took = now - *previous_;
    if (!touched_) {
      push(plain_, took, kPlainSteps);
    } else if (measuring_) {
      const Seconds usual = step_time();
      excess_ += std::min(took - usual, stall_ + kOutlier * usual);
    }
  }
  previous_ = now;
  stall_ = {};
  if (measuring_ && touched_ && !writing) end_measurement();
  touched_ = writing;
}

void SaveSchedule::end_measurement() {
  measuring_ = false;
  push(costs_, std::max(excess_, least_), kCosts);
}

bool SaveSchedule::due_by_steps(std::int64_t step) const {
  return every_.steps > 0 && step / every_.steps != last_step_ / every_.steps;
}

bool SaveSchedule::due(std::int64_t step, Clock::time_point now, bool writing) {
  if (previous_step_ != step) observe(now, writing);
  previous_step_ = step;
  if (due_by_steps(step)) return true;
  if (every_.time.count() > 0 && now - last_save_ >= every_.time) return true;
  if (overhead_ <= 0 || writing) return false;
  if (const auto interval = this->interval()) return now - last_save_ >= *interval;
  return !measuring_ && plain_.size() >= kEnoughSteps;
}

void SaveSchedule::saved(std::int64_t step, Clock::time_point begin, Clock::time_point end) {
  last_step_ = step;
  last_save_ = begin;
  stall_ += end - begin;
  touched_ = true;
  if (plain_.empty()) return;  // nothing to compare with
  measuring_ = true;
  excess_ = {};
  least_ = end - begin;
}

SaveSchedule::Seconds SaveSchedule::cost() const { return median(costs_); }
SaveSchedule::Seconds SaveSchedule::step_time() const { return median(plain_); }

std::optional<SaveSchedule::Seconds> SaveSchedule::interval() const {
  if (overhead_ <= 0 || costs_.empty()) return std::nullopt;
  return std::max(cost() / overhead_, kShortest);
}

std::optional<SaveSchedule::Seconds> SaveSchedule::take_news() {
  const auto now = interval();
  if (!now || (told_ && *now < *told_ * kNews && *told_ < *now * kNews)) return std::nullopt;
  told_ = now;
  return now;
}

}  // namespace perdure::engine
