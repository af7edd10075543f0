// Tensors on a GPU: copied by torch itself, through perdure.devices.
#pragma once

#include <nanobind/nanobind.h>

#include <memory>
#include <perdure/value.hpp>

#include "dlpack.hpp"

namespace perdure::python {

// What copies from the device that `tensor` is on, one for each device; null for the CPU and where
// torch has to copy tensors as a whole. With the GIL.
std::shared_ptr<DeviceCopier> copier_of(dlpack::Device device, PyObject* tensor);

}  // namespace perdure::python
