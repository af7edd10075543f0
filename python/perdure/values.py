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

from . import _core, arrays, places
from .arrays import FORM_KEY
from .errors import InvalidError, UnsupportedError
from .tensors import DTYPE_NAMES, DTYPES, Placement, TensorDecoder, TensorEncoder

_Value = _core.Value
_Kind = _core.Kind
_INT64 = 1 << 63


def encode(obj, root: str = "state") -> _core.Value:
    """The value of `obj`. Raises InvalidError naming the place, beginning with `root`."""
    try:
        return _Encoder().encode(obj, (root,))
    except RecursionError:
        raise InvalidError(f"{root} is nested too deeply for a checkpoint (hundreds of levels)") from None


def decode(value: _core.Value, placement: Placement | None = None):
    """The Python object of a value. Tensors look into the memory that the value has, where torch owns it."""
    return _Decoder(placement or Placement("cpu")).decode(value)


def _encode_int(x: int):
    if -_INT64 <= x < _INT64:
        return _Value.of_integer(x)
    return _Value.of_big_integer(x.to_bytes(x.bit_length() // 8 + 1, "little", signed=True))


def _encode_dtype(dtype, place):
    if dtype not in DTYPE_NAMES:
        places.refuse(place, f"is {dtype}, which torch.load does not give back; write its name: str(dtype)")
    return _Value.of_dtype(DTYPE_NAMES[dtype])


# Types that need no walk and no memory of what was seen.
_SCALARS = {
    type(None): lambda x: _Value.of_none(),
    bool: _Value.of_boolean,
    int: _encode_int,
    float: _Value.of_real,
    complex: _Value.of_complex,
    str: lambda x: _Value.of_string(x.encode("utf-8", "surrogatepass")),
    bytes: _Value.of_bytes,
    torch.device: lambda x: _Value.of_device(str(x)),
    torch.layout: lambda x: _Value.of_layout(str(x)),
}


class _Encoder:
    """One walk over one state. What was seen is kept alive, so that an id means one object."""

    def __init__(self):
        self._seen = {}  # id -> (object, value)
        self._open = set()  # ids of the containers that we are inside of
        self._tensors = TensorEncoder()
        self._containers = {
            list: self._list,
            tuple: self._tuple,
            set: self._set,
            torch.Size: lambda x, place: _Value.of_size(list(x)),
            bytearray: lambda x, place: _Value.of_bytearray(bytes(x)),
            dict: self._dict,
            collections.OrderedDict: self._ordered_dict,
            collections.Counter: self._counter,
            torch.Tensor: self._tensors.encode,
            torch.nn.Parameter: self._tensors.encode,
        }

    def encode(self, obj, place):
        kind = type(obj)
        scalar = _SCALARS.get(kind)
        if scalar is not None:
            return scalar(obj)
        if kind is torch.dtype:
            return _encode_dtype(obj, place)
        seen = self._seen.get(id(obj))
        if seen is not None:
            return seen[1]
        if id(obj) in self._open:
            places.refuse(place, "contains itself; a checkpoint cannot hold cycles")
        self._open.add(id(obj))  # left in it when we raise: the walk is over then
        value = self._encode_new(obj, kind, place)
        self._open.discard(id(obj))
        self._seen[id(obj)] = (obj, value)
        return value

    def _encode_new(self, obj, kind, place):
        container = self._containers.get(kind)
        if container is not None:
            return container(obj, place)
        if arrays.is_array(kind):
            return arrays.encode(obj, place)
        return places.refuse_type(obj, place)

    def _items(self, items, place):
        return [self.encode(item, (*place, i)) for i, item in enumerate(items)]

    def _list(self, obj, place):
        return _Value.of_list(self._items(obj, place))

    def _tuple(self, obj, place):
        return _Value.of_tuple(self._items(obj, place))

    def _set(self, obj, place):
        return _Value.of_set([self._key(item, place) for item in obj])

    def _key(self, key, place):
        if isinstance(key, torch.Tensor) or arrays.is_array(type(key)):
            places.refuse(place, f"has the key {key!r}; write it as a plain number: key.item()")
        return self.encode(key, (*place, key))

    def _entries(self, obj, place):
        if FORM_KEY in obj:
            places.refuse(place, f'has the key "{FORM_KEY}", which is perdure\'s own; rename it')
        return [(self._key(k, place), self.encode(v, (*place, k))) for k, v in obj.items()]

    def _mapping(self, kind, obj, place, attributes=None):
        value = _Value.of_mapping(kind, self._entries(obj, place), attributes)
        if len(value) != len(obj):
            places.refuse(place, "has several NaN keys, which a checkpoint cannot tell apart")
        return value

    def _dict(self, obj, place):
        return self._mapping(_Kind.dict, obj, place)

    def _counter(self, obj, place):
        if vars(obj):
            places.refuse(place, f"is a Counter with attributes ({', '.join(vars(obj))}); write dict(x)")
        return self._mapping(_Kind.counter, obj, place)

    def _ordered_dict(self, obj, place):
        attributes = None
        if vars(obj):
            entries = [
                (self.encode(name, place), self.encode(x, (*place, places.Attribute(name))))
                for name, x in vars(obj).items()
            ]
            attributes = _Value.of_mapping(_Kind.dict, entries)
        return self._mapping(_Kind.ordered_dict, obj, place, attributes)


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
