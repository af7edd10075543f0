// Which checkpoints may go. Knows numbers and metrics only; what is durable and whole is the
// caller's to say.
#pragma once

#include <cstdint>
#include <optional>
#include <perdure/checkpoint_manager.hpp>
#include <set>
#include <span>
#include <vector>

namespace perdure::engine {

// The generations that neither keep_last nor a keep_best wants, and that are not in `needed`.
// `checkpoints` are those that are whole, in any order; the newest of them stays whatever is asked
// for.
std::vector<std::uint64_t> prunable(std::span<const Checkpoint> checkpoints, std::size_t keep_last,
                                    std::span<const Best> keep_best,
                                    const std::set<std::uint64_t>& needed);

// Those with the metric, not NaN, best first; of equal ones the older first.
std::vector<const Checkpoint*> ranked(std::span<const Checkpoint> checkpoints,
                                      const std::string& metric, Mode mode);

}  // namespace perdure::engine
