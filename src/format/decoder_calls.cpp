// Tensors that are made of others, and what stands in TorchScript archives alone.
#include <algorithm>
#include <cstdint>
#include <iterator>

#include "format/decoder_walk.hpp"
#include "format/utf8.hpp"

namespace perdure::format {
namespace {

// What the compiler notes on tensors for the program that is running.
bool is_of_compiler(std::string_view name) {
  return name.starts_with("_dynamo_") || name == "_specialize_on" ||
         name == "_has_dynamo_dim_marking";
}

}  // namespace

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

Value Decoder::composite(Form form, Value::Items parts) const {
  Value made = make_composite(form, std::move(parts));
  // Parts that are no plain data are seen where it is shown as opaque.
  if (made.is_none())
    throw Error(ErrorCode::unsupported,
                fmt::format("{}, {}: a {} tensor of an unknown form", origin_.name,
                            format_path(path_), composite_form(form).name));
  return made;
}

// (layout, (indices, values, size[, is_coalesced])), or (layout, (indices, indices, values, size))
Value Decoder::call_sparse(const Node&, const Arguments& arguments) {
  require(arguments.size() == 2, "a sparse tensor of an unknown form");
  const Value layout = decode(arguments[0]);
  Value::Items parts =
      decode_items(node(arguments[1], NodeKind::tuple, "a sparse tensor of an unknown form").items);
  const std::string name = layout.kind() == Kind::layout ? layout.as_string() : "";
  if (name == "torch.sparse_coo" && parts.size() == 3) parts.emplace_back();
  for (const Form form :
       {Form::sparse_coo, Form::sparse_csr, Form::sparse_csc, Form::sparse_bsr, Form::sparse_bsc})
    if (name == fmt::format("torch.{}", composite_form(form).name))
      return composite(form, std::move(parts));
  throw Error(ErrorCode::unsupported,
              fmt::format("{} is a sparse tensor of layout {}, which perdure does not know",
                          format_path(path_), repr(layout)));
}

// (storage, offset, size, stride, (scheme, ...), requires_grad, hooks)
Value Decoder::call_quantized(const Node&, const Arguments& arguments) {
  require(arguments.size() == 7, "a quantized tensor of an unknown form");
  const auto& scheme =
      node(arguments[4], NodeKind::tuple, "a quantized tensor of an unknown form").items;
  require(!scheme.empty(), "a quantized tensor of an unknown form");
  const bool per_tensor = is_named(scheme[0], "torch", "per_tensor_affine");
  if (!per_tensor && !is_named(scheme[0], "torch", "per_channel_affine"))
    throw Error(
        ErrorCode::unsupported,
        fmt::format("{} is quantized in a way that perdure does not know", format_path(path_)));
  const StorageView view = storage(arguments[0], true);
  Tensor integers;
  integers.dtype = view.typed.value_or(DType::uint8);
  take_storage(integers, view, arguments);
  Value::Items parts = {Value(std::move(integers))};
  for (std::size_t i = 1; i < scheme.size(); ++i) parts.push_back(decode(scheme[i]));
  parts.push_back(boolean(arguments[5]));
  return composite(per_tensor ? Form::quantized_per_tensor : Form::quantized_per_channel,
                   std::move(parts));
}

// (buffer, sizes, strides, offsets)
Value Decoder::call_nested(const Node&, const Arguments& arguments) {
  return composite(Form::nested, decode_items(arguments));
}

// By keywords of torch's own; what else there is of it follows from them.
Value Decoder::jagged(NodeId keywords) {
  static constexpr std::string_view kNames[] = {"values",      "offsets",         "lengths",
                                                "_ragged_idx", "_metadata_cache", "requires_grad"};
  const auto& items = node(keywords, NodeKind::dict, "a nested tensor of an unknown form").items;
  Value::Items parts(std::size(kNames));
  for (std::size_t i = 0; i + 1 < items.size(); i += 2) {
    const Node& key = node(items[i], NodeKind::string, "a nested tensor of an unknown form");
    const auto* name = std::ranges::find(kNames, key.text);
    if (name != std::end(kNames))
      parts[static_cast<std::size_t>(name - kNames)] =
          decode_at(Value(std::string(key.text)), items[i + 1]);
  }
  return composite(Form::jagged, std::move(parts));
}

// A tensor of a class of the user's is shown with what is in it.
Value Decoder::user_tensor(const Node& type, Value tensor, NodeId state) {
  spend_text(type.text.size() + type.name.size());
  Value shown = opaque(std::string(type.text), std::string(type.name), Node{});
  Opaque out{shown.as_opaque().module, shown.as_opaque().name, {}, {}};
  out.arguments = Value::tuple({std::move(tensor)});
  out.state = decode(state);
  return Value::opaque(std::move(out));
}

// (function, class, arguments, attributes)
Value Decoder::call_from_type(const Node&, const Arguments& arguments) {
  require(arguments.size() == 4, "a tensor of an unknown form");
  const auto& inner = node(arguments[2], NodeKind::tuple, "a tensor of an unknown form").items;
  const Node& type = pickle_[arguments[1]];
  if (is_named(arguments[0], "torch.nested._internal.nested_tensor", "_rebuild_njt") &&
      is_named(arguments[1], "torch.nested._internal.nested_tensor", "NestedTensor") &&
      inner.size() == 1)
    return jagged(inner[0]);
  const Node& function = pickle_[arguments[0]];
  const Handler make = function.kind == NodeKind::global && function.text == "torch._utils"
                           ? find_handler(function.text, function.name)
                           : nullptr;
  if (make == nullptr || type.kind != NodeKind::global)
    throw Error(ErrorCode::unsupported, "a tensor that is made in an unknown way");
  Value tensor = (this->*make)(function, inner);
  if (!is_named(arguments[1], "torch", "Tensor"))
    return user_tensor(type, std::move(tensor), arguments[3]);
  Dict attributes;
  const auto& items = node(arguments[3], NodeKind::dict, "attributes that are no dict").items;
  for (std::size_t i = 0; i + 1 < items.size(); i += 2)
    if (pickle_[items[i]].kind != NodeKind::string || !is_of_compiler(pickle_[items[i]].text))
      fill_dict(attributes, {items[i], items[i + 1]});
  if (attributes.empty()) return tensor;
  return composite(Form::with_attributes, {std::move(tensor), std::move(attributes)});
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

}  // namespace perdure::format
