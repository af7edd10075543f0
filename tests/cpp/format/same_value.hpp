// Whether two states are the same to the last bit: values, order, geometry, bytes, and what is
// shared with what.
#pragma once

#include <cstring>
#include <perdure/value.hpp>
#include <string>
#include <unordered_map>

namespace perdure::test {

class Comparison {
 public:
  // The place and kind of the first difference, or "".
  static std::string difference(const Value& a, const Value& b) {
    Comparison comparison;
    comparison.compare(a, b);
    return comparison.found_;
  }

 private:
  void differ(const std::string& what) {
    if (found_.empty()) found_ = format_path(path_) + ": " + what;
  }
  void expect(bool same, const char* what) {
    if (!same) differ(what);
  }

  // True where the pair was seen before. What is one object on one side must be one on the other.
  bool seen(const void* a, const void* b) {
    const auto [left, fresh] = partner_.try_emplace(a, b);
    const auto [right, fresh_too] = partner_of_b_.try_emplace(b, a);
    expect(left->second == b && right->second == a, "shared on one side only");
    return !fresh || !fresh_too;
  }

  void compare_at(const Value& key, const Value& a, const Value& b) {
    path_.push_back(key);
    compare(a, b);
    path_.pop_back();
  }

  void compare(const Value& a, const Value& b) {
    if (!found_.empty()) return;
    if (a.kind() != b.kind())
      return differ(std::string(kind_name(a.kind())) + " and " + std::string(kind_name(b.kind())));
    if (a.identity() == nullptr || a.kind() == Kind::opaque) return compare_scalars(a, b);
    if (seen(a.identity(), b.identity())) return;
    if (a.kind() == Kind::tensor) return compare_tensors(a.as_tensor(), b.as_tensor());
    if (a.is_mapping()) return compare_dicts(a.as_dict(), b.as_dict());
    const auto &left = a.as_items(), &right = b.as_items();
    if (left.size() != right.size()) return differ("another number of items");
    for (std::size_t i = 0; i < left.size(); ++i) compare_at(Value(i), left[i], right[i]);
  }

  void compare_scalars(const Value& a, const Value& b) {
    switch (a.kind()) {
      case Kind::none:
        return;
      case Kind::boolean:
        return expect(a.as_bool() == b.as_bool(), "another bool");
      case Kind::integer:
        return compare_integers(a, b);
      case Kind::real:
        return expect(same_bits(a.as_double(), b.as_double()), "another float");
      case Kind::complex:
        return expect(same_bits(a.as_complex(), b.as_complex()), "another complex");
      case Kind::dtype:
        return expect(a.as_dtype() == b.as_dtype(), "another dtype");
      case Kind::opaque:
        return differ("an opaque object");
      default:
        return expect(a.as_string() == b.as_string(), "another text");
    }
  }
  void compare_integers(const Value& a, const Value& b) {
    const BigInt *left = a.as_big_int(), *right = b.as_big_int();
    if (left == nullptr && right == nullptr) return expect(a.as_int() == b.as_int(), "another int");
    expect(left != nullptr && right != nullptr && *left == *right, "another big int");
  }
  template <class T>
  static bool same_bits(const T& a, const T& b) {
    return std::memcmp(&a, &b, sizeof a) == 0;
  }

  void compare_dicts(const Dict& a, const Dict& b) {
    if (a.size() != b.size()) return differ("another number of keys");
    for (std::size_t i = 0; i < a.size(); ++i) {
      compare_at(Value("(key)"), a.entries()[i].first, b.entries()[i].first);
      compare_at(a.entries()[i].first, a.entries()[i].second, b.entries()[i].second);
    }
    if ((a.attributes() == nullptr) != (b.attributes() == nullptr))
      return differ("attributes on one side only");
    if (a.attributes()) compare_dicts(*a.attributes(), *b.attributes());
  }

  void compare_tensors(const Tensor& a, const Tensor& b) {
    expect(a.dtype == b.dtype && a.shape == b.shape && a.strides == b.strides,
           "another dtype, shape or strides");
    expect(a.requires_grad == b.requires_grad && a.parameter == b.parameter,
           "another requires_grad or Parameter");
    expect(a.storage->device == b.storage->device, "another device");
    if (!found_.empty() || a.storage->device == "meta") return;
    expect(a.conj == b.conj && a.neg == b.neg, "another conj or neg");
    seen(a.storage.get(), b.storage.get());
    const auto left = a.byte_range(), right = b.byte_range();
    expect(left.second - left.first == right.second - right.first, "another extent");
    if (!found_.empty() || left.first == left.second) return;
    expect(std::memcmp(a.storage->data + left.first, b.storage->data + right.first,
                       left.second - left.first) == 0,
           "other bytes");
  }

  KeyPath path_;
  std::string found_;
  std::unordered_map<const void*, const void*> partner_, partner_of_b_;
};

}  // namespace perdure::test
