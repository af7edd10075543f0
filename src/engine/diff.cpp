#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <bit>
#include <perdure/diff.hpp>
#include <unordered_map>

#include "engine/leaves.hpp"
#include "engine/tensor_pairs.hpp"

namespace perdure {
namespace {

using engine::Distances;
using engine::Leaf;
using engine::TensorPairs;
using What = Difference::What;

std::string text_of(const Value& value) {
  constexpr std::size_t kLimit = 200;
  if (value.kind() == Kind::tensor) {
    const Tensor& tensor = value.as_tensor();
    return fmt::format("{} [{}]", dtype_name(tensor.dtype), fmt::join(tensor.shape, ", "));
  }
  if (value.is_mapping()) return "{}";
  if (!value.is_sequence()) return repr(value, kLimit);
  std::string out;
  for (const Value& item : value.as_items()) {
    if (out.size() > kLimit) return "[" + out + ", ...]";
    out += (out.empty() ? "" : ", ") + repr(item, kLimit);
  }
  return "[" + out + "]";
}

// In any order: that of a set is another one in every process.
bool same_members(const Value& a, const Value& b) {
  const auto members = [](const Value& set) {
    std::vector<std::string> texts;
    for (const Value& item : set.as_items())
      texts.push_back(repr(item, std::numeric_limits<std::size_t>::max()));
    std::ranges::sort(texts);
    return texts;
  };
  return members(a) == members(b);
}

// Of what is no tensor; by the bits of floats, so that NaN is NaN.
bool same_plain(const Value& a, const Value& b) {
  if (a.kind() == Kind::set && b.kind() == Kind::set) return same_members(a, b);
  if (a.is_sequence() && b.is_sequence())
    return std::ranges::equal(a.as_items(), b.as_items(), same_plain);
  if (a.is_mapping() && b.is_mapping()) return true;  // without items
  if (a.kind() != b.kind()) return false;
  const auto bits = [](double x) { return std::bit_cast<std::uint64_t>(x); };
  switch (a.kind()) {
    case Kind::integer:
      if (a.as_big_int() == nullptr || b.as_big_int() == nullptr)
        return a.as_big_int() == b.as_big_int() && a.as_int() == b.as_int();
      return *a.as_big_int() == *b.as_big_int();
    case Kind::boolean:
      return a.as_bool() == b.as_bool();
    case Kind::real:
      return bits(a.as_double()) == bits(b.as_double());
    case Kind::complex:
      return bits(a.as_complex().real()) == bits(b.as_complex().real()) &&
             bits(a.as_complex().imag()) == bits(b.as_complex().imag());
    case Kind::dtype:
      return a.as_dtype() == b.as_dtype();
    case Kind::none:
      return true;
    case Kind::opaque:
      return a.as_opaque().module == b.as_opaque().module &&
             a.as_opaque().name == b.as_opaque().name;
    default:
      return a.as_string() == b.as_string();
  }
}

// Without the parts that wrappers of a module put into its keys.
constexpr std::array<std::string_view, 2> kPrefixes = {"module", "_orig_mod"};

std::string without_prefixes(std::string_view name, std::string& found) {
  std::string out;
  for (std::size_t at = 0; at <= name.size();) {
    const std::size_t end = std::min(name.find('.', at), name.size());
    const std::string_view part = name.substr(at, end - at);
    if (std::ranges::find(kPrefixes, part) != kPrefixes.end())
      found = std::string(part) + ".";
    else
      out += (out.empty() ? "" : ".") + std::string(part);
    at = end + 1;
  }
  return out;
}

class Comparison {
 public:
  Comparison(const CheckpointFile& a, const CheckpointFile& b, const DiffOptions& options)
      : a_(a), b_(b), options_(options), pairs_(a, b, options) {
    report_.path_a = a.name();
    report_.path_b = b.name();
    leaves_a_ = selected(a);
    leaves_b_ = selected(b);
    if (leaves_a_.empty() && leaves_b_.empty() && !options.pattern.empty())
      throw Error(ErrorCode::not_found, fmt::format("nothing in {} or {} is called '{}'", a.name(),
                                                    b.name(), options.pattern));
    match();
    match_without_prefix();
    for (std::size_t i = 0; i < leaves_a_.size(); ++i)
      if (partner_[i]) compare(i, *leaves_a_[i].value, *leaves_b_[*partner_[i]].value);
  }

  std::uint64_t bytes() const { return pairs_.bytes(); }

  DiffReport run() {
    pairs_.run();
    for (std::size_t i = 0; i < leaves_a_.size(); ++i) {
      if (!partner_[i])
        report_.differences.push_back(
            {What::removed, leaves_a_[i].name, text_of(*leaves_a_[i].value), "", std::nullopt});
      else if (std::optional<Difference>& found = found_[i])
        report_.differences.push_back(std::move(*found));
      else if (pair_of_[i])
        add_distance(i);
    }
    for (std::size_t i = 0; i < leaves_b_.size(); ++i)
      if (!taken_[i])
        report_.differences.push_back(
            {What::added, leaves_b_[i].name, "", text_of(*leaves_b_[i].value), std::nullopt});
    return std::move(report_);
  }

 private:
  std::vector<Leaf> selected(const CheckpointFile& file) const {
    std::vector<Leaf> leaves = engine::leaves_of(file.value());
    if (!options_.pattern.empty())
      std::erase_if(
          leaves, [&](const Leaf& leaf) { return !engine::selects(options_.pattern, leaf.name); });
    return leaves;
  }

  // By name; of several of one name, the first with the first.
  void match() {
    partner_.resize(leaves_a_.size());
    found_.resize(leaves_a_.size());
    pair_of_.resize(leaves_a_.size());
    taken_.resize(leaves_b_.size());
    std::unordered_map<std::string, std::vector<std::size_t>> by_name;
    for (std::size_t i = leaves_b_.size(); i-- > 0;) by_name[leaves_b_[i].name].push_back(i);
    for (std::size_t i = 0; i < leaves_a_.size(); ++i)
      if (const auto it = by_name.find(leaves_a_[i].name);
          it != by_name.end() && !it->second.empty()) {
        pair_up(i, it->second.back());
        it->second.pop_back();
      }
  }

  void pair_up(std::size_t a, std::size_t b) {
    partner_[a] = b;
    taken_[b] = true;
  }

  // Where that explains all that has found no partner.
  void match_without_prefix() {
    std::string prefix_a;
    std::string prefix_b;
    std::unordered_map<std::string, std::size_t> rest;
    std::size_t count = 0;
    for (std::size_t i = 0; i < leaves_b_.size(); ++i)
      if (!taken_[i]) rest.emplace(without_prefixes(leaves_b_[i].name, prefix_b), ++count);
    std::vector<std::pair<std::size_t, std::string>> mine;
    for (std::size_t i = 0; i < leaves_a_.size(); ++i)
      if (!partner_[i]) mine.emplace_back(i, without_prefixes(leaves_a_[i].name, prefix_a));
    if (prefix_a.empty() == prefix_b.empty() || mine.size() != count || rest.size() != count)
      return;
    if (!std::ranges::all_of(mine, [&](const auto& leaf) { return rest.contains(leaf.second); }))
      return;
    std::vector<std::size_t> numbers;
    for (std::size_t i = 0; i < leaves_b_.size(); ++i)
      if (!taken_[i]) numbers.push_back(i);
    for (const auto& [i, name] : mine) pair_up(i, numbers[rest.at(name) - 1]);
    report_.prefix = prefix_a.empty() ? prefix_b : prefix_a;
    report_.prefix_in_second = prefix_a.empty();
  }

  void compare(std::size_t i, const Value& a, const Value& b) {
    if (a.kind() == Kind::tensor && b.kind() == Kind::tensor) {
      ++report_.tensors;
      return compare_tensors(i, a.as_tensor(), b.as_tensor());
    }
    ++report_.values;
    if (a.kind() == Kind::tensor || b.kind() == Kind::tensor || !same_plain(a, b))
      found_[i] = difference(i, What::value);
  }

  Difference difference(std::size_t i, What what) const {
    return {what, leaves_a_[i].name, text_of(*leaves_a_[i].value),
            text_of(*leaves_b_[*partner_[i]].value), std::nullopt};
  }

  void compare_tensors(std::size_t i, const Tensor& a, const Tensor& b) {
    const bool is_known_a = has_data(a_, a);
    const bool is_known_b = has_data(b_, b);
    if (a.shape != b.shape || !Distances::are_comparable(a.dtype, b.dtype) ||
        (a.numel() > 0 && is_known_a != is_known_b)) {
      found_[i] = difference(i, What::tensor);
    } else if (a.numel() == 0 || !is_known_a) {
      if (a.dtype != b.dtype) found_[i] = difference(i, What::tensor);
    } else if (!options_.full && equal_by_checksum(a, b)) {
      ++report_.by_checksum;
    } else {
      pair_of_[i] = pairs_.add(a, b);
    }
  }

  static bool has_data(const CheckpointFile& file, const Tensor& tensor) {
    const TensorStorage& storage = *tensor.storage;
    if (storage.data != nullptr) return !storage.copier;
    return storage.record >= 0 && storage.device != "meta" &&
           static_cast<std::size_t>(storage.record) < file.storages().size();
  }

  bool equal_by_checksum(const Tensor& a, const Tensor& b) const {
    if (a.dtype != b.dtype || a.strides != b.strides || a.storage_offset != b.storage_offset ||
        a.conj != b.conj || a.neg != b.neg || a.storage->size != b.storage->size ||
        a.storage->data != nullptr || b.storage->data != nullptr)
      return false;
    const auto one = a_.checksum(static_cast<std::size_t>(a.storage->record));
    return one && one == b_.checksum(static_cast<std::size_t>(b.storage->record));
  }

  void add_distance(std::size_t i) {
    const Distance distance = pairs_.result(*pair_of_[i]);
    const bool same_dtype =
        leaves_a_[i].value->as_tensor().dtype == leaves_b_[*partner_[i]].value->as_tensor().dtype;
    if (same_dtype && distance.changed == 0) return;
    if (same_dtype && distance.beyond == 0) {
      ++report_.within_tolerance;
      return;
    }
    report_.differences.push_back(difference(i, What::tensor));
    report_.differences.back().distance = distance;
  }

  const CheckpointFile& a_;
  const CheckpointFile& b_;
  const DiffOptions& options_;
  DiffReport report_;
  std::vector<Leaf> leaves_a_, leaves_b_;
  std::vector<std::optional<std::size_t>> partner_;  // of leaves_a_, in leaves_b_
  std::vector<bool> taken_;                          // of leaves_b_
  std::vector<std::optional<Difference>> found_;     // of leaves_a_: known without the elements
  std::vector<std::optional<std::size_t>> pair_of_;  // of leaves_a_, in pairs_
  TensorPairs pairs_;
};

}  // namespace

DiffReport diff(const CheckpointFile& a, const CheckpointFile& b, const DiffOptions& options) {
  return Comparison(a, b, options).run();
}
DiffReport diff(const std::filesystem::path& a, const std::filesystem::path& b,
                const DiffOptions& options) {
  return diff(CheckpointFile::open(a, true), CheckpointFile::open(b, true), options);
}
std::uint64_t diff_size(const CheckpointFile& a, const CheckpointFile& b,
                        const DiffOptions& options) {
  return Comparison(a, b, options).bytes();
}

}  // namespace perdure
