// The state of one rank, of a checkpoint that several have saved (engine/rank_plan.hpp).
#pragma once

#include <functional>
#include <perdure/value.hpp>
#include <string>

namespace perdure::engine {

// In the record of a rank, {"__perdure__": "tensor", "name": name} stands for the tensor of that
// name, which all ranks share. "device", "parameter" and "requires_grad" may say more of it.
using IsShared = std::function<bool(const std::string& name)>;
using FindShared = std::function<const Value*(const std::string& name)>;
enum class Traits { leave_out, keep };

// `state`, with what stands for it in the place of each shared tensor.
Value without_shared(const Value& state, const IsShared& is_shared, Traits traits);
// The other way. Error(corrupt) where `find` knows none of that name.
Value with_shared(const Value& record, const FindShared& find);

// A checkpoint of several ranks is the state of rank 0, and has under "ranks" the records of the
// others, by "1", "2", ...
inline constexpr const char* kRanksKey = "ranks";
Value without_ranks(const Value& value);
// The state of one rank: what that rank has saved; of one that was not there, what rank 0 has
// saved, but no random numbers (no two may draw the same). `ranks`: how many have saved.
Value rank_view(const Value& value, std::size_t ranks, std::size_t rank);

}  // namespace perdure::engine
