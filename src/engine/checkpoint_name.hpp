// The names of checkpoints in a run directory: step-0000000100-g00000042.pt is step 100,
// generation 42; a directory that several ranks have saved ends in .dcp instead.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace perdure::engine {

struct CheckpointName {
  std::int64_t step = 0;
  std::uint64_t generation = 0;
  bool of_ranks = false;
  bool operator==(const CheckpointName&) const = default;
};

// No run gets there; above it, "the next one" could not be counted on.
inline constexpr std::uint64_t kMaxGeneration = 999'999'999'999'999'999;

std::string format(const CheckpointName& name);
// nullopt for anything that format() would not have written.
std::optional<CheckpointName> parse_checkpoint_name(std::string_view name);
// Of a checkpoint that was set aside: a checkpoint's name and ".damaged" with or without more
// behind it.
std::optional<CheckpointName> parse_damaged_name(std::string_view name);
// The generation in the name of a checkpoint or of a damaged one; 0 for any other.
std::uint64_t generation_in(std::string_view name);

}  // namespace perdure::engine
