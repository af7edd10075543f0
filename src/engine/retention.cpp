#include "engine/retention.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstdint>

namespace perdure::engine {
namespace {

using Plan = std::vector<PlannedCheckpoint>;

void keep_last(Plan& plan, std::size_t count) {
  count = std::max<std::size_t>(count, 1);
  for (std::size_t i = 0; i < std::min(count, plan.size()); ++i)
    plan[i].reasons.push_back(count == 1 ? "the newest" : fmt::format("last {}", count));
}

void keep_best(Plan& plan, const std::vector<Checkpoint>& checkpoints, const Best& best) {
  const auto order = ranked(checkpoints, best.metric, best.mode);
  for (std::size_t i = 0; i < std::min(best.count, order.size()); ++i)
    // `checkpoints` has the plan's order.
    plan[static_cast<std::size_t>(order[i] - checkpoints.data())].reasons.push_back(
        fmt::format("best{} by {} ({})", best.count == 1 ? "" : fmt::format(" {}", best.count),
                    best.metric, best.mode == Mode::min ? "min" : "max"));
}

// For each multiple that was reached, the lowest step; saved twice, its newer one. A run that went
// back and came by again may have two such steps, of which the lower stays.
void keep_every_steps(Plan& plan, std::int64_t steps) {
  std::map<std::int64_t, PlannedCheckpoint*> firsts;
  for (PlannedCheckpoint& item : plan) {  // newest first
    const std::int64_t multiple = item.checkpoint.step() / steps;
    if (multiple == 0) continue;
    PlannedCheckpoint*& first = firsts[multiple];
    if (!first || item.checkpoint.step() < first->checkpoint.step()) first = &item;
  }
  for (const auto& [multiple, item] : firsts)
    item->reasons.push_back(fmt::format("every {} steps", steps));
}

std::string hours_text(double seconds) {
  if (seconds >= 3600) return fmt::format("{:g} h", seconds / 3600);
  return seconds >= 60 ? fmt::format("{:g} min", seconds / 60) : fmt::format("{:g} s", seconds);
}

// In the order of generations; a clock that was put back begins anew.
void keep_every_time(Plan& plan, double seconds) {
  std::optional<double> last;
  for (auto item = plan.rbegin(); item != plan.rend(); ++item) {
    const double created = item->checkpoint.info.created;
    if (!(created > 0)) continue;  // not of perdure's
    if (last && created >= *last && created < *last + seconds) continue;
    last = created;
    item->reasons.push_back(fmt::format("every {}", hours_text(seconds)));
  }
}

}  // namespace

std::vector<const Checkpoint*> ranked(const std::vector<Checkpoint>& checkpoints,
                                      const std::string& metric, Mode mode) {
  std::vector<const Checkpoint*> found;
  for (const Checkpoint& checkpoint : checkpoints) {
    const auto value = checkpoint.info.metrics.find(metric);
    if (value != checkpoint.info.metrics.end() && !std::isnan(value->second))
      found.push_back(&checkpoint);
  }
  std::sort(found.begin(), found.end(), [&](const Checkpoint* a, const Checkpoint* b) {
    const double x = a->info.metrics.at(metric);
    const double y = b->info.metrics.at(metric);
    if (x != y) return mode == Mode::min ? x < y : x > y;
    return a->generation() < b->generation();
  });
  return found;
}

std::vector<PlannedCheckpoint> plan_retention(std::vector<Checkpoint> checkpoints,
                                              const ManagerOptions& options, const Needed& needed) {
  std::sort(checkpoints.begin(), checkpoints.end(), [](const Checkpoint& a, const Checkpoint& b) {
    return a.generation() > b.generation();
  });
  Plan plan;
  for (const Checkpoint& checkpoint : checkpoints) plan.push_back({checkpoint, {}});
  keep_last(plan, options.keep_last);
  for (const Best& best : options.keep_best) keep_best(plan, checkpoints, best);
  if (options.keep_every.steps > 0) keep_every_steps(plan, options.keep_every.steps);
  if (options.keep_every.time.count() > 0) keep_every_time(plan, options.keep_every.time.count());
  for (PlannedCheckpoint& item : plan) {
    const auto [begin, end] = needed.equal_range(item.checkpoint.generation());
    for (auto reason = begin; reason != end; ++reason) item.reasons.push_back(reason->second);
  }
  return plan;
}

std::vector<std::uint64_t> prunable(const std::vector<PlannedCheckpoint>& plan) {
  std::vector<std::uint64_t> gone;
  for (const PlannedCheckpoint& item : plan)
    if (!item.kept()) gone.push_back(item.checkpoint.generation());
  std::sort(gone.begin(), gone.end());
  return gone;
}

}  // namespace perdure::engine
