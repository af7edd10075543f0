// For a restore: of the tensors of a file, the boxes that this process has.
#pragma once

#include <perdure/file.hpp>
#include <perdure/state.hpp>
#include <vector>

namespace perdure::engine {

// `value` is of `file`, and goes to an entry with these shards (TrainingState::Entry). Each tensor
// that stands where one does becomes that part of it. What has another shape than the whole that
// the shard is of is a problem.
Value cut_shards(const Value& value, const std::vector<Shard>& shards, const CheckpointFile& file,
                 Problems& problems);

}  // namespace perdure::engine
