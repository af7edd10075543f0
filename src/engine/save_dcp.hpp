// Writing a directory that torch.distributed.checkpoint loads.
#pragma once

#include <filesystem>

#include "engine/block_writer.hpp"
#include "io/system.hpp"

namespace perdure::engine {

// One file for all of `state`, and .metadata; the directory appears with both in it. Keys that are
// no strings become strings, as dcp.save makes them. Error(invalid) names what cannot be saved.
void save_dcp(io::System& system, const std::filesystem::path& path, const Value& state,
              storage::IfExists if_exists, const OnBytes& on_bytes);

}  // namespace perdure::engine
