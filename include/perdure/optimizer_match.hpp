// Which state in a file belongs to which parameter of an optimizer, by the names of the parameters.
//
// For adapters of optimizers (perdure/torch.hpp has that of LibTorch, the Python package its own):
// they describe the optimizer, and get the file's state_dict in its order. std-only. Nothing here
// is synchronised.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <perdure/state.hpp>
#include <string>
#include <vector>

namespace perdure {

// An optimizer as this program has it. Its parameters are numbered through all groups, as in its
// state_dict.
struct OptimizerOutline {
  struct Parameter {
    // Its names among Alignment::names, the one to show first. Empty where it is of none of them.
    std::vector<std::string> names;
    // In the optimizer's own "param_names": what PyTorch records where it is made from
    // named_parameters(). "" where it was not.
    std::string own_name;
    std::vector<std::int64_t> shape;
  };
  struct Group {
    Dict options;  // as in its state_dict; "params" is not needed
    std::vector<Parameter> params;
  };
  std::string class_name;
  std::vector<Group> groups;
  // The state of the parameter of that number, None where it has none yet. Asked for only where the
  // file has none that fits.
  std::function<Value(std::size_t)> state;
};

// `in_file`, the file's state_dict of an optimizer (of whose tensors only the form is looked at),
// with groups, parameters and their numbers as `own` has them.
//
// Parameters go by name where the names are known on both sides: those that perdure recorded and
// those of the registered modules; "param_names" in the groups of a file that has no others. The
// prefixes of wrappers ("module.", "_orig_mod.") make no difference. Without names they go by
// position, as in PyTorch, and everything must be as in the file.
//
// The same parameters in the same groups, in any order, fit. Where parameters or groups came, went
// or moved, or a parameter has another shape, that is a problem, told by a table; without
// `alignment.strict` it is done, and the table is a note: what has a name on both sides and the
// same shape keeps its state, all else keeps what it has here.
//
// A group that continues one of the file has its options from there: the two share most of their
// parameters, and no other group shares most of its own with either. One that was split off, merged
// or is new keeps the options that it has here, but for "lr" and "initial_lr", which are those of
// the group in the file that most of its parameters come from.
//
// A problem, strict or not: no parameter in common; and for LBFGS, whose state is one for all its
// parameters, anything but the same ones in the same order.
Value match_optimizer(const OptimizerOutline& own, const Value& in_file,
                      const Alignment& alignment);

}  // namespace perdure
