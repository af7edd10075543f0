// What becomes of the parameters of an optimizer that are not those of the file, for people.
#pragma once

#include <functional>
#include <string>

#include "engine/optimizer_pairs.hpp"

namespace perdure::engine {

// Whether the parameter of that number here has state already.
using HasState = std::function<bool(std::size_t)>;

// One line for each parameter that came, went, moved or has another shape, one for all others, and
// one for each group whose options are not simply those of the file. `done`: it happened; otherwise
// it would.
std::string table_of(const OptimizerPairs& pairs, const HasState& has_state, bool done);

// The same where there are no names to go by: sizes of groups and shapes.
std::string table_of_positions(const OptimizerPairs& pairs);

}  // namespace perdure::engine
