// What a path on the command line stands for.
#pragma once

#include <filesystem>
#include <memory>
#include <perdure/file.hpp>
#include <vector>

namespace perdure::cli {

// A file is itself; a run directory is all of its checkpoints, newest first.
// Error(not_found) where a directory holds none.
std::vector<std::filesystem::path> checkpoint_files(const std::filesystem::path& path);

// Verifies one of them. A path that was given may be a link; a checkpoint in a directory never is.
VerifyReport verify_checkpoint(const std::filesystem::path& given,
                               const std::filesystem::path& file, const OnRead& progress);

// A file is itself; a run directory is its newest checkpoint that can be read, and damaged newer
// ones are complained about, one line each.
std::filesystem::path newest_checkpoint(const std::filesystem::path& path);
// `file` is one that these found for what was given.
CheckpointFile open_checkpoint(const std::filesystem::path& given,
                               const std::filesystem::path& file);
CheckpointFile open_newest(const std::filesystem::path& path);

}  // namespace perdure::cli
