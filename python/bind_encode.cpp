#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include "bindings.hpp"
#include "entry_encoder.hpp"

namespace nb = nanobind;

namespace perdure::python {
namespace {

Value encode(nb::handle object, const nb::str& root) {
  return ObjectEncoder().encode(object.ptr(), Place::root(root.ptr()), 0);
}

void make_module_encoder(ModuleEncoder* place, nb::object module, nb::str root,
                         std::shared_ptr<Optimizers> optimizers) {
  new (place) ModuleEncoder(std::move(module), std::move(root), std::move(optimizers));
}

}  // namespace

void bind_encode(nb::module_& m) {
  m.def("encode", &encode, nb::arg("object").none(), nb::arg("root"));
  nb::class_<Optimizers>(m, "Optimizers").def(nb::init<>()).def("add", &Optimizers::add);
  nb::class_<EntryEncoder>(m, "EntryEncoder")
      .def("encode", &EntryEncoder::encode, nb::arg("state_dict").none(),
           nb::arg("dtensors") = nb::none())
      .def("versions", &EntryEncoder::versions)
      .def("forget", &EntryEncoder::forget);
  nb::class_<ModuleEncoder, EntryEncoder>(m, "ModuleEncoder")
      .def("__init__", &make_module_encoder, nb::arg("module"), nb::arg("root"),
           nb::arg("optimizers"));
  nb::class_<OptimizerEncoder, EntryEncoder>(m, "OptimizerEncoder")
      .def(nb::init<nb::object, nb::str>(), nb::arg("optimizer"), nb::arg("root"));
}

}  // namespace perdure::python
