// Pickles (protocols 2 to 5) read as data. Nothing is imported, called or constructed: what would
// have been a call becomes a node that says so. docs/format.md names the opcodes that are
// understood.
#pragma once

#include <cstdint>
#include <perdure/error.hpp>
#include <string_view>
#include <vector>

namespace perdure::format {

using NodeId = std::uint32_t;
inline constexpr NodeId kNoNode = 0xFFFFFFFF;

enum class NodeKind : std::uint8_t {
  none,
  boolean,
  integer,
  big_integer,
  real,
  string,
  bytes,
  bytearray,  // text
  list,
  tuple,
  set,
  frozenset,
  dict,        // items; a dict's are key, value, key, value, ...
  global,      // text = module, name = name: a class or function, by name only
  call,        // function (a global or anything else), items = [arguments]; see below
  persistent,  // items = [id]: torch's storages
};

// Nodes refer to each other by number and live in one vector: no recursion on input, no deep
// destructors.
struct Node {
  NodeKind kind = NodeKind::none;
  bool created_by_new = false;  // call: NEWOBJ, so function.__new__ rather than function
  bool used = false;            // something has taken it from the stack, so it is finished
  std::int64_t integer = 0;     // also of a boolean
  double real = 0;
  std::string_view text;  // into the pickle's bytes; big_integer: two's complement, little-endian
  std::string_view name;
  NodeId function = kNoNode;
  NodeId state = kNoNode;  // call: what BUILD would have set
  std::vector<NodeId> items;
  std::vector<NodeId> added;  // call: what APPEND(S) or SETITEM(S) would have put into the result
};

struct Pickle {
  std::vector<Node> nodes;
  NodeId root = kNoNode;
  std::uint64_t size = 0;  // bytes that it was read from
  const Node& operator[](NodeId id) const { return nodes[id]; }
};

// What a pickle may hold, and so what a writer may write. 16 million nodes are 2 GiB here; a model
// with 100,000 tensors has 2 million, and 5 million opcodes.
inline constexpr std::uint64_t kMaxNodes = std::uint64_t{1} << 24;
inline constexpr std::uint64_t kMaxOpcodes = std::uint64_t{1} << 26;
// Nodes of the tree if nothing were shared. Keeps "billion laughs" from whoever walks it.
inline constexpr std::uint64_t kMaxExpanded = std::uint64_t{1} << 28;
// Bytes of the pickle.
inline constexpr std::uint64_t kMaxPickle = std::uint64_t{1} << 30;
// Bytes that texts may add when each is written out wherever it stands: keys of 100,000 tensors are
// 10 MB.
inline constexpr std::uint64_t kMaxRepeatedText = std::uint64_t{1} << 27;

// How deep lists and dicts may be nested. The pickler of Python itself stops at about 500 levels.
inline constexpr std::uint32_t kMaxDepth = 500;

// `bytes` must outlive the result. Error(corrupt) with the offset for bytes that are no pickle or
// contradict themselves; Error(unsupported) for opcodes that no PyTorch file needs, cycles, more
// than kMaxDepth levels and what passes the limits above: trees that are small in the file and huge
// when written out.
Pickle read_pickle(std::string_view bytes);

}  // namespace perdure::format
