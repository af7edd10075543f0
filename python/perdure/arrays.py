"""numpy arrays and scalars as plain data.

torch.load with its defaults takes no numpy objects, so they are written as a dict that any reader understands:

    {"__perdure__": "numpy.ndarray", "dtype": "<f4", "data": tensor}      (or "numpy.scalar", data 0-dim)

The tensor has the array's shape, and its numbers in the machine's byte order; "dtype" says which one the array
had. Plain dtypes only: bool, integers, float16/32/64, complex64/128.
"""

import torch

from . import _core, places

try:
    import numpy
except ImportError:
    numpy = None

FORM_KEY = "__perdure__"
_ARRAY, _SCALAR = "numpy.ndarray", "numpy.scalar"
# dtype.str without its byte order -> the tensor dtype with the same bits
_DTYPES = {
    "b1": "bool", "i1": "int8", "i2": "int16", "i4": "int32", "i8": "int64",
    "u1": "uint8", "u2": "uint16", "u4": "uint32", "u8": "uint64",
    "f2": "float16", "f4": "float32", "f8": "float64", "c8": "complex64", "c16": "complex128",
}  # fmt: skip
_REMEDIES = {
    "O": "write a list of its elements: x.tolist()",
    "U": "write a list of strings: x.tolist()",
    "T": "write a list of strings: x.tolist()",
    "S": "write a list of bytes: x.tolist()",
    "M": 'write its integers and its unit: x.view("int64"), str(x.dtype)',
    "m": 'write its integers and its unit: x.view("int64"), str(x.dtype)',
    "V": "write its fields as a dict of arrays",
    "f": "write x.astype(numpy.float64)",
    "c": "write x.astype(numpy.complex128)",
}


def is_array(kind: type) -> bool:
    """Whether objects of exactly this type are written in the form."""
    return numpy is not None and (kind is numpy.ndarray or issubclass(kind, numpy.generic))


def encode(obj, place) -> _core.Value:
    """The form of an array or scalar, as a value over the array's memory."""
    dtype = obj.dtype
    if dtype.str[1:] not in _DTYPES:
        remedy = _REMEDIES.get(dtype.kind, "write plain numbers: x.tolist()")
        places.refuse(place, f"is a numpy object of dtype {dtype}, which a checkpoint cannot hold: {remedy}")
    text = _core.Value.of_string
    entries = [
        (text(FORM_KEY.encode()), text((_ARRAY if type(obj) is numpy.ndarray else _SCALAR).encode())),
        (text(b"dtype"), text(dtype.str.encode())),
        (text(b"data"), _tensor(_native(obj))),
    ]
    return _core.Value.of_mapping(_core.Kind.dict, entries)


def _native(obj):
    """The array in the machine's byte order and with strides that a tensor can have."""
    array = numpy.asarray(obj)
    if not array.dtype.isnative:
        array = array.byteswap().view(array.dtype.newbyteorder("="))
    size = array.itemsize
    fits = all(n == 1 or (s > 0 and s % size == 0) for n, s in zip(array.shape, array.strides))
    return array if fits else array.copy(order="C")


def _tensor(array):
    strides = [s // array.itemsize if n > 1 else 1 for n, s in zip(array.shape, array.strides)]
    extent = sum((n - 1) * s for n, s in zip(array.shape, strides)) + 1 if array.size else 0
    storage = _core.Storage(array.ctypes.data if extent else 0, extent * array.itemsize, "cpu", array)
    dtype = _DTYPES[array.dtype.str[1:]]
    return _core.Value.of_tensor(storage, dtype, list(array.shape), strides, 0)


def is_form(mapping: dict) -> bool:
    """Whether a dict that was read is one of ours (and not just one with the same key in a foreign file)."""
    kind, dtype, data = mapping.get(FORM_KEY), mapping.get("dtype"), mapping.get("data")
    if len(mapping) != 3 or type(kind) is not str or type(dtype) is not str or not isinstance(data, torch.Tensor):
        return False
    if data.is_meta:
        return False
    known = kind in (_ARRAY, _SCALAR) and dtype[:1] in ("<", ">", "=", "|")
    return known and _DTYPES.get(dtype[1:]) == str(data.dtype).removeprefix("torch.")


def from_form(mapping: dict):
    """The array or scalar, over the tensor's memory where the byte order allows it."""
    array = mapping["data"].detach().cpu().resolve_conj().resolve_neg().numpy()
    dtype = numpy.dtype(mapping["dtype"])
    if not dtype.isnative:
        array = array.byteswap().view(dtype)
    return array if mapping[FORM_KEY] == _ARRAY else array[()]
