"""A torch.nn.Module as part of a TrainingState."""

import torch

from . import _core
from .bits import same_bits
from .shards import Shards, is_dtensor, localized, wrapped
from .tensors import DTYPE_NAMES, Placement, is_plain, outline
from .values import decode, encode
from .wrappers import own_keys, plain_state


class ModuleEntry:
    """The core matches the keys of the state_dict in a file, and lists what does not fit."""

    def __init__(self, name: str, module: torch.nn.Module, optimizers: _core.Optimizers):
        self.name = name
        self.encoder = _core.ModuleEncoder(module, f"state[{name!r}]", optimizers)
        self._module = module
        self._shards = Shards(name)

    def state_dict(self):
        state = plain_state(self._module)
        dtensors = [x for x in state.values() if is_dtensor(x)]
        return self.encoder.encode(localized(state), dtensors or None)

    def shards(self):
        """The DTensors among them, of which the others give what is here."""
        return self._shards.of(([k], x) for k, x in plain_state(self._module).items() if is_dtensor(x))

    def live(self):
        """Those entries of the state_dict whose tensors are the module's own: a restore reads straight into them."""
        return self.encoder.encode({k: x for k, x in localized(plain_state(self._module)).items() if is_plain(x)})

    def structure(self):
        """The state_dict, as far as dtype and shape of a tensor are known and wanted; None for all else."""
        return encode({k: _outline(x) for k, x in plain_state(self._module).items()})

    def check(self, value) -> list[str]:
        """What stands against it yet. Tensors that will be read straight into the module's have no data yet."""
        return list(self._untied(value, localized(plain_state(self._module))))

    def load_state_dict(self, value):
        saved, own = decode(value, Placement("cpu")), localized(plain_state(self._module))
        if not _is_plain(self._module) or not _is_there(saved, own):
            whole = saved.keys() == own.keys()
            for key, x in plain_state(self._module).items():
                if is_dtensor(x) and key in saved:
                    saved[key] = wrapped(saved[key], x)
            self._module.load_state_dict(own_keys(saved, self._module), strict=whole)

    def _untied(self, value, own):
        """Tied in the module, but two different values in the file: one of them would be lost."""
        saved = {k.scalar(): x for k, x in value.entries() if x.kind is _core.Kind.tensor}
        for keys in _ties(own):
            first = keys[0]
            for other in keys[1:]:
                if first in saved and other in saved and not _same_value(saved[first], saved[other]):
                    yield (
                        f"{first} and {other}: one tensor in the module (tied), "
                        "two different values in the file"
                    )


def _is_plain(module) -> bool:
    """Whether all that the module's load_state_dict would do is to copy tensors."""
    plain = torch.nn.Module
    return not any(
        m._load_state_dict_pre_hooks
        or m._load_state_dict_post_hooks
        or type(m)._load_from_state_dict is not plain._load_from_state_dict
        or type(m).load_state_dict is not plain.load_state_dict
        or not vars(m).keys().isdisjoint(("_load_from_state_dict", "load_state_dict"))
        for m in module.modules()
    )


def _is_there(saved, own) -> bool:
    """Whether everything that was saved has been read straight into the module."""
    return saved.keys() == own.keys() and all(
        isinstance(x, torch.Tensor) and _same_view(x, saved[key]) for key, x in own.items()
    )


def _same_view(x, y) -> bool:
    return (
        _is_strided(x)
        and _is_strided(y)
        and x.untyped_storage()._cdata == y.untyped_storage()._cdata
        and (x.storage_offset(), x.shape, x.stride(), x.dtype)
        == (y.storage_offset(), y.shape, y.stride(), y.dtype)
    )


def _same_value(a, b) -> bool:
    """Whether two tensors of a file have the same bits. Those that are one need not be read for that."""
    s, t = a.as_tensor(), b.as_tensor()
    if s.storage.identity == t.storage.identity and (s.storage_offset, s.shape, s.strides, s.dtype, s.conj, s.neg) == (
        t.storage_offset, t.shape, t.strides, t.dtype, t.conj, t.neg
    ):  # fmt: skip
        return True
    return same_bits(decode(a), decode(b))


def _is_strided(x) -> bool:
    """Whether it is a tensor that is one run of memory with a shape, and not made of others."""
    return (
        isinstance(x, torch.Tensor)
        and not torch.nn.parameter.is_lazy(x)
        and x.layout is torch.strided
        and not x.is_nested
    )


def _outline(x):
    if is_plain(x):
        return x
    known = _is_strided(x) and x.dtype in DTYPE_NAMES
    return outline(x) if known else None


def _ties(own):
    """Groups of keys whose tensors are one and the same memory."""
    groups = {}
    for key, tensor in own.items():
        if _is_strided(tensor) and tensor.numel():
            view = (tensor.device, tensor.data_ptr(), tensor.dtype, tuple(tensor.shape), tensor.stride())
            groups.setdefault(view, []).append(key)
    return [keys for keys in groups.values() if len(keys) > 1]
