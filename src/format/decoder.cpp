#include "format/decoder.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cstdint>
#include <limits>
#include <map>
#include <unordered_map>

#include "format/pickle_writer.hpp"
#include "format/utf8.hpp"

namespace perdure::format {
namespace {

std::optional<DType> storage_dtype(std::string_view class_name) {
  for (std::size_t i = 0; i < kDTypeCount; ++i) {
    const auto dtype = static_cast<DType>(i);
    if (!storage_class(dtype).empty() && storage_class(dtype) == class_name) return dtype;
  }
  return std::nullopt;
}

// Picklers write out what a call takes, so nothing that calls unpack is shared; this is room for
// the odd one.
constexpr std::uint64_t kMaxRepeatedItems = std::uint64_t{1} << 20;

bool is_complex(DType dtype) {
  return dtype == DType::complex128 || dtype == DType::complex64 || dtype == DType::complex32;
}

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

// "cuda:1", "torch.strided". Of which there are, each PyTorch and each plugin has another idea.
bool is_plain_name(std::string_view name) {
  constexpr std::size_t kMaxName = 100;
  const auto is_odd = [](char c) { return c <= ' ' || c >= 0x7F; };
  return !name.empty() && name.size() <= kMaxName && std::ranges::none_of(name, is_odd);
}

// Any bytes may stand there, and as many as there is room for.
std::string dotted(const Node& global) {
  const std::string text = std::string(global.text) + "." + std::string(global.name);
  return repr(Value(text));
}

class Decoder {
 public:
  Decoder(const Pickle& pickle, const RecordSize& record_size, bool allow_opaque,
          PickleOrigin origin)
      : pickle_(pickle), record_size_(record_size), allow_opaque_(allow_opaque), origin_(origin) {}

  Decoded run() {
    out_.value = decode(pickle_.root);
    return std::move(out_);
  }

 private:
  using Arguments = std::vector<NodeId>;
  using Handler = Value (Decoder::*)(const Node& call, const Arguments& arguments);

  [[noreturn]] void damaged(const std::string& what) const {
    throw Error(ErrorCode::corrupt,
                fmt::format("{}, {}: {}", origin_.name, format_path(path_), what));
  }
  void require(bool ok, const char* what) const {
    if (!ok) damaged(what);
  }

  // What is shared in the pickle is shared in the value too, except for texts and for what calls
  // unpack: these are counted, so that a small file cannot ask for all memory. Twice the text:
  // bytes are counted as the str that they were and as what they became.
  bool is_over_budget() const {
    return text_ > 2 * (pickle_.size + kMaxRepeatedText) ||
           items_ > pickle_.size + kMaxRepeatedItems;
  }
  void spend_text(std::uint64_t bytes);
  void spend_items(std::uint64_t count);
  void spend_scalar(const Value& value);

  Value decode(NodeId id);
  Value decode_fresh(NodeId id);
  Value decode_at(Value key, NodeId id);
  std::string raw_text(const Node& node);
  std::string text(const Node& node);
  Value::Items decode_items(const std::vector<NodeId>& ids);
  Value decode_set(const std::vector<NodeId>& ids);
  Value decode_dict(const Node& node);
  void fill_dict(Dict& dict, const std::vector<NodeId>& items);
  void fill_pairs(Dict& dict, NodeId list);
  Value decode_global(const Node& node);
  const Node* class_of(const Node& node) const;
  Value decode_persistent(const Node& node);
  Value decode_call(const Node& node);
  Value call_opaque(const Node& node);
  Value opaque(std::string module, std::string name, const Node& node);

  // The calls that have a meaning. Each throws for arguments that no writer would give.
  Value call_ordered_dict(const Node& call, const Arguments& arguments);
  Value call_counter(const Node& call, const Arguments& arguments);
  Value call_set(const Node& call, const Arguments& arguments);
  Value call_bytes(const Node& call, const Arguments& arguments);
  Value call_encode(const Node& call, const Arguments& arguments);
  Value call_bytearray(const Node& call, const Arguments& arguments);
  Value call_complex(const Node& call, const Arguments& arguments);
  Value call_size(const Node& call, const Arguments& arguments);
  Value call_device(const Node& call, const Arguments& arguments);
  Value call_layout(const Node& call, const Arguments& arguments);
  Value call_tensor(const Node& call, const Arguments& arguments);
  Value call_tensor_v3(const Node& call, const Arguments& arguments);
  Value call_meta_tensor(const Node& call, const Arguments& arguments);
  Value call_parameter(const Node& call, const Arguments& arguments);
  Value call_script_list(const Node& call, const Arguments& arguments);
  Value call_typed(const Node& call, const Arguments& arguments);
  bool is_script_object(const Node& call) const;
  Value decode_script_object(const Node& call);
  static Handler find_handler(std::string_view module, std::string_view name);

  const Node& node(NodeId id, NodeKind kind, const char* what) const {
    require(pickle_[id].kind == kind, what);
    return pickle_[id];
  }
  std::int64_t integer(NodeId id) const {
    return node(id, NodeKind::integer, "a number is expected").integer;
  }
  bool boolean(NodeId id) const {
    return node(id, NodeKind::boolean, "a bool is expected").integer != 0;
  }
  std::string text(NodeId id, const char* what) { return text(node(id, NodeKind::string, what)); }
  std::vector<std::int64_t> integers(NodeId id);
  DType dtype(NodeId id) const;
  // What a tensor looks into: all of a storage, or in files of before PyTorch 0.4 a part of it.
  struct StorageView {
    std::shared_ptr<TensorStorage> storage;
    std::optional<DType> typed;
    std::int64_t first = 0;  // element
    std::uint64_t end = 0;   // byte
  };
  std::string record_name(const std::string& key) const {
    return repr(Value(fmt::format("{}/{}", origin_.folder, key)));
  }
  StorageView storage(NodeId id);
  void take_view(StorageView& view, const Arguments& metadata) const;
  void take_storage(Tensor& tensor, const StorageView& view, const Arguments& arguments);
  void take_flags(Tensor& tensor, NodeId flags) const;
  std::shared_ptr<TensorStorage> storage_for_key(const std::string& key, const std::string& device,
                                                 DType dtype, std::uint64_t declared);

  const Pickle& pickle_;
  const RecordSize& record_size_;
  bool allow_opaque_;
  const PickleOrigin origin_;
  KeyPath path_;
  Decoded out_;
  std::unordered_map<NodeId, Value> done_;  // containers and tensors: shared ones stay shared
  std::uint64_t text_ = 0;
  std::uint64_t items_ = 0;
  struct KnownStorage {
    std::size_t number;
    DType dtype;  // of an untyped one: uint8, as in torch
  };
  std::map<std::string, KnownStorage> storage_by_key_;  // no hash table: keys are the file's
};

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
      // A frozenset or an instance as a key is legal Python and stays visible.
      if (!allow_opaque_) damaged(error.what());
      dict.set(Value(repr(key)), value);
    }
    if (dict.size() == before && !allow_opaque_)
      damaged(fmt::format("a dict with the key {} twice", repr(key)));
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

Value Decoder::decode_dict(const Node& source) {
  Dict dict(source.function == kNoNode ? Kind::dict : Kind::ordered_dict);
  fill_dict(dict, source.items);
  if (source.state != kNoNode) {
    Dict attributes;
    fill_dict(
        attributes,
        node(source.state, NodeKind::dict, "the attributes of an OrderedDict are no dict").items);
    dict.set_attributes(std::make_shared<Dict>(std::move(attributes)));
  }
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

// An instance of a class whose code stands in the archive; its methods are not looked at.
bool Decoder::is_script_object(const Node& call) const {
  const Node& callee = pickle_[call.function];
  return callee.kind == NodeKind::global &&
         (callee.text == "__torch__" || callee.text.starts_with("__torch__.")) &&
         call.added.empty() && pickle_[call.items[0]].items.size() <= 1;
}

// Its attributes, and what is not a dict of them as "(state)": what __getstate__ gave, or the value
// of an enum.
Value Decoder::decode_script_object(const Node& call) {
  const Node& callee = pickle_[call.function];
  const Arguments& arguments = pickle_[call.items[0]].items;
  spend_text(callee.text.size() + callee.name.size());
  require(is_utf8(callee.text) && is_utf8(callee.name), "a class whose name is no UTF-8");
  Dict out(Kind::ordered_dict);
  if (call.state != kNoNode && pickle_[call.state].kind == NodeKind::dict)
    fill_dict(out, pickle_[call.state].items);
  else if (call.state != kNoNode)
    out.set("(state)", decode_at("(state)", call.state));
  if (!arguments.empty()) out.set("(value)", decode_at("(value)", arguments[0]));
  out.set_attributes(std::make_shared<Dict>(
      Dict{{"_class", std::string(callee.text) + "." + std::string(callee.name)}}));
  return Value(std::move(out));
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
  require(arguments.size() <= 1 && call.state == kNoNode, "an OrderedDict of an unknown form");
  if (!arguments.empty()) fill_pairs(dict, arguments[0]);
  fill_dict(dict, call.added);
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

std::vector<std::int64_t> Decoder::integers(NodeId id) {
  // A torch.Size stands here in some files, a plain tuple in most.
  if (pickle_[id].kind == NodeKind::call) {
    const Value size = decode(id);
    require(size.kind() == Kind::size, "a tuple of numbers is expected");
    spend_items(size.as_items().size());
    std::vector<std::int64_t> out;
    for (const Value& x : size.as_items()) out.push_back(x.as_int());
    return out;
  }
  const auto& items = node(id, NodeKind::tuple, "a tuple of numbers is expected").items;
  spend_items(items.size());
  std::vector<std::int64_t> out;
  out.reserve(items.size());
  for (const NodeId item : items) out.push_back(integer(item));
  return out;
}

DType Decoder::dtype(NodeId id) const {
  const Node& source = node(id, NodeKind::global, "a dtype is expected");
  const auto found = source.text == "torch" ? dtype_from_name(source.name) : std::nullopt;
  if (!found)
    throw Error(ErrorCode::unsupported,
                fmt::format("{} has the dtype {}, which perdure does not know", format_path(path_),
                            dotted(source)));
  return *found;
}

// Of one record, torch.load makes one storage, of the first type that is named for it: tensors that
// name another type would be read in two ways.
std::shared_ptr<TensorStorage> Decoder::storage_for_key(const std::string& key,
                                                        const std::string& device, DType dtype,
                                                        std::uint64_t declared) {
  const auto [it, fresh] =
      storage_by_key_.try_emplace(key, KnownStorage{out_.storages.size(), dtype});
  require(it->second.dtype == dtype, "its record is a storage of another type elsewhere");
  if (!fresh) return out_.storages[it->second.number];
  const auto size = record_size_ ? record_size_(key) : std::optional(declared);
  if (!size) damaged(fmt::format("its record {} is not in the file", record_name(key)));
  auto made = std::make_shared<TensorStorage>();
  made->size = *size;
  made->device = device;
  made->record = static_cast<std::int64_t>(out_.storages.size());
  out_.storages.push_back(made);
  out_.keys.push_back(key);
  out_.item_sizes.push_back(itemsize(dtype));
  return made;
}

// ('storage', class, key, device, number of elements)
// ('storage', class, key, device, count), and in the legacy format None or (view key, offset,
// count).
Decoder::StorageView Decoder::storage(NodeId id) {
  const Node& persistent = node(id, NodeKind::persistent, "a storage is expected");
  const auto& fields =
      node(persistent.items[0], NodeKind::tuple, "a storage of an unknown form").items;
  require((fields.size() == 5 || fields.size() == 6) &&
              pickle_[fields[0]].kind == NodeKind::string && pickle_[fields[0]].text == "storage",
          "a storage of an unknown form");
  const Node& type = node(fields[1], NodeKind::global, "a storage without a class");
  StorageView view;
  view.typed = type.text == "torch" ? storage_dtype(type.name) : std::nullopt;
  const bool untyped =
      type.name == "UntypedStorage" && (type.text == "torch.storage" || type.text == "torch");
  if (!view.typed && !untyped)
    throw Error(ErrorCode::unsupported, fmt::format("{} lies in a {}, which perdure does not know",
                                                    format_path(path_), dotted(type)));
  const std::string key = text(fields[2], "a storage without a key");
  const std::string device = text(fields[3], "a storage without a device");
  require(is_plain_name(device), "a storage on a device of an unknown form");
  const std::int64_t count = integer(fields[4]);
  const std::uint64_t item = view.typed ? itemsize(*view.typed) : 1;
  const bool fits = count >= 0 && static_cast<std::uint64_t>(count) <=
                                      std::numeric_limits<std::uint64_t>::max() / item;
  view.end = fits ? static_cast<std::uint64_t>(count) * item : 0;
  view.storage = storage_for_key(key, device, view.typed.value_or(DType::uint8), view.end);
  if (!fits || view.storage->size != view.end)
    damaged(fmt::format("the record {} has {} bytes, not {} elements of {} bytes each",
                        record_name(key), view.storage->size, count, item));
  if (fields.size() == 6 && pickle_[fields[5]].kind != NodeKind::none)
    take_view(view, node(fields[5], NodeKind::tuple, "a storage of an unknown form").items);
  return view;
}

void Decoder::take_view(StorageView& view, const Arguments& metadata) const {
  require(metadata.size() == 3, "a storage of an unknown form");
  const std::uint64_t item = view.typed ? itemsize(*view.typed) : 1;
  const std::uint64_t whole = view.end / item;
  const std::int64_t count = integer(metadata[2]);
  view.first = integer(metadata[1]);
  require(view.first >= 0 && count >= 0 && static_cast<std::uint64_t>(view.first) <= whole &&
              static_cast<std::uint64_t>(count) <= whole - static_cast<std::uint64_t>(view.first),
          "a view that reaches outside of its storage");
  view.end = static_cast<std::uint64_t>(view.first + count) * item;
}

// No element may lie outside of the record: this is what stands between a file and somebody else's
// memory.
void Decoder::take_storage(Tensor& tensor, const StorageView& view, const Arguments& arguments) {
  tensor.storage = view.storage;
  tensor.shape = integers(arguments[2]);
  tensor.strides = integers(arguments[3]);
  tensor.storage_offset = integer(arguments[1]);
  if (view.first != 0)
    require(tensor.storage_offset >= 0 &&
                !__builtin_add_overflow(tensor.storage_offset, view.first, &tensor.storage_offset),
            "a tensor with an impossible offset");
  std::uint64_t end = 0;
  try {
    end = tensor.byte_range().second;
  } catch (const Error& error) {
    damaged(error.what());
  }
  if (end > view.end)
    damaged(
        fmt::format("a tensor that reaches to byte {} of a storage of {} bytes", end, view.end));
}

void Decoder::take_flags(Tensor& tensor, NodeId flags) const {
  if (pickle_[flags].kind == NodeKind::none) return;
  const auto& items = node(flags, NodeKind::dict, "tensor flags of an unknown form").items;
  for (std::size_t i = 0; i + 1 < items.size(); i += 2) {
    const std::string_view name =
        node(items[i], NodeKind::string, "tensor flags of an unknown form").text;
    if (name != "conj" && name != "neg")
      throw Error(ErrorCode::unsupported,
                  fmt::format("{}, {}: a tensor with the flag {}, which perdure does not know",
                              origin_.name, format_path(path_), repr(Value(name))));
    (name == "conj" ? tensor.conj : tensor.neg) = boolean(items[i + 1]);
  }
  require(!tensor.conj || is_complex(tensor.dtype), "a conjugated tensor that is not complex");
}

// (storage, offset, size, stride[, requires_grad, hooks[, flags]])
Value Decoder::call_tensor(const Node&, const Arguments& arguments) {
  require(arguments.size() == 4 || arguments.size() == 6 || arguments.size() == 7,
          "a tensor of an unknown form");
  Tensor tensor;
  const StorageView view = storage(arguments[0]);
  tensor.dtype = view.typed.value_or(DType::uint8);
  take_storage(tensor, view, arguments);
  if (arguments.size() > 4) tensor.requires_grad = boolean(arguments[4]);
  if (arguments.size() > 6) take_flags(tensor, arguments[6]);
  return Value(std::move(tensor));
}

// (storage, offset, size, stride, requires_grad, hooks, dtype[, flags])
Value Decoder::call_tensor_v3(const Node&, const Arguments& arguments) {
  require(arguments.size() == 7 || arguments.size() == 8, "a tensor of an unknown form");
  Tensor tensor;
  tensor.dtype = dtype(arguments[6]);
  take_storage(tensor, storage(arguments[0]), arguments);
  tensor.requires_grad = boolean(arguments[4]);
  if (arguments.size() > 7) take_flags(tensor, arguments[7]);
  return Value(std::move(tensor));
}

// (dtype, size, stride, requires_grad)
Value Decoder::call_meta_tensor(const Node&, const Arguments& arguments) {
  require(arguments.size() == 4, "a meta tensor of an unknown form");
  Tensor tensor;
  tensor.dtype = dtype(arguments[0]);
  tensor.shape = integers(arguments[1]);
  tensor.strides = integers(arguments[2]);
  tensor.requires_grad = boolean(arguments[3]);
  tensor.storage = std::make_shared<TensorStorage>();
  tensor.storage->device = "meta";
  try {
    tensor.storage->size = tensor.byte_range().second;
  } catch (const Error& error) {
    damaged(error.what());
  }
  return Value(std::move(tensor));
}

// (tensor, requires_grad, hooks)
Value Decoder::call_parameter(const Node&, const Arguments& arguments) {
  require(arguments.size() == 3, "a parameter of an unknown form");
  const Value inner = decode(arguments[0]);
  if (inner.kind() == Kind::opaque) return inner;
  require(inner.kind() == Kind::tensor, "a parameter that is no tensor");
  Tensor tensor = inner.as_tensor();
  tensor.parameter = true;
  tensor.requires_grad = boolean(arguments[1]);
  return Value(std::move(tensor));
}

// (list)
Value Decoder::call_script_list(const Node&, const Arguments& arguments) {
  require(arguments.size() == 1, "a list of an unknown form");
  return Value::list(
      decode_items(node(arguments[0], NodeKind::list, "a list of an unknown form").items));
}

// (value, "Dict[str, Tensor]")
Value Decoder::call_typed(const Node&, const Arguments& arguments) {
  require(arguments.size() == 2, "a typed value of an unknown form");
  return decode(arguments[0]);
}

}  // namespace

Decoded decode(const Pickle& pickle, const RecordSize& record_size, bool allow_opaque,
               PickleOrigin origin) {
  return Decoder(pickle, record_size, allow_opaque, origin).run();
}

}  // namespace perdure::format
