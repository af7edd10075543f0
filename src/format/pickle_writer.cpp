#include "format/pickle_writer.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <cstdint>
#include <unordered_map>
#include <utility>
#include <vector>

#include "format/coding.hpp"
#include "format/composite.hpp"
#include "format/pickle_number.hpp"
#include "format/pickle_opcodes.hpp"
#include "format/pickle_reader.hpp"
#include "format/text_memo.hpp"

namespace perdure::format {
namespace {

constexpr std::size_t kBatch = 1000;  // items per SETITEMS or APPENDS, as Python's pickler does

// The opcodes for which read_pickle makes no node. None and the bools are three nodes for all of
// them.
constexpr bool makes_no_node(Op x) {
  switch (x) {
    case Op::protocol:
    case Op::stop:
    case Op::mark:
    case Op::none:
    case Op::new_true:
    case Op::new_false:
    case Op::appends:
    case Op::set_item:
    case Op::set_items:
    case Op::build:
    case Op::bin_put:
    case Op::long_bin_put:
    case Op::bin_get:
    case Op::long_bin_get:
      return true;
    default:
      return false;
  }
}

constexpr std::array<bool, 256> kMakesNode = [] {
  std::array<bool, 256> made{};
  for (std::size_t i = 0; i < made.size(); ++i) made[i] = !makes_no_node(static_cast<Op>(i));
  return made;
}();

struct Global {
  std::string_view module, name;  // of the program's own: they outlive the writer
  std::uint32_t number = 0;       // in the memo
};

std::string_view quantized_class(DType dtype) {
  if (dtype == DType::int8) return "QInt8Storage";
  return dtype == DType::uint8 ? "QUInt8Storage" : "QInt32Storage";
}

class PickleWriter {
 public:
  explicit PickleWriter(const StoragePlan& plan) : plan_(plan) {}

  WrittenPickle write(const Value& state) {
    op(Op::protocol);
    put<std::uint8_t>(out_, 2);
    write_value(state);
    op(Op::stop);
    check_size();
    // With a node and the longest int for every number there is room to spare.
    const bool is_reusable = holes_.size() <= kMaxHoles &&
                             nodes_ + holes_.size() + 3 <= kMaxNodes &&
                             out_.size() + holes_.size() * (kMaxIntBytes + 2) <= kMaxPickle;
    return {std::move(out_), std::move(holes_), is_reusable};
  }

 private:
  void op(Op x) {
    out_.push_back(static_cast<char>(x));
    ++opcodes_;
    nodes_ += kMakesNode[static_cast<std::uint8_t>(x)];
  }
  void check_size() const {
    if (out_.size() > kMaxPickle || repeated_text_ > kMaxRepeatedText || nodes_ + 3 > kMaxNodes ||
        opcodes_ > kMaxOpcodes) [[unlikely]]
      refuse_size();
  }
  [[noreturn]] void refuse_size() const;
  void write_value(const Value& value);
  void write_container(const Value& value);
  void write_number(const Value& value);
  void write_small(std::int64_t x);
  void write_real(double x);
  void write_string(std::string_view text);
  void write_raw_string(std::string_view text);
  void write_bytes(std::string_view bytes);
  void write_global(std::string_view module, std::string_view name);
  void write_list(const Value::Items& items);
  void write_tuple(const Value::Items& items);
  void write_ints(const std::vector<std::int64_t>& numbers);
  void write_key(const Value& key);
  void write_dict_items(const Dict& dict);
  void write_mapping(const Dict& dict);
  void write_dict(const Dict& dict);
  void write_composite(const Dict& dict);
  void write_sparse(const Dict& dict, std::string_view layout);
  void write_quantized(const Dict& dict, bool per_channel);
  void write_nested(const Dict& dict);
  void write_jagged(const Dict& dict);
  void write_parameter(const Dict& dict);
  void write_with_attributes(const Dict& dict);
  void write_parts(const Dict& dict, std::size_t first, std::size_t last);
  bool begin_call(std::string_view name);
  void end_call(bool as_arguments);
  void write_device(const std::string& device);
  void write_tensor(const PlannedTensor& planned);
  void write_plain_tensor(const PlannedTensor& planned, bool requires_grad);
  void write_meta_tensor(const Tensor& tensor, bool requires_grad);
  void write_storage(const PlannedTensor& planned, const StorageRecord& record, bool untyped);
  void write_empty_hooks();
  void write_flags(const Tensor& tensor);
  void close_tuple(std::size_t size);
  void put_memo();
  void get_memo(std::uint32_t index);
  bool get_object(const void* identity);

  const StoragePlan& plan_;
  std::string out_;
  std::uint64_t opcodes_ = 0;
  std::uint64_t nodes_ = 0;
  std::uint64_t repeated_text_ = 0;  // of texts that the memo spared
  std::uint32_t memo_size_ = 0;
  std::vector<PickleHole> holes_;
  bool in_key_ = false;
  bool in_kept_ = false;
  bool as_arguments_ = false;    // the next tensor: function, class and arguments, not called
  std::size_t next_tensor_ = 0;  // in the plan
  TextMemo strings_{out_};
  std::vector<Global> globals_;  // a few dozen at most
  std::unordered_map<const void*, std::uint32_t> objects_;
};

void PickleWriter::refuse_size() const {
  const char* too_many = out_.size() > kMaxPickle ? "more than 1 GiB of values besides its tensors"
                         : repeated_text_ > kMaxRepeatedText
                             ? "more than 128 MiB of str that stand there again and again"
                         : nodes_ + 3 > kMaxNodes
                             ? "more than 16 million values besides its tensors"
                             : "more than 64 million values besides its tensors";
  throw Error(
      ErrorCode::invalid,
      fmt::format("the state has {}; put long lists, str and bytes into tensors", too_many));
}

void PickleWriter::put_memo() {
  if (memo_size_ < 256) {
    op(Op::bin_put);
    put<std::uint8_t>(out_, static_cast<std::uint8_t>(memo_size_));
  } else {
    op(Op::long_bin_put);
    put<std::uint32_t>(out_, memo_size_);
  }
  ++memo_size_;
}

void PickleWriter::get_memo(std::uint32_t index) {
  if (index < 256) {
    op(Op::bin_get);
    put<std::uint8_t>(out_, static_cast<std::uint8_t>(index));
  } else {
    op(Op::long_bin_get);
    put<std::uint32_t>(out_, index);
  }
}

bool PickleWriter::get_object(const void* identity) {
  const auto it = objects_.find(identity);
  if (it == objects_.end()) return false;
  get_memo(it->second);
  return true;
}

void PickleWriter::write_value(const Value& value) {
  check_size();
  switch (value.kind()) {
    case Kind::none:
    case Kind::boolean:
    case Kind::integer:
    case Kind::real:
      return write_number(value);
    case Kind::complex:
      write_global("__builtin__", "complex");
      write_real(value.as_complex().real());
      write_real(value.as_complex().imag());
      op(Op::tuple2);
      return op(Op::reduce);
    case Kind::string:
      return write_string(value.as_string());
    case Kind::bytes:
      return write_bytes(value.as_string());
    case Kind::bytearray:
      write_global("__builtin__", "bytearray");
      write_bytes(value.as_string());
      op(Op::tuple1);
      return op(Op::reduce);
    case Kind::dtype:
      return write_global("torch", dtype_name(value.as_dtype()));
    case Kind::device:
      return write_device(value.as_string());
    case Kind::layout:
      write_global("torch.serialization", "_get_layout");
      write_string(value.as_string());
      op(Op::tuple1);
      return op(Op::reduce);
    default:
      return write_container(value);
  }
}

void PickleWriter::write_container(const Value& value) {
  // What one handle alone refers to cannot turn up again, and needs no memo entry.
  const bool shared = value.use_count() > 1;
  // The plan has a line for every place of a tensor, also where it is written but once.
  const std::size_t tensor = value.kind() == Kind::tensor ? next_tensor_++ : 0;
  if (shared && get_object(value.identity())) return;
  switch (value.kind()) {
    case Kind::list:
      write_list(value.as_items());
      break;
    case Kind::tuple:
      write_tuple(value.as_items());
      break;
    case Kind::set:
      write_global("__builtin__", "set");
      write_list(value.as_items());
      op(Op::tuple1);
      op(Op::reduce);
      break;
    case Kind::size:
      write_global("torch", "Size");
      write_tuple(value.as_items());
      op(Op::tuple1);
      op(Op::reduce);
      break;
    case Kind::tensor:
      write_tensor(plan_.tensors()[tensor]);
      break;
    default:
      write_mapping(value.as_dict());
  }
  if (!shared) return;
  objects_[value.identity()] = memo_size_;
  put_memo();
}

void PickleWriter::write_number(const Value& value) {
  const std::size_t begin = out_.size();
  put_number(out_, value);
  ++opcodes_;
  nodes_ += value.kind() == Kind::integer || value.kind() == Kind::real;
  if (!in_key_ && holes_.size() <= kMaxHoles)
    holes_.push_back({begin, out_.size(), in_kept_ ? &value : nullptr});
}

void PickleWriter::write_small(std::int64_t x) {
  put_integer(out_, x);
  ++opcodes_;
  ++nodes_;
}

void PickleWriter::write_real(double x) {
  put_real(out_, x);
  ++opcodes_;
  ++nodes_;
}

void PickleWriter::write_raw_string(std::string_view text) {
  op(Op::bin_unicode);
  put<std::uint32_t>(out_, static_cast<std::uint32_t>(text.size()));
  out_ += text;
}

void PickleWriter::write_string(std::string_view text) {
  if (const std::uint32_t* number = strings_.find(text)) {
    repeated_text_ += text.size();
    return get_memo(*number);
  }
  write_raw_string(text);
  strings_.add(text.size(), memo_size_);
  put_memo();
}

// Protocol 2 has no bytes: they go as a str of the same code points, encoded as latin1 when read.
// Python itself writes b"" as a call of bytes(), which weights_only refuses; this form it takes.
void PickleWriter::write_bytes(std::string_view bytes) {
  std::string text;
  text.reserve(bytes.size() + bytes.size() / 2);
  for (const char c : bytes) {
    const auto byte = static_cast<unsigned char>(c);
    if (byte >= 0x80) text.push_back(static_cast<char>(0xC0 | (byte >> 6)));
    text.push_back(static_cast<char>(byte >= 0x80 ? 0x80 | (byte & 0x3F) : byte));
  }
  write_global("_codecs", "encode");
  write_raw_string(text);
  write_string("latin1");
  op(Op::tuple2);
  op(Op::reduce);
}

void PickleWriter::write_global(std::string_view module, std::string_view name) {
  for (const Global& known : globals_)
    if (known.name == name && known.module == module) return get_memo(known.number);
  op(Op::global);
  out_.append(module).append("\n").append(name).append("\n");
  globals_.push_back({module, name, memo_size_});
  put_memo();
}

void PickleWriter::write_list(const Value::Items& items) {
  op(Op::empty_list);
  for (std::size_t i = 0; i < items.size(); i += kBatch) {
    const std::size_t end = std::min(i + kBatch, items.size());
    op(Op::mark);
    for (std::size_t j = i; j < end; ++j) write_value(items[j]);
    op(Op::appends);
  }
}

void PickleWriter::close_tuple(std::size_t size) {
  constexpr Op kShort[] = {Op::empty_tuple, Op::tuple1, Op::tuple2, Op::tuple3};
  op(size < std::size(kShort) ? kShort[size] : Op::tuple);
}

void PickleWriter::write_tuple(const Value::Items& items) {
  if (items.size() > 3) op(Op::mark);
  for (const Value& item : items) write_value(item);
  close_tuple(items.size());
}

void PickleWriter::write_ints(const std::vector<std::int64_t>& numbers) {
  if (numbers.size() > 3) op(Op::mark);
  for (const std::int64_t x : numbers) write_small(x);
  close_tuple(numbers.size());
}

void PickleWriter::write_key(const Value& key) {
  const bool was_in_key = std::exchange(in_key_, true);
  write_value(key);
  in_key_ = was_in_key;
}

void PickleWriter::write_dict_items(const Dict& dict) {
  const auto& entries = dict.entries();
  for (std::size_t i = 0; i < entries.size(); i += kBatch) {
    const std::size_t end = std::min(i + kBatch, entries.size());
    op(Op::mark);
    for (std::size_t j = i; j < end; ++j) {
      write_key(entries[j].first);
      write_value(entries[j].second);
    }
    op(Op::set_items);
  }
}

void PickleWriter::write_mapping(const Dict& dict) {
  const bool was_in_kept = std::exchange(in_kept_, in_kept_ || dict.structure() != 0);
  write_dict(dict);
  in_kept_ = was_in_kept;
}

void PickleWriter::write_dict(const Dict& dict) {
  if (dict.kind() == Kind::composite) return write_composite(dict);
  if (dict.kind() == Kind::counter) write_global("collections", "Counter");
  if (dict.kind() == Kind::ordered_dict)
    write_empty_hooks();
  else
    op(Op::empty_dict);
  write_dict_items(dict);
  if (dict.kind() == Kind::counter) {
    op(Op::tuple1);
    op(Op::reduce);
  }
  if (dict.attributes()) {
    op(Op::empty_dict);
    write_dict_items(*dict.attributes());
    op(Op::build);
  }
}

// The call that torch rebuilds it by.
void PickleWriter::write_composite(const Dict& dict) {
  const CompositeForm* form = composite_form(dict);  // the plan has found it fit
  switch (form->form) {
    case Form::quantized_per_tensor:
    case Form::quantized_per_channel:
      return write_quantized(dict, form->form == Form::quantized_per_channel);
    case Form::nested:
      return write_nested(dict);
    case Form::jagged:
      return write_jagged(dict);
    case Form::parameter:
      return write_parameter(dict);
    case Form::with_attributes:
      return write_with_attributes(dict);
    default:
      return write_sparse(dict, form->name);
  }
}

void PickleWriter::write_parts(const Dict& dict, std::size_t first, std::size_t last) {
  for (std::size_t i = first; i < last; ++i) write_value(dict.entries()[i].second);
}

// (layout, (indices, ..., values, size, ...))
void PickleWriter::write_sparse(const Dict& dict, std::string_view layout) {
  const bool as_arguments = begin_call("_rebuild_sparse_tensor");
  write_global("torch.serialization", "_get_layout");
  write_string(std::string("torch.").append(layout));
  op(Op::tuple1);
  op(Op::reduce);
  op(Op::mark);
  write_parts(dict, 1, 5);
  op(Op::tuple);
  op(Op::tuple2);
  end_call(as_arguments);
}

// (storage, offset, size, stride, (scheme, ...), requires_grad, hooks)
void PickleWriter::write_quantized(const Dict& dict, bool per_channel) {
  const PlannedTensor& planned = plan_.tensors()[next_tensor_++];
  const StorageRecord& record = plan_.records()[static_cast<std::size_t>(planned.record)];
  const std::size_t last = dict.size() - 1;
  const bool as_arguments = begin_call("_rebuild_qtensor");
  op(Op::mark);
  write_storage(planned, record, false);
  write_small(planned.storage_offset);
  write_ints(planned.tensor->shape);
  write_ints(planned.tensor->strides);
  op(Op::mark);
  write_global("torch", per_channel ? "per_channel_affine" : "per_tensor_affine");
  write_parts(dict, 2, last);
  op(Op::tuple);
  write_parts(dict, last, last + 1);
  write_empty_hooks();
  op(Op::tuple);
  end_call(as_arguments);
}

// (buffer, sizes, strides, offsets)
void PickleWriter::write_nested(const Dict& dict) {
  const bool as_arguments = begin_call("_rebuild_nested_tensor");
  op(Op::mark);
  write_parts(dict, 1, 5);
  op(Op::tuple);
  end_call(as_arguments);
}

// (function, class, ({"values": ...},), state)
void PickleWriter::write_jagged(const Dict& dict) {
  static constexpr std::string_view kNames[] = {"values",      "offsets",         "lengths",
                                                "_ragged_idx", "_metadata_cache", "requires_grad"};
  write_global("torch._tensor", "_rebuild_from_type_v2");
  op(Op::mark);
  write_global("torch.nested._internal.nested_tensor", "_rebuild_njt");
  write_global("torch.nested._internal.nested_tensor", "NestedTensor");
  op(Op::empty_dict);
  for (std::size_t i = 0; i < std::size(kNames); ++i) {
    write_string(kNames[i]);
    write_parts(dict, i + 1, i + 2);
    op(Op::set_item);
  }
  op(Op::tuple1);
  op(Op::empty_dict);
  op(Op::tuple);
  op(Op::reduce);
}

// (data, requires_grad, hooks[, state])
void PickleWriter::write_parameter(const Dict& dict) {
  const bool has_state = !dict.entries()[3].second.is_none();
  write_global("torch._utils", has_state ? "_rebuild_parameter_with_state" : "_rebuild_parameter");
  op(Op::mark);
  write_parts(dict, 1, 3);
  write_empty_hooks();
  if (has_state) write_parts(dict, 3, 4);
  op(Op::tuple);
  op(Op::reduce);
}

// (function, class, arguments, state): the call that makes the tensor, taken apart.
void PickleWriter::write_with_attributes(const Dict& dict) {
  write_global("torch._tensor", "_rebuild_from_type_v2");
  op(Op::mark);
  const Value& tensor = dict.entries()[1].second;
  as_arguments_ = true;
  if (tensor.kind() == Kind::tensor)
    write_tensor(plan_.tensors()[next_tensor_++]);
  else
    write_mapping(tensor.as_dict());
  write_parts(dict, 2, 3);
  op(Op::tuple);
  op(Op::reduce);
}

// OrderedDict(): also what stands for "no backward hooks" in every tensor.
void PickleWriter::write_empty_hooks() {
  write_global("collections", "OrderedDict");
  op(Op::empty_tuple);
  op(Op::reduce);
}

void PickleWriter::write_device(const std::string& device) {
  write_global("torch", "device");
  const std::size_t colon = device.find(':');
  write_string(device.substr(0, colon));
  if (colon == device.npos) {
    op(Op::tuple1);
  } else {
    std::int64_t index = 0;
    std::from_chars(device.data() + colon + 1, device.data() + device.size(), index);
    write_small(index);
    op(Op::tuple2);
  }
  op(Op::reduce);
}

void PickleWriter::write_tensor(const PlannedTensor& planned) {
  const Tensor& tensor = *planned.tensor;
  const bool meta = tensor.storage->device == "meta";
  const auto write_inner = [&](bool requires_grad) {
    if (meta)
      write_meta_tensor(tensor, requires_grad);
    else
      write_plain_tensor(planned, requires_grad);
  };
  if (!tensor.parameter) return write_inner(tensor.requires_grad);
  write_global("torch._utils", "_rebuild_parameter");
  write_inner(false);
  op(tensor.requires_grad ? Op::new_true : Op::new_false);
  write_empty_hooks();
  op(Op::tuple3);
  op(Op::reduce);
}

// Of torch._utils. The arguments follow, and then end_call with what this returns.
bool PickleWriter::begin_call(std::string_view name) {
  write_global("torch._utils", name);
  const bool as_arguments = std::exchange(as_arguments_, false);
  if (as_arguments) write_global("torch", "Tensor");
  return as_arguments;
}

void PickleWriter::end_call(bool as_arguments) {
  if (!as_arguments) op(Op::reduce);
}

void PickleWriter::write_meta_tensor(const Tensor& tensor, bool requires_grad) {
  const bool as_arguments = begin_call("_rebuild_meta_tensor_no_storage");
  op(Op::mark);
  write_global("torch", dtype_name(tensor.dtype));
  write_ints(tensor.shape);
  write_ints(tensor.strides);
  op(requires_grad ? Op::new_true : Op::new_false);
  op(Op::tuple);
  end_call(as_arguments);
}

void PickleWriter::write_plain_tensor(const PlannedTensor& planned, bool requires_grad) {
  const Tensor& tensor = *planned.tensor;
  const StorageRecord& record = plan_.records()[static_cast<std::size_t>(planned.record)];
  const bool untyped = needs_untyped_storage(tensor.dtype, record);
  const bool as_arguments = begin_call(untyped ? "_rebuild_tensor_v3" : "_rebuild_tensor_v2");
  op(Op::mark);
  write_storage(planned, record, untyped);
  write_small(planned.storage_offset);
  write_ints(tensor.shape);
  write_ints(tensor.strides);
  op(requires_grad ? Op::new_true : Op::new_false);
  write_empty_hooks();
  if (untyped) write_global("torch", dtype_name(tensor.dtype));
  write_flags(tensor);
  op(Op::tuple);
  end_call(as_arguments);
}

void PickleWriter::write_storage(const PlannedTensor& planned, const StorageRecord& record,
                                 bool untyped) {
  const DType dtype = planned.tensor->dtype;
  op(Op::mark);
  write_string("storage");
  if (untyped)
    write_global("torch.storage", "UntypedStorage");
  else
    write_global("torch", planned.quantized ? quantized_class(dtype) : storage_class(dtype));
  char digits[24];
  const auto [end, error] = std::to_chars(std::begin(digits), std::end(digits), planned.record);
  write_string({digits, end});
  write_string(record.storage->device);
  write_small(static_cast<std::int64_t>(untyped ? record.size : record.size / itemsize(dtype)));
  op(Op::tuple);
  op(Op::bin_pers_id);
}

void PickleWriter::write_flags(const Tensor& tensor) {
  if (!tensor.conj && !tensor.neg) return;
  op(Op::empty_dict);
  for (const auto& [name, set] : {std::pair{"conj", tensor.conj}, std::pair{"neg", tensor.neg}}) {
    if (!set) continue;
    write_string(name);
    op(Op::new_true);
    op(Op::set_item);
  }
}

}  // namespace

bool needs_untyped_storage(DType dtype, const StorageRecord& record) noexcept {
  return record.mixed || storage_class(dtype).empty();
}

WrittenPickle write_pickle(const Value& state, const StoragePlan& plan) {
  return PickleWriter(plan).write(state);
}

std::string_view storage_class(DType dtype) noexcept {
  switch (dtype) {
    case DType::float64:
      return "DoubleStorage";
    case DType::float32:
      return "FloatStorage";
    case DType::float16:
      return "HalfStorage";
    case DType::bfloat16:
      return "BFloat16Storage";
    case DType::complex128:
      return "ComplexDoubleStorage";
    case DType::complex64:
      return "ComplexFloatStorage";
    case DType::int64:
      return "LongStorage";
    case DType::int32:
      return "IntStorage";
    case DType::int16:
      return "ShortStorage";
    case DType::int8:
      return "CharStorage";
    case DType::uint8:
      return "ByteStorage";
    case DType::boolean:
      return "BoolStorage";
    default:
      return {};
  }
}

}  // namespace perdure::format
