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
  bool took = false;
  const Take into = take_into(state, options);
  const auto restored = [&] {
    try {
      return restore(options, [&](const CheckpointFile& file) {
        into(file);
        took = true;
      });
    } catch (...) {
      if (took && parts_->talk) state.mark_broken();  // it is not what the others have
      throw;
    }
  }();
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
    restored = parts_->talk ? parts_->restore_newest_of_ranks(take) : parts_->restore_newest(take);
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
      const CheckpointFile file = open(found);
      this->take(take, file);
      return restored(engine::describe(*storage, found, file));
    } catch (const Error& error) {
      if (error.code() != ErrorCode::corrupt) throw;
      damage = error.what();
    }
    tell_set_aside(found, damage);
  }
  require_none_set_aside();
  return std::nullopt;
}

void CheckpointManager::Parts::require_none_set_aside() const {
  if (const auto aside = run.set_aside_names(); !aside.empty())
    throw Error(
        ErrorCode::corrupt,
        fmt::format("every checkpoint in '{}' is damaged: {}. To start anew, move them out of "
                    "the directory",
                    directory.string(), fmt::join(aside, ", ")));
}

// The newest that is whole for every rank. Rank 0 says which one is tried, and sets aside what
// turned out damaged: where it cannot, the others hear of that, too.
std::optional<Checkpoint> CheckpointManager::Parts::restore_newest_of_ranks(const Take& take) {
  std::string name, damage;
  for (;;) {
    name = candidate([&]() -> std::string {
      if (!name.empty()) tell_set_aside(found_of(name), damage);
      const auto all = run.find_all();
      if (!all.empty()) return all.front().name;
      require_none_set_aside();
      return "";
    });
    if (name.empty()) return std::nullopt;
    try {
      return take_together(name, take);
    } catch (const Error& error) {
      if (error.code() != ErrorCode::corrupt) throw;
      damage = error.what();
    }
  }
}

std::string CheckpointManager::Parts::candidate(const std::function<std::string()>& lead) {
  return talk->led(fmt::format("candidate/{}", candidates++), lead);
}

engine::FoundCheckpoint CheckpointManager::Parts::found_of(const std::string& name) const {
  const auto all = run.find_all();
  const auto found = std::ranges::find_if(all, [&](const auto& item) { return item.name == name; });
  if (found == all.end())
    throw Error(ErrorCode::not_found,
                fmt::format("'{}' is there for another rank, and not for this one: do all of them "
                            "see the same file system?",
                            storage->describe(name)));
  return *found;
}

Checkpoint CheckpointManager::Parts::take_together(const std::string& name, const Take& take) {
  std::optional<Checkpoint> taken;
  std::exception_ptr mine;
  try {
    const engine::FoundCheckpoint found = found_of(name);
    const auto living = talk->living();
    const CheckpointFile file = open(found);
    this->take(take, file);
    taken = engine::describe(*storage, found, file);
  } catch (...) {
    mine = std::current_exception();
  }
  talk->agree(fmt::format("restore/{}", restores++), mine);
  return restored(std::move(*taken));
}

void CheckpointManager::Parts::tell_set_aside(const engine::FoundCheckpoint& found,
                                              const std::string& damage) {
  const std::string aside = set_aside(found);
  history.set_aside(aside, damage);
  options.warning(fmt::format(
      "the checkpoint '{}' is damaged and was set aside as '{}'; the one before it is tried. "
      "The damage: {}",
      storage->describe(found.name), aside, damage));
}

std::string CheckpointManager::Parts::set_aside(const engine::FoundCheckpoint& found) {
  const std::lock_guard guard(mutex);
  return run.set_aside(found);
}

CheckpointFile CheckpointManager::Parts::open(const engine::FoundCheckpoint& found) {
  if (found.number.of_ranks) return opened(engine::open_checkpoint(*storage, found, false));
  return opened(CheckpointFile::open(
      std::make_shared<MeteredSource>(storage->open(found.name), restore_read)));
}

CheckpointFile CheckpointManager::Parts::open(const std::filesystem::path& path) {
  if (is_checkpoint_directory(path)) return opened(CheckpointFile::open(path));
  return opened(
      CheckpointFile::open(std::make_shared<MeteredSource>(open_source(path), restore_read)));
}

// Nothing is in flight, so what is read may go through the memory of the saves.
CheckpointFile CheckpointManager::Parts::opened(CheckpointFile file) {
  file.read_through([this](std::uint64_t size) { return arena.lend(size); });
  if (talk) file.share_cache();
  file.view_as(talk ? talk->rank() : 0);
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
  if (talk) return take_together(candidate([&] { return find_step(step).name; }), take);
  const engine::FoundCheckpoint found = find_step(step);
  const CheckpointFile file = open(found);
  this->take(take, file);
  return restored(engine::describe(*storage, found, file));
}

Checkpoint CheckpointManager::Parts::restore_path(const std::filesystem::path& path,
                                                  const Take& take) {
  Checkpoint taken{path, 0, {}};
  std::exception_ptr mine;
  try {
    const auto living = talk ? talk->living() : std::jthread();
    const CheckpointFile file = open(path);
    this->take(take, file);
    taken.size = file.size();
    taken.info = file.info().value_or(CheckpointInfo{});
  } catch (...) {
    if (!talk) throw;
    mine = std::current_exception();
  }
  if (talk) talk->agree(fmt::format("restore/{}", restores++), mine);
  return restored(std::move(taken));
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
