// A Python object as the owner of a storage's memory.
#pragma once

#include <nanobind/nanobind.h>

#include <memory>

namespace perdure::python {

// It may be let go on any thread, and while Python shuts down.
struct ReleaseObject {
  void operator()(const void* object) const {
    if (nanobind::detail::cleanup_guard guard{})
      Py_DECREF(static_cast<PyObject*>(const_cast<void*>(object)));
  }
};

inline std::shared_ptr<const void> owned_by(nanobind::object owner) {
  return {static_cast<const void*>(owner.release().ptr()), ReleaseObject{}};
}

// The object behind it; null where something else owns it.
inline PyObject* owner_object(const std::shared_ptr<const void>& owner) {
  if (!std::get_deleter<ReleaseObject>(owner)) return nullptr;
  return static_cast<PyObject*>(const_cast<void*>(owner.get()));
}

}  // namespace perdure::python
