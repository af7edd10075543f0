// Which of what a file has too much of is probably what it lacks, under another name.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "engine/misfit.hpp"
#include "engine/renaming.hpp"

namespace perdure::engine {

// The names of an unexpected and a missing tensor of the same shape.
struct RenamedKey {
  std::string in_file, here;
};

// Names that differ in one part, or in what is in front of the longest end they have in common.
// Takes time in proportion to the names, however many there are.
std::vector<RenamedKey> find_renamed(const std::vector<Misfit>& misfits);

// Rules that give all of these names but those that none fits: what becomes of a group of names at
// once where that is true of all names that it fits, else of a name alone. `fitting`: the names in
// the file that fit as they are.
RenameRules rules_for(const std::vector<RenamedKey>& renamed, const std::vector<Misfit>& misfits,
                      const std::vector<std::string>& fitting);

}  // namespace perdure::engine
