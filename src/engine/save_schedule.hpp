// When a save is due: by steps, by time, and by what saves were seen to cost the training.
//
// The cost of a save is how much longer the steps took that it touched: the one in which save() was
// called and those during which its writer worked, against the median of steps without any of that.
// So it has all of it: the copy, the fence, the bandwidth of the memory and the processor that the
// writer takes. A save every cost / overhead then keeps to the share. Knows no clock but what it is
// told.
#pragma once

#include <chrono>
#include <cstdint>
#include <deque>
#include <optional>
#include <perdure/checkpoint_manager.hpp>

namespace perdure::engine {

class SaveSchedule {
 public:
  using Clock = std::chrono::steady_clock;
  using Seconds = std::chrono::duration<double>;

  SaveSchedule(Every every, double overhead, Clock::time_point now);

  bool has_rule() const { return !every_.never() || overhead_ > 0; }
  // The training goes on from this step: restored, or found at the start.
  void goes_on_from(std::int64_t step, Clock::time_point now);
  // Of every step, at its end; of one and the same step as often as one likes. `writing`: a save is
  // in flight.
  bool due(std::int64_t step, Clock::time_point now, bool writing);
  // By the steps alone, which every rank counts alike.
  bool due_by_steps(std::int64_t step) const;
  // A save() of this step has held the caller from `begin` to `end`.
  void saved(std::int64_t step, Clock::time_point begin, Clock::time_point end);

  // The shortest interval that keeps to the overhead, but a second at least, once a save was
  // measured.
  std::optional<Seconds> interval() const;
  Seconds cost() const;
  // The interval where it has become known, or much different from what was told last.
  std::optional<Seconds> take_news();
  Seconds step_time() const;  // the median without a save; 0: not known yet

 private:
  void observe(Clock::time_point now, bool writing);
  void end_measurement();

  Every every_;
  double overhead_;
  std::int64_t last_step_ = 0;                 // saved, or gone on from
  Clock::time_point last_save_;                // when it began; or the beginning
  std::optional<Clock::time_point> previous_;  // the end of the step before
  std::optional<std::int64_t> previous_step_;
  std::deque<Seconds> plain_;  // steps without a save, the last few
  bool touched_ = false;       // the step that goes on has to do with a save
  bool measuring_ = false;
  Seconds stall_{};            // of save() in the step that goes on
  Seconds excess_{};           // of the steps so far that the save has touched
  Seconds least_{};            // what save() itself took
  std::deque<Seconds> costs_;  // of the last few saves
  std::optional<Seconds> told_;
};

}  // namespace perdure::engine
