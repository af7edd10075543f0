"""torch tensors over the core's storages: addresses out, addresses in, no copies in between."""

import torch

from . import _core, places
from .errors import InvalidError, UnsupportedError
from .shards import is_dtensor

# The dtypes that torch.load gives back, under the names that the core has for them too.
DTYPES = {
    name: getattr(torch, name)
    for name in (
        "float64 float32 float16 bfloat16 complex128 complex64 complex32 int64 int32 int16 int8 "
        "uint64 uint32 uint16 uint8 bool float8_e4m3fn float8_e4m3fnuz float8_e5m2 float8_e5m2fnuz "
        "float8_e8m0fnu float4_e2m1fn_x2 bits8 bits16 bits1x8 bits2x4 bits4x2"
    ).split()
    if hasattr(torch, name)  # an older torch has fewer
}
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}


def describe(tensor, place):
    """Dtype, shape, strides, offset, and whether it requires grad and is conjugated or negated. Called by the core's
    encoder for what it cannot read by itself; raises for what is no plain tensor.
    """
    _require_plain(tensor, place)
    return (
        tensor.dtype,
        list(tensor.shape),
        list(tensor.stride()),
        tensor.storage_offset(),
        tensor.requires_grad,
        tensor.is_conj(),
        tensor.is_neg(),
    )


def make_storage(storage, place) -> _core.Storage:
    """The core's storage for one of torch's, copied to CPU memory where it is not there. Called by the core's encoder,
    once for each that it cannot read by itself."""
    device = str(storage.device)
    if storage.device.type == "meta":
        return _core.Storage(0, storage.nbytes(), device)
    memory = storage if storage.device.type == "cpu" else storage.cpu()
    if memory.nbytes() and not memory.data_ptr():
        places.refuse(place, "has no memory (its storage was freed); write it before it is released")
    return _core.Storage(memory.data_ptr(), memory.nbytes(), device, memory)


def _require_plain(tensor, place):
    """Refuses what is a tensor to Python, but not one run of memory with a shape."""
    if is_dtensor(tensor):
        places.refuse(
            place,
            "is a DTensor, whose other parts other ranks have; save it with CheckpointManager(process_group=...) or "
            "torch.distributed.checkpoint and perdure.dcp, or write x.full_tensor()",
        )
    if tensor.layout is not torch.strided:
        places.refuse(place, f"is a tensor of layout {tensor.layout}, which perdure cannot hold; write x.to_dense()")
    if tensor.dtype not in DTYPE_NAMES:
        places.refuse(
            place,
            f"is a tensor of {tensor.dtype}, which torch.load does not give back; write x.view(torch.uint8)",
        )
    if tensor._is_zerotensor():
        places.refuse(place, "is a zero tensor without memory (of forward-mode AD); write x.clone()")


def outline(x) -> torch.Tensor:
    """A tensor of the same dtype and shape, of which only these are of use. Not one on "meta": PyTorch says in a
    millisecond of each that its memory cannot be had."""
    return torch.empty((), dtype=x.dtype).expand(x.shape)


def is_plain(x) -> bool:
    """Whether `x` is a tensor that can be saved as it is, in the memory of the CPU."""
    return (
        type(x) in (torch.Tensor, torch.nn.Parameter)  # and so not one of a lazy module
        and x.layout is torch.strided
        and x.device.type == "cpu"
        and x.dtype in DTYPE_NAMES
        and not (x.is_nested or x.is_quantized or vars(x))
    )


class Placement:
    """Where tensors go: torch.load's map_location (None, a device, a string, a dict or a callable)."""

    def __init__(self, map_location=None, fallback: str | None = None):
        """`fallback` is the device for those whose own is not there; without it that is an error."""
        self._map = map_location
        self._fallback = fallback
        self._known = {}
        self.is_meta = not callable(map_location) and str(map_location) == "meta"

    def device(self, saved: str) -> str:
        """The device for what was saved on `saved`. Raises InvalidError where there is no such device."""
        if saved not in self._known:
            self._known[saved] = self._choose(saved)
        return self._known[saved]

    def place(self, storage, saved: str):
        """`storage`, which is in CPU memory, on the device where it belongs."""
        if callable(self._map):
            moved = self._map(storage, saved)
            if moved is not None:
                return getattr(moved, "_untyped_storage", moved)
        device = self.device(saved)
        return storage if device == "cpu" else storage.to(device=torch.device(device))

    def _choose(self, saved):
        wanted = self._wanted(saved)
        try:
            torch.empty(0, device=wanted)
        except (
            RuntimeError,
            AssertionError,
            NotImplementedError,
        ) as error:  # what torch raises for "none here"
            if self._fallback:
                return self._fallback
            reason = str(error).partition("\n")[0]
            raise InvalidError(
                f"tensors of this file belong on {wanted!r}, which is not there ({reason}); "
                'load them elsewhere: map_location="cpu"'
            ) from None
        return wanted

    def _wanted(self, saved):
        if self._map is None or callable(self._map):
            return saved
        if isinstance(self._map, dict):
            return str(self._map.get(saved, saved))
        return str(self._map)

    def check(self, saved: str):
        """Raises before anything is read where what was saved on `saved` has nowhere to go."""
        if not callable(self._map):
            self.device(saved)


def allocate(storage: _core.Storage):
    """Gives a storage of the core memory that torch owns, so that tensors can be made over it."""
    memory = torch.UntypedStorage(storage.size)
    storage.set_data(memory.data_ptr(), memory)


class TensorDecoder:
    """Values to tensors; each storage is placed once."""

    def __init__(self, placement: Placement):
        self._placement = placement
        self._storages = {}

    def decode(self, t: _core.Tensor):
        core = t.storage
        if core.identity not in self._storages:
            self._storages[core.identity] = self._torch_storage(core)
        storage = self._storages[core.identity]
        tensor = torch.empty(0, dtype=DTYPES[t.dtype], device=storage.device)
        tensor.set_(storage, t.storage_offset + _shift(core, tensor.itemsize), t.shape, t.strides)
        return _finish(tensor, t)

    def _torch_storage(self, core):
        if self._placement.is_meta or core.device == "meta":
            return torch.UntypedStorage(core.size, device="meta")
        return self._placement.place(_memory(core), core.device)


def _shift(core, itemsize):
    """Where in torch's storage the core's begins, in elements: it may have been read into the middle of a larger one."""
    owner = core.owner
    inside = isinstance(owner, torch.UntypedStorage) and owner.device.type == "cpu" and core.address
    return (core.address - owner.data_ptr()) // itemsize if inside else 0


def _memory(core):
    """The torch storage behind a core storage, or one over the memory that the core itself owns."""
    if isinstance(core.owner, torch.UntypedStorage):
        return core.owner
    if not core.size:
        return torch.UntypedStorage(0)
    if not core.address:
        raise InvalidError("a tensor has no data: its file was only opened")
    return core.tensor().untyped_storage()


def _finish(tensor, t):
    if t.requires_grad and not (tensor.is_floating_point() or tensor.is_complex()):
        raise UnsupportedError(f"the file has a tensor of {tensor.dtype} that requires a gradient, which none can have")
    if t.conj:
        torch._C._set_conj(tensor, True)
    if t.neg:
        torch._C._set_neg(tensor, True)
    if t.parameter:
        return torch.nn.Parameter(tensor, requires_grad=t.requires_grad)
    return tensor.requires_grad_() if t.requires_grad else tensor
