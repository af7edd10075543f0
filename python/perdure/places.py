"""Where in a state something is, and what to write instead of what a checkpoint cannot hold."""

import dataclasses
import enum
import functools
import pathlib
import types

import torch

from .errors import InvalidError, InvalidTypeError

Place = tuple  # the root's name, then keys: ("state", "optimizer", 0)


def show(place: Place) -> str:
    """The place as the program would write it: state['optimizer']['param_groups'][0]."""
    return str(place[0]) + "".join(
        f".{key.name}" if isinstance(key, Attribute) else f"[{_short(key)}]" for key in place[1:]
    )


@dataclasses.dataclass(frozen=True)
class Attribute:
    """A step into an instance attribute rather than an element."""

    name: str


def _short(key) -> str:
    text = repr(key)
    return text if len(text) <= 80 else text[:77] + "..."


def _is_namedtuple(x) -> bool:
    return isinstance(x, tuple) and hasattr(type(x), "_fields")


def _is_defaultdict(x) -> bool:
    return isinstance(x, dict) and hasattr(x, "default_factory")


def _is_numpy_generator(x) -> bool:
    return type(x).__module__.startswith("numpy.random")


# (does it apply, what to write instead). The first that applies is told; the order goes from special to general.
_REMEDIES = (
    (
        lambda x: isinstance(x, torch.nn.Module),
        "a module is code; write its state_dict(): model.state_dict()",
    ),
    (
        lambda x: isinstance(x, torch.optim.Optimizer),
        "write its state_dict(): optimizer.state_dict()",
    ),
    (
        lambda x: isinstance(x, torch.optim.lr_scheduler.LRScheduler),
        "write its state_dict(): scheduler.state_dict()",
    ),
    (lambda x: isinstance(x, torch.Generator), "write its get_state()"),
    (
        lambda x: isinstance(x, torch.utils.data.DataLoader),
        "it does not tell its place in the data; use torchdata's StatefulDataLoader, or save at the end of an epoch "
        "and register the torch.Generator that it shuffles with",
    ),
    (
        lambda x: isinstance(x, torch.Tensor) and type(x) not in (torch.Tensor, torch.nn.Parameter),
        "write a plain tensor: x.detach().as_subclass(torch.Tensor) (for a DTensor: x.full_tensor())",
    ),
    (lambda x: isinstance(x, (torch.UntypedStorage, torch.TypedStorage)), "write a tensor over it"),
    (lambda x: isinstance(x, torch.memory_format), "write its name: str(x)"),
    (_is_numpy_generator, "write its state: x.bit_generator.state"),
    (lambda x: isinstance(x, frozenset), "write a set: set(x)"),
    (_is_defaultdict, "write a dict: dict(x)"),
    (_is_namedtuple, "write a tuple or a dict: tuple(x) or x._asdict()"),
    (lambda x: isinstance(x, enum.Enum), "write its .value"),
    (
        lambda x: dataclasses.is_dataclass(x) and not isinstance(x, type),
        "write dataclasses.asdict(x)",
    ),
    (lambda x: isinstance(x, pathlib.PurePath), "write str(x)"),
    (lambda x: isinstance(x, types.SimpleNamespace), "write vars(x)"),
    (lambda x: type(x).__name__ == "Namespace", "write vars(x)"),
    (lambda x: isinstance(x, slice), "write a tuple: (x.start, x.stop, x.step)"),
    (lambda x: isinstance(x, range), "write a tuple: (x.start, x.stop, x.step), or list(x)"),
    (lambda x: isinstance(x, memoryview), "write bytes(x)"),
    (
        lambda x: isinstance(x, (types.GeneratorType, map, filter, zip)),
        "write list(x)",
    ),
    (
        lambda x: (
            isinstance(x, type)
            or callable(x)
            and hasattr(x, "__qualname__")
            or isinstance(x, functools.partial)
        ),
        "code is not saved; write the numbers it is made from, or leave it out",
    ),
    (lambda x: hasattr(x, "state_dict"), "write its state_dict()"),
    (
        lambda x: isinstance(x, (dict, list, tuple, set, str, int, float, bytes, bytearray, complex)),
        "its class would be lost; write the plain type: {base}(x)",
    ),
    (lambda x: hasattr(x, "__dict__"), "write its fields as a dict: vars(x)"),
)

_BASES = (bool, int, float, complex, str, bytes, bytearray, dict, list, tuple, set)


def _remedy(x) -> str:
    for applies, text in _REMEDIES:
        if applies(x):
            base = next((b.__name__ for b in _BASES if isinstance(x, b)), "")
            return text.format(base=base)
    return "write plain data: numbers, strings, lists, dicts and tensors"


def _type_name(x) -> str:
    cls = type(x)
    module = "" if cls.__module__ == "builtins" else cls.__module__ + "."
    return module + cls.__qualname__


def refuse_type(x, place: Place):
    """Raises the error for a value of a type that a checkpoint cannot hold."""
    raise InvalidTypeError(
        f"{show(place)} has the type {_type_name(x)}, which a checkpoint cannot hold: {_remedy(x)}"
    )


def refuse(place: Place, what: str):
    """Raises the error for a value of a good type that cannot be written as it is."""
    raise InvalidError(f"{show(place)} {what}")
