"""DTensors (FSDP2, tensor parallel) as what they are on one rank: a plain tensor that is a box of a larger one."""

import functools

from . import _core
from .errors import InvalidError


def is_dtensor(x) -> bool:
    return type(x).__name__ == "DTensor" and hasattr(x, "_local_tensor")  # importing the class takes a second


def local(x):
    """The part of a DTensor that is here; anything else as it is."""
    return x._local_tensor if is_dtensor(x) else x


def localized(state: dict) -> dict:
    """The same dict, with the parts that are here in the place of DTensors."""
    for key, x in state.items():
        if is_dtensor(x):
            state[key] = x._local_tensor
    return state


def wrapped(x, like):
    """`x`, a part, as a DTensor of the kind of `like`."""
    from torch.distributed.tensor import DTensor

    return DTensor.from_local(
        x, like.device_mesh, like.placements, run_check=False, shape=like.shape, stride=like.stride()
    )


class Shards:
    """The DTensors of one registered object, for the core. What follows from their placements is worked out once."""

    def __init__(self, name: str):
        self._name = name
        self._specs = None
        self._made = _core.Shards()

    def of(self, tensors) -> _core.Shards:
        """`tensors`: (path in the state_dict, DTensor)."""
        found = [(path, x._spec, x) for path, x in tensors]
        specs = [(path, spec) for path, spec, _ in found]
        if specs != self._specs:
            made = _core.Shards()
            for path, _, x in found:
                made.add(path, *self._box(path, x))
            self._specs, self._made = specs, made
        return self._made

    def _box(self, path, x):
        if any(p.is_partial() for p in x.placements):
            raise InvalidError(
                f"{self._name}{path}: a DTensor with the placements {x.placements} has no values yet that could be "
                "saved; redistribute it first"
            )
        sizes = list(x._local_tensor.shape)
        offsets, replica, replicas = _place(x.shape, x.device_mesh, x.placements)
        return list(x.shape), list(offsets) or [0] * len(sizes), sizes, replica, replicas


@functools.lru_cache(maxsize=4096)
def _place(shape, mesh, placements):
    """Where the part of this rank begins; and of the ranks that have the same one, the number of this one and how many
    there are."""
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    coordinate = mesh.get_coordinate()
    if coordinate is None:  # this rank is not in it
        return (), 0, 1
    _, offsets = compute_local_shape_and_global_offset(shape, mesh, placements)
    replica, replicas = 0, 1
    for dimension, placement in enumerate(placements):
        if placement.is_replicate():
            replica = replica * mesh.size(dimension) + coordinate[dimension]
            replicas *= mesh.size(dimension)
    return offsets, replica, replicas
