#include "format/decoder.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cstdint>

#include "format/decoder_walk.hpp"
#include "format/utf8.hpp"

namespace perdure::format {
namespace {

// latin1 code points as UTF-8, back to bytes; nullopt where a code point is above 255.
std::optional<std::string> latin1_bytes(std::string_view text) {
  std::string out;
  for (std::size_t i = 0; i < text.size(); ++i) {
    const auto c = static_cast<unsigned char>(text[i]);
    if (c < 0x80) {
      out.push_back(text[i]);
    } else if ((c == 0xC2 || c == 0xC3) && i + 1 < text.size()) {
      const auto low = static_cast<unsigned char>(text[++i]);
      if ((low & 0xC0) != 0x80) return std::nullopt;
      out.push_back(static_cast<char>(((c & 0x03) << 6) | (low & 0x3F)));
    } else {
      return std::nullopt;
    }
  }
  return out;
}

}  // namespace

bool is_plain_name(std::string_view name) {
  constexpr std::size_t kMaxName = 100;
  const auto is_odd = [](char c) { return c <= ' ' || c >= 0x7F; };
  return !name.empty() && name.size() <= kMaxName && std::ranges::none_of(name, is_odd);
}

void Decoder::spend_text(std::uint64_t bytes) {
  text_ += bytes;
  if (is_over_budget())
    throw Error(ErrorCode::unsupported,
                fmt::format("{}: texts that stand in so many places that they would fill memory",
                            origin_.name));
}

void Decoder::spend_items(std::uint64_t count) {
  items_ += count;
  if (is_over_budget())
    throw Error(
        ErrorCode::unsupported,
        fmt::format("{}: values shared so often that they would fill memory", origin_.name));
}

void Decoder::spend_scalar(const Value& value) {
  if (value.kind() == Kind::string || value.kind() == Kind::bytes ||
      value.kind() == Kind::bytearray)
    spend_text(value.as_string().size());
  if (const BigInt* big = value.as_big_int()) spend_text(big->bytes.size());
}

Value Decoder::decode(NodeId id) {
  const Node& source = pickle_[id];
  const bool identity = source.kind >= NodeKind::list && source.kind != NodeKind::global;
  if (!identity) return decode_fresh(id);
  if (const auto it = done_.find(id); it != done_.end()) {
    spend_scalar(it->second);  // bytes and such come from calls
    return it->second;
  }
  Value value = decode_fresh(id);
  spend_scalar(value);
  done_.emplace(id, value);
  return value;
}

Value Decoder::decode_fresh(NodeId id) {
  const Node& source = pickle_[id];
  switch (source.kind) {
    case NodeKind::none:
      return {};
    case NodeKind::boolean:
      return Value(source.integer != 0);
    case NodeKind::integer:
      return Value(source.integer);
    case NodeKind::big_integer:
      return Value(BigInt{raw_text(source)});
    case NodeKind::real:
      return Value(source.real);
    case NodeKind::string:
      return Value(text(source));
    case NodeKind::bytes:
      return Value::bytes(raw_text(source));
    case NodeKind::bytearray:
      return Value::bytearray(raw_text(source));
    case NodeKind::list:
      return Value::list(decode_items(source.items));
    case NodeKind::tuple:
      return Value::tuple(decode_items(source.items));
    case NodeKind::set:
      return decode_set(source.items);
    case NodeKind::frozenset:
      return opaque("builtins", "frozenset", source);
    case NodeKind::dict:
      return decode_dict(source);
    case NodeKind::global:
      return decode_global(source);
    case NodeKind::call:
      return decode_call(source);
    case NodeKind::persistent:
      return decode_persistent(source);
  }
  damaged("an unknown kind of value");
}

std::string Decoder::raw_text(const Node& source) {
  spend_text(source.text.size());
  return std::string(source.text);
}

std::string Decoder::text(const Node& source) {
  spend_text(source.text.size());
  require(is_utf8(source.text), "a str that is no UTF-8");
  return std::string(source.text);
}

Value Decoder::decode_at(Value key, NodeId id) {
  path_.push_back(std::move(key));
  Value value = decode(id);
  path_.pop_back();
  return value;
}

Value::Items Decoder::decode_items(const std::vector<NodeId>& ids) {
  spend_items(ids.size());
  Value::Items items;
  items.reserve(ids.size());
  for (std::size_t i = 0; i < ids.size(); ++i) items.push_back(decode_at(Value(i), ids[i]));
  return items;
}

Value Decoder::decode_set(const std::vector<NodeId>& ids) {
  Value::Items items = decode_items(ids);
  try {
    return Value::set(items);
  } catch (const Error& error) {
    // An instance or a frozenset is a legal member in Python, though not plain data.
    if (!allow_opaque_) damaged(error.what());
    return Value::opaque({"builtins", "set", Value::list(std::move(items)), {}});
  }
}

void Decoder::fill_dict(Dict& dict, const std::vector<NodeId>& items) {
  require(items.size() % 2 == 0, "a key without a value");
  spend_items(items.size());
  for (std::size_t i = 0; i < items.size(); i += 2) {
    const Value key = decode(items[i]);
    const Value value = decode_at(key, items[i + 1]);
    const std::size_t before = dict.size();
    try {
      dict.set(key, value);
    } catch (const Error& error) {
      // A frozenset or an instance as a key is legal Python and stays visible; what is written
      // again must not have the text of it for a key.
      if (!allow_opaque_) damaged(error.what());
      dict.set(Value(repr(key)),
               Value::opaque({"?", "a value whose key is no plain data", value, {}}));
      continue;
    }
    if (dict.size() == before) damaged(fmt::format("a dict with the key {} twice", repr(key)));
  }
}

void Decoder::fill_pairs(Dict& dict, NodeId list) {
  std::vector<NodeId> items;
  spend_items(node(list, NodeKind::list, "a list of pairs is expected").items.size());
  for (const NodeId pair : pickle_[list].items) {
    const Node& both = pickle_[pair];
    require((both.kind == NodeKind::list || both.kind == NodeKind::tuple) && both.items.size() == 2,
            "a pair is expected");
    items.insert(items.end(), both.items.begin(), both.items.end());
  }
  fill_dict(dict, items);
}

void Decoder::fill_attributes(Dict& dict, NodeId state) {
  if (state == kNoNode) return;
  Dict attributes;
  fill_dict(attributes,
            node(state, NodeKind::dict, "the attributes of an OrderedDict are no dict").items);
  dict.set_attributes(std::make_shared<Dict>(std::move(attributes)));
}

Value Decoder::decode_dict(const Node& source) {
  Dict dict(source.function == kNoNode ? Kind::dict : Kind::ordered_dict);
  fill_dict(dict, source.items);
  fill_attributes(dict, source.state);
  return Value(std::move(dict));
}

Value Decoder::decode_global(const Node& source) {
  if (source.text == "torch") {
    if (const auto found = dtype_from_name(source.name)) return Value(*found);
  }
  spend_text(source.text.size() + source.name.size());
  return opaque(std::string(source.text), std::string(source.name), Node{});
}

// ('module', class, file, source) of the legacy format: a class of the user's, with its text.
const Node* Decoder::class_of(const Node& source) const {
  if (source.kind == NodeKind::global) return &source;
  if (source.kind != NodeKind::persistent) return nullptr;
  const Node& id = pickle_[source.items[0]];
  const bool is_module = id.kind == NodeKind::tuple && id.items.size() == 4 &&
                         pickle_[id.items[0]].kind == NodeKind::string &&
                         pickle_[id.items[0]].text == "module";
  return is_module && pickle_[id.items[1]].kind == NodeKind::global ? &pickle_[id.items[1]]
                                                                    : nullptr;
}

Value Decoder::decode_persistent(const Node& source) {
  if (const Node* type = class_of(source)) return decode_global(*type);
  return opaque("torch", "storage without a tensor", Node{});
}

Value Decoder::opaque(std::string module, std::string name, const Node& source) {
  Opaque out{std::move(module), std::move(name), {}, {}};
  out_.has_opaque = true;
  if (!allow_opaque_)
    throw Error(
        ErrorCode::unsupported,
        fmt::format(
            "{} is a {}, which is not plain data: perdure never runs code from a file. Save it as "
            "plain data "
            "(numbers, str, list, dict, tensors) instead; `perdure show` lists what is in the file",
            format_path(path_), repr(Value::opaque(out))));
  if (source.kind == NodeKind::call) out.arguments = decode(source.items[0]);
  if (source.kind == NodeKind::frozenset) out.arguments = Value::list(decode_items(source.items));
  if (!source.added.empty()) out.state = Value::list(decode_items(source.added));
  if (source.state != kNoNode) out.state = decode(source.state);
  return Value::opaque(std::move(out));
}

Decoder::Handler Decoder::find_handler(std::string_view module, std::string_view name) {
  struct Known {
    std::string_view module, name;
    Handler handler;
  };
  static constexpr Known kKnown[] = {
      {"torch._utils", "_rebuild_tensor_v2", &Decoder::call_tensor},
      {"torch._utils", "_rebuild_parameter", &Decoder::call_parameter},
      {"torch._utils", "_rebuild_tensor_v3", &Decoder::call_tensor_v3},
      {"torch._utils", "_rebuild_tensor", &Decoder::call_tensor},
      {"torch._utils", "_rebuild_meta_tensor_no_storage", &Decoder::call_meta_tensor},
      {"torch._utils", "_rebuild_sparse_tensor", &Decoder::call_sparse},
      {"torch._utils", "_rebuild_sparse_csr_tensor", &Decoder::call_sparse},  // of PyTorch 1.13
      {"torch._utils", "_rebuild_qtensor", &Decoder::call_quantized},
      {"torch._utils", "_rebuild_nested_tensor", &Decoder::call_nested},
      {"torch._utils", "_rebuild_parameter_with_state", &Decoder::call_parameter},
      {"torch._tensor", "_rebuild_from_type_v2", &Decoder::call_from_type},
      {"collections", "OrderedDict", &Decoder::call_ordered_dict},
      {"collections", "Counter", &Decoder::call_counter},
      {"_codecs", "encode", &Decoder::call_encode},
      {"builtins", "set", &Decoder::call_set},
      {"builtins", "bytes", &Decoder::call_bytes},
      {"builtins", "bytearray", &Decoder::call_bytearray},
      {"builtins", "complex", &Decoder::call_complex},
      {"torch", "Size", &Decoder::call_size},
      {"torch", "device", &Decoder::call_device},
      {"torch.serialization", "_get_layout", &Decoder::call_layout},
      {"torch.jit._pickle", "build_intlist", &Decoder::call_script_list},
      {"torch.jit._pickle", "build_doublelist", &Decoder::call_script_list},
      {"torch.jit._pickle", "build_boollist", &Decoder::call_script_list},
      {"torch.jit._pickle", "build_tensorlist", &Decoder::call_script_list},
      {"torch.jit._pickle", "restore_type_tag", &Decoder::call_typed},
  };
  if (module == "__builtin__")
    module = "builtins";  // protocol 2 spells Python 3's builtins as Python 2 did
  for (const Known& known : kKnown)
    if (known.module == module && known.name == name) return known.handler;
  return nullptr;
}

Value Decoder::call_opaque(const Node& source) {
  const Node* callee = class_of(pickle_[source.function]);
  if (callee == nullptr) return opaque("?", "a call of something that is no name", source);
  spend_text(callee->text.size() + callee->name.size());
  return opaque(std::string(callee->text), std::string(callee->name), source);
}

Value Decoder::decode_call(const Node& source) {
  if (is_script_object(source)) return decode_script_object(source);
  const Node& callee = pickle_[source.function];
  const Handler handler =
      callee.kind == NodeKind::global ? find_handler(callee.text, callee.name) : nullptr;
  const bool extended = source.state != kNoNode || !source.added.empty();
  // NEWOBJ calls __new__ alone: set.__new__(set, [1]) is an empty set. No pickler writes these
  // values so.
  if (handler == nullptr || source.created_by_new ||
      (extended && handler != &Decoder::call_ordered_dict))
    return call_opaque(source);
  const std::size_t depth = path_.size();
  try {
    return (this->*handler)(source, pickle_[source.items[0]].items);
  } catch (const Error& error) {
    // A dtype that is not known must not keep the rest of the file from being shown.
    if (!allow_opaque_ || error.code() != ErrorCode::unsupported || is_over_budget()) throw;
    path_.resize(depth);
    return call_opaque(source);
  }
}

Value Decoder::call_ordered_dict(const Node& call, const Arguments& arguments) {
  Dict dict(Kind::ordered_dict);
  require(arguments.size() <= 1, "an OrderedDict of an unknown form");
  if (!arguments.empty()) fill_pairs(dict, arguments[0]);  // as Python 2 wrote it
  fill_dict(dict, call.added);
  fill_attributes(dict, call.state);
  return Value(std::move(dict));
}

Value Decoder::call_counter(const Node&, const Arguments& arguments) {
  Dict dict(Kind::counter);
  require(arguments.size() <= 1, "a Counter of an unknown form");
  if (!arguments.empty())
    fill_dict(dict, node(arguments[0], NodeKind::dict, "a Counter of an unknown form").items);
  return Value(std::move(dict));
}

Value Decoder::call_set(const Node&, const Arguments& arguments) {
  require(arguments.size() <= 1, "a set of an unknown form");
  if (arguments.empty()) return Value::set({});
  return decode_set(node(arguments[0], NodeKind::list, "a set of an unknown form").items);
}

Value Decoder::call_bytes(const Node&, const Arguments& arguments) {
  require(arguments.empty(), "bytes of an unknown form");
  return Value::bytes("");
}

Value Decoder::call_encode(const Node&, const Arguments& arguments) {
  require(arguments.size() == 2 && pickle_[arguments[1]].kind == NodeKind::string &&
              (pickle_[arguments[1]].text == "latin1" || pickle_[arguments[1]].text == "latin-1"),
          "bytes of an unknown form");
  const auto bytes = latin1_bytes(text(arguments[0], "bytes of an unknown form"));
  require(bytes.has_value(), "bytes that are no latin1");
  return Value::bytes(*bytes);
}

Value Decoder::call_bytearray(const Node& call, const Arguments& arguments) {
  if (arguments.empty()) return Value::bytearray("");
  if (arguments.size() == 2) return Value::bytearray(call_encode(call, arguments).as_string());
  require(arguments.size() == 1, "a bytearray of an unknown form");
  const Value bytes = decode(arguments[0]);
  require(bytes.kind() == Kind::bytes, "a bytearray of an unknown form");
  return Value::bytearray(bytes.as_string());
}

Value Decoder::call_complex(const Node&, const Arguments& arguments) {
  require(arguments.size() == 2, "a complex of an unknown form");
  const double re = node(arguments[0], NodeKind::real, "a complex of an unknown form").real;
  const double im = node(arguments[1], NodeKind::real, "a complex of an unknown form").real;
  return Value(std::complex<double>(re, im));
}

Value Decoder::call_size(const Node&, const Arguments& arguments) {
  require(arguments.size() == 1, "a torch.Size of an unknown form");
  return Value::size(integers(arguments[0]));
}

Value Decoder::call_device(const Node&, const Arguments& arguments) {
  require(arguments.size() == 1 || arguments.size() == 2, "a torch.device of an unknown form");
  std::string name = text(arguments[0], "a torch.device of an unknown form");
  if (arguments.size() == 2) name += fmt::format(":{}", integer(arguments[1]));
  require(is_plain_name(name), "a torch.device of an unknown form");
  return Value::device(std::move(name));
}

Value Decoder::call_layout(const Node&, const Arguments& arguments) {
  require(arguments.size() == 1, "a torch.layout of an unknown form");
  std::string name = text(arguments[0], "a torch.layout of an unknown form");
  require(is_plain_name(name), "a torch.layout of an unknown form");
  return Value::layout(std::move(name));
}

Decoded decode(const Pickle& pickle, const RecordSize& record_size, bool allow_opaque,
               PickleOrigin origin) {
  return Decoder(pickle, record_size, allow_opaque, origin).run();
}

}  // namespace perdure::format
