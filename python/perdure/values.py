"""Python objects to the core's values and back, exactly.

`encode` takes exact types only: what it cannot give back as it was, it refuses. Nothing is copied but tensors on
other devices: the values refer to the tensors' memory.

    None bool int float complex str bytes bytearray     as they are; every bit of a float, ints of any size
    list tuple dict set OrderedDict Counter torch.Size  the same object in two places is one object afterwards
    torch dtype, device, layout
    torch.Tensor, torch.nn.Parameter                    every dtype and stride, storage shared as it was
    sparse, quantized and nested tensors, and those     as a dict of their parts (perdure.composites)
        with attributes
    numpy arrays and scalars of plain dtypes            as {"__perdure__": "numpy.ndarray" or "numpy.scalar",
                                                            "dtype": "<f4", "data": tensor}, for other readers
"""

import collections

import torch

from . import _core, arrays, composites
from .arrays import FORM_KEY
from .errors import UnsupportedError
from .tensors import DTYPES, Placement, TensorDecoder

_Kind = _core.Kind


def encode(obj, root: str = "state") -> _core.Value:
    """The value of `obj`. Raises InvalidError naming the place, beginning with `root`."""
    return _core.encode(obj, root)


def decode(value: _core.Value, placement: Placement | None = None):
    """The Python object of a value. Tensors look into the memory that the value has, where torch owns it."""
    return _walk(_Decoder(placement or Placement("cpu")), value)


def decode_structure(value: _core.Value):
    """As decode, but tensors (and numpy arrays) stay values, which encode gives back untouched."""
    return _walk(_StructureDecoder(Placement("cpu")), value)


def _walk(decoder, value):
    try:
        return decoder.decode(value)
    except RecursionError:
        raise UnsupportedError(
            "the state is nested more deeply than Python's limit allows here: sys.setrecursionlimit() raises it"
        ) from None


class _Decoder:
    """One walk back. What has an identity is made once.

    It takes one frame of Python for each level: of files with 500 levels, and callers with others, 1000 are enough.
    """

    _SEQUENCES = {_Kind.list: list, _Kind.tuple: tuple, _Kind.set: set, _Kind.size: torch.Size}
    _MAPPINGS = {
        _Kind.dict: dict,
        _Kind.ordered_dict: collections.OrderedDict,
        _Kind.counter: collections.Counter,
    }

    def __init__(self, placement):
        self._placement = placement
        self._made = {}
        self._tensors = TensorDecoder(placement)
        self._leaves = {
            _Kind.dtype: lambda v: DTYPES[v.name()],
            _Kind.device: lambda v: _device(v.name()),
            _Kind.layout: lambda v: _layout(v.name()),
            _Kind.tensor: lambda v: self._tensors.decode(v.as_tensor()),
        }

    def decode(self, value):
        scalar = value.scalar()
        if scalar is not NotImplemented:
            return scalar
        key, kind = value.identity, value.kind
        if key in self._made:
            return self._made[key]
        if kind in self._SEQUENCES:
            obj = self._SEQUENCES[kind](map(self.decode, value.items()))
        elif kind in self._MAPPINGS:
            obj = self._MAPPINGS[kind]()
            for name, item in value.entries():
                obj[self.decode(name)] = self.decode(item)
            attributes = value.attributes() if kind is _Kind.ordered_dict else None
            for name, item in attributes.entries() if attributes is not None else ():
                vars(obj)[self.decode(name)] = self.decode(item)
            obj = self._finish(obj, value) if kind is _Kind.dict else obj
        elif kind is _Kind.composite:
            obj = self._compose(value)
        else:
            obj = self._leaves[kind](value)
        if key:
            self._made[key] = obj
        return obj

    def _compose(self, value):
        return composites.put_together({self.decode(name): self.decode(item) for name, item in value.entries()})

    def _finish(self, mapping, value):
        if not arrays.is_form(mapping) or self._placement.is_meta:
            return mapping
        if arrays.numpy is None:
            raise UnsupportedError(
                "the file holds numpy arrays, and numpy is not installed here: pip install numpy"
            )
        return arrays.from_form(mapping)


def _device(name):
    try:
        return torch.device(name)
    except RuntimeError:
        raise UnsupportedError(f"the file has the device {name!r}, which this torch does not know") from None


def _layout(name):
    found = getattr(torch, name.removeprefix("torch."), None)
    if not isinstance(found, torch.layout) or str(found) != name:
        raise UnsupportedError(f"the file has the layout {name!r}, which this torch does not know")
    return found


class _StructureDecoder(_Decoder):
    def __init__(self, placement):
        super().__init__(placement)
        self._leaves[_Kind.tensor] = lambda v: v
        self._compose = lambda v: v

    def _finish(self, mapping, value):
        return value if FORM_KEY in mapping else mapping
