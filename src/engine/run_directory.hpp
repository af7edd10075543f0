// The checkpoints in a run's storage: found by their names, ordered by generation, described by
// their records.
//
// The name decides: where a file was renamed by hand, its step and generation are those of the
// name.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <perdure/checkpoint_manager.hpp>
#include <set>
#include <string>
#include <vector>

#include "engine/checkpoint_name.hpp"
#include "storage/storage.hpp"

namespace perdure::engine {

struct FoundCheckpoint {
  std::string name;
  CheckpointName number;
  std::uint64_t size = 0;  // bytes; 0 of a directory
};

// Its structure; see CheckpointFile::open.
CheckpointFile open_checkpoint(const storage::Storage& storage, const FoundCheckpoint& found,
                               bool allow_opaque);

// What the manager and tools say of a file: the record's content under the name's numbers.
Checkpoint describe(const storage::Storage& storage, const FoundCheckpoint& found,
                    const CheckpointFile& file);

class RunDirectory {
 public:
  explicit RunDirectory(std::shared_ptr<storage::Storage> storage) : storage_(std::move(storage)) {}

  storage::Storage& storage() const noexcept { return *storage_; }

  // Takes note of every generation in a name or a record that is here. Once, at the start.
  void scan();
  // Newest first, by their names.
  std::vector<FoundCheckpoint> find_all() const;
  std::vector<FoundCheckpoint> find() const;  // without those that are known to be damaged
  // The full names of those that were set aside, by anyone, ever.
  std::vector<std::string> set_aside_names() const;
  // The reasons, by generation, of those that are pinned: beside each there is "<its name>.pin". A
  // reason that cannot be read is "".
  std::map<std::uint64_t, std::string> pins() const;
  void pin(const FoundCheckpoint& found, const std::string& reason);
  void unpin(const FoundCheckpoint& found);
  // find(), with their records. What turns out damaged, or is gone meanwhile, is left out; other
  // errors are thrown.
  std::vector<Checkpoint> checkpoints();
  // What retention may count and touch, and beside it what cannot be read, now or ever, and why.
  struct Unreadable {
    Checkpoint checkpoint;  // as far as its name tells
    std::string why;
  };
  std::vector<Checkpoint> readable(std::vector<Unreadable>& others);
  std::optional<Checkpoint> newest();

  // Renames a damaged one to a name that no retention counts. Returns the new name in full.
  std::string set_aside(const FoundCheckpoint& found);
  std::uint64_t next_generation() const;          // above every one that is in use
  void use_generation(std::uint64_t generation);  // it may be in a file somewhere: never again
  // It was just saved: its record need not be read.
  void add(const Checkpoint& checkpoint, const std::string& name);
  void prune(const std::vector<std::uint64_t>& generations);

 private:
  Checkpoint read(const FoundCheckpoint& found);

  std::shared_ptr<storage::Storage> storage_;
  // By name; a file of another size under that name is read anew.
  std::map<std::string, Checkpoint> read_;
  std::set<std::string> damaged_;
  std::uint64_t highest_used_ = 0;
};

}  // namespace perdure::engine
