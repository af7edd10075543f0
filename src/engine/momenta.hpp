// Which of a file's tensors are an optimizer's state, and of which parameter.
#pragma once

#include <optional>
#include <perdure/file.hpp>
#include <string>
#include <unordered_map>
#include <vector>

namespace perdure::engine {

struct ParameterState {
  std::string optimizer;  // name of the optimizer in the file: "optimizer"
  std::string parameter;  // "model.fc.weight"
  std::vector<std::string>
      states;  // names of its tensors: "optimizer.state.0.exp_avg", not of steps
};

// Of every state_dict of an optimizer in the file, what is known of its parameters' names: from
// .perdure/checkpoint.json, from param_names in the groups, or because the state goes by names.
std::vector<ParameterState> parameter_states(const CheckpointFile& file);

// Which tensors the parameters are. One is called "fc.weight", and its tensor "model.fc.weight":
// the one of that very name, or the only one whose name ends so.
class ParameterTensors {
 public:
  // `names`: of all tensors. Those of optimizers are none.
  ParameterTensors(const std::vector<ParameterState>& states,
                   const std::vector<std::string>& names);
  std::optional<std::size_t> find(const std::string& parameter) const;  // in `names`

 private:
  struct Candidates {
    std::optional<std::size_t> exact, ending;
    std::size_t endings = 0;
  };
  std::unordered_map<std::string, Candidates> parameters_;
};

}  // namespace perdure::engine
