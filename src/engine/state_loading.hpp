// One load into a TrainingState: everything is looked at first, so that nothing is changed where
// anything does not fit.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <perdure/state.hpp>
#include <string_view>
#include <utility>
#include <vector>

#include "engine/misfit.hpp"
#include "engine/name_selection.hpp"
#include "engine/renaming.hpp"

namespace perdure::engine {

// The keys of perdure's own in a state.
inline constexpr std::string_view kStep = "step";
inline constexpr std::string_view kRng = "rng";

}  // namespace perdure::engine

namespace perdure {

class TrainingState::Loading {
 public:
  using Optimizers = std::map<std::string, CheckpointInfo::Optimizer>;

  // What of `value` is for whom. Error(invalid) where it cannot be the tree of a state at all, and
  // for options that name what is not there.
  Loading(const TrainingState& state, const Value& value, const Optimizers& recorded,
          const MatchOptions& options);

  // One registered thing that the file has something for.
  struct Taken {
    const Entry* entry;
    Value in_file;
    Value value = {};  // aligned: as the object wants it
    Problems problems = {};
    std::vector<Shard> shards = {};  // of the entry
  };
  const std::vector<Taken>& taken() const { return taken_; }
  // What is taken by things that cannot do without its bytes, also to look at; or all of it.
  Value wanted_first(bool all) const;

  void align();
  // After it: of the file's tensors, the boxes that are here.
  void cut(const CheckpointFile& file);
  Value cut_values() const;  // of the entries with boxes: nothing of them has been read before
  void check();
  void throw_problems() const;  // Error(invalid) with all of them, where there are any
  Problems notes() const;       // what the caller should know of, once it is done
  bool is_whole() const;        // everything registered is in it

  std::optional<std::int64_t> step;
  std::vector<std::pair<const RngKind*, Value>> rng;
  std::optional<Dict> kept_rng;

 private:
  static Taken taken_by(const Entry& entry, Value in_file);
  void take(const Entry& entry);
  void take_whole(const Entry& entry, const Value* found);
  void take_keys(const Entry& entry, const Value* found, const Dict& own);
  bool is_selected(const std::string& entry, const Dict& own);
  void add(engine::Misfit misfit);
  void find_untaken();
  void find_step();
  void find_rng(const std::vector<RngKind>& kinds);
  void find_renamed_entries();
  std::vector<std::string> names_here() const;
  std::vector<std::string> fitting_names() const;

  const TrainingState& state_;
  const MatchOptions& options_;
  engine::NameSelection selection_;
  engine::Renaming renaming_;
  Dict file_;
  std::vector<ParameterName> names_;
  Optimizers recorded_;
  std::vector<Taken> taken_;
  std::vector<std::pair<const Entry*, Value>> structures_;  // of those that have one
  std::vector<engine::Misfit> misfits_, skipped_;
  engine::RenameRules entry_rules_;  // whole entries that seem to have another name in the file
  Problems problems_;                // that are no misfits
  Problems notes_;                   // of the optimizers
};

}  // namespace perdure
