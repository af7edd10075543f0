// What becomes of the names in a file before a restore looks at them (RestoreOptions::rename).
#pragma once

#include <perdure/value.hpp>
#include <string>
#include <utility>
#include <vector>

#include "engine/name_pattern.hpp"

namespace perdure::engine {

using RenameRules = std::vector<std::pair<std::string, std::string>>;

class Renaming {
 public:
  explicit Renaming(const RenameRules& rules);

  // The tree of a file with everything where its new name says: under the entry here whose name
  // that begins with (`entries`), or else its first part, and there under the rest as one key. What
  // no rule fits stays where it is. Error(invalid) for a rule that fits nothing, and where two
  // names become one.
  Dict apply(const Dict& file, const std::vector<std::string>& entries);
  // By the first rule that fits; the name itself where none does.
  std::string rename(const std::string& name) const;

 private:
  struct Rule {
    NameRule rule;
    bool used = false;
  };
  struct Moved {
    std::string from, to;
    Value value;
  };
  class Placing;

  bool any_below(const std::string& name, const Value& value, std::size_t count) const;
  bool move(const std::string& name, const Value& value);
  Dict walk(const Dict& dict, const std::string& path);
  Value walk_items(const Value& sequence, const std::string& path);
  // Keeps what is left of a container; false where everything in it has moved.
  bool left_of(const std::string& name, Value& value);
  void move_metadata(const Dict& dict, const std::string& path);
  void require_used(const Dict& file) const;

  std::vector<Rule> rules_;
  std::vector<Moved> moved_;
  std::vector<Moved> metadata_;  // of the modules among what moved: their paths, their _metadata
};

// Every name in the tree of a file, down to the keys of an entry.
std::vector<std::string> names_in(const Dict& file);

}  // namespace perdure::engine
