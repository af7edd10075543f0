"""The global random number generators as part of a TrainingState."""

import random
import sys

import torch

from .tensors import Placement
from .values import decode, encode


def _tensor(value):
    return decode(value, Placement("cpu"))


def _torch_kind():
    return torch.get_rng_state, torch.set_rng_state


def _python_kind():
    return random.getstate, random.setstate


def _numpy_kind():
    numpy = sys.modules["numpy"]
    return numpy.random.get_state, numpy.random.set_state


def _cuda_kind():
    return torch.cuda.get_rng_state_all, _set_cuda


def host_kinds() -> dict:
    """{name: (get, set)} of the global generators on the CPU that this process uses now."""
    kinds = {"torch": _torch_kind(), "python": _python_kind()}
    if "numpy.random" in sys.modules:
        kinds["numpy"] = _numpy_kind()
    return kinds


def host_state() -> dict:
    return {name: get() for name, (get, _) in host_kinds().items()}


def put_host_state(state: dict) -> None:
    if "numpy" in state:
        import numpy.random  # noqa: F401  (a new process may not have used it yet)
    for name, (_, put) in host_kinds().items():
        if name in state:
            put(state[name])


def seed_host(seed: int) -> None:
    """Seeds the global generators on the CPU. A GPU's are left alone: a forked process must not touch it."""
    torch.default_generator.manual_seed(seed % 2**63)
    random.seed(seed)
    if "numpy.random" in sys.modules:
        sys.modules["numpy"].random.seed(seed % 2**32)


def _set_cuda(states):
    if len(states) != torch.cuda.device_count():
        raise RuntimeError(
            f"the file has the random state of {len(states)} CUDA devices, and {torch.cuda.device_count()} are here"
        )
    torch.cuda.set_rng_state_all(states)


def register(core_state, cuda: bool = False) -> None:
    """Registers every kind that this process uses now; known ones are left as they are.

    CUDA's is one only once CUDA is in use (asking for it earlier would start CUDA), or where `cuda` says that a
    file has it.
    """
    for name, kind in host_kinds().items():
        _add(core_state, name, kind)
    if torch.cuda.is_initialized() or (cuda and torch.cuda.is_available()):
        _add(core_state, "cuda", _cuda_kind())


def _add(core_state, name, kind):
    capture, restore = kind
    core_state.add_rng(
        name, lambda: encode(capture(), f"state['rng'][{name!r}]"), lambda value: restore(_tensor(value))
    )
