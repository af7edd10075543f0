"""A torch.optim.Optimizer as part of a TrainingState.

PyTorch numbers the parameters of an optimizer by their order, so momentum silently goes to the wrong parameter
when the order changes. The file has the name of every parameter; a restore goes by it.
"""

import torch

from . import _core
from .bits import same_bits
from .shards import Shards, is_dtensor, local, localized, wrapped
from .tensors import Placement, is_plain, outline
from .values import decode, decode_structure, encode

# Options that came and went with PyTorch's versions, or that schedulers add: no sign of another class.
_OPTIONAL = frozenset(
    "params param_names foreach maximize capturable differentiable fused amsgrad decoupled_weight_decay initial_lr "
    "max_lr min_lr base_momentum max_momentum swa_lr max_beta1 base_beta1".split()
)


class OptimizerEntry:
    """Matches by parameter name and gives back every bit, also where Optimizer.load_state_dict would cast."""

    def __init__(self, name: str, optimizer: torch.optim.Optimizer):
        self.name = name
        self._optimizer = optimizer
        self._shards = Shards(name)
        self.encoder = _core.OptimizerEncoder(optimizer, f"state[{name!r}]")

    def state_dict(self):
        dtensors = [x for _, x in self._dtensors()]
        return self.encoder.encode(_local_state(self._optimizer.state_dict()), dtensors or None)

    def shards(self):
        """The DTensors among them, of which the others give what is here. What there is no state of yet will be cut
        as its parameter is."""
        return self._shards.of(self._dtensors())

    def _dtensors(self):
        for number, param in enumerate(self._params()):
            slots = self._optimizer.state.get(param)
            if not slots and is_dtensor(param):
                yield ["state", number], param
            for key, x in _items(slots):
                if is_dtensor(x):
                    yield ["state", number, key], x

    def live(self):
        """The state that there is already, as far as it is tensors: a restore reads straight into them."""
        state = _local_state(self._optimizer.state_dict())["state"]
        own = {n: {k: x for k, x in _items(slots) if is_plain(x)} for n, slots in state.items()}
        return self.encoder.encode({"state": own})

    def align(self, value, recorded, names, strict):
        """The file's state in this optimizer's order, what does not fit, and what became of that (strict=False).
        Tensors may have no data yet."""
        problems = self._class(value, recorded)
        if problems:
            return value, problems, []
        params = self._params()

        def own_state(number):
            state = self._optimizer.state.get(params[number])
            state = {k: outline(x) if is_dtensor(x) else x for k, x in state.items()} if isinstance(state, dict) else state
            return encode(state or None, f"state[{self.name!r}]['state'][{number}]")

        return _core.match_optimizer(self._class_name, self._outline(names), own_state, value, recorded, strict)

    def load_state_dict(self, value):
        saved = decode(value, Placement("cpu"))
        for number, param in enumerate(self._params()):
            self._wrap(saved["state"].get(number), param)
        self._optimizer.load_state_dict(saved)
        for number, param in enumerate(self._params()):
            _make_exact(self._optimizer.state.get(param, {}), saved["state"].get(number, {}))

    def _wrap(self, slots, param):
        """What was cut becomes part of a DTensor again."""
        own = self._optimizer.state.get(param) or {}
        for key, x in _items(slots):
            like = own.get(key, param if isinstance(x, torch.Tensor) and x.shape == local(param).shape else None)
            if is_dtensor(like):
                slots[key] = wrapped(x, like)

    def _params(self):
        return [p for group in self._optimizer.param_groups for p in group["params"]]

    @property
    def _class_name(self):
        return type(self._optimizer).__name__

    def _outline(self, names):
        """Per group: its options, and names, own name and shape of each parameter."""
        known = {}
        for identity, name in names:
            known.setdefault(identity, []).append(name)
        outline = []
        for group in self._optimizer.param_groups:
            options = {k: x for k, x in group.items() if k != "params"}
            own_names = group.get("param_names") or [""] * len(group["params"])
            params = [(known.get(id(p), []), n, list(p.shape)) for p, n in zip(group["params"], own_names)]
            outline.append((encode(options, f"state[{self.name!r}]['param_groups']"), params))
        return outline

    def _class(self, value, recorded):
        if not recorded.class_name:
            return self._foreign_class(_groups(value))
        if recorded.class_name != self._class_name:
            return [f"the state of {recorded.class_name} in the file, {self._class_name} in this program"]
        return []

    def _foreign_class(self, groups):
        """A file that records no class is judged by the options of its groups."""
        own = self._class_name
        for theirs, ours in zip(groups, self._optimizer.param_groups):
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


def _local_state(state):
    """A state_dict with parts for DTensors."""
    for number, slots in state["state"].items():
        if isinstance(slots, dict) and any(is_dtensor(x) for x in slots.values()):
            state["state"][number] = localized(dict(slots))
    return state


def _items(state):
    return state.items() if isinstance(state, dict) else ()


def _groups(value):
    """The param_groups of an optimizer's state_dict; none where it is not one, which the core says."""
    is_dict = value.kind in (_core.Kind.dict, _core.Kind.ordered_dict)
    parts = {k.scalar(): x for k, x in value.entries()} if is_dict else {}
    groups = decode_structure(parts["param_groups"]) if "param_groups" in parts else []
    return groups if isinstance(groups, list) and all(isinstance(g, dict) for g in groups) else []


def _make_exact(live, saved):
    """Optimizer.load_state_dict casts to the parameter's dtype (an fp32 moment of a bf16 parameter): undone here."""
    for key, exact in _items(saved):
        if isinstance(exact, dict):
            _make_exact(live[key], exact)
        elif isinstance(exact, torch.Tensor) and not same_bits(local(live[key]), local(exact)):
            live[key] = exact.to(live[key].device)
