// The text of a restore that does not fit: what, in one table, and what can be done about it.
#pragma once

#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "engine/misfit.hpp"
#include "engine/renaming.hpp"

namespace perdure::engine {

struct Circumstances {
  std::vector<std::string> fitting = {};  // names in the file that fit as they are
  RenameRules entry_rules = {};           // see rule_for_entry
  std::vector<std::string> lines = {};    // what else stands against it
  bool cast = false;                      // dtypes were to be converted
  bool options = true;                    // whether there are options to advise
};

// Begins with a line break.
std::string explain(std::vector<Misfit> misfits, const Circumstances& circumstances);

// The rule that gives a module its state where the file has it as another entry, or is nothing
// else.
std::optional<std::pair<std::string, std::string>> rule_for_entry(const std::string& entry,
                                                                  const Dict& own,
                                                                  const Dict& file);

}  // namespace perdure::engine
