#include "format/pickle_reader.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <cstdint>
#include <optional>

#include "format/coding.hpp"
#include "format/pickle_opcodes.hpp"

namespace perdure::format {
namespace {

// A tensor is a few calls and tuples deep below the container that holds it.
constexpr std::uint32_t kMaxNodeDepth = kMaxDepth + 12;

class PickleReader {
 public:
  explicit PickleReader(std::string_view bytes) : bytes_(bytes) {}
  Pickle read();

 private:
  [[noreturn]] void fail(ErrorCode code, const std::string& what) const {
    throw Error(code, fmt::format("{} (pickle offset {})", what, opcode_at_));
  }
  void require(bool ok, const char* what) const {
    if (!ok) fail(ErrorCode::corrupt, what);
  }

  template <std::unsigned_integral T>
  T take() {
    return get<T>(take_bytes(sizeof(T)).data());
  }
  std::string_view take_bytes(std::uint64_t count);
  std::string_view take_line();

  NodeId add(Node node);
  NodeId add_text(NodeKind kind, std::string_view text);
  NodeId add_integer(std::int64_t x);
  void push(NodeId id) { stack_.push_back(id); }
  NodeId pop();
  NodeId top() const;
  std::vector<NodeId> pop_to_mark();
  void push_items(NodeKind kind, std::vector<NodeId> items);
  void push_last(NodeKind kind, std::size_t count);

  bool step();  // one opcode; false at STOP
  bool step_scalar(Op op);
  bool step_container(Op op);
  bool step_object(Op op);
  bool step_memo(Op op);
  void begin_frame();
  Node& unused_top();
  bool is_ordered_dict(NodeId function) const;
  void append(std::vector<NodeId> items);
  void set_items(std::vector<NodeId> items);
  void put_long(std::string_view bytes);
  void put_memo(std::uint64_t index);
  void get_memo(std::uint64_t index);
  void push_call(NodeId function, NodeId arguments, bool created_by_new);
  void build(NodeId state);
  void stack_global();

  std::string_view bytes_;
  std::uint64_t at_ = 0;
  std::uint64_t opcode_at_ = 0;
  std::optional<std::uint64_t> frame_end_;
  std::uint64_t opcodes_ = 0;
  Pickle pickle_;
  std::vector<NodeId> stack_;
  std::vector<std::size_t> marks_;
  std::vector<NodeId> memo_;
  std::uint64_t memo_size_ = 0;  // entries of memo_ that are set: where MEMOIZE puts
  NodeId none_ = kNoNode, true_ = kNoNode, false_ = kNoNode;
};

std::string_view PickleReader::take_bytes(std::uint64_t count) {
  require(count <= bytes_.size() - at_, "the pickle ends in the middle");
  // CPython's two unpicklers disagree on arguments that straddle a frame, so such files are
  // refused.
  require(!frame_end_ || at_ + count <= *frame_end_,
          "an argument reaches over the end of its frame");
  const std::string_view out = bytes_.substr(at_, count);
  at_ += count;
  return out;
}

std::string_view PickleReader::take_line() {
  const std::size_t end = bytes_.find('\n', at_);
  require(end != bytes_.npos, "the pickle ends in the middle of a name");
  const std::string_view line = take_bytes(end - at_ + 1);
  return line.substr(0, line.size() - 1);
}

NodeId PickleReader::add(Node node) {
  if (pickle_.nodes.size() >= kMaxNodes)
    fail(ErrorCode::unsupported, "more than 16 million values in one pickle");
  pickle_.nodes.push_back(std::move(node));
  return static_cast<NodeId>(pickle_.nodes.size() - 1);
}
NodeId PickleReader::add_text(NodeKind kind, std::string_view text) {
  Node node;
  node.kind = kind;
  node.text = text;
  return add(std::move(node));
}
NodeId PickleReader::add_integer(std::int64_t x) {
  Node node;
  node.kind = NodeKind::integer;
  node.integer = x;
  return add(std::move(node));
}

NodeId PickleReader::pop() {
  require(stack_.size() > (marks_.empty() ? 0 : marks_.back()),
          "an opcode takes more than there is on the stack");
  const NodeId id = stack_.back();
  stack_.pop_back();
  pickle_.nodes[id].used = true;
  return id;
}
NodeId PickleReader::top() const {
  require(stack_.size() > (marks_.empty() ? 0 : marks_.back()),
          "an opcode takes more than there is on the stack");
  return stack_.back();
}
std::vector<NodeId> PickleReader::pop_to_mark() {
  require(!marks_.empty(), "an opcode looks for a mark that is not there");
  const auto first = stack_.begin() + static_cast<std::ptrdiff_t>(marks_.back());
  std::vector<NodeId> items(first, stack_.end());
  for (const NodeId id : items) pickle_.nodes[id].used = true;
  stack_.erase(first, stack_.end());
  marks_.pop_back();
  return items;
}
void PickleReader::push_items(NodeKind kind, std::vector<NodeId> items) {
  Node node;
  node.kind = kind;
  node.items = std::move(items);
  push(add(std::move(node)));
}
void PickleReader::push_last(NodeKind kind, std::size_t count) {
  std::vector<NodeId> items(count);
  for (std::size_t i = count; i-- > 0;) items[i] = pop();
  push_items(kind, std::move(items));
}

void PickleReader::begin_frame() {
  const auto size = take<std::uint64_t>();
  require(!frame_end_, "a frame inside of a frame");
  require(size <= bytes_.size() - at_, "a frame that is longer than the pickle");
  frame_end_ = at_ + size;
  if (size == 0) frame_end_.reset();
}

// What was used and changes afterwards would mean different things to readers that call at once and
// to ours, which looks at the finished tree. Picklers only do so for values that contain
// themselves.
Node& PickleReader::unused_top() {
  Node& target = pickle_.nodes[top()];
  if (target.used)
    fail(ErrorCode::unsupported, "a value that contains itself, or changes after it was used");
  return target;
}

bool PickleReader::is_ordered_dict(NodeId function) const {
  const Node& callee = pickle_[function];
  return callee.kind == NodeKind::global && callee.text == "collections" &&
         callee.name == "OrderedDict";
}

void PickleReader::append(std::vector<NodeId> items) {
  Node& target = unused_top();
  const bool call = target.kind == NodeKind::call && !is_ordered_dict(target.function);
  require(target.kind == NodeKind::list || call, "something is appended to what is not a list");
  auto& into = target.kind == NodeKind::list ? target.items : target.added;
  into.insert(into.end(), items.begin(), items.end());
}
void PickleReader::set_items(std::vector<NodeId> items) {
  Node& target = unused_top();
  require(items.size() % 2 == 0, "a key without a value");
  require(target.kind == NodeKind::dict || target.kind == NodeKind::call,
          "a key is set in what is not a dict");
  auto& into = target.kind == NodeKind::dict ? target.items : target.added;
  into.insert(into.end(), items.begin(), items.end());
}

void PickleReader::put_long(std::string_view bytes) {
  if (bytes.size() > 8) return push(add_text(NodeKind::big_integer, bytes));
  std::uint64_t x = !bytes.empty() && (static_cast<unsigned char>(bytes.back()) & 0x80) != 0
                        ? ~std::uint64_t{0}
                        : 0;
  for (std::size_t i = bytes.size(); i-- > 0;) x = (x << 8) | static_cast<unsigned char>(bytes[i]);
  push(add_integer(static_cast<std::int64_t>(x)));
}

void PickleReader::put_memo(std::uint64_t index) {
  // Every pickler numbers upwards from 0, so an index above the number of opcodes is none it wrote.
  require(index <= opcodes_, "a memo index that no pickler would give");
  if (index >= memo_.size()) memo_.resize(index + 1, kNoNode);
  if (memo_[index] == kNoNode) ++memo_size_;
  memo_[index] = top();
}
void PickleReader::get_memo(std::uint64_t index) {
  require(index < memo_.size() && memo_[index] != kNoNode, "a memo entry that was never put");
  push(memo_[index]);
}

void PickleReader::push_call(NodeId function, NodeId arguments, bool created_by_new) {
  require(pickle_[arguments].kind == NodeKind::tuple, "a call whose arguments are no tuple");
  Node node;
  node.kind = NodeKind::call;
  node.created_by_new = created_by_new;
  node.function = function;
  node.items = {arguments};
  if (is_ordered_dict(function) && !created_by_new && pickle_[arguments].items.empty()) {
    node.kind = NodeKind::dict;  // `function` tells it from a plain one
    node.items.clear();
  }
  push(add(std::move(node)));
}

void PickleReader::build(NodeId state) {
  Node& target = unused_top();
  const bool ordered = target.kind == NodeKind::dict && target.function != kNoNode;
  require(target.kind == NodeKind::call || ordered, "a state is set in what cannot have one");
  require(target.state == kNoNode, "a state is set twice in one object");
  target.state = state;
}

void PickleReader::stack_global() {
  const NodeId name = pop();
  const NodeId module = pop();
  require(pickle_[name].kind == NodeKind::string && pickle_[module].kind == NodeKind::string,
          "a global whose name is no string");
  Node node;
  node.kind = NodeKind::global;
  node.text = pickle_[module].text;
  node.name = pickle_[name].text;
  push(add(std::move(node)));
}

bool PickleReader::step_scalar(Op op) {
  switch (op) {
    case Op::none:
      push(none_);
      return true;
    case Op::new_true:
      push(true_);
      return true;
    case Op::new_false:
      push(false_);
      return true;
    case Op::bin_int:
      push(add_integer(static_cast<std::int32_t>(take<std::uint32_t>())));
      return true;
    case Op::bin_int1:
      push(add_integer(take<std::uint8_t>()));
      return true;
    case Op::bin_int2:
      push(add_integer(take<std::uint16_t>()));
      return true;
    case Op::long1:
      put_long(take_bytes(take<std::uint8_t>()));
      return true;
    case Op::long4:
      put_long(take_bytes(take<std::uint32_t>()));
      return true;
    case Op::bin_float: {
      Node node;
      node.kind = NodeKind::real;
      node.real = std::bit_cast<double>(__builtin_bswap64(take<std::uint64_t>()));
      push(add(std::move(node)));
      return true;
    }
    case Op::bin_unicode:
      push(add_text(NodeKind::string, take_bytes(take<std::uint32_t>())));
      return true;
    case Op::short_bin_unicode:
      push(add_text(NodeKind::string, take_bytes(take<std::uint8_t>())));
      return true;
    case Op::bin_unicode8:
      push(add_text(NodeKind::string, take_bytes(take<std::uint64_t>())));
      return true;
    // Strings of Python 2, which torch.load decodes as UTF-8.
    case Op::short_bin_string:
      push(add_text(NodeKind::string, take_bytes(take<std::uint8_t>())));
      return true;
    case Op::bin_string:
      push(add_text(NodeKind::string, take_bytes(take<std::uint32_t>())));
      return true;
    case Op::short_bin_bytes:
      push(add_text(NodeKind::bytes, take_bytes(take<std::uint8_t>())));
      return true;
    case Op::bin_bytes:
      push(add_text(NodeKind::bytes, take_bytes(take<std::uint32_t>())));
      return true;
    case Op::bin_bytes8:
      push(add_text(NodeKind::bytes, take_bytes(take<std::uint64_t>())));
      return true;
    case Op::byte_array8:
      push(add_text(NodeKind::bytearray, take_bytes(take<std::uint64_t>())));
      return true;
    default:
      return false;
  }
}

bool PickleReader::step_container(Op op) {
  switch (op) {
    case Op::mark:
      marks_.push_back(stack_.size());
      return true;
    case Op::empty_list:
      push_items(NodeKind::list, {});
      return true;
    case Op::empty_tuple:
      push_items(NodeKind::tuple, {});
      return true;
    case Op::empty_dict:
      push_items(NodeKind::dict, {});
      return true;
    case Op::empty_set:
      push_items(NodeKind::set, {});
      return true;
    case Op::tuple:
      push_items(NodeKind::tuple, pop_to_mark());
      return true;
    case Op::tuple1:
      push_last(NodeKind::tuple, 1);
      return true;
    case Op::tuple2:
      push_last(NodeKind::tuple, 2);
      return true;
    case Op::tuple3:
      push_last(NodeKind::tuple, 3);
      return true;
    case Op::frozen_set:
      push_items(NodeKind::frozenset, pop_to_mark());
      return true;
    case Op::append:
      append({pop()});
      return true;
    case Op::appends:
      append(pop_to_mark());
      return true;
    case Op::set_item: {
      const NodeId value = pop();
      const NodeId key = pop();
      set_items({key, value});
      return true;
    }
    case Op::set_items:
      set_items(pop_to_mark());
      return true;
    case Op::add_items: {
      std::vector<NodeId> items = pop_to_mark();
      Node& target = unused_top();
      require(target.kind == NodeKind::set, "members are added to what is not a set");
      target.items.insert(target.items.end(), items.begin(), items.end());
      return true;
    }
    default:
      return false;
  }
}

bool PickleReader::step_object(Op op) {
  switch (op) {
    case Op::global: {
      Node node;
      node.kind = NodeKind::global;
      node.text = take_line();
      node.name = take_line();
      push(add(std::move(node)));
      return true;
    }
    case Op::stack_global:
      stack_global();
      return true;
    case Op::reduce:
    case Op::new_obj: {
      const NodeId arguments = pop();
      push_call(pop(), arguments, op == Op::new_obj);
      return true;
    }
    case Op::new_obj_ex: {
      const NodeId keywords = pop();
      const NodeId arguments = pop();
      push_call(pop(), arguments, true);
      pickle_.nodes[top()].added = {keywords};
      return true;
    }
    case Op::build:
      build(pop());
      return true;
    case Op::bin_pers_id:
      push_items(NodeKind::persistent, {pop()});
      return true;
    default:
      return false;
  }
}

bool PickleReader::step_memo(Op op) {
  switch (op) {
    case Op::bin_put:
      put_memo(take<std::uint8_t>());
      return true;
    case Op::long_bin_put:
      put_memo(take<std::uint32_t>());
      return true;
    case Op::memoize:
      put_memo(memo_size_);
      return true;
    case Op::bin_get:
      get_memo(take<std::uint8_t>());
      return true;
    case Op::long_bin_get:
      get_memo(take<std::uint32_t>());
      return true;
    default:
      return false;
  }
}

bool PickleReader::step() {
  if (frame_end_ && at_ == *frame_end_) frame_end_.reset();
  opcode_at_ = at_;
  if (++opcodes_ > kMaxOpcodes)
    fail(ErrorCode::unsupported, "more than 64 million opcodes in one pickle");
  const auto op = static_cast<Op>(take<std::uint8_t>());
  if (op == Op::stop) return false;
  if (op == Op::frame) {
    begin_frame();
    return true;
  }
  require(op != Op::protocol, "a second protocol opcode");
  if (!step_scalar(op) && !step_container(op) && !step_object(op) && !step_memo(op))
    fail(ErrorCode::unsupported, fmt::format("pickle opcode 0x{:02x}, which no PyTorch file needs",
                                             static_cast<unsigned>(op)));
  return true;
}

// Depth, cycles and the size of the tree if nothing were shared: one walk without recursion.
class ShapeCheck {
 public:
  explicit ShapeCheck(const Pickle& pickle) : pickle_(pickle), seen_(pickle.nodes.size()) {}

  void run() {
    enter(pickle_.root);
    while (!path_.empty()) {
      Frame& frame = path_.back();
      const NodeId child = next_child(frame);
      if (child == kNoNode)
        leave();
      else if (seen_[child].state == kDone)
        absorb(frame.node, child);
      else if (seen_[child].state == kOpen)
        fail("a value that contains itself");
      else
        enter(child);
    }
  }

 private:
  static constexpr std::uint8_t kOpen = 1, kDone = 2;
  struct Seen {
    std::uint64_t expanded = 1;
    std::uint32_t depth = 1;
    std::uint8_t state = 0;
  };
  struct Frame {
    NodeId node;
    std::size_t next;
  };

  [[noreturn]] static void fail(const char* what) {
    throw Error(ErrorCode::unsupported, std::string("the pickle has ") + what);
  }

  void enter(NodeId node) {
    if (path_.size() > kMaxNodeDepth) fail("values nested more than 500 deep");
    seen_[node].state = kOpen;
    path_.push_back({node, 0});
  }
  void leave() {
    const NodeId node = path_.back().node;
    seen_[node].state = kDone;
    path_.pop_back();
    if (!path_.empty()) absorb(path_.back().node, node);
  }
  void absorb(NodeId parent, NodeId child) {
    Seen& into = seen_[parent];
    into.expanded += seen_[child].expanded;
    into.depth = std::max(into.depth, seen_[child].depth + 1);
    if (into.expanded > kMaxExpanded)
      fail("values shared so often that they would fill memory when written out");
    if (into.depth > kMaxNodeDepth) fail("values nested more than 500 deep");
  }
  NodeId next_child(Frame& frame) const {
    const Node& node = pickle_[frame.node];
    const NodeId extras[] = {node.function, node.state};
    while (true) {
      std::size_t i = frame.next++;
      if (i < node.items.size()) return node.items[i];
      i -= node.items.size();
      if (i < node.added.size()) return node.added[i];
      i -= node.added.size();
      if (i >= std::size(extras)) return kNoNode;
      if (extras[i] != kNoNode) return extras[i];
    }
  }

  const Pickle& pickle_;
  std::vector<Seen> seen_;
  std::vector<Frame> path_;
};

Pickle PickleReader::read() {
  require(!bytes_.empty() && static_cast<Op>(take<std::uint8_t>()) == Op::protocol,
          "does not begin as a pickle");
  const auto protocol = take<std::uint8_t>();
  if (protocol < 2 || protocol > 5)
    fail(ErrorCode::unsupported, fmt::format("pickle protocol {}", protocol));
  none_ = add(Node{});
  false_ = add_integer(0);
  true_ = add_integer(1);
  for (const NodeId id : {false_, true_}) pickle_.nodes[id].kind = NodeKind::boolean;
  while (step()) {
  }
  require(marks_.empty() && stack_.size() == 1,
          "the pickle stops with other than one value on the stack");
  require(!frame_end_ || at_ == *frame_end_, "the pickle stops before its frame ends");
  require(at_ == bytes_.size(), "bytes after the end of the pickle");
  pickle_.root = stack_.back();
  pickle_.size = bytes_.size();
  ShapeCheck(pickle_).run();
  return std::move(pickle_);
}

}  // namespace

Pickle read_pickle(std::string_view bytes) { return PickleReader(bytes).read(); }

}  // namespace perdure::format
