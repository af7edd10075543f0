// A state as a list of names and values, as the formats have it that know no nesting.
#pragma once

#include <perdure/value.hpp>
#include <string>
#include <vector>

namespace perdure::engine {

struct FlatEntry {
  std::string name;  // the keys, joined by dots
  KeyPath path;
  Value value;
};

// All tensors and everything else that has no parts of its own: dicts are taken apart, and lists
// that hold tensors or such dicts, as torch.distributed.checkpoint does it. An empty dict is an
// entry. Error(invalid) where two have one name, or the state is no dict.
std::vector<FlatEntry> flatten(const Value& state);

// The name of what stands at `path`.
std::string flat_name(const KeyPath& path);
// The path of an entry of `state` as DCP keeps it: a dict's key is a string, a list's position an
// int, and that is how dcp.load tells them.
KeyPath dcp_path(const KeyPath& path, const Value& state);

}  // namespace perdure::engine
