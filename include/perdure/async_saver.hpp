// AsyncSaver: files of names of one's own, saved behind the training.
//
// For loops, and frameworks, that say themselves where a checkpoint goes and when an older one has
// had its day. What is a run of its own is better off with a CheckpointManager, which also knows
// which checkpoint is the newest whole one.
#pragma once

#include <filesystem>
#include <functional>
#include <memory>
#include <perdure/checkpoint_manager.hpp>

namespace perdure {

struct SaverOptions {
  // As in ManagerOptions.
  std::uint64_t staging_bytes = 0;
  AllocateStaging allocate_staging = {};
  // Where it is told what nobody was there to hear. Default: standard error.
  std::function<void(const std::string&)> warning = {};
};

// Calls of several threads are made one after the other; what is saved must not change meanwhile. A
// forked child gets Error(invalid) from every call.
class AsyncSaver {
 public:
  explicit AsyncSaver(SaverOptions options = {});
  // Waits for what is in flight; an error nobody has seen goes to `warning`. Never throws.
  ~AsyncSaver();
  AsyncSaver(const AsyncSaver&) = delete;
  AsyncSaver& operator=(const AsyncSaver&) = delete;

  // As perdure::save(path, state), but returns once `state` is copied: the file is at `path` when
  // it is durable, and until then what was there before. One save is in flight at a time: a further
  // one waits for it. Throws at once what no later save could mend (a value that cannot be saved, a
  // folder that is not there); what goes wrong with writing is on the handle, and thrown by wait()
  // and close() where nobody has seen it there.
  SaveHandle save(const std::filesystem::path& path, const Value& state);
  // Removes the file at `path`, or the directory with all that is in it, once the last save is
  // durable: what replaces it is safe then. Where that save fails, it stays, and `warning` is told.
  // Nothing where it is not there.
  void remove(const std::filesystem::path& path);
  double progress() const;  // what part of the save in flight is written: 0 to 1; 1 where none is
  // Whether no save is in flight, after at most `timeout`.
  bool idle(std::chrono::duration<double> timeout = {}) const;
  void wait();   // until nothing is in flight; throws the first error that nobody has seen
  void close();  // wait(), then gives the memory back; later calls but close() are Error(invalid)

 private:
  struct Parts;
  std::unique_ptr<Parts> parts_;
};

}  // namespace perdure
