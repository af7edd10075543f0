// A walk through what a file holds, in the order of the file, for printing.
//
// Names are key paths joined with dots: "model.fc.weight", "optimizer.state.0.exp_avg". What a
// pickle shares is visited once and referred to afterwards: a file of a few hundred bytes can nest
// shared lists into a tree of 2^100 nodes, and the walk must not grow with that.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <perdure/value.hpp>
#include <string>
#include <string_view>
#include <vector>

namespace perdure::cli {

struct TreeNode {
  const Value& value;
  std::string label;        // its own key, not escaped
  const std::string& name;  // from the root; cut in the middle where it passes 1,000 bytes
  const KeyPath& path;      // the same as keys
  std::size_t depth = 0;    // levels below the root, or below what the pattern selected
  std::string
      same_as;  // the name under which this very container or tensor was visited before, or ""
  bool in_attributes = false;  // somewhere inside of an OrderedDict's attributes, as _metadata is
};

// Calls `visit` for each node: parents before their children. `pattern` selects what it matches as
// a whole or up to a dot, and all that is below; * stands for any characters, ? for one. "" selects
// everything. Error(unsupported) where a file shares so much that a search for a pattern would not
// end.
void walk_tree(const Value& root, const std::string& pattern,
               const std::function<void(const TreeNode&)>& visit);

// The root itself is a node, named "(root)", only where it is no container.
bool is_container(const Value& value) noexcept;
// Shown in one line: a sequence that has scalars only, such as a list of parameter numbers.
bool is_flat(const Value& value);
// Whether * and ? in `pattern` can stand for something that makes it `text`.
bool matches(std::string_view pattern, std::string_view text) noexcept;

// What a tree adds up to.
struct DTypeTotal {
  std::uint64_t tensors = 0;
  std::uint64_t elements = 0;  // tied tensors (same dtype, same bytes of a storage) count once
  std::uint64_t bytes = 0;     // of these elements
};
struct StorageUse {
  std::uint64_t tensors = 0;
  std::uint64_t bytes = 0;  // that they cover, at most
  std::string first;        // name of the first tensor that looks into it
};
struct Summary {
  std::map<DType, DTypeTotal> dtypes;
  std::map<std::string, DTypeTotal> keys;  // by the first key of the path
  std::map<const TensorStorage*, StorageUse> storages;
  std::vector<std::string> opaque;  // names, the first few
  std::uint64_t opaque_count = 0;
  std::uint64_t nodes = 0;
};
Summary summarize(const Value& root, const std::string& pattern);

}  // namespace perdure::cli
