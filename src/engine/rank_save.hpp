// One checkpoint of all ranks: a directory that appears under its name when all that any rank wrote
// is on the disk, or not at all.
//
//   rank 0                                        the others
//   1. makes the directory under a temporary name
//      and tells it                               hear it
//   2. each writes its file in it, durably, and the others tell rank 0 what is where in theirs
//   3. writes .metadata and perdure.json, renames
//      the directory, syncs the run directory
//   4. tells that it is done                      hear it
//
// Only after 4 is the save acknowledged, on each rank. Whoever fails, or dies, before 3 is done
// makes the save fail on all: rank 0 then removes the directory, or, where it is rank 0 that died,
// the next one to open the run.
#pragma once

#include <cstdint>
#include <exception>
#include <map>
#include <string>
#include <vector>

#include "engine/rank_plan.hpp"
#include "engine/rank_talk.hpp"
#include "engine/save_job.hpp"
#include "storage/local_storage.hpp"

namespace perdure::storage {
class NewDirectory;
}

namespace perdure::engine {

class RankSaver {
 public:
  RankSaver(RankTalk& talk, storage::LocalStorage& run) : talk_(talk), run_(run) {}

  // In the writing thread. Returns the bytes of all files. `job` has a RankPlan.
  std::uint64_t save(SaveJob& job, const std::string& name);
  // Instead of it: this rank has nothing that it could save.
  void refuse(std::uint64_t generation, const std::exception_ptr& why) noexcept;
  // Of rank 0, before its end: its process may be the one that keeps the store, and what the others
  // have not heard by then they never will. A few seconds at most.
  void wait_until_heard() noexcept;

 private:
  // What a rank has written.
  struct Offer {
    std::uint64_t size = 0;  // of its file
    std::vector<RankPiece> pieces;
    PlacedItem record;
  };
  std::uint64_t lead(SaveJob& job, const std::string& key, const std::string& name);
  std::uint64_t follow(SaveJob& job, const std::string& key);
  std::string offer_of(const RankPlan& plan);
  const Offer& hear_offer(const std::string& key, std::size_t from);
  std::uint64_t commit(const SaveJob& job, const std::string& key,
                       storage::NewDirectory& directory);

  RankTalk& talk_;
  storage::LocalStorage& run_;
  // What does not change while the structure stays the same is told once.
  std::string told_;                    // the pieces that rank 0 has of this one
  std::string telling_;                 // those of the save that goes on
  std::map<std::size_t, Offer> known_;  // of rank 0: of each other
  std::string last_;                    // the key of the last save that went well
};

}  // namespace perdure::engine
