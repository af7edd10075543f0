#include "tensor_encoder.hpp"

#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <cstdint>

#include "device_copier.hpp"
#include "object_owner.hpp"

namespace nb = nanobind;

namespace perdure::python {
namespace {

// DLPack's codes for the dtypes that it has in common with torch. Not so the integers of 8 bits:
// torch says the same of its dtypes of 1 to 7.
std::optional<DType> dtype_of(dlpack::DataType x) {
  if (x.lanes != 1) return std::nullopt;
  switch (x.code << 8 | x.bits) {
    case 0 << 8 | 16:
      return DType::int16;
    case 0 << 8 | 32:
      return DType::int32;
    case 0 << 8 | 64:
      return DType::int64;
    case 1 << 8 | 16:
      return DType::uint16;
    case 1 << 8 | 32:
      return DType::uint32;
    case 1 << 8 | 64:
      return DType::uint64;
    case 2 << 8 | 16:
      return DType::float16;
    case 2 << 8 | 32:
      return DType::float32;
    case 2 << 8 | 64:
      return DType::float64;
    case 4 << 8 | 16:
      return DType::bfloat16;
    case 5 << 8 | 32:
      return DType::complex32;
    case 5 << 8 | 64:
      return DType::complex64;
    case 5 << 8 | 128:
      return DType::complex128;
    case 6 << 8 | 8:
      return DType::boolean;
    default:
      return std::nullopt;
  }
}

std::optional<DType> dtype_attribute(PyObject* tensor) {
  const auto& known = torch_objects().dtypes;
  const auto it = known.find(stolen(PyObject_GetAttr(tensor, torch_objects().dtype_name)).ptr());
  return it == known.end() ? std::nullopt : std::optional(it->second);
}

std::shared_ptr<TensorStorage> plain_storage(const nb::object& storage,
                                             const std::shared_ptr<DeviceCopier>& copier) {
  auto made = std::make_shared<TensorStorage>();
  made->size = unsigned_result(storage.ptr(), torch_objects().nbytes);
  made->data =
      reinterpret_cast<std::byte*>(unsigned_result(storage.ptr(), torch_objects().data_ptr));
  if (copier) {
    const nb::object device = storage.attr("device");
    made->device = nb::str(nb::handle(device)).c_str();
  }
  made->copier = copier;
  made->owner = owned_by(storage);
  return made;
}

}  // namespace

bool is_complex(DType dtype) {
  return dtype == DType::complex128 || dtype == DType::complex64 || dtype == DType::complex32;
}

Geometry::Geometry(const Tensor& tensor)
    : dtype(tensor.dtype),
      dimensions(tensor.shape.size()),
      shape(tensor.shape.data()),
      strides(tensor.strides.data()) {
  if (tensor.storage->data != nullptr)
    data =
        tensor.storage->data + tensor.storage_offset * static_cast<std::int64_t>(itemsize(dtype));
}

bool Geometry::operator==(const Geometry& other) const {
  return data == other.data && dtype == other.dtype && dimensions == other.dimensions &&
         std::equal(shape, shape + dimensions, other.shape) &&
         std::equal(strides, strides + dimensions, other.strides);
}

std::size_t Geometry::hash() const {
  std::size_t hash = reinterpret_cast<std::uintptr_t>(data);
  const auto mix = [&](std::int64_t x) {
    hash = (hash ^ static_cast<std::size_t>(x)) * 0x9E3779B97F4A7C15u;
    hash ^= hash >> 32;
  };
  mix(static_cast<std::int64_t>(dtype));
  for (std::size_t i = 0; i < dimensions; ++i) mix(shape[i]), mix(strides[i]);
  return hash | 1;  // never 0
}

std::optional<Geometry> read_geometry(PyObject* tensor) {
  const auto read = torch_objects().read_tensor;
  dlpack::Tensor t{};
  if (read == nullptr) return std::nullopt;
  if (read(tensor, &t) != 0) {
    PyErr_Clear();  // sparse, quantized, nested, meta: the attributes say which
    return std::nullopt;
  }
  if (t.data == nullptr) return std::nullopt;
  std::shared_ptr<DeviceCopier> copier = copier_of(t.device, tensor);
  if (!copier && !dlpack::is_host(t.device.type)) return std::nullopt;
  std::optional<DType> dtype = dtype_of(t.dtype);
  if (!dtype) dtype = dtype_attribute(tensor);
  if (!dtype) return std::nullopt;
  Geometry out;
  out.data = static_cast<const std::byte*>(t.data) + t.byte_offset;
  out.dtype = *dtype;
  out.dimensions = static_cast<std::size_t>(t.ndim);
  out.shape = t.shape;
  out.strides = t.strides;
  out.copier = std::move(copier);
  return out;
}

bool has_attributes(PyObject* tensor) {
  return PyDict_Size(stolen(PyObject_GenericGetDict(tensor, nullptr)).ptr()) != 0;
}

bool attribute_is_true(PyObject* object, PyObject* name) {
  return stolen(PyObject_GetAttr(object, name)).ptr() == Py_True;
}

bool method_is_true(PyObject* object, PyObject* name) {
  return call_method(object, name).ptr() == Py_True;
}

std::uint64_t unsigned_result(PyObject* object, PyObject* method) {
  const std::uint64_t x = PyLong_AsUnsignedLongLong(call_method(object, method).ptr());
  if (x == static_cast<std::uint64_t>(-1) && PyErr_Occurred()) nb::raise_python_error();
  return x;
}

std::uint64_t version_of(PyObject* tensor) {
  const nb::object x = nb::steal(PyObject_GetAttr(tensor, torch_objects().version));
  const std::uint64_t version = x.is_valid() ? PyLong_AsUnsignedLongLong(x.ptr()) : 0;
  if (!PyErr_Occurred()) return version;
  PyErr_Clear();  // inference tensors do not count
  return 0;
}

std::optional<Tensor> TensorEncoder::encode_quickly(PyObject* tensor, const Place& place) {
  Tensor out;
  if (!encode_plain(tensor, place, out)) return std::nullopt;
  out.parameter = Py_TYPE(tensor) == torch_objects().parameter;
  return out;
}

// False where the attributes must be asked, also for what will turn out to be refused.
bool TensorEncoder::encode_plain(PyObject* tensor, const Place& place, Tensor& out) {
  const std::optional<Geometry> geometry = read_geometry(tensor);
  if (!geometry || has_attributes(tensor)) return false;
  out.storage = storage_of(tensor, &*geometry, place);
  const std::byte* begin = out.storage->data;
  const std::size_t size = itemsize(geometry->dtype);
  if (begin == nullptr || geometry->data < begin || geometry->data >= begin + out.storage->size ||
      static_cast<std::size_t>(geometry->data - begin) % size != 0)
    return false;
  out.dtype = geometry->dtype;
  out.shape.assign(geometry->shape, geometry->shape + geometry->dimensions);
  out.strides.assign(geometry->strides, geometry->strides + geometry->dimensions);
  out.storage_offset = (geometry->data - begin) / static_cast<std::int64_t>(size);
  const TorchObjects& torch = torch_objects();
  out.requires_grad = attribute_is_true(tensor, torch.requires_grad);
  out.conj = is_complex(out.dtype) && method_is_true(tensor, torch.is_conj);
  out.neg = method_is_true(tensor, torch.is_neg);
  return true;
}

Tensor TensorEncoder::encode_described(PyObject* tensor, const Place& place) {
  const auto described =
      nb::cast<nb::tuple>(torch_objects().describe(nb::handle(tensor), place.as_tuple()));
  Tensor out;
  out.dtype = torch_objects().dtypes.at(nb::handle(described[0]).ptr());
  out.shape = nb::cast<std::vector<std::int64_t>>(described[1]);
  out.strides = nb::cast<std::vector<std::int64_t>>(described[2]);
  out.storage_offset = nb::cast<std::int64_t>(described[3]);
  out.requires_grad = nb::cast<bool>(described[4]);
  out.conj = nb::cast<bool>(described[5]);
  out.neg = nb::cast<bool>(described[6]);
  out.parameter = Py_TYPE(tensor) == torch_objects().parameter;
  out.storage = storage_of(tensor, nullptr, place);
  return out;
}

std::shared_ptr<TensorStorage> TensorEncoder::storage_of(PyObject* tensor, const Geometry* geometry,
                                                         const Place& place) {
  nb::object object = call_method(tensor, torch_objects().untyped_storage);
  if (const Known* known = storages_.find(object.ptr())) return known->storage;
  Known known;
  known.storage = geometry != nullptr ? plain_storage(object, geometry->copier)
                                      : nb::cast<std::shared_ptr<TensorStorage>>(
                                            torch_objects().make_storage(object, place.as_tuple()));
  known.object = std::move(object);
  const void* address = known.object.ptr();
  return (*storages_.insert(address).first = std::move(known)).storage;
}

}  // namespace perdure::python
