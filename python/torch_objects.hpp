// What the encoders know of Python, torch and the package perdure: looked up once a process, kept
// until it ends.
#pragma once

#include <nanobind/nanobind.h>

#include <perdure/value.hpp>
#include <unordered_map>

#include "dlpack.hpp"

namespace perdure::python {

struct TorchObjects {
  PyTypeObject *tensor, *parameter, *size, *dtype, *device, *layout;
  PyTypeObject *ordered_dict, *counter;
  std::unordered_map<PyObject*, DType> dtypes;  // torch.float32 -> DType::float32
  decltype(dlpack::ExchangeApi::tensor_from_object) read_tensor = nullptr;  // null: an older torch

  // Names, interned.
  PyObject *requires_grad, *is_conj, *is_neg, *untyped_storage, *nbytes, *data_ptr, *version,
      *dtype_name, *is_cpu, *local_tensor;
  PyObject *parameters, *buffers, *modules;  // the dicts of a torch.nn.Module
  PyObject* form_key;                        // perdure.arrays.FORM_KEY

  // For what is rare, the package's own functions.
  nanobind::object is_array, encode_array;          // perdure.arrays
  nanobind::object refuse, refuse_type, attribute;  // perdure.places
  nanobind::object describe, make_storage;          // perdure.tensors
  nanobind::object take_apart;                      // perdure.composites
  nanobind::object make_copier;                     // perdure.devices
};

const TorchObjects& torch_objects();

// A strong reference, or the Python exception that stands.
inline nanobind::object stolen(PyObject* object) {
  if (object == nullptr) nanobind::raise_python_error();
  return nanobind::steal(object);
}

// object.name() for a method without arguments.
inline nanobind::object call_method(PyObject* object, PyObject* name) {
  return stolen(
      PyObject_VectorcallMethod(name, &object, 1 | PY_VECTORCALL_ARGUMENTS_OFFSET, nullptr));
}

// The part of a DTensor that this process has, borrowed; null for anything else.
PyObject* local_tensor(PyObject* object);

inline bool is_tensor(PyObject* object) {
  const TorchObjects& torch = torch_objects();
  return Py_TYPE(object) == torch.tensor || Py_TYPE(object) == torch.parameter;
}

}  // namespace perdure::python
