"""The ranks of a process group, for a CheckpointManager."""

import collections
import itertools

import torch

from . import _core
from .errors import InvalidError, InvalidTypeError

# Of each group, whose ranks make their managers in the same order.
_uses = collections.defaultdict(itertools.count)


def ranks_of(group) -> _core.Ranks | None:
    """`group` is a torch.distributed process group; None where there is one process alone."""
    if group is None:
        return None
    if not torch.distributed.is_available() or not torch.distributed.is_initialized():
        raise InvalidError(
            "process_group is given, and torch.distributed is not initialized: call "
            "torch.distributed.init_process_group() first"
        )
    from torch.distributed import distributed_c10d as c10d

    if not isinstance(group, c10d.ProcessGroup):
        raise InvalidTypeError(
            "process_group is a process group of torch.distributed, such as torch.distributed.group.WORLD, and not "
            f"a {type(group).__qualname__}"
        )
    rank, size = torch.distributed.get_rank(group), torch.distributed.get_world_size(group)
    if rank < 0:
        raise InvalidError("this process is not in process_group; make the manager only where it is")
    name = group.group_name
    store = c10d.PrefixStore(f"perdure/{name}/{next(_uses[name])}", _own_connection(c10d._get_default_store()))
    return _core.ranks_from(store, rank, size)


def _own_connection(store):
    """A connection that nobody else waits on, where the store can have several."""
    try:
        return store.clone()
    except (AttributeError, RuntimeError):
        return store
