// Notices that what a save copies later was changed before it was copied: by the version counters
// that PyTorch keeps for every tensor.
//
// The counters do not see what goes around PyTorch's in-place operations: fused kernels, writes
// through .data or numpy. Capture::checked compares bytes.
#pragma once

#include <cstdint>
#include <functional>
#include <perdure/state.hpp>
#include <string>
#include <vector>

namespace perdure::engine {

class StepWatch {
 public:
  StepWatch() = default;
  // Takes note of the counters as they are. `tree` is what state.state_dict() has just given.
  StepWatch(const TrainingState& state, const Value& tree);

  // The names of those that have changed since; at most a few of them.
  std::vector<std::string> changed() const;

 private:
  struct Watched {
    std::string entry;
    std::function<std::vector<std::uint64_t>()> versions;
    std::function<std::string(std::size_t)> name;
    std::vector<std::uint64_t> before;
    Value tree;
  };
  static std::string name_of(const Watched& watched, std::size_t place);

  std::vector<Watched> watched_;
};

}  // namespace perdure::engine
