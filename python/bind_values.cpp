#include <nanobind/ndarray.h>
#include <nanobind/stl/complex.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/string_view.h>
#include <nanobind/stl/vector.h>

#include <cstdint>
#include <perdure/value.hpp>

#include "bindings.hpp"
#include "object_owner.hpp"

namespace nb = nanobind;

namespace perdure::python {

namespace {

void set_data(TensorStorage& storage, std::uintptr_t address, nb::object owner) {
  storage.data = reinterpret_cast<std::byte*>(address);
  storage.owner = owned_by(std::move(owner));
}

nb::object owner_of(const TensorStorage& storage) {
  PyObject* owner = owner_object(storage.owner);
  return owner ? nb::borrow(owner) : nb::none();
}

std::shared_ptr<TensorStorage> make_storage(std::uintptr_t address, std::uint64_t size,
                                            std::string device, nb::object owner) {
  auto storage = std::make_shared<TensorStorage>();
  storage->size = size;
  storage->device = std::move(device);
  set_data(*storage, address, std::move(owner));
  return storage;
}

// The bytes as a tensor of torch's, over the same memory, which it keeps.
nb::ndarray<nb::pytorch, std::uint8_t> storage_tensor(std::shared_ptr<TensorStorage> storage) {
  if (storage->copier) throw Error(ErrorCode::invalid, "the storage is on " + storage->device);
  std::uint8_t* const data = reinterpret_cast<std::uint8_t*>(storage->data);
  const std::size_t size = storage->size;
  auto* const kept = new std::shared_ptr<TensorStorage>(std::move(storage));
  const nb::capsule owner(
      kept, [](void* p) noexcept { delete static_cast<std::shared_ptr<TensorStorage>*>(p); });
  return nb::ndarray<nb::pytorch, std::uint8_t>(data, {size}, owner);
}

DType dtype_of(const std::string& name) {
  if (const auto dtype = dtype_from_name(name)) return *dtype;
  throw Error(ErrorCode::invalid, "no dtype is called " + name);
}

Value make_tensor(std::shared_ptr<TensorStorage> storage, const std::string& dtype,
                  std::vector<std::int64_t> shape, std::vector<std::int64_t> strides,
                  std::int64_t offset, bool requires_grad, bool parameter, bool conj, bool neg,
                  bool live) {
  return Value(Tensor{.storage = std::move(storage),
                      .dtype = dtype_of(dtype),
                      .shape = std::move(shape),
                      .strides = std::move(strides),
                      .storage_offset = offset,
                      .requires_grad = requires_grad,
                      .parameter = parameter,
                      .conj = conj,
                      .neg = neg,
                      .liveness = live ? Liveness::live : Liveness::detached});
}

std::string text(const nb::bytes& x) { return {x.c_str(), x.size()}; }

nb::bytes text(const std::string& x) { return nb::bytes(x.data(), x.size()); }

Value make_mapping(Kind kind, const std::vector<Dict::Entry>& entries,
                   const std::optional<Value>& attributes) {
  Dict dict(kind);
  for (const auto& [key, value] : entries) dict.set(key, value);
  if (attributes) dict.set_attributes(std::make_shared<Dict>(attributes->as_dict()));
  return Value(std::move(dict));
}

nb::object attributes_of(const Value& value) {
  const auto& attributes = value.as_dict().attributes();
  return attributes ? nb::cast(Value(*attributes)) : nb::none();
}

nb::object big_integer(const BigInt& x) {
  return nb::borrow(reinterpret_cast<PyObject*>(&PyLong_Type))
      .attr("from_bytes")(text(x.bytes), "little", nb::arg("signed") = true);
}

nb::object integer(const Value& value) {
  if (const BigInt* big = value.as_big_int()) return big_integer(*big);
  return nb::int_(value.as_int());
}

nb::object unicode(const std::string& x) {
  return nb::steal(
      PyUnicode_DecodeUTF8(x.data(), static_cast<Py_ssize_t>(x.size()), "surrogatepass"));
}

nb::object bytearray(const std::string& x) {
  return nb::steal(PyByteArray_FromStringAndSize(x.data(), static_cast<Py_ssize_t>(x.size())));
}

// The Python object of a value that is one by itself; NotImplemented for containers, torch's types
// and tensors.
nb::object scalar(const Value& value) {
  switch (value.kind()) {
    case Kind::none:
      return nb::none();
    case Kind::boolean:
      return nb::bool_(value.as_bool());
    case Kind::integer:
      return integer(value);
    case Kind::real:
      return nb::float_(value.as_double());
    case Kind::complex:
      return nb::cast(value.as_complex());
    case Kind::string:
      return unicode(value.as_string());
    case Kind::bytes:
      return text(value.as_string());
    case Kind::bytearray:
      return bytearray(value.as_string());
    default:
      return nb::borrow(Py_NotImplemented);
  }
}

std::string name_of(const Value& value) {
  if (value.kind() == Kind::dtype) return std::string(dtype_name(value.as_dtype()));
  if (value.kind() == Kind::opaque) return value.as_opaque().module + '.' + value.as_opaque().name;
  return value.as_string();
}

void bind_constructors(nb::class_<Value>& value) {
  value.def_static("of_none", [] { return Value(); })
      .def_static("of_boolean", [](bool x) { return Value(x); })
      .def_static("of_integer", [](std::int64_t x) { return Value(x); })
      .def_static("of_big_integer", [](const nb::bytes& x) { return Value(BigInt{text(x)}); })
      .def_static("of_real", [](double x) { return Value(x); })
      .def_static("of_complex", [](std::complex<double> x) { return Value(x); })
      .def_static("of_string", [](const nb::bytes& utf8) { return Value(text(utf8)); })
      .def_static("of_bytes", [](const nb::bytes& x) { return Value::bytes(text(x)); })
      .def_static("of_bytearray", [](const nb::bytes& x) { return Value::bytearray(text(x)); })
      .def_static("of_list", [](Value::Items x) { return Value::list(std::move(x)); })
      .def_static("of_tuple", [](Value::Items x) { return Value::tuple(std::move(x)); })
      .def_static("of_set", [](Value::Items x) { return Value::set(std::move(x)); })
      .def_static("of_size", [](std::vector<std::int64_t> x) { return Value::size(std::move(x)); })
      .def_static("of_mapping", &make_mapping, nb::arg("kind"), nb::arg("entries"),
                  nb::arg("attributes") = nb::none())
      .def_static("of_dtype", [](const std::string& name) { return Value(dtype_of(name)); })
      .def_static("of_device", [](std::string name) { return Value::device(std::move(name)); })
      .def_static("of_layout", [](std::string name) { return Value::layout(std::move(name)); })
      .def_static("of_tensor", &make_tensor, nb::arg("storage"), nb::arg("dtype"), nb::arg("shape"),
                  nb::arg("strides"), nb::arg("storage_offset"), nb::arg("requires_grad") = false,
                  nb::arg("parameter") = false, nb::arg("conj") = false, nb::arg("neg") = false,
                  nb::arg("live") = false);
}

void bind_accessors(nb::class_<Value>& value) {
  value.def_prop_ro("kind", &Value::kind)
      .def_prop_ro("kind_name", [](const Value& v) { return kind_name(v.kind()); })
      .def("scalar", &scalar)
      .def("name", [](const Value& v) { return text_for_people(name_of(v)); })
      .def("items", [](const Value& v) { return v.as_items(); })
      .def("entries", [](const Value& v) { return v.as_dict().entries(); })
      .def("attributes", &attributes_of)
      .def("as_tensor", [](const Value& v) { return v.as_tensor(); })
      .def_prop_ro("identity",
                   [](const Value& v) { return reinterpret_cast<std::uintptr_t>(v.identity()); })
      .def("__len__",
           [](const Value& v) { return v.is_mapping() ? v.as_dict().size() : v.as_items().size(); })
      .def("__repr__", [](const Value& v) { return "<perdure._core.Value " + repr(v) + ">"; });
}

void bind_kinds(nb::module_& m) {
  nb::enum_<Kind> kinds(m, "Kind");
  for (int k = 0; k <= static_cast<int>(Kind::opaque); ++k) {
    const Kind kind = static_cast<Kind>(k);
    static const char* const names[] = {
        "none",      "boolean", "integer", "real",   "complex", "string",    "bytes",
        "bytearray", "list",    "tuple",   "set",    "size",    "dict",      "ordered_dict",
        "counter",   "dtype",   "device",  "layout", "tensor",  "composite", "opaque"};
    kinds.value(names[k], kind);
  }
}

void bind_tensors(nb::module_& m) {
  nb::class_<TensorStorage>(m, "Storage")
      .def(nb::new_(&make_storage), nb::arg("address"), nb::arg("size"), nb::arg("device") = "cpu",
           nb::arg("owner") = nb::none())
      .def("set_data", &set_data, nb::arg("address"), nb::arg("owner").none())
      .def_prop_ro("owner", &owner_of)
      .def("tensor", &storage_tensor)
      .def_ro("size", &TensorStorage::size)
      .def_rw("device", &TensorStorage::device)
      .def_ro("record", &TensorStorage::record)
      .def_prop_ro("address",
                   [](const TensorStorage& s) { return reinterpret_cast<std::uintptr_t>(s.data); })
      .def_prop_ro("identity",
                   [](const TensorStorage& s) { return reinterpret_cast<std::uintptr_t>(&s); });
  nb::enum_<Liveness>(m, "Liveness")
      .value("detached", Liveness::detached)
      .value("live", Liveness::live)
      .value("stepped", Liveness::stepped);
  nb::class_<Tensor>(m, "Tensor")
      .def_ro("storage", &Tensor::storage)
      .def_prop_ro("dtype", [](const Tensor& t) { return std::string(dtype_name(t.dtype)); })
      .def_ro("shape", &Tensor::shape)
      .def_ro("strides", &Tensor::strides)
      .def_ro("storage_offset", &Tensor::storage_offset)
      .def_ro("requires_grad", &Tensor::requires_grad)
      .def_ro("parameter", &Tensor::parameter)
      .def_ro("conj", &Tensor::conj)
      .def_ro("neg", &Tensor::neg)
      .def_ro("liveness", &Tensor::liveness);
}

}  // namespace

void bind_values(nb::module_& m) {
  bind_kinds(m);
  nb::class_<Value> value(m, "Value");
  bind_constructors(value);
  bind_accessors(value);
  bind_tensors(m);
}

}  // namespace perdure::python
