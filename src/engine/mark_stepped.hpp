// Which tensors of a state only an optimizer's step changes.
#pragma once

#include <perdure/state.hpp>

namespace perdure::engine {

// Makes Liveness::live tensors stepped: all of an optimizer's own, and everywhere those in storages
// of parameters that a registered optimizer steps. `tree` has the state_dicts of `entries`, by
// their names.
void mark_stepped(Dict& tree, const std::vector<TrainingState::Entry>& entries);

}  // namespace perdure::engine
