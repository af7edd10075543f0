#include <nanobind/stl/string.h>

#include "bindings.hpp"
#include "object_encoder.hpp"

namespace nb = nanobind;

namespace perdure::python {
namespace {

Value encode(nb::handle object, const nb::str& root) {
  return ObjectEncoder().encode(object.ptr(), Place::root(root.ptr()), 0);
}

}  // namespace

void bind_encode(nb::module_& m) {
  m.def("encode", &encode, nb::arg("object").none(), nb::arg("root"));
}

}  // namespace perdure::python
