// The prefixes that wrappers of modules leave in the keys of a state_dict, and what to do about
// them.
#pragma once

#include <perdure/value.hpp>
#include <string>

namespace perdure::engine {

// A sentence where the keys of `in_file` and `own` (mappings, or not) differ by "module."
// (DistributedDataParallel) or
// "_orig_mod." (torch.compile) and by nothing else; "" otherwise.
std::string prefix_hint(const Value& in_file, const Value& own);

// "model.module._orig_mod.fc.weight" -> "model.fc.weight".
std::string without_wrappers(std::string key);

}  // namespace perdure::engine
