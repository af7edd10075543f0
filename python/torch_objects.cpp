#include "torch_objects.hpp"

#include <string_view>

namespace nb = nanobind;

namespace perdure::python {
namespace {

PyTypeObject* type_of(const nb::object& x) {
  return reinterpret_cast<PyTypeObject*>(nb::object(x).release().ptr());
}

PyObject* name(const char* text) {
  return stolen(PyUnicode_InternFromString(text)).release().ptr();
}

// Null where this torch has no exchange API, or one that is not ours.
decltype(dlpack::ExchangeApi::tensor_from_object) find_reader(const nb::object& tensor_type) {
  if (!nb::hasattr(tensor_type, dlpack::kAttribute)) return nullptr;
  const nb::object capsule = tensor_type.attr(dlpack::kAttribute);
  const auto* api = static_cast<const dlpack::ExchangeApi*>(
      PyCapsule_GetPointer(capsule.ptr(), dlpack::kCapsule));
  if (api == nullptr) PyErr_Clear();
  if (api == nullptr || api->header.major != dlpack::kMajorVersion) return nullptr;
  return api->tensor_from_object;
}

std::unordered_map<PyObject*, DType> dtypes_of(const nb::module_& torch) {
  std::unordered_map<PyObject*, DType> out;
  for (std::size_t i = 0; i < kDTypeCount; ++i) {
    const auto dtype = static_cast<DType>(i);
    const std::string text(dtype_name(dtype));
    if (nb::hasattr(torch, text.c_str()))  // an older torch has fewer
      out.emplace(nb::object(torch.attr(text.c_str())).release().ptr(), dtype);
  }
  return out;
}

void find_types(TorchObjects& found) {
  const nb::module_ torch = nb::module_::import_("torch");
  const nb::module_ collections = nb::module_::import_("collections");
  found.tensor = type_of(torch.attr("Tensor"));
  found.parameter = type_of(torch.attr("nn").attr("Parameter"));
  found.size = type_of(torch.attr("Size"));
  found.dtype = type_of(torch.attr("dtype"));
  found.device = type_of(torch.attr("device"));
  found.layout = type_of(torch.attr("layout"));
  found.ordered_dict = type_of(collections.attr("OrderedDict"));
  found.counter = type_of(collections.attr("Counter"));
  found.dtypes = dtypes_of(torch);
  found.read_tensor = find_reader(torch.attr("Tensor"));
}

void find_names(TorchObjects& found) {
  found.requires_grad = name("requires_grad");
  found.is_conj = name("is_conj");
  found.is_neg = name("is_neg");
  found.untyped_storage = name("untyped_storage");
  found.nbytes = name("nbytes");
  found.data_ptr = name("data_ptr");
  found.version = name("_version");
  found.dtype_name = name("dtype");
  found.is_cpu = name("is_cpu");
  found.local_tensor = name("_local_tensor");
  found.parameters = name("_parameters");
  found.buffers = name("_buffers");
  found.modules = name("_modules");
}

void find_functions(TorchObjects& found) {
  const nb::module_ arrays = nb::module_::import_("perdure.arrays");
  const nb::module_ composites = nb::module_::import_("perdure.composites");
  const nb::module_ devices = nb::module_::import_("perdure.devices");
  const nb::module_ places = nb::module_::import_("perdure.places");
  const nb::module_ tensors = nb::module_::import_("perdure.tensors");
  found.form_key = nb::object(arrays.attr("FORM_KEY")).release().ptr();
  found.is_array = arrays.attr("is_array");
  found.encode_array = arrays.attr("encode");
  found.take_apart = composites.attr("take_apart");
  found.make_copier = devices.attr("make_copier");
  found.refuse = places.attr("refuse");
  found.refuse_type = places.attr("refuse_type");
  found.attribute = places.attr("Attribute");
  found.describe = tensors.attr("describe");
  found.make_storage = tensors.attr("make_storage");
}

}  // namespace

const TorchObjects& torch_objects() {
  // The GIL guards it, and not a static's own lock: an import may let another thread in. Never
  // destroyed, because Python is gone before it would be.
  static const TorchObjects* found = nullptr;
  if (found != nullptr) return *found;
  auto* made = new TorchObjects();
  find_types(*made);
  find_names(*made);
  find_functions(*made);
  return *(found = made);
}

PyObject* local_tensor(PyObject* object) {
  const nb::handle type(reinterpret_cast<PyObject*>(Py_TYPE(object)));
  const nb::object name = type.attr("__name__");
  if (!nb::isinstance<nb::str>(name) || std::string_view(nb::str(name).c_str()) != "DTensor")
    return nullptr;
  const nb::object found = nb::steal(PyObject_GetAttr(object, torch_objects().local_tensor));
  if (!found.is_valid()) PyErr_Clear();
  return found.ptr();  // the DTensor has it
}

}  // namespace perdure::python
