"""A torch.nn.Module as part of a TrainingState."""

import torch

from . import _core
from .bits import same_bits
from .tensors import Placement
from .values import decode


class ModuleEntry:
    """Checks everything first; what does not fit is listed, nothing is cast or skipped."""

    def __init__(self, name: str, module: torch.nn.Module, options, optimizers: _core.Optimizers):
        self.name = name
        self.encoder = _core.ModuleEncoder(module, f"state[{name!r}]", optimizers)
        self._module = module
        self._options = options  # .strict: of the load that is going on

    def state_dict(self):
        return self.encoder.encode(self._module.state_dict())

    def check(self, value) -> list[str]:
        saved = decode(value, Placement("cpu"))
        if not isinstance(saved, dict):
            return [f"a {type(saved).__name__} in the file, where a module's state_dict is wanted"]
        own = self._module.state_dict()
        return [*self._names(saved, own), *self._misfits(saved, own), *self._untied(saved, own)]

    def load_state_dict(self, value):
        self._module.load_state_dict(decode(value, Placement("cpu")), strict=self._options.strict)

    def _names(self, saved, own):
        if not self._options.strict:  # a wrapper's prefix on every key must not look like a success
            return ["no key in common with the file"] if own and not own.keys() & saved.keys() else []
        lines = [f"{k}: in the module, not in the file" for k in own if k not in saved]
        return lines + [f"{k}: in the file, not in the module" for k in saved if k not in own]

    def _misfits(self, saved, own):
        for key in own:
            line = _misfit(saved[key], own[key]) if key in saved else ""
            if line:
                yield f"{key}: {line}"

    def _untied(self, saved, own):
        """Tied in the module, but two different values in the file: one of them would be lost."""
        for keys in _ties(own):
            first = keys[0]
            for other in keys[1:]:
                a, b = saved.get(first), saved.get(other)
                if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor) and not same_bits(a, b):
                    yield (
                        f"{first} and {other}: one tensor in the module (tied), "
                        "two different values in the file"
                    )


def _misfit(saved, own) -> str:
    if not isinstance(own, torch.Tensor):
        return ""  # extra state is the module's own affair
    if not isinstance(saved, torch.Tensor):
        return f"a {type(saved).__name__} in the file, a tensor in the module"
    if torch.nn.parameter.is_lazy(own):
        return ""
    if saved.shape != own.shape:
        return f"shape {list(saved.shape)} in the file, {list(own.shape)} in the module"
    if saved.dtype != own.dtype:
        remedy = f"convert the module first: model.to({saved.dtype})"
        return f"{saved.dtype} in the file, {own.dtype} in the module; {remedy}"
    return ""


def _ties(own):
    """Groups of keys whose tensors are one and the same memory."""
    groups = {}
    for key, tensor in own.items():
        if isinstance(tensor, torch.Tensor) and not torch.nn.parameter.is_lazy(tensor) and tensor.numel():
            view = (tensor.device, tensor.data_ptr(), tensor.dtype, tuple(tensor.shape), tensor.stride())
            groups.setdefault(view, []).append(key)
    return [keys for keys in groups.values() if len(keys) > 1]
