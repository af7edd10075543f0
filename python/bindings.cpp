#include "bindings.hpp"

#include <nanobind/stl/string.h>

#include <perdure/perdure.hpp>

namespace nb = nanobind;

namespace perdure::python {

namespace {

nb::module_ errors_module() { return nb::module_::import_("perdure.errors"); }

void translate(const std::exception_ptr& thrown, void*) {
  try {
    std::rethrow_exception(thrown);
  } catch (const Error& error) {
    const nb::object exception = exception_of(error);
    PyErr_SetObject(reinterpret_cast<PyObject*>(Py_TYPE(exception.ptr())), exception.ptr());
  }
}

}  // namespace

nb::object text_for_people(const std::string& text) {
  return nb::steal(
      PyUnicode_DecodeUTF8(text.data(), static_cast<Py_ssize_t>(text.size()), "backslashreplace"));
}

nb::object exception_of(const Error& error) {
  return errors_module().attr("from_core")(error_code_name(error.code()),
                                           text_for_people(error.what()), error.errno_value());
}

nb::object exception_of(const std::exception_ptr& error) {
  if (!error) return nb::none();
  try {
    std::rethrow_exception(error);
  } catch (const Error& known) {
    return exception_of(known);
  } catch (const nb::python_error& raised) {
    return nb::borrow(raised.value());
  } catch (const std::exception& other) {
    return nb::borrow(PyExc_RuntimeError)(other.what());
  }
}

void rethrow_from_callback(nb::python_error& raised) {
  if (raised.matches(errors_module().attr("CorruptionError")))
    throw Error(ErrorCode::corrupt, nb::cast<std::string>(nb::str(raised.value())));
  throw std::move(raised);
}

}  // namespace perdure::python

NB_MODULE(_core, m) {
  m.doc() =
      "The C++ core of perdure. Use the package perdure, not this module: it may change at any "
      "time.";
  m.attr("__version__") = PERDURE_VERSION;
  // An object that lives until the interpreter ends (a manager in a global, say) is no leak.
  nb::set_leak_warnings(false);
  nb::register_exception_translator(perdure::python::translate);
  perdure::python::bind_values(m);
  perdure::python::bind_encode(m);
  perdure::python::bind_files(m);
  perdure::python::bind_numbers(m);
  perdure::python::bind_dcp(m);
  perdure::python::bind_engine(m);
}
