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

namespace perdure::engine {

// The keys of perdure's own in a state.
inline constexpr std::string_view kStep = "step";
inline constexpr std::string_view kRng = "rng";

}  // namespace perdure::engine

namespace perdure {

class TrainingState::Loading {
 public:
  using Optimizers = std::map<std::string, CheckpointInfo::Optimizer>;

  // What of `value` is for whom. Error(invalid) where it cannot be the tree of a state at all.
  Loading(const TrainingState& state, const Value& value, const Optimizers& recorded, bool strict);

  // One registered thing that the file has something for.
  struct Taken {
    const Entry* entry;
    Value in_file;
    Value value = {};  // aligned: as the object wants it
    Problems problems = {};
  };
  const std::vector<Taken>& taken() const { return taken_; }
  // What is taken by things that cannot do without its bytes, also to look at; or all of it.
  Value wanted_first(bool all) const;

  void align();
  void check();
  const Problems& notes() const { return notes_; }
  void throw_problems() const;  // Error(invalid) with all of them, where there are any

  std::optional<std::int64_t> step;
  std::vector<std::pair<const RngKind*, Value>> rng;
  Dict kept_rng;

 private:
  void lacks(std::string line);
  void find_untaken();
  void find_step();
  void find_rng(const std::vector<RngKind>& kinds);

  const TrainingState& state_;
  const Dict& file_;
  const Optimizers& recorded_;
  std::vector<ParameterName> names_;
  bool strict_;
  bool one_sided_ = false;  // strict=false would help with some of the problems
  std::vector<Taken> taken_;
  Problems problems_;  // of no entry
  Problems notes_;
};

}  // namespace perdure
