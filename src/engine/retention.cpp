#include "engine/retention.hpp"

#include <algorithm>
#include <cmath>

namespace perdure::engine {

std::vector<const Checkpoint*> ranked(std::span<const Checkpoint> checkpoints,
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

std::vector<std::uint64_t> prunable(std::span<const Checkpoint> checkpoints, std::size_t keep_last,
                                    std::span<const Best> keep_best,
                                    const std::set<std::uint64_t>& needed) {
  std::set<std::uint64_t> generations;
  for (const Checkpoint& checkpoint : checkpoints) generations.insert(checkpoint.generation());
  std::set<std::uint64_t> kept = needed;
  std::size_t last = 0;
  for (auto newest = generations.rbegin();
       newest != generations.rend() && last < std::max<std::size_t>(keep_last, 1); ++newest, ++last)
    kept.insert(*newest);
  for (const Best& best : keep_best) {
    const auto order = ranked(checkpoints, best.metric, best.mode);
    for (std::size_t i = 0; i < std::min(best.count, order.size()); ++i)
      kept.insert(order[i]->generation());
  }
  std::vector<std::uint64_t> gone;
  std::set_difference(generations.begin(), generations.end(), kept.begin(), kept.end(),
                      std::back_inserter(gone));
  return gone;
}

}  // namespace perdure::engine
