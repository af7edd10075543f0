// Which checkpoints stay, and why. Knows numbers and metrics only; what is durable and whole is the
// caller's to say.
#pragma once

#include <cstdint>
#include <map>
#include <perdure/checkpoint_manager.hpp>
#include <string>
#include <vector>

namespace perdure::engine {

// What somebody else needs: why, by generation.
using Needed = std::multimap<std::uint64_t, std::string>;

// For each of `checkpoints` (those that are whole) why it stays by the options' keep_last,
// keep_best and keep_every, or because it is needed; newest first. The newest stays whatever is
// asked for. What is left when the others are gone is wanted by the same rules again.
std::vector<PlannedCheckpoint> plan_retention(std::vector<Checkpoint> checkpoints,
                                              const ManagerOptions& options, const Needed& needed);

// The generations that have no reason to stay.
std::vector<std::uint64_t> prunable(const std::vector<PlannedCheckpoint>& plan);

// Those with the metric, not NaN, best first; of equal ones the older first.
std::vector<const Checkpoint*> ranked(const std::vector<Checkpoint>& checkpoints,
                                      const std::string& metric, Mode mode);

}  // namespace perdure::engine
