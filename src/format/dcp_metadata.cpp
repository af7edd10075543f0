#include "format/dcp_metadata.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <set>

#include "format/pickle_reader.hpp"
#include "format/utf8.hpp"

namespace perdure::format {
namespace {

// Numbers and text that shared parts of the pickle may be copied to.
constexpr std::size_t kMaxNumbers = std::size_t{1} << 24;
constexpr std::size_t kMaxPath = 1024;                             // what torch writes has 20
constexpr std::uint64_t kMaxComparisons = std::uint64_t{1} << 30;  // of offsets

[[noreturn]] void damaged(const std::string& what) {
  throw Error(ErrorCode::corrupt, fmt::format(".metadata: {}", what));
}
std::string named(std::string_view name) { return repr(Value(name)); }

using Numbers = std::vector<std::int64_t>;

bool is_inside(const std::string& path) {
  if (path.empty() || path.front() == '/' || path.find('\0') != path.npos) return false;
  for (std::size_t begin = 0; begin <= path.size();) {
    const std::size_t end = std::min(path.find('/', begin), path.size());
    const std::string_view part = std::string_view(path).substr(begin, end - begin);
    if (part.empty() || part == "." || part == "..") return false;
    begin = end + 1;
  }
  return true;
}

class MetadataReader {
 public:
  explicit MetadataReader(const Pickle& pickle) : pickle_(pickle) {}

  DcpMetadata read() {
    const Node& root = instance(pickle_.root, "Metadata");
    read_places(root);
    read_paths(root);
    const auto& items = dict(member(root, "state_dict_metadata"), "state_dict_metadata");
    std::set<std::string_view> seen;
    for (std::size_t i = 0; i < items.size(); i += 2) {
      const std::string_view name = text(items[i]);
      if (!seen.insert(name).second) damaged(fmt::format("{} stands there twice", named(name)));
      add_item(name, items[i + 1]);
    }
    return std::move(out_);
  }

 private:
  [[noreturn]] static void no_form(std::string_view what) {
    damaged(fmt::format("{} of an unknown form", what));
  }
  bool is_instance(NodeId id, std::string_view name) const {
    const Node& node = pickle_[id];
    if (node.kind != NodeKind::call || pickle_[node.function].kind != NodeKind::global)
      return false;
    const Node& callee = pickle_[node.function];
    return callee.name == name && callee.text.starts_with("torch.distributed.");
  }
  const Node& instance(NodeId id, std::string_view name) const {
    if (id == kNoNode || !is_instance(id, name)) no_form(name);
    return pickle_[id];
  }
  // What BUILD would have set; kNoNode where it is not there.
  NodeId member(const Node& object, std::string_view name) const {
    if (object.state == kNoNode) return kNoNode;
    const auto& items = dict(object.state, "an object's state");
    NodeId found = kNoNode;
    for (std::size_t i = 0; i < items.size(); i += 2)
      if (text(items[i]) == name) found = items[i + 1];
    return found;
  }
  const std::vector<NodeId>& dict(NodeId id, std::string_view what) const {
    if (id == kNoNode || pickle_[id].kind != NodeKind::dict || pickle_[id].items.size() % 2 != 0)
      no_form(what);
    return pickle_[id].items;
  }
  std::string_view text(NodeId id) const {
    if (id == kNoNode || pickle_[id].kind != NodeKind::string || !is_utf8(pickle_[id].text))
      no_form("a name");
    return pickle_[id].text;
  }
  bool is_none(NodeId id) const { return id == kNoNode || pickle_[id].kind == NodeKind::none; }
  std::uint64_t unsigned_of(NodeId id, std::string_view what) const {
    if (id == kNoNode || pickle_[id].kind != NodeKind::integer || pickle_[id].integer < 0)
      no_form(what);
    return static_cast<std::uint64_t>(pickle_[id].integer);
  }
  Numbers sizes(NodeId id, std::string_view what);
  DType dtype(NodeId properties, std::string_view name) const;

  void read_places(const Node& root);
  DcpPlace place(NodeId info);
  std::size_t file(std::string_view path);
  void read_paths(const Node& root);
  KeyPath path(std::string_view name);
  void add_item(std::string_view name, NodeId id);
  void add_chunks(DcpItem& item, NodeId chunks, std::string_view name);
  void check_cover(const DcpItem& item);
  void require_disjoint(const DcpItem& item, const DcpChunk& a, const DcpChunk& b);

  const Pickle& pickle_;
  DcpMetadata out_;
  std::map<std::pair<std::string_view, Numbers>, DcpPlace> tensor_places_;
  std::map<std::string_view, DcpPlace> other_places_;
  std::map<std::string_view, std::size_t> files_;
  std::map<std::string_view, NodeId> paths_;
  std::size_t numbers_ = 0;
  std::size_t chunks_ = 0;
  std::uint64_t comparisons_ = 0;
  std::uint64_t text_ = 0;
};

// torch.Size((2, 3)), or the tuple itself.
Numbers MetadataReader::sizes(NodeId id, std::string_view what) {
  if (id != kNoNode && pickle_[id].kind == NodeKind::call) {
    const Node& call = pickle_[id];
    const Node& callee = pickle_[call.function];
    const auto& arguments = pickle_[call.items[0]].items;
    if (callee.kind != NodeKind::global || callee.name != "Size" || arguments.size() != 1)
      no_form(what);
    id = arguments[0];
  }
  const bool is_run =
      id != kNoNode && (pickle_[id].kind == NodeKind::tuple || pickle_[id].kind == NodeKind::list);
  if (!is_run) no_form(what);
  numbers_ += pickle_[id].items.size();
  if (numbers_ > kMaxNumbers)
    throw Error(ErrorCode::unsupported, ".metadata: more sizes and offsets than fit in memory");
  Numbers out;
  for (const NodeId item : pickle_[id].items)
    out.push_back(static_cast<std::int64_t>(unsigned_of(item, what)));
  return out;
}

// The state is a tuple, (dtype, layout, requires_grad, memory format, pin_memory).
DType MetadataReader::dtype(NodeId properties, std::string_view name) const {
  const Node& object = instance(properties, "TensorProperties");
  NodeId found = kNoNode;
  if (object.state != kNoNode && pickle_[object.state].kind == NodeKind::tuple &&
      !pickle_[object.state].items.empty())
    found = pickle_[object.state].items[0];
  else
    found = member(object, "dtype");
  if (found == kNoNode || pickle_[found].kind != NodeKind::global) no_form("TensorProperties");
  const Node& global = pickle_[found];
  const auto known = global.text == "torch" ? dtype_from_name(global.name) : std::nullopt;
  if (!known)
    throw Error(ErrorCode::unsupported,
                fmt::format(".metadata: {} has the dtype {}, which perdure does not know",
                            named(name), named(global.name)));
  return *known;
}

void MetadataReader::read_places(const Node& root) {
  const auto& items = dict(member(root, "storage_data"), "storage_data");
  for (std::size_t i = 0; i < items.size(); i += 2) {
    const Node& index = instance(items[i], "MetadataIndex");
    const std::string_view name = text(member(index, "fqn"));
    const NodeId offset = member(index, "offset");
    const DcpPlace found = place(items[i + 1]);
    const bool fresh =
        is_none(offset)
            ? other_places_.try_emplace(name, found).second
            : tensor_places_.try_emplace({name, sizes(offset, "an offset")}, found).second;
    if (!fresh) damaged(fmt::format("a piece of {} is in two places", named(name)));
  }
}

DcpPlace MetadataReader::place(NodeId id) {
  const Node& info = instance(id, "_StorageInfo");
  if (const NodeId transforms = member(info, "transform_descriptors");
      !is_none(transforms) &&
      (pickle_[transforms].kind != NodeKind::list || !pickle_[transforms].items.empty()))
    throw Error(ErrorCode::unsupported,
                ".metadata: its files were written through an extension (compressed or encrypted), "
                "which perdure does not read; load it with torch and save it again");
  return {file(text(member(info, "relative_path"))),
          unsigned_of(member(info, "offset"), "an offset"),
          unsigned_of(member(info, "length"), "a length")};
}

std::size_t MetadataReader::file(std::string_view path) {
  const auto [it, fresh] = files_.try_emplace(path, out_.files.size());
  if (!fresh) return it->second;
  out_.files.emplace_back(path);
  if (path.size() > kMaxPath)
    damaged(fmt::format("a file is called {}, and so on for {} bytes", named(path), path.size()));
  if (!is_inside(out_.files.back()))
    throw Error(ErrorCode::invalid, fmt::format(".metadata: the file {} is not in the directory; "
                                                "what leaves it is never read",
                                                named(path)));
  return it->second;
}

void MetadataReader::read_paths(const Node& root) {
  const NodeId data = member(root, "planner_data");
  if (is_none(data) || pickle_[data].kind != NodeKind::dict) return;
  const auto& items = pickle_[data].items;
  for (std::size_t i = 0; i + 1 < items.size(); i += 2) paths_[text(items[i])] = items[i + 1];
}

KeyPath MetadataReader::path(std::string_view name) {
  const auto it = paths_.find(name);
  if (it == paths_.end()) return {Value(name)};
  const Node& keys = pickle_[it->second];
  if (keys.kind != NodeKind::tuple || keys.items.empty()) no_form("planner_data");
  if (keys.items.size() > kMaxDepth / 2)
    throw Error(ErrorCode::unsupported,
                fmt::format(".metadata: {} is nested too deep", named(name)));
  KeyPath out;
  for (const NodeId key : keys.items) {
    if (pickle_[key].kind == NodeKind::integer) {
      out.emplace_back(unsigned_of(key, "planner_data"));
    } else {
      out.emplace_back(text(key));
      text_ += out.back().as_string().size();
    }
  }
  if (text_ > pickle_.size + kMaxRepeatedText)
    throw Error(ErrorCode::unsupported, ".metadata: names that would fill memory");
  return out;
}

void MetadataReader::add_item(std::string_view name, NodeId id) {
  DcpItem item;
  item.name = std::string(name);
  item.path = path(name);
  if (is_instance(id, "BytesStorageMetadata")) {
    const auto it = other_places_.find(name);
    if (it == other_places_.end()) damaged(fmt::format("{} is in no file", named(name)));
    item.chunks.push_back({{}, {}, it->second});
  } else {
    const Node& tensor = instance(id, "TensorStorageMetadata");
    item.is_tensor = true;
    item.dtype = dtype(member(tensor, "properties"), name);
    item.shape = sizes(member(tensor, "size"), "a size");
    add_chunks(item, member(tensor, "chunks"), name);
    check_cover(item);
  }
  out_.items.push_back(std::move(item));
}

void MetadataReader::add_chunks(DcpItem& item, NodeId chunks, std::string_view name) {
  if (chunks == kNoNode || pickle_[chunks].kind != NodeKind::list) no_form("chunks");
  chunks_ += pickle_[chunks].items.size();
  if (chunks_ > kMaxDcpChunks || pickle_[chunks].items.size() > kMaxDcpChunksOfOne)
    throw Error(ErrorCode::unsupported,
                fmt::format(".metadata: {} is in more chunks than perdure joins", named(name)));
  std::set<std::pair<Numbers, Numbers>> seen;
  for (const NodeId id : pickle_[chunks].items) {
    const Node& node = instance(id, "ChunkStorageMetadata");
    DcpChunk chunk{
        sizes(member(node, "offsets"), "an offset"), sizes(member(node, "sizes"), "a size"), {}};
    if (chunk.offsets.size() != item.shape.size() || chunk.sizes.size() != item.shape.size())
      damaged(fmt::format("a chunk of {} has another number of dimensions", named(name)));
    for (std::size_t i = 0; i < item.shape.size(); ++i)
      if (chunk.offsets[i] > item.shape[i] || chunk.sizes[i] > item.shape[i] - chunk.offsets[i])
        damaged(fmt::format("a chunk of {} reaches outside of the tensor", named(name)));
    if (std::ranges::find(chunk.sizes, 0) != chunk.sizes.end()) continue;
    if (!seen.emplace(chunk.offsets, chunk.sizes).second) continue;  // a replica
    const auto place = tensor_places_.find({name, chunk.offsets});
    if (place == tensor_places_.end())
      damaged(fmt::format("the chunk of {} at {} is in no file", named(name),
                          repr(Value::size(chunk.offsets))));
    chunk.place = place->second;
    item.chunks.push_back(std::move(chunk));
  }
}

// No two of them overlap, and together they have as many elements as the tensor.
void MetadataReader::check_cover(const DcpItem& item) {
  const auto count = [&](const Numbers& sizes) {
    std::uint64_t elements = 1;
    for (const std::int64_t size : sizes)
      if (__builtin_mul_overflow(elements, static_cast<std::uint64_t>(size), &elements))
        damaged(fmt::format("{} has more elements than there can be", named(item.name)));
    return elements;
  };
  std::uint64_t covered = 0;
  for (const DcpChunk& chunk : item.chunks)
    if (__builtin_add_overflow(covered, count(chunk.sizes), &covered))
      damaged(fmt::format("chunks of {} overlap", named(item.name)));
  const bool is_empty = std::ranges::find(item.shape, 0) != item.shape.end();
  const std::uint64_t wanted = is_empty ? 0 : count(item.shape);
  if (covered < wanted)
    damaged(fmt::format("{} is not whole: its chunks have {} of its {} elements", named(item.name),
                        covered, wanted));
  comparisons_ += item.chunks.size() * item.chunks.size() / 2 * (item.shape.size() + 1);
  if (comparisons_ > kMaxComparisons)
    throw Error(ErrorCode::unsupported, ".metadata: more chunks than perdure joins");
  for (std::size_t i = 0; i < item.chunks.size(); ++i)
    for (std::size_t j = 0; j < i; ++j) require_disjoint(item, item.chunks[i], item.chunks[j]);
}

void MetadataReader::require_disjoint(const DcpItem& item, const DcpChunk& a, const DcpChunk& b) {
  for (std::size_t i = 0; i < item.shape.size(); ++i)
    if (a.offsets[i] + a.sizes[i] <= b.offsets[i] || b.offsets[i] + b.sizes[i] <= a.offsets[i])
      return;
  damaged(fmt::format("chunks of {} overlap", named(item.name)));
}

// ---- the state

struct Branch {
  bool is_list = false;
  bool is_leaf = false;
  Value leaf;
  Dict places;  // key -> number of the branch below
  std::vector<std::size_t> below;
};

class StateTree {
 public:
  StateTree() { branches_.emplace_back(); }

  void add(const KeyPath& path, const Value& value, std::size_t limit) {
    std::size_t at = 0;
    for (const Value& key : path) at = descend(at, key, path, limit);
    if (branches_[at].is_leaf || !branches_[at].below.empty())
      damaged(fmt::format("two values at {}", format_path(path)));
    branches_[at].is_leaf = true;
    branches_[at].leaf = value;
  }
  Value value(std::size_t number = 0) const {
    const Branch& branch = branches_[number];
    if (branch.is_leaf) return branch.leaf;
    if (branch.is_list) return list(branch);
    Dict out;
    for (std::size_t i = 0; i < branch.below.size(); ++i)
      out.set(branch.places.entries()[i].first, value(branch.below[i]));
    return Value(std::move(out));
  }

 private:
  std::size_t descend(std::size_t at, const Value& key, const KeyPath& path, std::size_t limit) {
    const bool is_list = key.kind() == Kind::integer;
    // A list is no longer than there are items; None stands for what nobody has.
    if (branches_[at].is_leaf || (!branches_[at].below.empty() && branches_[at].is_list != is_list))
      damaged(fmt::format("two values at {}", format_path(path)));
    if (is_list && (key.as_big_int() || static_cast<std::size_t>(key.as_int()) >= limit))
      damaged(fmt::format("{} is at a place that its list cannot have", format_path(path)));
    branches_[at].is_list = is_list;
    if (const Value* found = branches_[at].places.find(key))
      return static_cast<std::size_t>(found->as_int());
    const std::size_t number = branches_.size();
    branches_.emplace_back();
    branches_[at].places.set(key, number);
    branches_[at].below.push_back(number);
    return number;
  }
  Value list(const Branch& branch) const {
    std::size_t length = 0;
    for (const auto& [key, ignored] : branch.places)
      length = std::max(length, static_cast<std::size_t>(key.as_int()) + 1);
    gaps_ += length - branch.below.size();
    if (gaps_ > kMaxGaps)
      throw Error(ErrorCode::unsupported, ".metadata: lists of which most is not there");
    Value::Items items(length);
    for (std::size_t i = 0; i < branch.below.size(); ++i)
      items[static_cast<std::size_t>(branch.places.entries()[i].first.as_int())] =
          value(branch.below[i]);
    return Value::list(std::move(items));
  }

  // DCP leaves out empty dicts, also in lists.
  static constexpr std::size_t kMaxGaps = std::size_t{1} << 20;

  std::vector<Branch> branches_;
  mutable std::size_t gaps_ = 0;
};

}  // namespace

DcpMetadata read_dcp_metadata(std::string_view bytes) try {
  const Pickle pickle = read_pickle(bytes);
  return MetadataReader(pickle).read();
} catch (const Error& error) {
  if (std::string_view(error.what()).starts_with(".metadata")) throw;
  throw Error(error.code(), fmt::format(".metadata: {}", error.what()));
}

Value join_dcp_state(const std::vector<DcpItem>& items, const std::vector<Value>& values) {
  StateTree tree;
  for (std::size_t i = 0; i < items.size(); ++i) tree.add(items[i].path, values[i], items.size());
  return items.empty() ? Value(Dict()) : tree.value();
}

}  // namespace perdure::format
