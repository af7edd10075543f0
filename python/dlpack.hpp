// What perdure reads through DLPack's C exchange API, after the specification (DLPack 1.3,
// dmlc.github.io/dlpack): where a tensor lies and what shape it has, in one call and without a
// reference taken. torch has it since 2.10.
#pragma once

#include <cstdint>

namespace perdure::python::dlpack {

constexpr const char* kAttribute = "__dlpack_c_exchange_api__";  // of the tensor type: a capsule
constexpr const char* kCapsule = "dlpack_exchange_api";
constexpr std::uint32_t kMajorVersion = 1;

// Devices in the memory of the CPU; pinned memory is said to be of the GPU's driver.
constexpr std::int32_t kCpu = 1, kCudaHost = 3, kRocmHost = 11;
constexpr bool is_host(std::int32_t type) {
  return type == kCpu || type == kCudaHost || type == kRocmHost;
}

struct Device {
  std::int32_t type;
  std::int32_t id;
};

struct DataType {
  std::uint8_t code;
  std::uint8_t bits;
  std::uint16_t lanes;
};

struct Tensor {
  void* data;
  Device device;
  std::int32_t ndim;
  DataType dtype;
  std::int64_t* shape;
  std::int64_t* strides;
  std::uint64_t byte_offset;
};

struct ExchangeApi {
  struct {
    std::uint32_t major, minor;
    const void* previous;
  } header;
  void* allocate;
  void* managed_from_object;
  void* managed_to_object;
  // Fills in what belongs to the tensor and lives as long as it does. 0, or -1 with a Python
  // exception set. May be null.
  int (*tensor_from_object)(void* object, Tensor* out);
  void* current_stream;
};

}  // namespace perdure::python::dlpack
