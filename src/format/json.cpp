#include "format/json.hpp"

#include <fmt/format.h>

#include <cmath>
#include <cstdint>
#include <nlohmann/json.hpp>
#include <vector>

#include "format/coding.hpp"
#include "format/utf8.hpp"

namespace perdure::format {
namespace {

// The containers that are open, the innermost last.
class Builder final : public nlohmann::json::json_sax_t {
 public:
  Builder(std::string_view what, std::size_t max_depth) : what_(what), max_depth_(max_depth) {}

  Value take() { return std::move(root_); }

  bool null() override { return put(Value()); }
  bool boolean(bool x) override { return put(Value(x)); }
  bool number_integer(number_integer_t x) override { return put(Value(x)); }
  bool number_unsigned(number_unsigned_t x) override { return put(Value(x)); }
  bool number_float(number_float_t x, const string_t&) override { return put(Value(x)); }
  bool string(string_t& x) override { return put(Value(std::move(x))); }
  bool binary(binary_t&) override { return fail("holds what JSON has not"); }

  bool start_object(std::size_t) override { return open(true); }
  bool start_array(std::size_t) override { return open(false); }
  bool key(string_t& name) override {
    Level& level = open_.back();
    level.key = std::move(name);
    if (level.members.find(Value(level.key)) == nullptr) return true;
    return fail(fmt::format("the member {} stands there twice", repr(Value(level.key))));
  }
  bool end_object() override {
    Value object(std::move(open_.back().members));
    open_.pop_back();
    return put(std::move(object));
  }
  bool end_array() override {
    Value array = Value::list(std::move(open_.back().items));
    open_.pop_back();
    return put(std::move(array));
  }

  // The library's text quotes the file, however long that is and whatever is in it.
  bool parse_error(std::size_t position, const std::string&,
                   const nlohmann::json::exception&) override {
    return fail(fmt::format("no JSON, from byte {} on", position));
  }

 private:
  struct Level {
    bool object = false;
    std::string key;
    Dict members;
    Value::Items items;
  };

  bool open(bool object) {
    if (open_.size() >= max_depth_)
      return fail(fmt::format("nested deeper than {} levels", max_depth_));
    open_.push_back({.object = object, .key = {}, .members = Dict(), .items = {}});
    return true;
  }
  bool put(Value value) {
    if (open_.empty())
      root_ = std::move(value);
    else if (Level& level = open_.back(); level.object)
      level.members.set(Value(level.key), std::move(value));
    else
      level.items.push_back(std::move(value));
    return true;
  }
  [[noreturn]] bool fail(std::string_view problem) const {
    throw Error(ErrorCode::corrupt, fmt::format("{}: {}", what_, problem));
  }

  std::string_view what_;
  std::size_t max_depth_;
  std::vector<Level> open_;
  Value root_;
};

// ---- writing

constexpr std::uint32_t kReplacement = 0xFFFD;

void append_unit(std::string& out, std::uint32_t unit) {
  fmt::format_to(std::back_inserter(out), "\\u{:04x}", unit);
}

void append_code_point(std::string& out, std::uint32_t code) {
  if (code == '"' || code == '\\') {
    out += {'\\', static_cast<char>(code)};
  } else if (code == '\n') {
    out += "\\n";
  } else if (code >= 0x20 && code < 0x7F) {
    out += static_cast<char>(code);
  } else if (code < 0x10000) {
    append_unit(out, code);
  } else {
    append_unit(out, 0xD7C0 + (code >> 10));
    append_unit(out, 0xDC00 + (code & 0x3FF));
  }
}

void append_string(std::string& out, std::string_view text) {
  out += '"';
  for (std::size_t at = 0; at < text.size();) {
    const CodePoint point = code_point(text, at);
    const bool good = point.length != 0 && !point.is_surrogate();
    append_code_point(out, good ? point.value : kReplacement);
    at += std::max<std::size_t>(point.length, 1);
  }
  out += '"';
}

void append_real(std::string& out, double x) {
  if (std::isnan(x)) {
    out += "\"nan\"";
  } else if (std::isinf(x)) {
    out += x > 0 ? "\"inf\"" : "\"-inf\"";
  } else {
    const std::string digits = fmt::format("{}", x);
    out += digits;
    if (digits.find_first_of(".e") == digits.npos) out += ".0";  // it stays a float
  }
}

class Writer {
 public:
  explicit Writer(std::optional<std::size_t> indent) : indent_(indent) {}

  void append(const Value& value) {
    switch (value.kind()) {
      case Kind::none:
        out_ += "null";
        return;
      case Kind::boolean:
        out_ += value.as_bool() ? "true" : "false";
        return;
      case Kind::real:
        return append_real(out_, value.as_double());
      case Kind::string:
        return append_string(out_, value.as_string());
      case Kind::integer: {
        const auto positive = as_unsigned(value);
        out_ += positive ? fmt::format("{}", *positive) : fmt::format("{}", value.as_int());
        return;
      }
      default:
        break;
    }
    if (value.is_mapping())
      append_all('{', '}', value.as_dict().entries(), [&](const Dict::Entry& entry) {
        append_string(out_, entry.first.as_string());
        out_ += indent_ ? ": " : ":";
        append(entry.second);
      });
    else
      append_all('[', ']', value.as_items(), [&](const Value& item) { append(item); });
  }
  std::string take() { return std::move(out_); }

 private:
  template <class Items, class Append>
  void append_all(char begin, char end, const Items& items, Append&& append_one) {
    out_ += begin;
    ++depth_;
    for (const auto& item : items) {
      if (&item != items.data()) out_ += ',';
      new_line();
      append_one(item);
    }
    --depth_;
    if (!items.empty()) new_line();
    out_ += end;
  }
  void new_line() {
    if (!indent_) return;
    out_ += '\n';
    out_.append(depth_ * *indent_, ' ');
  }

  std::optional<std::size_t> indent_;
  std::size_t depth_ = 0;
  std::string out_;
};

}  // namespace

Value read_json(std::string_view text, std::string_view what, std::size_t max_depth) {
  // The library takes a NUL for the end, whatever is behind it.
  if (text.find('\0') != text.npos)
    throw Error(ErrorCode::corrupt, fmt::format("{}: a NUL, which is no JSON", what));
  Builder builder(what, max_depth);
  nlohmann::json::sax_parse(text, &builder);
  return builder.take();
}

std::optional<std::uint64_t> as_unsigned(const Value& value) {
  if (value.kind() != Kind::integer) return std::nullopt;
  const BigInt* big = value.as_big_int();
  if (big == nullptr) {
    if (value.as_int() < 0) return std::nullopt;
    return static_cast<std::uint64_t>(value.as_int());
  }
  // Eight bytes, and one for the sign.
  if (big->bytes.size() != sizeof(std::uint64_t) + 1 || big->bytes.back() != 0) return std::nullopt;
  return get<std::uint64_t>(big->bytes.data());
}

std::string write_json(const Value& value, std::optional<std::size_t> indent) {
  Writer writer(indent);
  writer.append(value);
  return writer.take();
}

}  // namespace perdure::format
