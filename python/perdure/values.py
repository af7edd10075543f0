"""Python objects to the core's values and back, exactly.

`encode` takes exact types only: what it cannot give back as it was, it refuses. Nothing is copied but tensors on
other devices: the values refer to the tensors' memory.

    None bool int float complex str bytes bytearray     as they are; every bit of a float, ints of any size
    list tuple dict set OrderedDict Counter torch.Size  the same object in two places is one object afterwards
    torch dtype, device, layout
    torch.Tensor, torch.nn.Parameter                    every dtype and stride, storage shared as it was
    numpy arrays and scalars of plain dtypes            as {"__perdure__": "numpy.ndarray" or "numpy.scalar",
                                                            "dtype": "<f4", "data": tensor}, for other readers
"""

import collections

import torch

from . import _core, arrays
from .arrays import FORM_KEY
from .errors import UnsupportedError
from .tensors import DTYPES, Placement, TensorDecoder

_Kind = _core.Kind


def encode(obj, root: str = "state") -> _core.Value:
    """The value of `obj`. Raises InvalidError naming the place, beginning with `root`."""
    return _core.encode(obj, root)


def decode(value: _core.Value, placement: Placement | None = None):
    """The Python object of a value. Tensors look into the memory that the value has, where torch owns it."""
    return _Decoder(placement or Placement("cpu")).decode(value)


def decode_structure(value: _core.Value):
    """As decode, but tensors (and numpy arrays) stay values, which encode gives back untouched."""
    return _StructureDecoder(Placement("cpu")).decode(value)


class _Decoder:
    """One walk back. What has an identity is made once."""

    def __init__(self, placement):
        self._placement = placement
        self._made = {}
        self._tensors = TensorDecoder(placement)
        self._readers = {
            _Kind.list: self._list,
            _Kind.tuple: lambda v: tuple(map(self.decode, v.items())),
            _Kind.set: lambda v: set(map(self.decode, v.items())),
            _Kind.size: lambda v: torch.Size(map(self.decode, v.items())),
            _Kind.dict: self._dict,
            _Kind.ordered_dict: self._ordered_dict,
            _Kind.counter: lambda v: self._fill(collections.Counter(), v),
            _Kind.dtype: lambda v: DTYPES[v.name()],
            _Kind.device: lambda v: torch.device(v.name()),
            _Kind.layout: lambda v: getattr(torch, v.name().removeprefix("torch.")),
            _Kind.tensor: lambda v: self._tensors.decode(v.as_tensor()),
        }

    def decode(self, value):
        scalar = value.scalar()
        if scalar is not NotImplemented:
            return scalar
        key = value.identity
        if key in self._made:
            return self._made[key]
        obj = self._readers[value.kind](value)
        if key:
            self._made[key] = obj
        return obj

    def _list(self, value):
        return list(map(self.decode, value.items()))

    def _fill(self, mapping, value):
        for key, item in value.entries():
            mapping[self.decode(key)] = self.decode(item)
        return mapping

    def _dict(self, value):
        mapping = self._fill({}, value)
        if not arrays.is_form(mapping) or self._placement.is_meta:
            return mapping
        if arrays.numpy is None:
            raise UnsupportedError(
                "the file holds numpy arrays, and numpy is not installed here: pip install numpy"
            )
        return arrays.from_form(mapping)

    def _ordered_dict(self, value):
        mapping = self._fill(collections.OrderedDict(), value)
        attributes = value.attributes()
        if attributes is not None:
            vars(mapping).update(self._fill({}, attributes))
        return mapping


class _StructureDecoder(_Decoder):
    def __init__(self, placement):
        super().__init__(placement)
        self._readers[_Kind.tensor] = lambda v: v

    def _dict(self, value):
        mapping = self._fill({}, value)
        return value if FORM_KEY in mapping else mapping
