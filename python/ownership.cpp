#include "ownership.hpp"

#include <nanobind/stl/string.h>

#include "module_walk.hpp"

namespace nb = nanobind;

namespace perdure::python {
namespace {

constexpr int kMaxModuleDepth = 500;

// Calls f(group) for the dicts in optimizer.param_groups.
template <class F>
void for_each_group(PyObject* optimizer, F&& f) {
  const nb::object groups = nb::getattr(nb::handle(optimizer), "param_groups", nb::none());
  if (!PyList_Check(groups.ptr())) return;
  for (const nb::handle group : groups)
    if (PyDict_Check(group.ptr())) f(group.ptr());
}

// Calls f(parameter) for those of a group.
template <class F>
void for_each_parameter(PyObject* group, F&& f) {
  PyObject* parameters = PyDict_GetItemString(group, "params");
  if (parameters == nullptr || !PyList_Check(parameters)) return;
  for (Py_ssize_t i = 0; i < PyList_Size(parameters); ++i) f(PyList_GetItem(parameters, i));
}

template <class F>
void for_each_module(PyObject* module, AddressSet& seen, F&& f) {
  if (!seen.insert(module).second) return;
  f(module);
  for_each_member(module, torch_objects().modules,
                  [&](PyObject*, PyObject* child) { for_each_module(child, seen, f); });
}

// The name of the child that `module` wraps (torch.compile, DistributedDataParallel), which is no
// part of its parameters' names; None where it is no wrapper.
nb::object inner_name(PyObject* module) {
  PyObject* children = member_dict(module, torch_objects().modules);
  if (children == nullptr || PyDict_Size(children) != 1) return nb::none();
  return nb::module_::import_("perdure.wrappers").attr("inner_name")(nb::handle(module));
}

void collect_names(PyObject* module, const std::string& prefix, int depth,
                   std::vector<ParameterName>& out) {
  if (depth > kMaxModuleDepth) throw Error(ErrorCode::invalid, "a module that contains itself");
  for_each_member(module, torch_objects().parameters, [&](PyObject* name, PyObject* tensor) {
    out.push_back({tensor, prefix + utf8(name)});
  });
  const nb::object inner = inner_name(module);
  for_each_member(module, torch_objects().modules, [&](PyObject* name, PyObject* child) {
    const bool wrapped = nb::handle(name).equal(inner);
    collect_names(child, wrapped ? prefix : prefix + utf8(name) + ".", depth + 1, out);
  });
}

bool has_own_names(nb::handle module) {
  const nb::object usual = nb::module_::import_("torch").attr("nn").attr("Module");
  return !nb::object(module.type().attr("named_parameters"))
              .is(nb::object(usual.attr("named_parameters"))) ||
         !member_dict(module.ptr(), torch_objects().parameters);
}

}  // namespace

AddressSet Optimizers::parameters() const {
  AddressSet out;
  for (const nb::object& optimizer : optimizers_)
    for_each_group(optimizer.ptr(), [&](PyObject* group) {
      for_each_parameter(group, [&](PyObject* parameter) { out.insert(parameter); });
    });
  return out;
}

ModuleOwnership::ModuleOwnership(PyObject* module, const Optimizers& optimizers) {
  const AddressSet stepped = optimizers.parameters();
  AddressSet seen;
  for_each_module(module, seen, [&](PyObject* each) {
    for_each_member(each, torch_objects().parameters, [&](PyObject*, PyObject* parameter) {
      add(parameter, stepped.contains(parameter) ? Liveness::stepped : Liveness::live);
    });
    for_each_member(each, torch_objects().buffers,
                    [&](PyObject*, PyObject* buffer) { add(buffer, Liveness::live); });
  });
}

void ModuleOwnership::add(PyObject* tensor, Liveness liveness) {
  if (!is_tensor(tensor)) {
    if (PyObject* local = local_tensor(tensor)) add(local, liveness);
    return;
  }
  if (const auto geometry = read_geometry(tensor)) return add(*geometry, liveness);
  if (torch_objects().read_tensor || !attribute_is_true(tensor, torch_objects().is_cpu)) return;
  try {
    const nb::str nowhere("module");
    const Tensor described = TensorEncoder().encode_described(tensor, Place::root(nowhere.ptr()));
    if (described.storage->data != nullptr) add(Geometry(described), liveness);
  } catch (const nb::python_error&) {
    // No plain tensor: it will be refused where it stands in the state_dict.
  }
}

void ModuleOwnership::add(const Geometry& geometry, Liveness liveness) {
  // Two parameters over one memory: it is as live as the one that changes more.
  const auto [known, fresh] = live_.insert(geometry.hash());
  *known = fresh ? liveness : std::min(*known, liveness);
}

Ownership::Claim ModuleOwnership::claim(PyObject*, const Geometry& geometry, bool) const {
  const Liveness* known = live_.find(geometry.hash());
  if (known == nullptr) return {};
  return {.own = true, .liveness = *known};
}

OptimizerOwnership::OptimizerOwnership(PyObject* optimizer) {
  const nb::object state = nb::getattr(nb::handle(optimizer), "state", nb::none());
  if (PyDict_Check(state.ptr()))
    for_each_item(state.ptr(), [&](PyObject*, PyObject* part) {
      if (!PyDict_Check(part)) return;
      parts_.insert(part);
      part_list_.push_back(part);
    });
  for_each_group(optimizer, [&](PyObject* group) {
    for_each_item(group, [&](PyObject*, PyObject* option) {
      if (is_tensor(option)) options_.insert(option);
    });
  });
}

Ownership::Claim OptimizerOwnership::claim(PyObject* tensor, const Geometry&, bool in_part) const {
  if (options_.contains(tensor)) return {.own = true, .liveness = Liveness::detached};
  if (in_part || is_in_parts(tensor)) return {.own = true, .liveness = Liveness::stepped};
  return {};
}

bool OptimizerOwnership::is_in_parts(PyObject* tensor) const {
  if (!in_parts_known_)
    for (PyObject* part : part_list_)
      for_each_item(part, [&](PyObject*, PyObject* value) {
        if (is_tensor(value))
          in_parts_.insert(value);
        else if (PyObject* local = local_tensor(value))
          in_parts_.insert(local);
      });
  in_parts_known_ = true;
  return in_parts_.contains(tensor);
}

std::vector<ParameterName> parameter_names(nb::handle module) {
  std::vector<ParameterName> out;
  if (has_own_names(module)) {  // a wrapper's, say
    for (const nb::handle item :
         module.attr("named_parameters")(nb::arg("remove_duplicate") = false))
      out.push_back({nb::object(item[1]).ptr(), nb::cast<std::string>(item[0])});
  } else {
    collect_names(module.ptr(), "", 0, out);
  }
  return out;
}

CheckpointInfo::Optimizer describe_optimizer(nb::handle optimizer,
                                             const std::vector<ParameterName>& names) {
  AddressMap<const std::string*> known;
  for (const ParameterName& parameter : names)
    if (const auto [name, fresh] = known.insert(parameter.identity); fresh) *name = &parameter.name;
  CheckpointInfo::Optimizer out;
  out.class_name = nb::cast<std::string>(optimizer.type().attr("__name__"));
  bool all_known = true;
  for_each_group(optimizer.ptr(), [&](PyObject* group) {
    std::vector<std::string>& own = out.param_names.emplace_back();
    for_each_parameter(group, [&](PyObject* parameter) {
      const std::string* const* name = known.find(parameter);
      all_known = all_known && name != nullptr;
      if (all_known) own.push_back(**name);
    });
  });
  if (!all_known) out.param_names.clear();
  return out;
}

}  // namespace perdure::python
