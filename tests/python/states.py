"""States to save, generated; and what it means that two of them are the same."""

import collections
import random

import torch

from perdure.tensors import DTYPES

# Floating dtypes that have no storage class of their own. torch.save writes a tensor of these that requires a gradient
# and is no Parameter, and no torch.load takes it (2.13: set_ on a leaf).
V3 = {"torch.complex32", *(f"torch.{n}" for n in DTYPES if n.startswith(("float8", "float4")))}


def elements(tensor) -> bytes:
    """The bytes of a tensor's elements in order, whatever its dtype can or cannot do."""
    size = tensor.element_size()
    if not tensor.numel() or tensor.is_meta:
        return b""
    raw = torch.empty(0, dtype=torch.uint8).set_(
        tensor.untyped_storage(), 0, (tensor.untyped_storage().nbytes(),)
    )
    strides = [s * size for s in tensor.stride()]
    view = raw.as_strided([*tensor.shape, size], [*strides, 1], tensor.storage_offset() * size)
    return view.contiguous().numpy().tobytes()


def tensor_facts(t):
    return (
        type(t),
        t.dtype,
        tuple(t.shape),
        t.stride(),
        t.requires_grad,
        t.is_conj(),
        t.is_neg(),
        str(t.device),
        elements(t),
    )


class Difference(AssertionError):
    pass


def assert_same(a, b):
    """Equal in type and in every bit, and shared where the other is shared."""
    _Comparison().compare(a, b, "state")


class _Comparison:
    def __init__(self):
        self._twins, self._storages = {}, {}

    def compare(self, a, b, place):
        if type(a) is not type(b):
            raise Difference(f"{place}: {type(a)} and {type(b)}")
        if isinstance(a, torch.Tensor):
            self._same_twin(self._twins, id(a), id(b), a, b, place)
            self._tensors(a, b, place)
        elif isinstance(a, (dict, list, set, bytearray)):
            self._same_twin(self._twins, id(a), id(b), a, b, place)
            self._containers(a, b, place)
        elif isinstance(a, tuple):
            self._sequence(a, b, place)
        elif hasattr(a, "tobytes"):
            if (a.dtype.str, a.shape, a.tobytes()) != (b.dtype.str, b.shape, b.tobytes()):
                raise Difference(f"{place}: {a!r} and {b!r}")
        elif bits(a) != bits(b):
            raise Difference(f"{place}: {a!r} and {b!r}")

    def _same_twin(self, twins, key, twin, a, b, place):
        """An object that is in several places must be one object on the other side too, and no other's."""
        known = twins.setdefault(key, (twin, a, b))
        back = twins.setdefault(("back", twin), (key, a, b))
        if known[0] != twin or back[0] != key:
            raise Difference(f"{place}: shared on one side only")

    def _tensors(self, a, b, place):
        if tensor_facts(a) != tensor_facts(b):
            raise Difference(f"{place}: {a} and {b}")
        s, t = a.untyped_storage(), b.untyped_storage()
        if a.numel():
            self._same_twin(self._storages, s._cdata, t._cdata, a, b, f"{place} (storage)")

    def _containers(self, a, b, place):
        if isinstance(a, dict):
            self._sequence(list(a), list(b), f"{place}.keys()")
            for (key, x), y in zip(a.items(), b.values()):
                self.compare(x, y, f"{place}[{key!r}]")
            self.compare(getattr(a, "__dict__", None), getattr(b, "__dict__", None), f"{place}.__dict__")
        elif isinstance(a, list):
            self._sequence(a, b, place)
        elif isinstance(a, set):
            if sorted(map(repr, a)) != sorted(map(repr, b)):
                raise Difference(f"{place}: {a!r} and {b!r}")
        elif a != b:
            raise Difference(f"{place}: {a!r} and {b!r}")

    def _sequence(self, a, b, place):
        if len(a) != len(b):
            raise Difference(f"{place}: {len(a)} and {len(b)} long")
        for i, (x, y) in enumerate(zip(a, b)):
            self.compare(x, y, f"{place}[{i}]")


def bits(x):
    if isinstance(x, float):
        return torch.tensor(x, dtype=torch.float64).view(torch.int64).item()
    if isinstance(x, complex):
        return bits(x.real), bits(x.imag)
    return x


def random_storage(nbytes, dtype, seed=0):
    source = random.Random(seed).randbytes(nbytes)
    if dtype is torch.bool:
        source = bytes(b & 1 for b in source)
    storage = torch.UntypedStorage(nbytes)
    if nbytes:
        torch.empty(0, dtype=torch.uint8).set_(storage, 0, (nbytes,)).copy_(
            torch.frombuffer(bytearray(source), dtype=torch.uint8)
        )
    return storage


def make(dtype, shape, strides, offset=0, elements_=64, seed=0, storage=None):
    storage = storage or random_storage(elements_ * dtype.itemsize, dtype, seed)
    return torch.empty(0, dtype=dtype).set_(storage, offset, shape, strides)


# form -> (shape, strides, offset) in a storage of 64 elements
FORMS = {
    "scalar": ((), (), 0),
    "scalar inside": ((), (), 17),
    "one": ((1,), (1,), 0),
    "contiguous": ((4, 16), (16, 1), 0),
    "transposed": ((16, 4), (1, 16), 0),
    "every other": ((8,), (2,), 3),
    "column": ((4,), (16,), 5),
    "expanded": ((5, 4), (0, 1), 2),
    "overlapping": ((4, 4), (1, 1), 9),
    "inside": ((3, 3), (8, 1), 20),
    "four dimensions": ((2, 2, 2, 2), (1, 8, 4, 2), 11),
    "empty": ((0,), (1,), 0),
    "empty inside": ((3, 0, 2), (2, 2, 1), 30),
}


def alone(dtype):
    """Every form, each with a storage of its own."""
    return {form: make(dtype, *f, seed=i) for i, (form, f) in enumerate(FORMS.items())}


def same_object(dtype):
    """Every form, each in two places."""
    made = alone(dtype)
    return {"first": made, "second": list(made.values())}


def one_storage(dtype):
    """Every form, all over one storage."""
    storage = random_storage(64 * dtype.itemsize, dtype)
    return {form: make(dtype, *f, storage=storage) for form, f in FORMS.items()}


def base_and_view(dtype):
    """Every form beside the whole of its storage."""
    out = {}
    for i, (form, f) in enumerate(FORMS.items()):
        base = make(dtype, (64,), (1,), seed=i)
        out[form] = (base, make(dtype, *f, storage=base.untyped_storage()))
    return out


def parameters(dtype):
    """Every form as a parameter, and as a tensor that wants a gradient."""
    wants = dtype.is_floating_point or dtype.is_complex
    out = {form: torch.nn.Parameter(t, requires_grad=wants) for form, t in alone(dtype).items()}
    out["frozen"] = torch.nn.Parameter(make(dtype, (4,), (1,)), requires_grad=False)
    if wants and str(dtype) not in V3:
        out["leaf"] = make(dtype, (4,), (1,)).requires_grad_()
    return out


SHARINGS = {f.__name__: f for f in (alone, same_object, one_storage, base_and_view, parameters)}


def plain_values():
    """Every kind but tensors, with the edges of each."""
    shared = [1, 2]
    metadata = collections.OrderedDict(a=1, b=[2])
    metadata._metadata = collections.OrderedDict({"": {"version": 2}, "bn": {"version": 2}})
    return {
        "none": None,
        "bools": [True, False],
        "ints": [0, 1, -1, 127, 128, 255, 256, 65535, 65536, 2**31 - 1, 2**31, -(2**31), 2**40, 2**63 - 1, 2**63, -(2**63),
                 -(2**63) - 1, 2**64, 2**200, -(2**200)],
        "floats": [0.0, -0.0, 1.5, float("inf"), -float("inf"), float("nan"), 5e-324, 1.7976931348623157e308, nan(0x7FF0000000000001),
                   nan(0xFFF8000000000123)],
        "complex": [0j, 1 + 2j, complex(-0.0, float("inf")), complex(float("nan"), -0.0)],
        "strings": ["", "a", "\u00e9\U0001f600", "lone \ud800 surrogate", "nul\0inside", "x" * 70000, "\n\t\"'\\"],
        "bytes": [b"", b"\x00\xff", bytes(range(256)) * 3],
        "bytearray": bytearray(b"\x00\x80\xff"),
        "list": shared, "the same list": shared, "in a tuple": (shared, (shared,)),
        "empty": [[], (), {}, set(), collections.OrderedDict(), collections.Counter(), torch.Size([]), bytearray()],
        "tuples": [(1,), (1, 2), (1, 2, 3), (1, 2, 3, 4), tuple(range(2000))],
        "long": list(range(3000)), "wide": {i: str(i) for i in range(3000)},
        "keys": {1: "int", "1": "str", 2.5: "float", None: "none", True + 1: "two", (1, ("a", None)): "tuple", b"b": "bytes",
                 -(2**70): "big", torch.Size([2]): "size", torch.float32: "dtype", 1j: "complex"},
        "set": {1, "a", (2, 3), None, 2.5},
        "ordered": metadata, "plain ordered": collections.OrderedDict(z=1, a=2),
        "counter": collections.Counter("mississippi"),
        "size": torch.Size([2, 3, 0]),
        "dtypes": list(DTYPES.values()),
        "devices": [torch.device("cpu"), torch.device("cuda:1"), torch.device("cuda"), torch.device("meta")],
        "layout": torch.strided,
    }  # fmt: skip


def nan(pattern):
    """The float with these bits."""
    import struct

    return struct.unpack("<d", struct.pack("<Q", pattern))[0]
