// The parameters and buffers of a torch.nn.Module, read from its dicts: no Python code runs.
#pragma once

#include "object_encoder.hpp"

namespace perdure::python {

// module.__dict__[name], borrowed; null where there is none, as in a ScriptModule.
inline PyObject* member_dict(PyObject* module, PyObject* name) {
  const nanobind::object attributes = nanobind::steal(PyObject_GenericGetDict(module, nullptr));
  PyObject* found =
      attributes.is_valid() ? PyDict_GetItemWithError(attributes.ptr(), name) : nullptr;
  if (found == nullptr) PyErr_Clear();
  return found != nullptr && PyDict_Check(found) ? found : nullptr;
}

// Calls f(key, tensor) for what is one in such a dict.
template <class F>
void for_each_member(PyObject* module, PyObject* name, F&& f) {
  PyObject* members = member_dict(module, name);
  if (members == nullptr) return;
  for_each_item(members, [&](PyObject* key, PyObject* value) {
    if (value != Py_None) f(key, value);
  });
}

}  // namespace perdure::python
