// CheckpointManager::restore: the newest whole checkpoint, falling back on proven damage alone.
//
// Error(corrupt) is the only reason to take an older one: everything else (no permission, too many
// open files, an error that may pass, a newer format, a model that does not fit) is thrown, because
// going on from an older step would lose work without a word.
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <set>

#include "engine/manager_parts.hpp"

namespace perdure {
namespace {

CheckpointManager::Take take_into(TrainingState& state, const RestoreOptions& options) {
  const MatchOptions match{options.strict, options.only, options.rename, options.cast};
  return [&state, match](const CheckpointFile& file) { state.restore(file, match); };
}

// Counts what is read of another one.
class MeteredSource final : public Source {
 public:
  MeteredSource(std::shared_ptr<const Source> inner, std::atomic<std::uint64_t>& count)
      : inner_(std::move(inner)), count_(count) {}
  std::uint64_t size() const override { return inner_->size(); }
  const std::string& name() const override { return inner_->name(); }
  void read(std::uint64_t offset, MutableBytes into) const override {
    inner_->read(offset, into);
    count_ += into.size();
  }
  ConstBytes read_bulk(std::uint64_t offset, MutableBytes into,
                       MutableBytes scratch) const override {
    const ConstBytes bytes = inner_->read_bulk(offset, into, scratch);
    count_ += bytes.size();
    return bytes;
  }
  bool is_cached() const override { return inner_->is_cached(); }
  std::shared_ptr<std::byte> map() const override { return inner_->map(); }
  void will_read(std::uint64_t offset, std::uint64_t size) const override {
    inner_->will_read(offset, size);
  }

 private:
  std::shared_ptr<const Source> inner_;
  std::atomic<std::uint64_t>& count_;
};

}  // namespace

std::optional<Checkpoint> CheckpointManager::restore(TrainingState& state,
                                                     const RestoreOptions& options) {
  auto restored = restore(options, take_into(state, options));
  if (restored)
    for (const std::string& note : state.notes()) parts_->options.warning(note);
  return restored;
}

std::optional<Checkpoint> CheckpointManager::restore(const RestoreOptions& options,
                                                     const Take& take) {
  const auto call = parts_->enter();
  parts_->wait_idle();
  if (options.step && !options.path.empty())
    throw Error(ErrorCode::invalid, "restore takes a step or a path, not both");
  const auto begin = std::chrono::steady_clock::now();
  std::optional<Checkpoint> restored;
  if (!options.path.empty())
    restored = parts_->restore_path(options.path, take);
  else if (options.step)
    restored = parts_->restore_step(*options.step, take);
  else
    restored = parts_->restore_newest(take);
  if (restored) {
    const auto end = std::chrono::steady_clock::now();
    parts_->schedule.goes_on_from(restored->step(), end);
    parts_->history.restored(*restored, std::chrono::duration<double>(end - begin).count());
  }
  return restored;
}

std::optional<Checkpoint> CheckpointManager::Parts::restore_newest(const Take& take) {
  for (const engine::FoundCheckpoint& found : run.find_all()) {
    std::string damage;
    try {
      const CheckpointFile file = open(storage->open(found.name));
      this->take(take, file);
      return restored(engine::describe(*storage, found, file));
    } catch (const Error& error) {
      if (error.code() != ErrorCode::corrupt) throw;
      damage = error.what();
    }
    const std::string aside = set_aside(found);
    history.set_aside(aside, damage);
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

std::string CheckpointManager::Parts::set_aside(const engine::FoundCheckpoint& found) {
  const std::lock_guard guard(mutex);
  return run.set_aside(found);
}

// Nothing is in flight, so what is read may go through the memory of the saves.
CheckpointFile CheckpointManager::Parts::open(std::shared_ptr<const Source> source) {
  CheckpointFile file =
      CheckpointFile::open(std::make_shared<MeteredSource>(std::move(source), restore_read));
  file.read_through([this](std::uint64_t size) { return arena.lend(size); });
  return file;
}

void CheckpointManager::Parts::take(const Take& take, const CheckpointFile& file) {
  struct Meter {
    std::atomic<std::uint64_t>& total;
    ~Meter() { total = 0; }
  } meter{restore_bytes};
  restore_read = 0;
  restore_bytes = file.size();
  take(file);
}

Checkpoint CheckpointManager::Parts::restore_step(std::int64_t step, const Take& take) {
  const engine::FoundCheckpoint found = find_step(step);
  const CheckpointFile file = open(storage->open(found.name));
  this->take(take, file);
  return restored(engine::describe(*storage, found, file));
}

Checkpoint CheckpointManager::Parts::restore_path(const std::filesystem::path& path,
                                                  const Take& take) {
  const CheckpointFile file = open(open_source(path));
  this->take(take, file);
  return restored({path, file.size(), file.info().value_or(CheckpointInfo{})});
}

// A generation of another run counts too: the parent is always below its children.
Checkpoint CheckpointManager::Parts::restored(Checkpoint checkpoint) {
  const std::lock_guard guard(mutex);
  parent = restored_from =
      checkpoint.generation() <= engine::kMaxGeneration ? checkpoint.generation() : 0;
  run.use_generation(parent);
  return checkpoint;
}

}  // namespace perdure
