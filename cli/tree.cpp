#include "tree.hpp"

#include <algorithm>
#include <cstdint>
#include <functional>
#include <set>
#include <tuple>
#include <unordered_map>
#include <unordered_set>
#include <utility>

#include "text.hpp"

namespace perdure::cli {
namespace {

constexpr std::size_t kMaxName = 1000;
constexpr std::size_t kMaxLabel = 200;
// Visits outside of what a pattern selects; no file that holds a model comes near.
constexpr std::uint64_t kMaxSearch = 20'000'000;

std::string label_of(const Value& key) {
  if (key.kind() != Kind::string) return repr(key, kMaxLabel);
  return key.as_string().empty() ? "''" : key.as_string();
}

class Walk {
 public:
  Walk(const std::string& pattern, const std::function<void(const TreeNode&)>& visit)
      : pattern_(pattern), below_(pattern + ".*"), visit_(visit) {}

  void start(const Value& root) {
    if (is_container(root))
      children(root);
    else
      item(root, Value("(root)"), "(root)");
  }

 private:
  // Puts the walk back to where it was when an item has been dealt with.
  struct Place {
    explicit Place(Walk& w)
        : walk(w), name(w.name_), selected(w.selected_), in_attributes(w.in_attributes_) {}
    ~Place() {
      walk.name_ = std::move(name);
      walk.path_.pop_back();
      walk.selected_ = selected;
      walk.in_attributes_ = in_attributes;
    }
    Place(const Place&) = delete;
    Place& operator=(const Place&) = delete;

    Walk& walk;
    std::string name;
    bool selected, in_attributes;
  };

  void item(const Value& value, const Value& key, std::string label) {
    const Place place(*this);
    path_.push_back(key);
    name_ =
        shorten(name_.empty() ? shorten(label, kMaxName) : name_ + "." + shorten(label, kMaxName),
                kMaxName);
    selected_ = selected_ || pattern_.empty() || matches(pattern_, name_) || matches(below_, name_);
    if (!selected_)
      search(value);
    else if (report(value, std::move(label)))
      descend(value);
  }

  // True where the node is new, so that its children are still to be visited.
  bool report(const Value& value, std::string label) {
    const void* identity = value.identity();
    const bool again = identity != nullptr && visited_.contains(identity);
    visit_({value, std::move(label), name_, path_, depth_, again ? visited_.at(identity) : "",
            in_attributes_});
    if (identity != nullptr && !again) visited_.emplace(identity, name_);
    return !again;
  }

  void descend(const Value& value) {
    ++depth_;
    children(value);
    --depth_;
  }

  void search(const Value& value) {
    searched_ += 1 + (value.is_sequence() ? value.as_items().size() : 0);
    if (searched_ > kMaxSearch)
      throw Error(
          ErrorCode::unsupported,
          "this file has its parts in so many places that the search for a key was given up; "
          "show it without a KEY");
    const void* identity = value.identity();
    if (identity != nullptr && !searching_.insert(identity).second) return;  // inside of itself
    children(value);
    if (identity != nullptr) searching_.erase(identity);
  }

  void children(const Value& value) {
    if (value.is_mapping())
      entries(value.as_dict());
    else if (value.is_sequence() && !is_flat(value))
      items(value.as_items());
    else if (value.kind() == Kind::opaque)
      parts(value.as_opaque());
  }

  void entries(const Dict& dict) {
    for (const auto& [key, value] : dict) item(value, key, label_of(key));
    if (!dict.attributes()) return;
    const bool outer = std::exchange(in_attributes_, true);
    for (const auto& [key, value] : *dict.attributes())
      item(value, key, "(attributes)." + label_of(key));
    in_attributes_ = outer;
  }

  void items(const Value::Items& items) {
    for (std::size_t i = 0; i < items.size(); ++i) item(items[i], Value(i), std::to_string(i));
  }

  void parts(const Opaque& opaque) {
    if (!opaque.arguments.is_none()) item(opaque.arguments, Value("(arguments)"), "(arguments)");
    if (!opaque.state.is_none()) item(opaque.state, Value("(state)"), "(state)");
  }

  const std::string& pattern_;
  const std::string below_;
  const std::function<void(const TreeNode&)>& visit_;
  KeyPath path_;
  std::string name_;
  std::size_t depth_ = 0;
  bool selected_ = false;
  bool in_attributes_ = false;
  std::uint64_t searched_ = 0;
  std::unordered_map<const void*, std::string> visited_;  // identity -> name
  std::unordered_set<const void*> searching_;             // identities on the way from the root
};

// Adds tensors up; the walk gives it each place once.
class Counter {
 public:
  explicit Counter(Summary& summary) : summary_(summary) {}

  void add(const TreeNode& node) {
    ++summary_.nodes;
    if (node.value.kind() == Kind::tensor) add_tensor(node);
    if (node.value.kind() == Kind::opaque) add_opaque(node.name);
  }

 private:
  void add_tensor(const TreeNode& node) {
    const Tensor& tensor = node.value.as_tensor();
    DTypeTotal& total = summary_.dtypes[tensor.dtype];
    DTypeTotal& of_key = summary_.keys[label_of(node.path.front())];
    ++total.tensors;
    ++of_key.tensors;
    StorageUse& use = summary_.storages[tensor.storage.get()];
    if (use.tensors++ == 0) use.first = node.name;
    const auto [first, last] = tensor.byte_range();
    if (!counted_.insert({tensor.storage.get(), tensor.dtype, first, last}).second) return;
    use.bytes = std::min(tensor.storage->size, use.bytes + (last - first));
    for (DTypeTotal* sum : {&total, &of_key}) {
      sum->elements += tensor.numel();
      sum->bytes += tensor.numel() * itemsize(tensor.dtype);
    }
  }

  void add_opaque(const std::string& name) {
    constexpr std::size_t kNamed = 10;
    if (summary_.opaque_count++ < kNamed) summary_.opaque.push_back(name);
  }

  Summary& summary_;
  std::set<std::tuple<const TensorStorage*, DType, std::uint64_t, std::uint64_t>> counted_;
};

}  // namespace

void walk_tree(const Value& root, const std::string& pattern,
               const std::function<void(const TreeNode&)>& visit) {
  Walk(pattern, visit).start(root);
}

bool is_container(const Value& value) noexcept { return value.is_mapping() || value.is_sequence(); }

bool is_flat(const Value& value) {
  if (!value.is_sequence()) return false;
  const auto is_scalar = [](const Value& item) { return item.identity() == nullptr; };
  return std::all_of(value.as_items().begin(), value.as_items().end(), is_scalar);
}

bool matches(std::string_view pattern, std::string_view text) noexcept {
  std::size_t p = 0;
  std::size_t t = 0;
  std::size_t star =
      std::string_view::npos;  // the last *, and where the text stood that it has not yet taken
  std::size_t taken = 0;
  while (t < text.size()) {
    if (p < pattern.size() && pattern[p] == '*') {
      star = p++;
      taken = t;
    } else if (p < pattern.size() && (pattern[p] == '?' || pattern[p] == text[t])) {
      ++p;
      ++t;
    } else if (star != std::string_view::npos) {
      p = star + 1;
      t = ++taken;
    } else {
      return false;
    }
  }
  while (p < pattern.size() && pattern[p] == '*') ++p;
  return p == pattern.size();
}

Summary summarize(const Value& root, const std::string& pattern) {
  Summary summary;
  Counter counter(summary);
  walk_tree(root, pattern, [&counter](const TreeNode& node) { counter.add(node); });
  return summary;
}

}  // namespace perdure::cli
