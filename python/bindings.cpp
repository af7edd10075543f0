#include "bindings.hpp"

#include <nanobind/stl/string.h>

#include <perdure/perdure.hpp>

namespace nb = nanobind;

namespace perdure::python {

namespace {

nb::module_ errors_module() { return nb::module_::import_("perdure.errors"); }

// A perdure.Error as the core knows it. Who has called the core gets the exception itself.
struct RaisedInPython : Error {
  RaisedInPython(ErrorCode code, const std::string& text, const nb::python_error& python)
      : Error(code, text), raised(python) {}
  nb::python_error raised;
};

ErrorCode code_named(const std::string& name) {
  for (const ErrorCode code :
       {ErrorCode::corrupt, ErrorCode::not_found, ErrorCode::invalid, ErrorCode::unsupported,
        ErrorCode::cancelled, ErrorCode::full, ErrorCode::locked})
    if (name == error_code_name(code)) return code;
  return ErrorCode::io;
}

void translate(const std::exception_ptr& thrown, void*) {
  try {
    std::rethrow_exception(thrown);
  } catch (const RaisedInPython& error) {
    nb::python_error(error.raised).restore();
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
  } catch (const RaisedInPython& known) {
    return nb::borrow(known.raised.value());
  } catch (const Error& known) {
    return exception_of(known);
  } catch (const nb::python_error& raised) {
    return nb::borrow(raised.value());
  } catch (const std::exception& other) {
    return nb::borrow(PyExc_RuntimeError)(other.what());
  }
}

void rethrow_from_callback(nb::python_error& raised) {
  if (!raised.matches(errors_module().attr("Error"))) throw std::move(raised);
  const nb::handle value = raised.value();
  throw RaisedInPython(code_named(nb::cast<std::string>(value.attr("code"))),
                       nb::cast<std::string>(nb::str(value)), raised);
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
