// torch tensors to the core's: addresses, shapes and flags; no bytes are copied but those of
// devices without streams.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>

#include "address_map.hpp"
#include "place.hpp"

namespace perdure::python {

// Where the elements of a plain tensor lie, in CPU memory or on a device with a copier. Refers to
// the tensor.
struct Geometry {
  const std::byte* data = nullptr;
  DType dtype = DType::float32;
  std::size_t dimensions = 0;
  const std::int64_t* shape = nullptr;
  const std::int64_t* strides = nullptr;
  std::shared_ptr<DeviceCopier> copier;  // null: CPU memory

  explicit Geometry() = default;
  explicit Geometry(const Tensor& tensor);
  bool operator==(const Geometry& other) const;
  std::size_t hash() const;
};

// Nothing for what is no such tensor, has no elements, or is of a torch without the exchange API:
// there the attributes must be asked.
std::optional<Geometry> read_geometry(PyObject* tensor);

bool is_complex(DType dtype);
// Whether a tensor has attributes of its own.
bool has_attributes(PyObject* tensor);
bool attribute_is_true(PyObject* object, PyObject* name);
bool method_is_true(PyObject* object, PyObject* name);
std::uint64_t unsigned_result(PyObject* object, PyObject* method);
// How often a tensor was written to, as autograd counts; 0 where it does not.
std::uint64_t version_of(PyObject* tensor);

// The tensors of one state: what shares a storage shares it afterwards.
class TensorEncoder {
 public:
  // Nothing for what cannot be read without asking its attributes: it may be none that is one run
  // of memory with a shape.
  std::optional<Tensor> encode_quickly(PyObject* tensor, const Place& place);
  // Through perdure.tensors.describe, which raises, naming the place, for what is none.
  Tensor encode_described(PyObject* tensor, const Place& place);

 private:
  struct Known {
    nanobind::object object;  // the torch storage: kept, so that its address means it alone
    std::shared_ptr<TensorStorage> storage;
  };

  // `geometry`: null where the attributes must be asked.
  std::shared_ptr<TensorStorage> storage_of(PyObject* tensor, const Geometry* geometry,
                                            const Place& place);
  bool encode_plain(PyObject* tensor, const Place& place, Tensor& out);

  AddressMap<Known> storages_;
};

}  // namespace perdure::python
