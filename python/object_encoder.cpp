#include "object_encoder.hpp"

#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <cstdint>

namespace nb = nanobind;

namespace perdure::python {
namespace {

// More than any file can hold (kMaxDepth of the format), and few enough for the stack.
constexpr int kMaxWalkDepth = 600;

bool is_array(PyObject* object) {
  return torch_objects().is_array(nb::handle(reinterpret_cast<PyObject*>(Py_TYPE(object)))).ptr() ==
         Py_True;
}

// The names of the attributes of an object, for messages.
std::string names_of(PyObject* attributes) {
  std::string out;
  for_each_item(attributes, [&](PyObject* name, PyObject*) {
    out += (out.empty() ? "" : ", ") + utf8(nb::str(nb::handle(name)).ptr());
  });
  return out;
}

Value encode_dtype(PyObject* dtype, const Place& place) {
  const auto known = torch_objects().dtypes.find(dtype);
  if (known == torch_objects().dtypes.end())
    place.refuse("is " + utf8(nb::str(nb::handle(dtype)).ptr()) +
                 ", which torch.load does not give back; write its name: str(dtype)");
  return Value(known->second);
}

// The attributes of an instance of a class of Python's, like a state_dict's _metadata.
nb::object attributes_of(PyObject* dict) { return stolen(PyObject_GenericGetDict(dict, nullptr)); }

Value encode_bytearray(PyObject* x) {
  return Value::bytearray({PyByteArray_AsString(x), static_cast<std::size_t>(PyByteArray_Size(x))});
}

}  // namespace

Value ObjectEncoder::encode(PyObject* object, const Place& place, Py_ssize_t holders) {
  if (is_scalar(object)) return scalar(object);
  if (Py_TYPE(object) == torch_objects().dtype) return encode_dtype(object, place);
  const bool single = Py_REFCNT(object) == holders;
  const nb::object held = nb::borrow(object);
  if (single) return encode_new(object, place);
  const auto [seen, fresh] = seen_.insert(object);
  if (!fresh) {
    if (seen->open) place.refuse("contains itself; a checkpoint cannot hold cycles");
    if (seen->value.kind() == Kind::tensor) walked(object, seen->value);
    return seen->value;
  }
  Value value = encode_new(object, place);  // where it raises, the walk is over
  *seen_.insert(object).first = {.object = held, .value = value, .open = false};
  return value;
}

Value ObjectEncoder::encode_new(PyObject* object, const Place& place) {
  const PyTypeObject* type = Py_TYPE(object);
  const TorchObjects& torch = torch_objects();
  if (type == torch.tensor || type == torch.parameter) return encode_tensor(object, place);
  if (++depth_ > kMaxWalkDepth)
    throw Error(ErrorCode::invalid,
                place.root_name() + " is nested too deeply for a checkpoint (hundreds of levels)");
  Value value;
  if (type == &PyDict_Type)
    value = encode_mapping(Kind::dict, object, place);
  else if (type == torch.ordered_dict)
    value = encode_mapping(Kind::ordered_dict, object, place);
  else if (type == &PyList_Type)
    value = Value::list(list_items(object, place));
  else if (type == &PyTuple_Type)
    value = Value::tuple(tuple_items(object, place));
  else
    value = encode_rare(object, place);
  --depth_;
  return value;
}

Value ObjectEncoder::encode_rare(PyObject* object, const Place& place) {
  const PyTypeObject* type = Py_TYPE(object);
  retraceable_ = false;
  if (type == torch_objects().counter) return encode_mapping(Kind::counter, object, place);
  if (type == &PySet_Type) return encode_set(object, place);
  if (type == torch_objects().size) return encode_size(object);
  if (type == &PyByteArray_Type) return encode_bytearray(object);
  if (PyObject_TypeCheck(object, torch_objects().tensor) != 0)
    if (std::optional<Value> parts = encode_composite(object, place)) return std::move(*parts);
  const nb::tuple where = place.as_tuple();
  if (is_array(object))
    return nb::cast<Value>(torch_objects().encode_array(nb::handle(object), where));
  if (nb::isinstance<Value>(nb::handle(object))) return nb::cast<Value>(nb::handle(object));
  torch_objects().refuse_type(nb::handle(object), where);
  return Value();  // not reached
}

Value ObjectEncoder::encode_tensor(PyObject* object, const Place& place) {
  std::optional<Tensor> quickly = tensor_encoder_.encode_quickly(object, place);
  if (!quickly)
    if (std::optional<Value> parts = encode_composite(object, place)) return std::move(*parts);
  Tensor tensor = quickly ? std::move(*quickly) : tensor_encoder_.encode_described(object, place);
  if (!ownership_) return Value(std::move(tensor));
  const Ownership::Claim claim = ownership_->claim(object, Geometry(tensor), in_part_);
  tensor.liveness = claim.liveness;
  Value value(std::move(tensor));
  tensors_.push_back({nb::borrow(object), &value.as_tensor(), claim});
  return value;
}

// Nothing for a tensor that is one run of memory with a shape, or of a class of the user's.
std::optional<Value> ObjectEncoder::encode_composite(PyObject* tensor, const Place& place) {
  const nb::object parts = torch_objects().take_apart(nb::handle(tensor), place.as_tuple());
  if (parts.is_none()) return std::nullopt;
  retraceable_ = false;
  Dict out(Kind::composite);
  ++depth_;
  encode_items(parts.ptr(), place, out);
  --depth_;
  return Value(std::move(out));
}

// A tensor that stands in several places claims what it can claim in all of them.
void ObjectEncoder::walked(PyObject* object, Value& value) {
  if (!ownership_) return;
  Tensor& tensor = value.as_tensor();
  const Ownership::Claim claim = ownership_->claim(object, Geometry(tensor), in_part_);
  tensor.liveness = std::min(tensor.liveness, claim.liveness);
  tensors_.push_back({nb::borrow(object), &tensor, claim});
}

Value::Items ObjectEncoder::list_items(PyObject* list, const Place& place) {
  Value::Items items;
  items.reserve(static_cast<std::size_t>(PyList_Size(list)));
  for (Py_ssize_t i = 0; i < PyList_Size(list); ++i)
    items.push_back(encode(PyList_GetItem(list, i), place.position(i)));
  return items;
}

Value::Items ObjectEncoder::tuple_items(PyObject* tuple, const Place& place) {
  Value::Items items;
  items.reserve(static_cast<std::size_t>(PyTuple_Size(tuple)));
  for (Py_ssize_t i = 0; i < PyTuple_Size(tuple); ++i)
    items.push_back(encode(PyTuple_GetItem(tuple, i), place.position(i)));
  return items;
}

Value ObjectEncoder::encode_set(PyObject* set, const Place& place) {
  Value::Items items;
  for (const nb::handle item : nb::handle(set)) items.push_back(encode_key(item.ptr(), place));
  return Value::set(std::move(items));
}

Value ObjectEncoder::encode_size(PyObject* size) {
  return Value::size(nb::cast<std::vector<std::int64_t>>(nb::list(nb::handle(size))));
}

Value ObjectEncoder::encode_key(PyObject* key, const Place& place) {
  if (PyUnicode_CheckExact(key) || PyLong_CheckExact(key)) return scalar(key);
  retraceable_ = false;
  const bool tensor = PyObject_TypeCheck(key, torch_objects().tensor) != 0;
  if (tensor || is_array(key))
    place.refuse("has the key " + utf8(nb::repr(nb::handle(key)).ptr()) +
                 "; write it as a plain number: key.item()");
  return encode(key, place.key(key));
}

Value ObjectEncoder::encode_mapping(Kind kind, PyObject* dict, const Place& place) {
  const int reserved = PyDict_Contains(dict, torch_objects().form_key);
  if (reserved < 0) nb::raise_python_error();
  if (reserved > 0)
    place.refuse("has the key \"" + utf8(torch_objects().form_key) +
                 "\", which is perdure's own; rename it");
  const nb::object attributes = kind == Kind::dict ? nb::object() : attributes_of(dict);
  const bool bare = kind == Kind::dict || PyDict_Size(attributes.ptr()) == 0;
  if (kind == Kind::counter && !bare)
    place.refuse("is a Counter with attributes (" + names_of(attributes.ptr()) +
                 "); write dict(x)");
  Dict out(kind);
  encode_items(dict, place, out);
  if (!bare) out.set_attributes(encode_attributes(attributes.ptr(), place));
  return Value(std::move(out));
}

void ObjectEncoder::encode_items(PyObject* dict, const Place& place, Dict& out) {
  const bool outside = !in_part_;
  in_part_ = in_part_ || (ownership_ && ownership_->is_part(dict));
  for_each_item(dict, [&](PyObject* key, PyObject* value) {
    Value encoded = encode_key(key, place);
    out.set(std::move(encoded), encode(value, place.key(key), kHoldersOfItem));
  });
  if (outside) in_part_ = false;
  if (static_cast<Py_ssize_t>(out.size()) != PyDict_Size(dict))
    place.refuse("has several NaN keys, which a checkpoint cannot tell apart");
}

std::shared_ptr<Dict> ObjectEncoder::encode_attributes(PyObject* attributes, const Place& place) {
  auto out = std::make_shared<Dict>();
  for_each_item(attributes, [&](PyObject* name, PyObject* value) {
    Value key = encode(name, place);
    out->set(std::move(key), encode(value, place.attribute(name), kHoldersOfItem));
  });
  return out;
}

}  // namespace perdure::python
