// Which key of a module's state_dict in a file is which here, and what does not fit.
#pragma once

#include <perdure/value.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "engine/misfit.hpp"
#include "engine/name_selection.hpp"

namespace perdure::engine {

// The key without the prefixes that wrappers of modules leave in it, wherever they stand: "module."
// (DistributedDataParallel, DataParallel), "_orig_mod." (torch.compile). A last part is no prefix.
std::string without_wrappers(std::string_view key);

// "model.fc.weight"; the key alone where the entry has no name.
std::string name_of(const std::string& entry, const Value& key);

struct KeyMatch {
  Value value;  // those of the file that have a place here, under their keys here
  std::vector<Misfit> misfits;
  std::size_t matched = 0;
};

// `in_file` and `own` are mappings; in `own`, anything fits in the place of None, and of a tensor
// only dtype and shape count. Keys that are the same but for the prefixes of wrappers are matched.
// Only what `selection` takes is looked at.
KeyMatch match_keys(const std::string& entry, const Dict& in_file, const Dict& own, bool cast,
                    NameSelection& selection);

// Whether `cast` may turn one into the other: floating point (or complex) into the same kind at any
// precision, integers into wider ones.
bool is_castable(DType from, DType to);

}  // namespace perdure::engine
