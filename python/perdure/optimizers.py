"""A torch.optim.Optimizer as part of a TrainingState.

PyTorch numbers the parameters of an optimizer by their order, so momentum silently goes to the wrong parameter
when the order changes. The file has the name of every parameter; a restore goes by it.
"""

import torch

from . import _core
from .bits import same_bits
from .tensors import Placement, is_plain
from .values import decode, decode_structure, encode

# Options that came and went with PyTorch's versions, or that schedulers add: no sign of another class.
_OPTIONAL = frozenset(
    "params param_names foreach maximize capturable differentiable fused amsgrad decoupled_weight_decay initial_lr "
    "max_lr min_lr base_momentum max_momentum swa_lr max_beta1 base_beta1".split()
)
# Per-parameter state that has its parameter's shape.
_PARAM_SHAPED = frozenset(
    "exp_avg exp_avg_sq max_exp_avg_sq exp_inf momentum_buffer square_avg grad_avg acc_delta sum ax "
    "prev prev_grad step_size".split()
)
_MAX_ROWS = 20


class OptimizerEntry:
    """Matches by parameter name and gives back every bit, also where Optimizer.load_state_dict would cast."""

    def __init__(self, name: str, optimizer: torch.optim.Optimizer):
        self.name = name
        self._optimizer = optimizer
        self.encoder = _core.OptimizerEncoder(optimizer, f"state[{name!r}]")

    def state_dict(self):
        return self.encoder.encode(self._optimizer.state_dict())

    def live(self):
        """The state that there is already, as far as it is tensors: a restore reads straight into them."""
        state = self._optimizer.state_dict()["state"]
        own = {n: {k: x for k, x in _items(slots) if is_plain(x)} for n, slots in state.items()}
        return self.encoder.encode({"state": own})

    def align(self, value, recorded, names):
        """The file's state in this optimizer's order, and what does not fit. Tensors may have no data yet."""
        saved = decode_structure(value)
        problems = self._form(saved) or self._class(saved, recorded)
        if problems:
            return value, problems
        order, problems = self._order(saved, recorded, names)
        if problems:
            return value, problems
        aligned = _reorder(saved, order, self._optimizer)
        return encode(aligned, f"file[{self.name!r}]"), list(self._shapes(aligned, names))

    def load_state_dict(self, value):
        saved = decode(value, Placement("cpu"))
        self._optimizer.load_state_dict(saved)
        for number, param in enumerate(self._params()):
            _make_exact(self._optimizer.state.get(param, {}), saved["state"].get(number, {}))

    def _params(self):
        return [p for group in self._optimizer.param_groups for p in group["params"]]

    def _own_names(self, names):
        """Names by group, or None where a parameter is of no registered module."""
        known = {}
        for identity, name in names:
            known.setdefault(identity, name)
        groups = [[known.get(id(p)) for p in g["params"]] for g in self._optimizer.param_groups]
        return None if any(n is None for g in groups for n in g) else groups

    def _form(self, saved):
        if (
            isinstance(saved, dict)
            and isinstance(saved.get("state"), dict)
            and isinstance(saved.get("param_groups"), list)
        ):
            return []
        return ["what the file has there is no optimizer's state_dict"]

    def _class(self, saved, recorded):
        own = type(self._optimizer).__name__
        if recorded.class_name and recorded.class_name != own:
            return [f"the state of {recorded.class_name} in the file, {own} in this program"]
        if recorded.class_name:
            return []
        return self._foreign_class(saved, own)

    def _foreign_class(self, saved, own):
        """A file that records no class is judged by the options of its groups."""
        for theirs, ours in zip(saved["param_groups"], self._optimizer.param_groups):
            odd = (theirs.keys() ^ ours.keys()) - _OPTIONAL
            if odd:
                return [
                    f"the file's state is not of {own}: they differ in the options {', '.join(sorted(odd))}"
                ]
            key = "decoupled_weight_decay"
            if key in theirs and key in ours and theirs[key] != ours[key]:
                return [
                    f"the file's state is not of {own}: {key} is {theirs[key]} in it (Adam and AdamW differ so)"
                ]
        return []

    def _order(self, saved, recorded, names):
        """For each own group, the file's numbers of its parameters in own order."""
        numbers = [list(g["params"]) for g in saved["param_groups"]]
        theirs = recorded.param_names or _group_names(saved["param_groups"])
        ours = self._own_names(names) if recorded.param_names else _group_names(self._optimizer.param_groups)
        if theirs and ours and list(map(len, theirs)) == list(map(len, numbers)):
            return self._by_name(numbers, theirs, ours)
        sizes, own_sizes = list(map(len, numbers)), [len(g["params"]) for g in self._optimizer.param_groups]
        if sizes == own_sizes:
            return numbers, []
        return None, [f"parameter groups of {sizes} parameters in the file, of {own_sizes} in this program"]

    def _by_name(self, numbers, theirs, ours):
        if len(theirs) != len(ours) or any(sorted(t) != sorted(o) for t, o in zip(theirs, ours)):
            return None, [_table(theirs, ours)]
        found = [dict(zip(t, n)) for t, n in zip(theirs, numbers)]
        return [[f[name] for name in o] for f, o in zip(found, ours)], []

    def _shapes(self, aligned, names):
        known = {identity: name for identity, name in reversed(names)}
        for number, param in enumerate(self._params()):
            for key, x in _items(aligned["state"].get(number)):
                shape = x.as_tensor().shape if isinstance(x, _core.Value) else []
                if key in _PARAM_SHAPED and shape and shape != list(param.shape):
                    name = known.get(id(param), f"parameter {number}")
                    yield f"{key} of {name}: shape {shape} in the file, {list(param.shape)} wanted"


def _items(state):
    return state.items() if isinstance(state, dict) else ()


def _group_names(groups):
    """What PyTorch itself records for an optimizer made from named_parameters(); None where it did not."""
    found = [g.get("param_names") for g in groups]
    return found if all(isinstance(names, list) for names in found) else None


def _table(theirs, ours) -> str:
    """Which parameters are in which group, on both sides; only those that differ."""
    in_file = {name: i for i, group in enumerate(theirs) for name in group}
    here = {name: i for i, group in enumerate(ours) for name in group}
    names = [n for n in dict.fromkeys([*in_file, *here]) if in_file.get(n) != here.get(n)]
    width = max(map(len, [*names[:_MAX_ROWS], "parameter"]))
    rows = [f"    {'parameter':<{width}}  in the file  in this program"]
    rows += [f"    {n:<{width}}  {_group(in_file, n):<11}  {_group(here, n)}" for n in names[:_MAX_ROWS]]
    if len(names) > _MAX_ROWS:
        rows.append(f"    ... and {len(names) - _MAX_ROWS} more")
    return "its parameter groups are not those of the file\n" + "\n".join(rows)


def _group(groups, name):
    return f"group {groups[name]}" if name in groups else "-"


def _reorder(saved, order, optimizer):
    """The file's state_dict with its parameters numbered as `optimizer` numbers them."""
    flat = [number for group in order for number in group]
    state = {new: saved["state"][old] for new, old in enumerate(flat) if old in saved["state"]}
    state.update({k: v for k, v in saved["state"].items() if k not in flat})  # not of a parameter: as it is
    groups, start = [], 0
    for theirs, ours, numbers in zip(saved["param_groups"], optimizer.param_groups, order):
        group = {**theirs, "params": list(range(start, start + len(numbers)))}
        group.pop("param_names", None)
        if "param_names" in ours:
            group["param_names"] = list(ours["param_names"])
        groups.append(group)
        start += len(numbers)
    return {**saved, "state": state, "param_groups": groups}


def _make_exact(live, saved):
    """Optimizer.load_state_dict casts to the parameter's dtype (an fp32 moment of a bf16 parameter): undone here."""
    for key, exact in _items(saved):
        if isinstance(exact, dict):
            _make_exact(live[key], exact)
        elif isinstance(exact, torch.Tensor) and not same_bits(live[key], exact):
            live[key] = exact.to(live[key].device)
