// Tensors that are made of others: which parts each form of them has, in which order, and of which
// kind. docs/format.md lists them.
#pragma once

#include <perdure/value.hpp>
#include <span>
#include <string_view>

namespace perdure::format {

// A Kind::composite is a dict of the entry "form", which names one of these, and of the parts.
enum class Form : std::uint8_t {
  sparse_coo,
  sparse_csr,
  sparse_csc,
  sparse_bsr,
  sparse_bsc,
  quantized_per_tensor,
  quantized_per_channel,
  nested,
  jagged,
  parameter,
  with_attributes,
};

struct CompositePart {
  std::string_view key;
  // T tensor, X tensor or composite, Y the same but for those that are made around another one, S
  // torch.Size, B bool, I int, R float, D dict; a small letter stands for that or None.
  char kind;
};

struct CompositeForm {
  Form form;
  std::string_view name;
  std::span<const CompositePart> parts;
};

const CompositeForm& composite_form(Form form);
// Null where `dict` is not one of them: it has no such form, or other parts.
const CompositeForm* composite_form(const Dict& dict);
// Of the parts in their order, without "form"; a None value where they do not make up the form.
Value make_composite(Form form, Value::Items parts);

}  // namespace perdure::format
