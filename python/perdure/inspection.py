"""What a checkpoint holds, without reading its tensors."""

import collections
import dataclasses
import math

from . import _core
from .figures import by_name
from .files import _open
from .tensors import DTYPES
from .values import decode

_Kind = _core.Kind
_TENSORS = (_Kind.tensor, _Kind.composite, _Kind.opaque)  # what has no value that could be given without reading


@dataclasses.dataclass(frozen=True)
class Entry:
    """A tensor or a plain value. A list or tuple of plain values is one."""

    name: str  #: keys joined with dots: "optimizer.state.0.exp_avg"
    type: str  #: "tensor", "int", "str", "list", ...; the class of an object that perdure.load refuses
    value: object = None  #: of a plain value
    refused: bool = False  #: no plain data: perdure.load refuses it, and repair and convert leave it out or say so
    dtype: str = ""  #: of a tensor, as all below: "float32"
    shape: tuple[int, ...] = ()
    bytes: int = 0  #: elements times their size; what it takes in the file is its storage's
    device: str = ""  #: where it was when it was saved
    storage: int = -1  #: tensors with the same number share memory; -1: it has none in the file


@dataclasses.dataclass(frozen=True)
class Inspection:
    """A checkpoint, but for the bytes of its tensors."""

    path: str
    format: str  #: "perdure (PyTorch zip)", "PyTorch zip", "PyTorch legacy", "TorchScript", "safetensors", ...
    bytes: int  #: of the file
    checksums: bool  #: whether what is loaded from it is compared with any
    step: int | None  #: of a checkpoint of a run, else None
    metrics: dict[str, float]  #: this and what follows: of perdure's files, else None or empty
    created: float | None  #: seconds since 1970 by the writer's clock
    reason: str  #: of a checkpoint of a run: "regular", "preemption", "final"
    writer: str  #: "perdure 0.1.0"
    libraries: dict[str, str]  #: {"torch": "2.13.0"}
    metadata: dict[str, str]  #: of safetensors
    entries: dict[str, Entry]  #: by name (the second one of a name gets "#2"), in the order of the file

    @property
    def tensors(self) -> dict[str, Entry]:
        """The entries that are tensors."""
        return {name: entry for name, entry in self.entries.items() if entry.dtype}


def inspect(file, pattern: str = "") -> Inspection:
    """What the checkpoint at the path `file` (or in a binary file object) holds; of any format that perdure.load takes.

        found = perdure.inspect("cp.pt")
        print(found.format, found.step, sum(x.bytes for x in found.tensors.values()))
        for name, x in perdure.inspect("cp.pt", "model.*.weight").tensors.items():
            print(name, x.dtype, x.shape)

    No tensor is read, and so nothing of theirs is verified. Files with objects that perdure.load refuses can be looked
    into: they are shown, and never made.

    `pattern`: only entries whose name it matches as a whole or up to a dot; * stands for any characters, ? for one.

    Raises CorruptionError, UnsupportedError (not a format that perdure reads), NotFoundError and IoError.
    """
    opened = _open(file, allow_opaque=True)
    info = opened.info or _core.CheckpointInfo()
    has_step = opened.info is not None and info.generation > 0
    return Inspection(
        path=opened.name,
        format=opened.format,
        bytes=opened.size,
        checksums=opened.has_checksums(),
        step=info.step if has_step else None,
        metrics=dict(info.metrics),
        created=info.created if opened.info is not None else None,
        reason=info.reason if has_step else "",
        writer=info.writer,
        libraries=dict(info.libraries),
        metadata=dict(opened.metadata),
        entries=by_name(_entry(entry.name, entry.value) for entry in _core.entries(opened, pattern)),
    )


def _entry(name, value) -> Entry:
    if value.kind is _Kind.opaque:
        return Entry(name, value.name(), refused=True)
    if value.kind is _Kind.tensor:
        return _tensor(name, value.as_tensor())
    return Entry(name, value.kind_name, None if value.kind in _TENSORS else _plain(value))


def _plain(value):
    if value.kind is _Kind.ordered_dict:
        return collections.OrderedDict()  # it is empty; its attributes may hold anything
    return decode(value)


def _tensor(name, tensor) -> Entry:
    size = math.prod(tensor.shape) * DTYPES[tensor.dtype].itemsize
    storage = tensor.storage
    return Entry(
        name, "tensor", dtype=tensor.dtype, shape=tuple(tensor.shape), bytes=size, device=storage.device, storage=storage.record
    )  # fmt: skip
