#include "run_directory.hpp"

#include <fmt/format.h>

#include <perdure/checkpoint_manager.hpp>

#include "command.hpp"

namespace perdure::cli {
namespace fs = std::filesystem;
namespace {

// What else than a directory a path may be, the reader finds out: its errors say more than we could
// here.
bool is_run_directory(const fs::path& path) {
  std::error_code ignored;
  return fs::is_directory(path, ignored) && !is_checkpoint_directory(path);
}

std::vector<ListedCheckpoint> list(const fs::path& directory) {
  std::vector<ListedCheckpoint> listed = list_checkpoints(directory);
  if (listed.empty())
    throw Error(ErrorCode::not_found,
                fmt::format("{}: this directory holds no checkpoints of a run (step-*-g*.pt or "
                            "step-*-g*.dcp); name the files themselves",
                            directory.string()));
  return listed;
}

// What was found in a run directory is never followed to another place. A directory is one of many
// ranks, whose files are looked up in it alone.
bool is_found_file(const fs::path& given, const fs::path& path) {
  std::error_code ignored;
  return path != given && !fs::is_directory(fs::symlink_status(path, ignored));
}

}  // namespace

std::vector<fs::path> checkpoint_files(const fs::path& path) {
  if (!is_run_directory(path)) return {path};
  std::vector<fs::path> files;
  for (const ListedCheckpoint& entry : list(path)) files.push_back(entry.checkpoint.path);
  return files;
}

VerifyReport verify_checkpoint(const fs::path& given, const fs::path& file,
                               const OnRead& progress) {
  return is_found_file(given, file) ? verify(open_source(file, Links::refuse), progress)
                                    : verify(file, progress);
}

fs::path newest_checkpoint(const fs::path& path) {
  if (!is_run_directory(path)) return path;
  const std::vector<ListedCheckpoint> listed = list(path);
  for (const ListedCheckpoint& entry : listed) {
    if (entry.problem.empty()) return entry.checkpoint.path;
    complain(fmt::format("passed over {}: {}", entry.checkpoint.path.string(), entry.problem));
  }
  return listed.front()
      .checkpoint.path;  // opening it says what is wrong, and decides the exit code
}

CheckpointFile open_checkpoint(const fs::path& given, const fs::path& file) {
  if (is_found_file(given, file))
    return CheckpointFile::open(open_source(file, Links::refuse), true);
  return CheckpointFile::open(file, true);
}

CheckpointFile open_newest(const fs::path& path) {
  return open_checkpoint(path, newest_checkpoint(path));
}

}  // namespace perdure::cli
