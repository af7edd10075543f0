#include "node_text.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cstdint>

#include "command.hpp"
#include "table.hpp"
#include "text.hpp"

namespace perdure::cli {
namespace {

constexpr std::size_t kMaxValue = 60;  // columns of a value or shape

// Comma-separated notes at the end of a line.
class Notes {
 public:
  void add(std::string_view note) {
    if (!text_.empty()) text_ += ", ";
    text_ += note;
  }
  std::string text() && { return std::move(text_); }

 private:
  std::string text_;
};

// "[0, 1, 2, ...]": as many items as fit.
std::string flat_text(const Value& value) {
  std::string out;
  for (const Value& item : value.as_items()) {
    const std::string next = repr(item, kMaxValue);
    if (out.size() + next.size() > kMaxValue) return fmt::format("[{}...]", out);
    out += (out.empty() ? "" : ", ") + next;
  }
  return fmt::format("[{}]", out);
}

std::string container_text(const Value& value) {
  if (value.is_mapping()) return plural(value.as_dict().size(), "item");
  if (is_flat(value)) return flat_text(value);
  return plural(value.as_items().size(), "item");
}

std::string opaque_text(const Opaque& opaque) {
  return opaque.module + "." + opaque.name + (opaque.arguments.is_none() ? "" : "(...)");
}

// Of a tensor that is made of others; of its parts, each has a line of its own.
struct CompositeText {
  std::string form, shape, dtype;
};

CompositeText composite_text(const Dict& dict) {
  const auto tensor = [&](const char* key) { return dict.at(key).as_tensor(); };
  CompositeText out{dict.at("form").as_string(), "", ""};
  if (const Value* inner = dict.find(dict.find("data") != nullptr ? "data" : "tensor")) {
    if (inner->kind() == Kind::composite) return composite_text(inner->as_dict());
    return {out.form, shape_text(inner->as_tensor().shape),
            std::string(dtype_name(inner->as_tensor().dtype))};
  }
  const Tensor main = tensor(dict.find("int_repr") != nullptr ? "int_repr"
                             : dict.find("buffer") != nullptr ? "buffer"
                                                              : "values");
  out.dtype = dtype_name(main.dtype);
  if (const Value* size = dict.find("size"))
    out.shape = repr(Value::list(size->as_items()), kMaxValue);
  else if (dict.find("offsets") == nullptr)
    out.shape = shape_text(main.shape);
  else if (const auto offsets = tensor("offsets").shape; !offsets.empty())
    out.shape = plural(
        static_cast<std::uint64_t>(std::max<std::int64_t>(offsets[0] - (out.form == "jagged"), 0)),
        "tensor");
  return out;
}

// "class __torch__.Net", of a module in a TorchScript archive.
const Value* class_of(const Value& value) {
  if (value.kind() != Kind::ordered_dict || !value.as_dict().attributes()) return nullptr;
  return value.as_dict().attributes()->find("_class");
}

std::string type_text(const Value& value) {
  if (value.kind() == Kind::composite) return composite_text(value.as_dict()).form;
  if (value.kind() == Kind::tensor) return std::string(dtype_name(value.as_tensor().dtype));
  return std::string(kind_name(value.kind()));
}

std::string value_text(const TreeNode& node) {
  const Value& value = node.value;
  if (value.kind() == Kind::tensor) return shape_text(value.as_tensor().shape);
  if (!node.same_as.empty())
    return "";  // not looked at again: it may be long, and referred to often
  if (value.kind() == Kind::opaque) return opaque_text(value.as_opaque());
  if (value.kind() == Kind::composite) return composite_text(value.as_dict()).shape;
  return is_container(value) ? container_text(value) : repr(value, kMaxValue);
}

void note_sharing(Notes& notes, const TreeNode& node, const Summary& summary) {
  const Tensor& tensor = node.value.as_tensor();
  const StorageUse& use = summary.storages.at(tensor.storage.get());
  if (!node.same_as.empty())
    notes.add("same tensor as " + shorten(node.same_as, 100));
  else if (use.tensors > 1 && use.first == node.name)
    notes.add(fmt::format("storage shared by {}", use.tensors));
  else if (use.tensors > 1)
    notes.add("shares storage with " + shorten(use.first, 100));
  else if (const auto [first, last] = tensor.byte_range(); last - first < tensor.storage->size)
    notes.add(fmt::format("view into {}", format_bytes(tensor.storage->size)));
}

std::string tensor_notes(const TreeNode& node, const Summary& summary) {
  const Tensor& tensor = node.value.as_tensor();
  Notes notes;
  if (tensor.parameter) notes.add("parameter");
  if (tensor.requires_grad != tensor.parameter)
    notes.add(tensor.requires_grad ? "requires_grad" : "requires_grad=False");
  if (tensor.storage->device != "cpu") notes.add(shorten(tensor.storage->device, 40));
  if (!is_contiguous(tensor))
    notes.add("strides " + shorten(shape_text(tensor.strides), kMaxValue));
  if (tensor.conj) notes.add("conj");
  if (tensor.neg) notes.add("neg");
  note_sharing(notes, node, summary);
  return std::move(notes).text();
}

std::string notes_text(const TreeNode& node, const Summary& summary) {
  if (node.value.kind() == Kind::tensor) return tensor_notes(node, summary);
  if (!node.same_as.empty()) return "same object as " + shorten(node.same_as, 100);
  if (node.value.kind() == Kind::opaque) return "no plain data: load refuses it";
  if (node.value.kind() == Kind::composite) return composite_text(node.value.as_dict()).dtype;
  if (const Value* name = class_of(node.value)) return "class " + repr(*name, 200);
  if (is_flat(node.value) && node.value.as_items().size() > 8)
    return plural(node.value.as_items().size(), "item");
  return "";
}

std::string bytes_text(const Value& value) {
  if (value.kind() != Kind::tensor) return "";
  return format_bytes(value.as_tensor().numel() * itemsize(value.as_tensor().dtype));
}

// A state_dict's attributes name every module; only what could matter of them is worth a line.
bool is_shown(const TreeNode& node) {
  if (node.label == "(attributes)._class") return node.depth == 0;  // stands beside the others
  return !node.in_attributes || node.label.starts_with("(attributes).") ||
         node.value.kind() == Kind::tensor || node.value.kind() == Kind::opaque;
}

std::string tree_text(const Value& root, const std::string& key, const Summary& summary) {
  using enum Table::Align;
  Table table({{"KEY", left, 120},
               {"TYPE", left, 80, Style::dim},
               {"SHAPE OR VALUE", left, 80},
               {"BYTES", right},
               {"NOTES", left, 300, Style::dim}});
  walk_tree(root, key, [&](const TreeNode& node) {
    if (!is_shown(node)) return;
    const bool selected_by_key = !key.empty() && node.depth == 0;
    table.add({std::string(2 * std::min<std::size_t>(node.depth, 30), ' ') +
                   (selected_by_key ? node.name : node.label),
               type_text(node.value), value_text(node), bytes_text(node.value),
               notes_text(node, summary)});
  });
  return table.empty() ? "" : "\n" + table.text();
}

std::string totals_text(const Summary& summary) {
  using enum Table::Align;
  Table table({{"DTYPE"}, {"TENSORS", right}, {"ELEMENTS", right}, {"BYTES", right}});
  for (const auto& [dtype, total] : summary.dtypes)
    table.add({std::string(dtype_name(dtype)), format_count(total.tensors),
               format_count(total.elements), format_bytes(total.bytes)});
  return table.empty() ? "" : "\n" + table.text();
}

// Worth a table where there are several.
std::string key_totals_text(const Summary& summary) {
  using enum Table::Align;
  constexpr std::size_t kMost = 100;
  if (summary.keys.size() < 2 || summary.keys.size() > kMost) return "";
  Table table(
      {{"TOP-LEVEL KEY", left, 120}, {"TENSORS", right}, {"ELEMENTS", right}, {"BYTES", right}});
  for (const auto& [key, total] : summary.keys)
    table.add({key, format_count(total.tensors), format_count(total.elements),
               format_bytes(total.bytes)});
  return "\n" + table.text();
}

std::string checksums_text(const CheckpointFile& file) {
  if (file.has_block_checksums()) return "checksums of every block";
  return file.has_checksums() ? "checksums of every record"
                              : "no checksums: its contents cannot be verified";
}

std::string size_text(const CheckpointFile& file, const Summary& summary) {
  std::uint64_t tensors = 0;
  for (const auto& [dtype, total] : summary.dtypes) tensors += total.tensors;
  return fmt::format("  {}, {}, {} in {}, {}\n", file.format(), format_bytes(file.size()),
                     plural(tensors, "tensor"), plural(summary.storages.size(), "storage"),
                     checksums_text(file));
}

// Why a file is larger than its tensors, where that is so by much.
std::string excess_text(const CheckpointFile& file, const Summary& summary) {
  std::uint64_t tensors = 0, kept = 0, records = 0, data = 0, stored = 0;
  for (const auto& [dtype, total] : summary.dtypes) tensors += total.bytes;
  for (const auto& [storage, use] : summary.storages) kept += storage->size - use.bytes;
  for (const auto& storage : file.storages()) stored += storage->size;
  for (const auto& record : file.records()) {
    records += record.size;
    if (record.name.starts_with("data/")) data += record.size;
  }
  constexpr std::uint64_t kLittle = 100'000;
  if (file.size() < tensors + tensors / 10 + kLittle) return "";
  std::string out;
  const auto add = [&](std::uint64_t bytes, std::string_view what) {
    if (bytes > file.size() / 100)
      out += fmt::format("{}{} {}", out.empty() ? "" : ", ", format_bytes(bytes), what);
  };
  add(kept, "of storages that views keep and do not show (clone() them before saving)");
  add(data > stored ? data - stored : 0, "in records that nothing uses");
  add(records > std::max(data, stored) ? records - std::max(data, stored) : 0,
      "of pickle and other records");
  add(file.size() > records ? file.size() - records : 0, "of padding and zip headers");
  if (out.empty()) return "";
  return fmt::format("\n{} ({}): {}\n",
                     styled("the file is larger than its tensors", Style::yellow),
                     format_bytes(tensors), out);
}

std::string writer_text(const CheckpointInfo& info) {
  std::string libraries;
  for (const auto& [name, version] : info.libraries)
    libraries += fmt::format("{}{} {}", libraries.empty() ? "" : ", ", name, version);
  return libraries.empty() ? info.writer : fmt::format("{} ({})", info.writer, libraries);
}

// The lines of the checkpoint's own record; every one of them is from the file, so escaped.
std::vector<std::string> info_lines(const CheckpointInfo& info) {
  std::vector<std::string> lines;
  if (info.generation != 0) {
    const std::string parent =
        info.parent == 0 ? "" : fmt::format(", run restored from generation {}", info.parent);
    lines.push_back(fmt::format("step {}, generation {}{}, {}", info.step, info.generation, parent,
                                info.reason));
  }
  if (info.ranks > 1) lines.push_back(fmt::format("saved by {} ranks", info.ranks));
  for (const auto& [name, value] : info.metrics)
    lines.push_back(fmt::format("metric {} = {}", name, format_number(value)));
  for (const auto& [name, optimizer] : info.optimizers)
    lines.push_back(fmt::format("optimizer {}: {}, {}", name, optimizer.class_name,
                                plural(optimizer.param_names.size(), "group")));
  const std::string time = format_time(info.created);
  lines.push_back(
      fmt::format("written by {}{}{}", writer_text(info), time.empty() ? "" : " at ", time));
  return lines;
}

std::string head_text(const CheckpointFile& file, const Summary& summary) {
  std::string out = styled(escape(file.name()), Style::bold) + '\n' + size_text(file, summary);
  if (file.info())
    for (const std::string& line : info_lines(*file.info()))
      out += "  " + escape(shorten(line, 400)) + '\n';
  for (const auto& [name, value] : file.metadata())
    out += fmt::format("  {}: {}\n", escape(shorten(name, 100)), escape(shorten(value, 300)));
  return out;
}

std::string refusal_text(const Summary& summary) {
  if (summary.opaque_count == 0) return "";
  std::string names;
  for (const std::string& name : summary.opaque)
    names += (names.empty() ? "" : ", ") + shorten(name, 100);
  return fmt::format("\n{}: {} no plain data: {}{}\n", styled("load refuses this file", Style::red),
                     summary.opaque_count == 1
                         ? "one thing in it is"
                         : format_count(summary.opaque_count) + " things in it are",
                     escape(names), summary.opaque_count > summary.opaque.size() ? ", ..." : "");
}

}  // namespace

std::string shape_text(const std::vector<std::int64_t>& sizes) {
  return fmt::format("[{}]", fmt::join(sizes, ", "));
}

bool is_contiguous(const Tensor& tensor) noexcept {
  std::int64_t expected = 1;
  for (std::size_t i = tensor.shape.size(); i-- > 0;) {
    if (tensor.shape[i] == 0) return true;
    if (tensor.shape[i] != 1 && tensor.strides[i] != expected) return false;
    expected *= tensor.shape[i];
  }
  return true;
}

void print_tree_text(const Value& root, const std::string& key, const Summary& summary) {
  const std::string tree = tree_text(root, key, summary);
  print(key.empty() || tree.empty() ? tree : tree.substr(1));
  print(totals_text(summary) + key_totals_text(summary));
}

void print_file_text(const CheckpointFile& file, const std::string& key, const Summary& summary) {
  if (key.empty()) print(head_text(file, summary));
  print_tree_text(file.value(), key, summary);
  if (key.empty()) print(excess_text(file, summary));
  print(refusal_text(summary));
}

}  // namespace perdure::cli
