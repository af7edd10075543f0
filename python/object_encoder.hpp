// Python objects to the core's values, exactly: see perdure.values.encode.
#pragma once

#include <vector>

#include "tensor_encoder.hpp"

namespace perdure::python {

// What a registered object says of the tensors in its state_dict.
class Ownership {
 public:
  struct Claim {
    bool own = false;  // the object's own memory: kept alive by it anyway
    Liveness liveness = Liveness::detached;
  };

  virtual ~Ownership() = default;
  // Whether a dict, and so everything in it, is a part of the object itself.
  virtual bool is_part(PyObject*) const { return false; }
  // `in_part`: it stands in such a dict.
  virtual Claim claim(PyObject* tensor, const Geometry& geometry, bool in_part) const = 0;
};

// A tensor, each time that the walk came by it.
struct WalkedTensor {
  nanobind::object object;
  Tensor* tensor;  // in the value
  Ownership::Claim claim;
};

// Calls f(key, value) for the items of a dict, in its order. Both are held while it runs; raises
// where the dict changes meanwhile.
template <class F>
void for_each_item(PyObject* dict, F&& f);
constexpr Py_ssize_t kHoldersOfItem = 2;  // the dict and the loop

// One walk over one state.
class ObjectEncoder {
 public:
  explicit ObjectEncoder(const Ownership* ownership = nullptr) : ownership_(ownership) {}

  // `holders`: references to it that are known. Where there are no others, what one container alone
  // refers to is not looked for again.
  Value encode(PyObject* object, const Place& place, Py_ssize_t holders = 1);

  // Of a walk with an ownership.
  std::vector<WalkedTensor>& tensors() { return tensors_; }
  // Whether there was nothing but what a Retracer can follow.
  bool retraceable() const { return retraceable_; }

 private:
  struct Seen {
    nanobind::object object;  // kept, so that its address means it alone
    Value value;
    bool open = true;  // we are inside of it
  };

  Value encode_new(PyObject* object, const Place& place);
  Value encode_rare(PyObject* object, const Place& place);
  Value encode_tensor(PyObject* object, const Place& place);
  std::optional<Value> encode_composite(PyObject* tensor, const Place& place);
  Value encode_mapping(Kind kind, PyObject* dict, const Place& place);
  Value encode_set(PyObject* set, const Place& place);
  Value encode_size(PyObject* size);
  Value encode_key(PyObject* key, const Place& place);
  Value::Items tuple_items(PyObject* tuple, const Place& place);
  Value::Items list_items(PyObject* list, const Place& place);
  void encode_items(PyObject* dict, const Place& place, Dict& out);
  std::shared_ptr<Dict> encode_attributes(PyObject* attributes, const Place& place);
  void walked(PyObject* object, Value& value);

  const Ownership* ownership_;
  TensorEncoder tensor_encoder_;
  AddressMap<Seen> seen_;
  std::vector<WalkedTensor> tensors_;
  int depth_ = 0;
  bool in_part_ = false;
  bool retraceable_ = true;
};

bool is_scalar(PyObject* object);
Value scalar(PyObject* object);
std::string utf8(PyObject* text);

template <class F>
void for_each_ordered(PyObject* dict, F&& f) {
  const nanobind::object keys = stolen(PyObject_GetIter(dict));
  while (PyObject* next = PyIter_Next(keys.ptr())) {
    const nanobind::object key = nanobind::steal(next);
    const nanobind::object value = nanobind::borrow(PyDict_GetItemWithError(dict, key.ptr()));
    if (!value.is_valid()) break;
    f(key.ptr(), value.ptr());
  }
  if (PyErr_Occurred()) nanobind::raise_python_error();
}

template <class F>
void for_each_item(PyObject* dict, F&& f) {
  // An OrderedDict has an order of its own.
  if (PyObject_TypeCheck(dict, torch_objects().ordered_dict)) return for_each_ordered(dict, f);
  const Py_ssize_t size = PyDict_Size(dict);
  Py_ssize_t at = 0;
  PyObject *key = nullptr, *value = nullptr;
  while (PyDict_Next(dict, &at, &key, &value)) {
    const nanobind::object held_key = nanobind::borrow(key), held_value = nanobind::borrow(value);
    f(key, value);
    if (PyDict_Size(dict) == size) continue;
    PyErr_SetString(PyExc_RuntimeError, "dictionary changed size during iteration");
    nanobind::raise_python_error();
  }
}

}  // namespace perdure::python
