// Which names a restore is about (RestoreOptions::only).
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "engine/name_pattern.hpp"

namespace perdure::engine {

enum class Side { file, here };

class NameSelection {
 public:
  explicit NameSelection(const std::vector<std::string>& only);  // empty: all
  bool all() const noexcept { return choices_.empty(); }
  // Whether the name is selected. Remembers which pattern it was that found it on that side.
  bool takes(std::string_view name, Side side);
  // The same of an entry that is restored whole or not at all. Error(invalid) where a pattern
  // reaches into it.
  bool takes_whole(const std::string& entry, Side side);
  // Error(invalid) for a pattern that has found nothing on one of the sides, which lists what is
  // there.
  void require_found(const std::vector<std::string>& in_file,
                     const std::vector<std::string>& here) const;

 private:
  struct Choice {
    NamePattern pattern;
    bool in_file = false, here = false;
  };
  std::vector<Choice> choices_;
};

// "; did you mean ...? There are: ...", as far as there is something to say.
std::string what_there_is(std::string_view wanted, const std::vector<std::string>& names);

}  // namespace perdure::engine
