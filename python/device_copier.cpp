#include "device_copier.hpp"

#include <nanobind/ndarray.h>

#include <cstdint>
#include <map>
#include <utility>

#include "object_owner.hpp"
#include "torch_objects.hpp"

namespace nb = nanobind;

namespace perdure::python {
namespace {

// A run of bytes as a tensor of torch's, which keeps nothing alive.
nb::object tensor_over(std::byte* data, std::size_t size, dlpack::Device device) {
  const nb::ndarray<nb::pytorch, std::uint8_t> array(
      data, {size}, nb::none(), {}, nb::dtype<std::uint8_t>(), device.type, device.id);
  return nb::cast(array);
}

// A perdure.devices.StreamCopier.
class PythonCopier final : public DeviceCopier {
 public:
  PythonCopier(nb::object copier, dlpack::Device device)
      : owner_(owned_by(std::move(copier))), device_(device) {}

  void catch_up() override { call("catch_up"); }
  void finish() override { call("finish"); }
  void copy(MutableBytes to, const std::byte* from) override {
    const nb::gil_scoped_acquire gil;
    const nb::object target = tensor_over(to.data(), to.size(), {dlpack::kCpu, 0});
    const nb::object source = tensor_over(const_cast<std::byte*>(from), to.size(), device_);
    copier().attr("copy")(target, source);
  }

 private:
  nb::handle copier() const { return owner_object(owner_); }
  void call(const char* method) const {
    const nb::gil_scoped_acquire gil;
    copier().attr(method)();
  }

  std::shared_ptr<const void> owner_;
  dlpack::Device device_;
};

}  // namespace

std::shared_ptr<DeviceCopier> copier_of(dlpack::Device device, PyObject* tensor) {
  if (dlpack::is_host(device.type)) return nullptr;
  // Never destroyed, because Python is gone before it would be.
  static auto* const copiers =
      new std::map<std::pair<std::int32_t, std::int32_t>, std::shared_ptr<DeviceCopier>>();
  const auto [place, fresh] = copiers->try_emplace({device.type, device.id});
  if (fresh) {
    nb::object made = torch_objects().make_copier(nb::handle(tensor).attr("device"));
    if (!made.is_none()) place->second = std::make_shared<PythonCopier>(std::move(made), device);
  }
  return place->second;
}

}  // namespace perdure::python
