// The state of one rank, of a checkpoint that several have saved (engine/rank_plan.hpp).
#pragma once

#include <functional>
#include <perdure/value.hpp>
#include <string>

namespace perdure::engine {

// `tree`, with each dict that stands for a shared tensor replaced by that tensor. Error(corrupt)
// where `find` knows none of that name.
Value with_shared(const Value& tree, const std::function<const Value*(const std::string&)>& find);

// `value` is the state of rank 0 and has under "ranks" the records of the others, by "1", "2", ...
// Gives the state of one rank: what that rank has saved; of one that was not there, what rank 0 has
// saved, but no random numbers (no two may draw the same).
Value rank_view(const Value& value, std::size_t rank);

}  // namespace perdure::engine
