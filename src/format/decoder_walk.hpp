// The walk from the nodes of a pickle to values: decoder.hpp's own, and the calls that it knows.
#pragma once

#include <fmt/format.h>

#include <cstdint>
#include <map>
#include <string>
#include <unordered_map>

#include "format/composite.hpp"
#include "format/decoder.hpp"

namespace perdure::format {

// Picklers write out what a call takes, so nothing that calls unpack is shared; this is room for
// the odd one.
inline constexpr std::uint64_t kMaxRepeatedItems = std::uint64_t{1} << 20;

// "cuda:1", "torch.strided". Of which there are, each PyTorch and each plugin has another idea.
bool is_plain_name(std::string_view name);

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
  void fill_attributes(Dict& dict, NodeId state);  // of an OrderedDict; kNoNode: it has none
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
  Value call_sparse(const Node& call, const Arguments& arguments);
  Value call_quantized(const Node& call, const Arguments& arguments);
  Value call_nested(const Node& call, const Arguments& arguments);
  Value call_from_type(const Node& call, const Arguments& arguments);
  Value jagged(NodeId keywords);
  Value user_tensor(const Node& type, Value tensor, NodeId state);
  Value composite(Form form, Value::Items parts) const;
  bool is_named(NodeId id, std::string_view module, std::string_view name) const {
    return pickle_[id].kind == NodeKind::global && pickle_[id].text == module &&
           pickle_[id].name == name;
  }
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
  StorageView storage(NodeId id, bool quantized = false);
  void take_view(StorageView& view, const Arguments& metadata) const;
  void take_storage(Tensor& tensor, const StorageView& view, const Arguments& arguments);
  void take_flags(Tensor& tensor, NodeId flags) const;
  struct StorageType {
    DType dtype = DType::uint8;  // of an untyped one: uint8, as in torch
    bool quantized = false;
    bool operator==(const StorageType&) const = default;
  };
  std::shared_ptr<TensorStorage> storage_for_key(const std::string& key, const std::string& device,
                                                 StorageType type, std::uint64_t declared);

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
    StorageType type;
  };
  std::map<std::string, KnownStorage> storage_by_key_;  // no hash table: keys are the file's
};

}  // namespace perdure::format
