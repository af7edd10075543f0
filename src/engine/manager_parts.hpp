// The inside of a CheckpointManager. Its calls stand in three files: checkpoint_manager.cpp
// (opening, closing, looking), manager_save.cpp and manager_restore.cpp.
#pragma once

#include <perdure/checkpoint_manager.hpp>

#include "engine/retention.hpp"
#include "engine/run_directory.hpp"
#include "engine/save_handle.hpp"
#include "io/system.hpp"
#include "storage/storage.hpp"

namespace perdure {

struct CheckpointManager::Parts {
  Parts(std::shared_ptr<storage::Storage> where, ManagerOptions with);  // locks, collects debris
  ~Parts();

  void require_usable() const;  // Error(invalid) when closed or in a forked child
  void throw_unseen();          // the oldest error that nobody has seen; all count as seen then

  // manager_save.cpp
  // `begin`: when the caller was first held up.
  SaveHandle save(const Value& state, CheckpointInfo info,
                  std::chrono::steady_clock::time_point begin);
  void report(const std::shared_ptr<SaveHandle::State>& state, const std::string& what);
  void prune();

  // manager_restore.cpp
  std::optional<Checkpoint> restore_newest(const Take& take);
  Checkpoint restore_step(std::int64_t step, const Take& take);
  Checkpoint restore_path(const std::filesystem::path& path, const Take& take);
  Checkpoint restored(Checkpoint checkpoint);

  std::shared_ptr<storage::Storage> storage;
  engine::RunDirectory run;
  ManagerOptions options;
  std::filesystem::path directory;
  pid_t owner;  // the process that opened it
  bool closed = false;
  std::uint64_t parent = 0;  // what the next save goes on from: restored, or saved by this manager
  std::uint64_t restored_from = 0;  // never pruned while this manager lives
  int failures_in_row = 0;
  std::vector<std::shared_ptr<SaveHandle::State>> failed;  // those whose error may be unseen
};

}  // namespace perdure
