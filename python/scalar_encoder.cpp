// Python's values without parts.
#include <nanobind/stl/string.h>

#include <cstdint>

#include "object_encoder.hpp"

namespace nb = nanobind;

namespace perdure::python {
namespace {

std::string bytes_of(PyObject* bytes) {
  char* data = nullptr;
  Py_ssize_t size = 0;
  if (PyBytes_AsStringAndSize(bytes, &data, &size) != 0) nb::raise_python_error();
  return {data, static_cast<std::size_t>(size)};
}

Value big_integer(PyObject* x) {
  const nb::handle object(x);
  const auto bits = nb::cast<std::size_t>(object.attr("bit_length")());
  const nb::object bytes =
      object.attr("to_bytes")(bits / 8 + 1, "little", nb::arg("signed") = true);
  return Value(BigInt{bytes_of(bytes.ptr())});
}

Value integer(PyObject* x) {
  int overflow = 0;
  const long long small = PyLong_AsLongLongAndOverflow(x, &overflow);
  return overflow == 0 ? Value(static_cast<std::int64_t>(small)) : big_integer(x);
}

std::string str_of(PyObject* x) { return utf8(nb::str(nb::handle(x)).ptr()); }

}  // namespace

std::string utf8(PyObject* text) {
  Py_ssize_t size = 0;
  if (const char* data = PyUnicode_AsUTF8AndSize(text, &size))
    return {data, static_cast<std::size_t>(size)};
  PyErr_Clear();  // lone surrogates
  return bytes_of(stolen(PyUnicode_AsEncodedString(text, "utf-8", "surrogatepass")).ptr());
}

bool is_scalar(PyObject* object) {
  const PyTypeObject* type = Py_TYPE(object);
  const TorchObjects& torch = torch_objects();
  return type == &PyUnicode_Type || type == &PyLong_Type || type == &PyFloat_Type ||
         type == &PyBool_Type || object == Py_None || type == &PyBytes_Type ||
         type == &PyComplex_Type || type == torch.device || type == torch.layout;
}

Value scalar(PyObject* object) {
  const PyTypeObject* type = Py_TYPE(object);
  if (type == &PyUnicode_Type) return Value(utf8(object));
  if (type == &PyLong_Type) return integer(object);
  if (type == &PyFloat_Type) return Value(PyFloat_AsDouble(object));
  if (type == &PyBool_Type) return Value(object == Py_True);
  if (object == Py_None) return Value();
  if (type == &PyBytes_Type) return Value::bytes(bytes_of(object));
  if (type == &PyComplex_Type)
    return Value(
        std::complex<double>(PyComplex_RealAsDouble(object), PyComplex_ImagAsDouble(object)));
  if (type == torch_objects().device) return Value::device(str_of(object));
  return Value::layout(str_of(object));
}

}  // namespace perdure::python
