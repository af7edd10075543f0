// Which tensors in a state_dict are the registered object's own memory, and when they change.
#pragma once

#include <perdure/file.hpp>
#include <perdure/state.hpp>
#include <string>
#include <vector>

#include "object_encoder.hpp"

namespace perdure::python {

// The registered optimizers of one state: what they step changes at their step and not otherwise.
class Optimizers {
 public:
  void add(nanobind::object optimizer) { optimizers_.push_back(std::move(optimizer)); }
  // The parameters in their param_groups, as they are now.
  AddressSet parameters() const;

 private:
  std::vector<nanobind::object> optimizers_;
};

// Parameters and buffers of a torch.nn.Module are live, those of an optimizer's stepped. A tensor
// in the state_dict is one of them where it is the same view of the same memory: a hook may have
// put another one there.
class ModuleOwnership : public Ownership {
 public:
  ModuleOwnership(PyObject* module, const Optimizers& optimizers);
  Claim claim(PyObject* tensor, const Geometry& geometry, bool in_part) const override;

 private:
  void add(PyObject* tensor, Liveness liveness);
  void add(const Geometry& geometry, Liveness liveness);
  AddressMap<Liveness> live_;  // hash of the geometry -> what it is
};

// The dicts in optimizer.state and what is in them are stepped. Tensors in the param_groups (a
// learning rate) are the optimizer's own, too, but anyone may change them at any time.
class OptimizerOwnership : public Ownership {
 public:
  explicit OptimizerOwnership(PyObject* optimizer);
  bool is_part(PyObject* dict) const override { return parts_.contains(dict); }
  Claim claim(PyObject* tensor, const Geometry& geometry, bool in_part) const override;

 private:
  bool is_in_parts(PyObject* tensor) const;

  std::vector<PyObject*> part_list_;
  AddressSet parts_;    // the dicts of optimizer.state
  AddressSet options_;  // tensors in the param_groups
  // The tensors in parts_; made where a hook has put them into other dicts.
  mutable AddressSet in_parts_;
  mutable bool in_parts_known_ = false;
};

// As module.named_parameters(remove_duplicate=False) names them.
std::vector<ParameterName> parameter_names(nanobind::handle module);
// Class and parameter names by group; no names where a parameter has none.
CheckpointInfo::Optimizer describe_optimizer(nanobind::handle optimizer,
                                             const std::vector<ParameterName>& names);

}  // namespace perdure::python
