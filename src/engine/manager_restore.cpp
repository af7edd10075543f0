// CheckpointManager::restore: the newest whole checkpoint, falling back on proven damage alone.
//
// Error(corrupt) is the only reason to take an older one: everything else (no permission, too many
// open files, an error that may pass, a newer format, a model that does not fit) is thrown, because
// going on from an older step would lose work without a word.
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <set>

#include "engine/manager_parts.hpp"

namespace perdure {
namespace {

CheckpointManager::Take take_into(TrainingState& state, bool strict) {
  return [&state, strict](const CheckpointFile& file) { state.restore(file, strict); };
}

}  // namespace

std::optional<Checkpoint> CheckpointManager::restore(TrainingState& state,
                                                     const RestoreOptions& options) {
  return restore(options, take_into(state, options.strict));
}

std::optional<Checkpoint> CheckpointManager::restore(const RestoreOptions& options,
                                                     const Take& take) {
  parts_->require_usable();
  parts_->wait_idle();
  if (options.step && !options.path.empty())
    throw Error(ErrorCode::invalid, "restore takes a step or a path, not both");
  if (!options.path.empty()) return parts_->restore_path(options.path, take);
  if (options.step) return parts_->restore_step(*options.step, take);
  return parts_->restore_newest(take);
}

std::optional<Checkpoint> CheckpointManager::Parts::restore_newest(const Take& take) {
  for (const engine::FoundCheckpoint& found : run.find_all()) {
    std::string damage;
    try {
      const CheckpointFile file = open(storage->open(found.name));
      take(file);
      return restored(engine::describe(*storage, found, file));
    } catch (const Error& error) {
      if (error.code() != ErrorCode::corrupt) throw;
      damage = error.what();
    }
    const std::string aside = run.set_aside(found);
    options.warning(fmt::format(
        "the checkpoint '{}' is damaged and was set aside as '{}'; the one before it is tried. "
        "The damage: {}",
        storage->describe(found.name), aside, damage));
  }
  if (const auto aside = run.set_aside_names(); !aside.empty())
    throw Error(
        ErrorCode::corrupt,
        fmt::format("every checkpoint in '{}' is damaged: {}. To start anew, move them out of "
                    "the directory",
                    directory.string(), fmt::join(aside, ", ")));
  return std::nullopt;
}

// Nothing is in flight, so what is read may go through the memory of the saves.
CheckpointFile CheckpointManager::Parts::open(std::shared_ptr<const Source> source) {
  CheckpointFile file = CheckpointFile::open(std::move(source));
  file.read_through([this](std::uint64_t size) { return arena.lend(size); });
  return file;
}

Checkpoint CheckpointManager::Parts::restore_step(std::int64_t step, const Take& take) {
  const auto all = run.find_all();
  const auto found = std::find_if(all.begin(), all.end(),
                                  [&](const auto& item) { return item.number.step == step; });
  if (found == all.end()) {
    std::set<std::int64_t> steps;
    for (const auto& item : all) steps.insert(item.number.step);
    throw Error(
        ErrorCode::not_found,
        fmt::format("there is no checkpoint of step {} in '{}'; {}", step, directory.string(),
                    steps.empty() ? "there is none at all"
                                  : fmt::format("there are {}", fmt::join(steps, ", "))));
  }
  const CheckpointFile file = open(storage->open(found->name));
  take(file);
  return restored(engine::describe(*storage, *found, file));
}

Checkpoint CheckpointManager::Parts::restore_path(const std::filesystem::path& path,
                                                  const Take& take) {
  const CheckpointFile file = open(open_source(path));
  take(file);
  return restored({path, file.size(), file.info().value_or(CheckpointInfo{})});
}

// A generation of another run counts too: the parent is always below its children.
Checkpoint CheckpointManager::Parts::restored(Checkpoint checkpoint) {
  parent = restored_from =
      checkpoint.generation() <= engine::kMaxGeneration ? checkpoint.generation() : 0;
  run.use_generation(parent);
  return checkpoint;
}

}  // namespace perdure
