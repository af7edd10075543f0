#include "engine/leaves.hpp"

#include <algorithm>
#include <unordered_set>

namespace perdure::engine {
namespace {

constexpr std::size_t kMaxName = 1000;
// Visits of containers that were visited before, with their items. What a model ties is far less.
constexpr std::uint64_t kMaxRepeated = 200'000;

bool is_plain(const Value& value) { return value.identity() == nullptr; }

bool is_empty_mapping(const Value& value) { return value.is_mapping() && value.as_dict().empty(); }

bool is_leaf(const Value& value) {
  if (value.is_mapping()) return is_empty_mapping(value) && !value.as_dict().attributes();
  if (!value.is_sequence()) return value.kind() != Kind::opaque;
  return std::ranges::all_of(value.as_items(), is_plain);
}

std::string cut(std::string text) {
  if (text.size() <= kMaxName) return text;
  return text.substr(0, kMaxName / 2) + "..." + text.substr(text.size() - kMaxName / 2 + 3);
}

class Collector {
 public:
  void visit(const Value& value) {
    if (is_leaf(value)) return add(value);
    const void* identity = value.identity();
    if (!on_the_way_.insert(identity).second) return;  // inside of itself
    if (!visited_.insert(identity).second) count_again(value);
    if (value.kind() == Kind::opaque || is_empty_mapping(value)) add(value);
    children(value);
    on_the_way_.erase(identity);
  }

  std::vector<Leaf> leaves;

 private:
  void add(const Value& value) {
    if (in_attributes_ && value.kind() != Kind::tensor) return;
    leaves.push_back({name_.empty() ? "(root)" : name_, path_, &value});
  }

  void count_again(const Value& value) {
    repeated_ += 1 + (value.is_sequence()  ? value.as_items().size()
                      : value.is_mapping() ? value.as_dict().size()
                                           : 0);
    if (repeated_ > kMaxRepeated)
      throw Error(ErrorCode::unsupported,
                  "the state has the same parts in so many places that they cannot be listed");
  }

  void children(const Value& value) {
    if (value.is_mapping()) return entries(value.as_dict());
    if (value.kind() == Kind::opaque) {
      item(Value("(arguments)"), value.as_opaque().arguments);
      item(Value("(state)"), value.as_opaque().state);
      return;
    }
    for (std::size_t i = 0; i < value.as_items().size(); ++i) item(Value(i), value.as_items()[i]);
  }

  void entries(const Dict& dict) {
    for (const auto& [key, value] : dict) item(key, value);
    if (!dict.attributes()) return;
    const bool outer = std::exchange(in_attributes_, true);
    for (const auto& [key, value] : *dict.attributes()) item(key, value);
    in_attributes_ = outer;
  }

  void item(const Value& key, const Value& value) {
    const std::string outer = name_;
    name_ = cut(name_.empty() ? key_name(key) : name_ + "." + key_name(key));
    path_.push_back(key);
    visit(value);
    path_.pop_back();
    name_ = outer;
  }

  KeyPath path_;
  std::string name_;
  bool in_attributes_ = false;
  std::uint64_t repeated_ = 0;
  std::unordered_set<const void*> visited_;
  std::unordered_set<const void*> on_the_way_;
};

bool matches(std::string_view pattern, std::string_view text) {
  std::size_t p = 0;
  std::size_t t = 0;
  std::size_t star = std::string_view::npos;  // the last *
  std::size_t taken = 0;                      // up to where it has taken the text
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
  return pattern.find_first_not_of('*', p) == std::string_view::npos;
}

}  // namespace

std::string key_name(const Value& key) {
  if (key.kind() != Kind::string) return repr(key, kMaxName);
  return key.as_string().empty() ? "''" : cut(key.as_string());
}

std::vector<Leaf> leaves_of(const Value& state) {
  Collector collector;
  collector.visit(state);
  return std::move(collector.leaves);
}

bool selects(std::string_view pattern, std::string_view name) {
  if (pattern.empty() || matches(pattern, name)) return true;
  return matches(std::string(pattern) + ".*", name);
}

}  // namespace perdure::engine
