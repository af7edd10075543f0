#include "format/composite.hpp"

#include <algorithm>
#include <iterator>

namespace perdure::format {
namespace {

constexpr CompositePart kCoo[] = {
    {"indices", 'T'}, {"values", 'T'}, {"size", 'S'}, {"is_coalesced", 'b'}};
constexpr CompositePart kByRow[] = {
    {"crow_indices", 'T'}, {"col_indices", 'T'}, {"values", 'T'}, {"size", 'S'}};
constexpr CompositePart kByColumn[] = {
    {"ccol_indices", 'T'}, {"row_indices", 'T'}, {"values", 'T'}, {"size", 'S'}};
constexpr CompositePart kPerTensor[] = {
    {"int_repr", 'T'}, {"scale", 'R'}, {"zero_point", 'I'}, {"requires_grad", 'B'}};
constexpr CompositePart kPerChannel[] = {{"int_repr", 'T'},
                                         {"scales", 'T'},
                                         {"zero_points", 'T'},
                                         {"axis", 'I'},
                                         {"requires_grad", 'B'}};
constexpr CompositePart kNested[] = {
    {"buffer", 'T'}, {"sizes", 'T'}, {"strides", 'T'}, {"offsets", 'T'}};
constexpr CompositePart kJagged[] = {{"values", 'T'},   {"offsets", 'T'},
                                     {"lengths", 't'},  {"ragged_idx", 'I'},
                                     {"metadata", 'D'}, {"requires_grad", 'B'}};
constexpr CompositePart kParameter[] = {{"data", 'X'}, {"requires_grad", 'B'}, {"attributes", 'd'}};
constexpr CompositePart kWithAttributes[] = {{"tensor", 'Y'}, {"attributes", 'D'}};

constexpr CompositeForm kForms[] = {
    {Form::sparse_coo, "sparse_coo", kCoo},
    {Form::sparse_csr, "sparse_csr", kByRow},
    {Form::sparse_csc, "sparse_csc", kByColumn},
    {Form::sparse_bsr, "sparse_bsr", kByRow},
    {Form::sparse_bsc, "sparse_bsc", kByColumn},
    {Form::quantized_per_tensor, "quantized_per_tensor", kPerTensor},
    {Form::quantized_per_channel, "quantized_per_channel", kPerChannel},
    {Form::nested, "nested", kNested},
    {Form::jagged, "jagged", kJagged},
    {Form::parameter, "parameter", kParameter},
    {Form::with_attributes, "with_attributes", kWithAttributes},
};

// Made by one call of tensors alone, and so by one that can have a class and attributes beside it.
bool is_bare(const Dict& dict) {
  const CompositeForm* form = composite_form(dict);
  return form != nullptr && form->form < Form::jagged;
}

bool is_of(const Value& value, char kind) {
  switch (kind) {
    case 'T':
      return value.kind() == Kind::tensor && !value.as_tensor().parameter;
    case 'X':
      return is_of(value, 'T') || value.kind() == Kind::composite;
    case 'Y':
      return is_of(value, 'T') || (value.kind() == Kind::composite && is_bare(value.as_dict()));
    case 'S':
      return value.kind() == Kind::size;
    case 'B':
      return value.kind() == Kind::boolean;
    case 'I':
      return value.kind() == Kind::integer && value.as_big_int() == nullptr;
    case 'R':
      return value.kind() == Kind::real;
    case 'D':
      return value.kind() == Kind::dict;
    default:
      return value.is_none() || is_of(value, static_cast<char>(kind - 'a' + 'A'));
  }
}

// The integers of a quantized tensor are what tells its dtype.
bool is_quantized_dtype(DType dtype) {
  return dtype == DType::int8 || dtype == DType::uint8 || dtype == DType::int32;
}

bool has_parts(const Dict& dict, const CompositeForm& form) {
  if (dict.size() != form.parts.size() + 1 || dict.attributes()) return false;
  for (std::size_t i = 0; i < form.parts.size(); ++i) {
    const auto& [key, value] = dict.entries()[i + 1];
    if (key.kind() != Kind::string || key.as_string() != form.parts[i].key ||
        !is_of(value, form.parts[i].kind))
      return false;
  }
  const bool quantized =
      form.form == Form::quantized_per_tensor || form.form == Form::quantized_per_channel;
  return !quantized || is_quantized_dtype(dict.entries()[1].second.as_tensor().dtype);
}

}  // namespace

const CompositeForm& composite_form(Form form) { return kForms[static_cast<std::size_t>(form)]; }

const CompositeForm* composite_form(const Dict& dict) {
  if (dict.kind() != Kind::composite || dict.empty()) return nullptr;
  const auto& [key, name] = dict.entries()[0];
  if (key.kind() != Kind::string || key.as_string() != "form" || name.kind() != Kind::string)
    return nullptr;
  const auto* found =
      std::ranges::find(kForms, std::string_view(name.as_string()), &CompositeForm::name);
  return found != std::end(kForms) && has_parts(dict, *found) ? found : nullptr;
}

Value make_composite(Form form, Value::Items parts) {
  const CompositeForm& known = composite_form(form);
  Dict dict(Kind::composite);
  dict.set("form", known.name);
  for (std::size_t i = 0; i < std::min(parts.size(), known.parts.size()); ++i)
    dict.set(known.parts[i].key, std::move(parts[i]));
  if (parts.size() != known.parts.size() || !has_parts(dict, known)) return {};
  return Value(std::move(dict));
}

}  // namespace perdure::format
