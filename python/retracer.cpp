#include "retracer.hpp"

#include <cstdint>

#include "object_owner.hpp"

namespace nb = nanobind;

namespace perdure::python {
namespace {

bool is_number(const Value& value) {
  return value.kind() == Kind::none || value.kind() == Kind::boolean ||
         value.kind() == Kind::integer || value.kind() == Kind::real;
}

bool has_parts(const Value& value) {
  return value.kind() == Kind::tensor || value.is_mapping() || value.is_sequence();
}

bool same_key(PyObject* key, const Value& value) {
  if (PyUnicode_CheckExact(key)) {
    Py_ssize_t size = 0;
    const char* text = PyUnicode_AsUTF8AndSize(key, &size);
    if (text == nullptr) PyErr_Clear();
    return text != nullptr && value.kind() == Kind::string &&
           value.as_string() == std::string_view(text, static_cast<std::size_t>(size));
  }
  int overflow = 0;
  return PyLong_CheckExact(key) && value.kind() == Kind::integer && !value.as_big_int() &&
         PyLong_AsLongLongAndOverflow(key, &overflow) == value.as_int() && overflow == 0;
}

// Whether a view is all of its storage in the usual order. Only what torch itself keeps private can
// make such a one lazily negated, and asking lets other threads run.
bool is_all_of_storage(const Tensor& tensor) {
  std::uint64_t expected = 1;
  for (std::size_t i = tensor.shape.size(); i-- > 0;) {
    if (tensor.strides[i] != static_cast<std::int64_t>(expected)) return false;
    expected *= static_cast<std::uint64_t>(tensor.shape[i]);
  }
  return tensor.storage_offset == 0 && expected * itemsize(tensor.dtype) == tensor.storage->size;
}

// Whether one may stand for the other without any other byte of a file being different.
bool same_text(const Value& a, const Value& b) {
  if (is_number(a) || is_number(b)) return is_number(a) && is_number(b);
  return a.kind() == b.kind() && a.kind() != Kind::complex && a.as_string() == b.as_string();
}

}  // namespace

bool Retracer::follow(PyObject* object, Value& value) {
  return same(object, value, 0) && next_tensor_ == tensors_.size();
}

bool Retracer::same(PyObject* object, Value& value, Py_ssize_t holders) {
  if (is_scalar(object)) return replace_scalar(object, value);
  if (!has_parts(value)) return false;
  const bool shared = value.use_count() > 1;
  // The walk before holds the tensors that it saw.
  if (next_tensor_ < tensors_.size() && tensors_[next_tensor_].object.ptr() == object) ++holders;
  if (Py_REFCNT(object) == holders) return !shared && same_parts(object, value);
  const auto [partner, fresh] = partner_.insert(object);
  if (fresh) *partner = value.identity();
  if (!fresh) {
    if (*partner != value.identity()) return false;
    return value.kind() != Kind::tensor || same_tensor(object, value);
  }
  if (shared && !taken_.insert(value.identity()).second) return false;
  return same_parts(object, value);
}

bool Retracer::same_parts(PyObject* object, Value& value) {
  const PyTypeObject* type = Py_TYPE(object);
  switch (value.kind()) {
    case Kind::tensor:
      return same_tensor(object, value);
    case Kind::dict:
      return type == &PyDict_Type && same_items(object, value.as_dict());
    case Kind::ordered_dict:
      return type == torch_objects().ordered_dict && same_mapping(object, value.as_dict());
    case Kind::list:
      return type == &PyList_Type && same_list(object, value.as_items());
    case Kind::tuple:
      return type == &PyTuple_Type && same_tuple(object, value.as_items());
    default:
      return false;
  }
}

bool Retracer::same_list(PyObject* list, Value::Items& items) {
  for (std::size_t i = 0; i < items.size(); ++i) {
    const auto at = static_cast<Py_ssize_t>(i);
    if (at >= PyList_Size(list) || !same(PyList_GetItem(list, at), items[i], 1)) return false;
  }
  return PyList_Size(list) == static_cast<Py_ssize_t>(items.size());
}

bool Retracer::same_tuple(PyObject* tuple, Value::Items& items) {
  if (PyTuple_Size(tuple) != static_cast<Py_ssize_t>(items.size())) return false;
  for (std::size_t i = 0; i < items.size(); ++i)
    if (!same(PyTuple_GetItem(tuple, static_cast<Py_ssize_t>(i)), items[i], 1)) return false;
  return true;
}

bool Retracer::same_mapping(PyObject* dict, Dict& value) {
  if (!same_items(dict, value)) return false;
  const nb::object attributes = stolen(PyObject_GenericGetDict(dict, nullptr));
  if (!value.attributes()) return PyDict_Size(attributes.ptr()) == 0;
  return same_items(attributes.ptr(), *value.attributes());
}

bool Retracer::same_items(PyObject* dict, Dict& value) {
  if (PyDict_Size(dict) != static_cast<Py_ssize_t>(value.size())) return false;
  const bool outside = !in_part_;
  in_part_ = in_part_ || ownership_.is_part(dict);
  bool all_same = true;
  std::size_t place = 0;
  for_each_item(dict, [&](PyObject* key, PyObject* item) {
    all_same = all_same && same_key(key, value.entries()[place].first) &&
               same(item, value.value_at(place), kHoldersOfItem);
    ++place;
  });
  if (outside) in_part_ = false;
  return all_same;
}

bool Retracer::same_tensor(PyObject* object, Value& value) {
  const Tensor& tensor = value.as_tensor();
  if (!is_tensor(object) || next_tensor_ == tensors_.size()) return false;
  WalkedTensor& walked = tensors_[next_tensor_++];
  const auto geometry = read_geometry(object);
  if (walked.tensor != &tensor || !geometry || !(*geometry == Geometry(tensor))) return false;
  const Ownership::Claim claim = ownership_.claim(object, *geometry, in_part_);
  walked.object = nb::borrow(object);
  // That the storage is the same is not asked, which would take a call into torch for each tensor:
  // what lies at the same address with the same form gives the same bytes.
  return claim.own && claim.liveness == walked.claim.liveness && !has_attributes(object) &&
         same_flags(object, tensor);
}

bool Retracer::same_flags(PyObject* object, const Tensor& tensor) const {
  const TorchObjects& torch = torch_objects();
  const bool is_parameter = Py_TYPE(object) == torch.parameter;
  if (is_parameter != tensor.parameter ||
      attribute_is_true(object, torch.requires_grad) != tensor.requires_grad)
    return false;
  if (is_complex(tensor.dtype) && method_is_true(object, torch.is_conj) != tensor.conj)
    return false;
  if (!is_complex(tensor.dtype) && !tensor.neg && is_all_of_storage(tensor)) return true;
  return method_is_true(object, torch.is_neg) == tensor.neg;
}

// The tree that an earlier save got changes here. That save is past needing it: the numbers and
// texts of a state are pickled before save() returns, and what a copy behind the training's back
// still needs are the storages of the tensors, which stay.
bool Retracer::replace_scalar(PyObject* object, Value& value) {
  if (has_parts(value) || value.kind() == Kind::dtype) return false;
  Value now = scalar(object);
  text_changed_ = text_changed_ || !same_text(now, value);
  value = std::move(now);
  return true;
}

}  // namespace perdure::python
