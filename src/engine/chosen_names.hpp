// What a conversion takes of a state, and the names that it gets.
#pragma once

#include <perdure/value.hpp>
#include <string>
#include <utility>
#include <vector>

namespace perdure::engine {

// What has a name that one of the patterns fits, in the same nesting. Error(invalid) for a pattern
// that fits nothing.
Value choose(const Value& state, const std::vector<std::string>& patterns);

// What a rule fits moves to its new name: into the dict at the top that the name begins with, under
// the rest as one key; or to the top. Error(invalid) for a rule that fits nothing, and where two
// would have one name.
Value move_names(const Value& state, const std::vector<std::pair<std::string, std::string>>& rules);

// Without the dicts that are the state of an optimizer; their names are added to `left_out`.
Value without_optimizers(const Value& state, std::vector<std::string>& left_out);

}  // namespace perdure::engine
