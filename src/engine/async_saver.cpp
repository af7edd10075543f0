#include <fmt/format.h>

#include <atomic>
#include <exception>
#include <mutex>
#include <perdure/async_saver.hpp>
#include <utility>
#include <vector>

#include "engine/save_file.hpp"
#include "engine/save_handle.hpp"
#include "engine/save_job.hpp"
#include "engine/saving.hpp"
#include "engine/worker.hpp"
#include "io/directory.hpp"
#include "io/errors.hpp"
#include "storage/local_storage.hpp"
#include "storage/new_directory.hpp"

namespace perdure {
namespace {

SaverOptions checked(SaverOptions options) {
  engine::require_staging(options.staging_bytes);
  if (!options.warning) options.warning = engine::print_warning;
  return options;
}

void remove_now(const std::filesystem::path& path) {
  const std::filesystem::path parent = path.has_parent_path() ? path.parent_path() : ".";
  io::Directory directory = io::Directory::open(io::real_system(), parent.string());
  const int result = storage::remove_whole(directory, path.filename().string());
  if (result < 0 && result != -ENOENT) io::throw_error(-result, "remove", path.string());
}

}  // namespace

struct AsyncSaver::Parts {
  explicit Parts(SaverOptions with)
      : options(checked(std::move(with))),
        owner(io::real_system().process_id()),
        arena(options.staging_bytes, options.allocate_staging) {}

  void require_usable() const;
  std::unique_lock<std::recursive_mutex> enter();
  // In the writing thread.
  void persist(const std::shared_ptr<engine::SaveJob>& job, const storage::FileTarget& target,
               Checkpoint saved) noexcept;
  void remove_doomed() noexcept;
  void failed_to_save(const engine::SaveJob& job, const std::exception_ptr& error) noexcept;
  void remove_quietly(const std::filesystem::path& path) noexcept;
  void tell_kept(const std::filesystem::path& path) const;
  std::exception_ptr take_unseen();

  SaverOptions options;
  pid_t owner;
  std::atomic<bool> closed = false;
  format::LayoutCache layouts;
  engine::Arena arena;
  std::recursive_mutex calls;

  std::mutex mutex;          // of the following; nothing is called back while it is held
  bool in_flight = false;    // what is to be removed waits for it
  bool last_failed = false;  // and what is to be removed after it stays
  std::vector<std::filesystem::path> doomed;
  std::shared_ptr<SaveHandle::State> last;
  std::vector<std::shared_ptr<SaveHandle::State>> failed;  // those whose error may be unseen

  engine::Worker writer;  // last: its job uses all of the above
};

void AsyncSaver::Parts::require_usable() const {
  if (io::real_system().process_id() != owner)
    throw Error(ErrorCode::invalid,
                fmt::format("this AsyncSaver belongs to process {}: a forked child cannot use it; "
                            "make one in the process that saves",
                            owner));
  if (closed) throw Error(ErrorCode::invalid, "this AsyncSaver is closed");
}

std::unique_lock<std::recursive_mutex> AsyncSaver::Parts::enter() {
  require_usable();
  std::unique_lock lock(calls);
  require_usable();
  return lock;
}

// What is removed belongs to the save: whoever waits for the saver finds it done; whoever waits for
// the handle waits for what is durable.
void AsyncSaver::Parts::persist(const std::shared_ptr<engine::SaveJob>& job,
                                const storage::FileTarget& target, Checkpoint saved) noexcept {
  try {
    target.folder->collect_debris_of(target.name);
    job->write(*target.folder, target.name, storage::IfExists::replace);
  } catch (...) {
    failed_to_save(*job, std::current_exception());
    return;
  }
  job->handle()->succeed(std::move(saved));
  remove_doomed();
}

void AsyncSaver::Parts::remove_doomed() noexcept {
  for (;;) {
    std::vector<std::filesystem::path> now;
    {
      const std::lock_guard guard(mutex);
      now = std::exchange(doomed, {});
      in_flight = !now.empty();
    }
    if (now.empty()) return;
    for (const std::filesystem::path& path : now) remove_quietly(path);
  }
}

void AsyncSaver::Parts::failed_to_save(const engine::SaveJob& job,
                                       const std::exception_ptr& error) noexcept {
  std::vector<std::filesystem::path> kept;
  {
    const std::lock_guard guard(mutex);
    in_flight = false;
    last_failed = true;
    kept = std::exchange(doomed, {});
    failed.push_back(job.handle());  // there is room for it
  }
  try {
    for (const std::filesystem::path& path : kept) tell_kept(path);
  } catch (...) {
    // Nobody is left to tell.
  }
  job.handle()->fail(error);
}

void AsyncSaver::Parts::tell_kept(const std::filesystem::path& path) const {
  options.warning(
      fmt::format("'{}' is kept: the save that was to make it superfluous failed", path.string()));
}

void AsyncSaver::Parts::remove_quietly(const std::filesystem::path& path) noexcept {
  try {
    try {
      remove_now(path);
    } catch (const std::exception& error) {
      options.warning(fmt::format("what was to go stays: {}", error.what()));
    }
  } catch (...) {
    // Nobody is left to tell.
  }
}

std::exception_ptr AsyncSaver::Parts::take_unseen() {
  std::vector<std::shared_ptr<SaveHandle::State>> unseen;
  {
    const std::lock_guard guard(mutex);
    unseen = std::exchange(failed, {});
  }
  return take_first_unseen(unseen);
}

AsyncSaver::AsyncSaver(SaverOptions options)
    : parts_(std::make_unique<Parts>(std::move(options))) {}

// Of the parent's threads, a forked child has nothing but traces: destroying what they wait for
// would wait for them.
AsyncSaver::~AsyncSaver() {
  if (io::real_system().process_id() != parts_->owner) {
    static_cast<void>(parts_.release());
    return;
  }
  parts_->writer.wait_idle();
  try {
    if (const std::exception_ptr error = parts_->take_unseen())
      parts_->options.warning(engine::text_of(error));
  } catch (...) {
    // Nobody is left to tell.
  }
}

// Whatever needs memory is made here, where an error reaches the caller.
SaveHandle AsyncSaver::save(const std::filesystem::path& path, const Value& state) {
  const auto begin = engine::SaveJob::Clock::now();
  const auto call = parts_->enter();
  const auto target =
      std::make_shared<const storage::FileTarget>(storage::resolve_target(io::real_system(), path));
  CheckpointInfo info;
  engine::sign(info);
  auto plan = std::make_unique<const format::Encoder>(state, info, &parts_->layouts);
  parts_->writer.wait_idle();
  parts_->arena.reserve(plan->file_size());
  const auto job =
      std::make_shared<engine::SaveJob>(state, std::move(info), std::move(plan), parts_->arena,
                                        Capture::eager, engine::StepWatch(), begin);
  Checkpoint saved{path, job->file_size(), job->info()};
  const std::function<void()> work = [parts = parts_.get(), job, target, saved]() mutable {
    parts->persist(job, *target, std::move(saved));
  };
  {
    const std::lock_guard guard(parts_->mutex);
    parts_->failed.reserve(parts_->failed.size() + 1);
    parts_->in_flight = true;
    parts_->last_failed = false;
    parts_->last = job->handle();
  }
  if (!parts_->writer.start(work)) work();  // there is no thread to be had
  job->capture(engine::copy_threads());
  return SaveHandle(job->handle());
}

void AsyncSaver::remove(const std::filesystem::path& path) {
  const auto call = parts_->enter();
  const std::string name = path.filename().string();
  if (name.empty() || name == "." || name == "..")
    throw Error(ErrorCode::invalid,
                fmt::format("'{}' is no file or directory that could be removed", path.string()));
  bool keep = false;
  {
    const std::lock_guard guard(parts_->mutex);
    if (parts_->in_flight) {
      parts_->doomed.push_back(path);
      return;
    }
    keep = parts_->last_failed;
  }
  keep ? parts_->tell_kept(path) : remove_now(path);
}

double AsyncSaver::progress() const {
  const std::lock_guard guard(parts_->mutex);
  return parts_->last && !parts_->writer.idle() ? SaveHandle(parts_->last).progress() : 1;
}

bool AsyncSaver::idle(std::chrono::duration<double> timeout) const {
  parts_->require_usable();
  return parts_->writer.wait_idle(timeout);
}

void AsyncSaver::wait() {
  const auto call = parts_->enter();
  parts_->writer.wait_idle();
  if (const std::exception_ptr error = parts_->take_unseen()) std::rethrow_exception(error);
}

void AsyncSaver::close() {
  if (parts_->closed) return;
  parts_->require_usable();
  const std::lock_guard call(parts_->calls);
  if (parts_->closed) return;  // by another thread, meanwhile
  parts_->writer.wait_idle();
  parts_->closed = true;
  parts_->arena.release();
  if (const std::exception_ptr error = parts_->take_unseen()) std::rethrow_exception(error);
}

}  // namespace perdure
