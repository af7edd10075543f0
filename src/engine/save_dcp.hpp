// Writing a directory that torch.distributed.checkpoint loads.
#pragma once

#include <filesystem>
#include <optional>
#include <perdure/file.hpp>

#include "engine/block_writer.hpp"
#include "io/system.hpp"

namespace perdure::engine {

// One file for all of `state`, and .metadata; the directory appears with both in it. To its
// readers, keys that are no strings are strings, as dcp.save makes them. Error(invalid) names what
// cannot be saved. `info`: it is a checkpoint of perdure's, and where that says so, of several
// ranks (CheckpointFile: `state` has the others under "ranks"). Then there are perdure.json and the
// records of the ranks, too, as where they have saved it (engine/rank_plan.hpp), and perdure gets
// all back as it was.
void save_dcp(io::System& system, const std::filesystem::path& path, const Value& state,
              const std::optional<CheckpointInfo>& info, storage::IfExists if_exists,
              const OnBytes& on_bytes);

}  // namespace perdure::engine
