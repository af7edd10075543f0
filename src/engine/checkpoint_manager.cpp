#include <fmt/format.h>

#include <algorithm>
#include <cinttypes>
#include <cstdint>
#include <cstdio>
#include <exception>
#include <perdure/checkpoint_manager.hpp>
#include <set>

#include "engine/checkpoint_name.hpp"
#include "engine/manager_parts.hpp"
#include "engine/saving.hpp"
#include "storage/local_storage.hpp"

namespace perdure {
namespace {

void print_note(const std::string& text) { std::fprintf(stderr, "perdure: %s\n", text.c_str()); }

void check_every(const Every& every, const char* name) {
  if (every.steps < 0 || !(every.time.count() >= 0))
    throw Error(ErrorCode::invalid,
                fmt::format("{} is every {} steps, {} s; neither may be negative (0: not by that)",
                            name, every.steps, every.time.count()));
}

ManagerOptions checked(ManagerOptions options) {
  if (options.keep_last == 0)
    throw Error(ErrorCode::invalid, "keep_last is 0; at least the newest checkpoint is kept: 1");
  for (const Best& best : options.keep_best) {
    if (best.metric.empty())
      throw Error(ErrorCode::invalid, "keep_best needs the name of a metric");
    if (best.count == 0)
      throw Error(ErrorCode::invalid,
                  fmt::format("keep_best of '{}' has count 0; leave it out instead", best.metric));
  }
  check_every(options.keep_every, "keep_every");
  check_every(options.save_every, "save_every");
  if (!(options.overhead >= 0 && options.overhead < 1))
    throw Error(ErrorCode::invalid,
                fmt::format("overhead is {}; it is the part of the training's time that saving may "
                            "cost, such as 0.02, or 0 for none of that",
                            options.overhead));
  if (!(options.grace.count() >= 0))
    throw Error(ErrorCode::invalid,
                fmt::format("grace is {} s; it is the time between the signal and the end of the "
                            "process",
                            options.grace.count()));
  if (!(options.stuck_after.count() >= 0))
    throw Error(ErrorCode::invalid,
                fmt::format("stuck_after is {} s; it is the time without progress after which a "
                            "save counts as stuck, or 0 for never",
                            options.stuck_after.count()));
  engine::require_staging(options.staging_bytes);
  if (!(options.rank_timeout.count() > 0))
    throw Error(ErrorCode::invalid,
                fmt::format("rank_timeout is {} s; it is the time to wait for a sign of life of "
                            "another rank",
                            options.rank_timeout.count()));
  if (!options.warning) options.warning = engine::print_warning;
  if (!options.note) options.note = print_note;
  return options;
}

std::optional<engine::RankTalk> talk_of(const ManagerOptions& options) {
  if (!options.ranks || options.ranks->size() == 1) return std::nullopt;
  return std::make_optional<engine::RankTalk>(options.ranks, options.rank_timeout);
}

// The first rank makes the directory where it is not there.
std::shared_ptr<storage::Storage> open_after_leader(
    std::optional<engine::RankTalk>& talk,
    const std::function<std::shared_ptr<storage::Storage>()>& open) {
  std::shared_ptr<storage::Storage> storage;
  if (!talk || talk->leads()) {
    const auto make = [&] {
      storage = open();
      return std::string();
    };
    talk ? talk->led("made", make) : make();
  } else {
    talk->led("made", {});
    storage = open();
  }
  return storage;
}

}  // namespace

CheckpointManager::Parts::Parts(const Open& open, ManagerOptions with)
    : options(checked(std::move(with))),
      talk(talk_of(options)),
      storage(open_after_leader(talk, open)),
      directory(storage->describe("")),
      owner(io::real_system().process_id()),
      arena(options.staging_bytes, options.allocate_staging),
      schedule(options.save_every, options.overhead, engine::SaveSchedule::Clock::now()),
      history(leads() ? storage : nullptr, options.warning),
      run(storage) {
  if (!options.save_on_signal.empty()) signals.emplace(options.save_on_signal);
  if (talk) {
    auto* local = dynamic_cast<storage::LocalStorage*>(storage.get());
    if (local == nullptr)
      throw Error(ErrorCode::invalid, "several ranks save into a directory, and nowhere else");
    saver.emplace(*talk, *local);
  }
  try {
    const std::string found = together("open", [this] {
      storage->lock();
      for (const std::string& name : storage->collect_debris())
        run.use_generation(engine::generation_in(name));
      run.scan();
      const auto newest = run.find();
      return fmt::format("{} {}", run.next_generation() - 1,
                         newest.empty() ? -1 : newest.front().number.step);
    });
    std::uint64_t generation = 0;
    std::int64_t step = -1;
    std::sscanf(found.c_str(), "%" SCNu64 " %" SCNd64, &generation, &step);
    run.use_generation(generation);
    if (step >= 0) schedule.goes_on_from(step, engine::SaveSchedule::Clock::now());
  } catch (...) {
    storage->unlock();
    throw;
  }
}

std::string CheckpointManager::Parts::together(const std::string& key,
                                               const std::function<std::string()>& lead) {
  return talk ? talk->led(key, lead) : lead();
}

CheckpointManager::Parts::~Parts() {
  writer.wait_idle();
  if (!closed) history.write();
  if (!closed && saver) saver->wait_until_heard();
  if (options.on_error == OnError::raise) {  // with warn, all of them were told when they happened
    try {
      throw_unseen();
    } catch (const std::exception& error) {
      options.warning(error.what());
    }
  }
  storage->unlock();
}

void CheckpointManager::Parts::require_usable() const {
  if (io::real_system().process_id() != owner)
    throw Error(
        ErrorCode::invalid,
        fmt::format("the CheckpointManager of '{}' belongs to process {}: a forked child cannot "
                    "use it; open one in the process that saves",
                    directory.string(), owner));
  if (closed)
    throw Error(ErrorCode::invalid,
                fmt::format("the CheckpointManager of '{}' is closed", directory.string()));
}

// Another thread may have closed it meanwhile.
std::unique_lock<std::recursive_mutex> CheckpointManager::Parts::enter() {
  require_usable();
  std::unique_lock lock(calls);
  require_usable();
  return lock;
}

std::unique_lock<std::mutex> CheckpointManager::Parts::look() const {
  require_usable();
  std::unique_lock lock(mutex);
  require_usable();
  return lock;
}

void CheckpointManager::Parts::wait_idle() { writer.wait_idle(); }

void CheckpointManager::Parts::throw_unseen() {
  std::vector<std::shared_ptr<SaveHandle::State>> unseen;
  {
    const std::lock_guard guard(mutex);
    unseen = std::exchange(failed, {});
  }
  if (const std::exception_ptr error = take_first_unseen(unseen)) std::rethrow_exception(error);
}

CheckpointManager::CheckpointManager(const std::filesystem::path& directory, ManagerOptions options)
    : parts_(std::make_unique<Parts>(
          [&]() -> std::shared_ptr<storage::Storage> {
            return storage::LocalStorage::create_run(io::real_system(), directory);
          },
          std::move(options))) {}

CheckpointManager::CheckpointManager(std::shared_ptr<storage::Storage> storage,
                                     ManagerOptions options)
    : parts_(std::make_unique<Parts>([&] { return std::move(storage); }, std::move(options))) {}

// A forked child has the lock's descriptors, which are closed, and of the parent's threads nothing
// but traces: destroying what they wait for would wait for them.
CheckpointManager::~CheckpointManager() {
  if (io::real_system().process_id() == parts_->owner) return;
  parts_->storage->unlock();
  static_cast<void>(parts_.release());
}

std::vector<Checkpoint> CheckpointManager::checkpoints() const {
  const auto look = parts_->look();
  return parts_->run.checkpoints();
}

std::optional<Checkpoint> CheckpointManager::latest() const {
  const auto look = parts_->look();
  return parts_->run.newest();
}

// The steps stand in the names, so that these two need to open no file.
std::optional<std::int64_t> CheckpointManager::latest_step() const {
  const auto look = parts_->look();
  const auto found = parts_->run.find();
  if (found.empty()) return std::nullopt;
  return found.front().number.step;
}

std::vector<std::int64_t> CheckpointManager::all_steps() const {
  const auto look = parts_->look();
  std::set<std::int64_t> steps;
  for (const auto& found : parts_->run.find()) steps.insert(found.number.step);
  return {steps.begin(), steps.end()};
}

std::optional<std::int64_t> CheckpointManager::best_step(const std::string& metric) const {
  parts_->require_usable();
  Mode mode = Mode::min;
  for (const Best& best : parts_->options.keep_best)
    if (best.metric == metric) mode = best.mode;
  const auto checkpoints = this->checkpoints();
  const auto order = engine::ranked(checkpoints, metric, mode);
  if (order.empty()) return std::nullopt;
  return order.front()->step();
}

const std::filesystem::path& CheckpointManager::directory() const { return parts_->directory; }

double CheckpointManager::progress() const {
  if (const std::uint64_t bytes = parts_->restore_bytes)
    return std::min(1.0, static_cast<double>(parts_->restore_read) / static_cast<double>(bytes));
  const std::lock_guard guard(parts_->mutex);
  if (!parts_->in_flight || parts_->writer.idle()) return 1;
  return SaveHandle(parts_->in_flight).progress();
}

bool CheckpointManager::idle(std::chrono::duration<double> timeout) const {
  parts_->require_usable();
  return parts_->writer.wait_idle(timeout);
}

void CheckpointManager::wait() {
  const auto call = parts_->enter();
  parts_->wait_idle();
  parts_->arena.wait_until_populated();
  parts_->throw_unseen();
}

// The lock is given up in any case: an error of a save is no reason to hold on to the directory. So
// are the memory and the descriptor: a closed manager may lie around for the rest of the program.
void CheckpointManager::close() {
  if (parts_->closed) return;
  parts_->require_usable();
  const std::lock_guard call(parts_->calls);
  if (parts_->closed) return;  // by another thread, meanwhile
  parts_->wait_idle();
  parts_->history.write();
  if (parts_->saver) parts_->saver->wait_until_heard();
  {
    const std::lock_guard guard(parts_->mutex);
    parts_->closed = true;
  }
  parts_->stop_watching();
  parts_->job.reset();
  parts_->arena.release();
  parts_->storage
      ->close();  // nobody is looking: who looks has locked `mutex`, and not found it closed
  parts_->throw_unseen();
}

std::vector<ListedCheckpoint> list_checkpoints(const std::filesystem::path& directory) {
  const std::shared_ptr<storage::Storage> storage =
      storage::LocalStorage::open_folder(io::real_system(), directory);
  std::vector<ListedCheckpoint> listed;
  const engine::RunDirectory run(storage);
  const auto pins = run.pins();
  for (const engine::FoundCheckpoint& found : run.find()) {
    ListedCheckpoint item{{storage->describe(found.name), found.size, {}}, "", std::nullopt, false};
    if (const auto pin = pins.find(found.number.generation); pin != pins.end())
      item.pin = pin->second;
    item.checkpoint.info.step = found.number.step;
    item.checkpoint.info.generation = found.number.generation;
    try {
      item.checkpoint =
          engine::describe(*storage, found, engine::open_checkpoint(*storage, found, true));
    } catch (const Error& error) {
      if (error.code() == ErrorCode::not_found) continue;  // pruned meanwhile
      item.problem = error.what();
      item.damaged = error.code() == ErrorCode::corrupt;
    }
    listed.push_back(std::move(item));
  }
  return listed;
}

}  // namespace perdure
