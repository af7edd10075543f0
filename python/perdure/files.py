"""One file: save, load, verify, repair."""

import dataclasses
import os

from . import _core
from .errors import InvalidError, InvalidTypeError
from .tensors import Placement, allocate
from .values import decode, encode


def save(state, file) -> None:
    """Saves `state` at the path `file` (or to a binary file object), as torch.save should.

        perdure.save({"epoch": 3, "model": model.state_dict(), "optimizer": optimizer.state_dict()}, "cp.pt")

    The file is PyTorch's own format: torch.load(path) with its defaults opens it. When save returns, the file is on
    the disk and survives a power cut; when it raises, what was at the path before is untouched. A file object gets
    the bytes with write(); how durable they are is its own affair.

    Raises InvalidError for a value that torch.load could not take (it names the place and what to write instead),
    FullError where there is no space, and IoError.
    """
    value = encode(state)
    if hasattr(file, "write"):
        info = _core.CheckpointInfo()
        info.libraries = libraries()
        _core.write_to(file.write, value, info)
    else:
        _core.save(_path(file), value)


def load(file, map_location=None, keys=None, mmap: bool | None = False, verify: bool = False, weights_only=None):
    """Loads what perdure.save or torch.save wrote at the path `file` (or in a binary file object), in any of PyTorch's
    formats: zip, legacy (before 1.6), TorchScript (each module as a dict of its attributes).

    Every byte has its checksum compared, where the format has one (but see `mmap`), and nothing in the file is ever
    executed.

    `map_location`: where tensors go, as for torch.load: None (where they were saved from), "cpu", "cuda:1", a
        torch.device, a dict, a callable; "meta" reads no data at all (numpy arrays then stay in their plain form).
    `keys`: only these parts; nothing else is read. Each is a key or a tuple of keys:
        perdure.load("cp.pt", keys=["epoch", ("model", "fc.weight")])
    `mmap`: the tensors look into the file itself (a private mapping): nothing is read before it is touched. Writing
        to them does not change the file. Nothing is verified, unless `verify=True` says so: then every checksum is
        compared first, which reads all of it. The file must stay as it is while a tensor lives: replacing it by
        renaming is fine (perdure.save does that), but where it is cut, touching what is gone ends the program (SIGBUS).
    `weights_only`: torch.load's, so that its calls can stay as they are. It makes no difference: everything is loaded that
        is plain data, and nothing else ever is.

    Raises CorruptionError (naming file, offset and tensor), UnsupportedError (the file holds what plain data
    cannot; it names it and its place), NotFoundError, IoError, and InvalidError for keys that are not there.
    """
    if mmap and hasattr(file, "read"):
        raise InvalidError("mmap=True needs the path of a file, not a file object")
    opened = _open(file)
    value = opened.value if keys is None else _core.select(opened.value, _key_paths(keys))
    placement = Placement(map_location)
    if mmap and not placement.is_meta:
        opened.map_all(value, verify)
    elif not placement.is_meta:
        read_all(opened, value, placement)
    return decode(value, placement)


def read_all(opened: _core.CheckpointFile, value: _core.Value, placement: Placement) -> None:
    """Reads what `value` refers to into memory of torch's."""

    def prepare(storage):
        placement.check(storage.device)
        allocate(storage)

    opened.read_all(value, prepare)


@dataclasses.dataclass(frozen=True)
class Finding:
    """One damaged or unverifiable place in a file."""

    record: str  #: zip entry, or "" for the file as a whole
    tensor: str  #: key path of a tensor in it, or ""
    offset: int  #: in the file: where the damaged block begins
    what: str  #: a sentence


@dataclasses.dataclass(frozen=True)
class VerifyReport:
    """What verify found. `state` is "good", "damaged", or "unchecked": sound, but without checksums."""

    path: str
    state: str
    bytes: int  #: read and compared
    tensors: int
    findings: tuple[Finding, ...]

    @property
    def good(self) -> bool:
        return self.state == "good"


def verify(file) -> VerifyReport:
    """Reads all of a file and compares every checksum in it. Damage is reported, all of it, and never raised."""
    if hasattr(file, "read"):
        report = _core.verify_bytes(*_whole(file))
    else:
        report = _core.verify(_path(file))
    findings = tuple(Finding(f.record, f.tensor, f.offset, f.what) for f in report.findings)
    return VerifyReport(report.path, report.state.name, report.bytes, report.tensors, findings)


@dataclasses.dataclass(frozen=True)
class Lost:
    """A value that is in a damaged file no more."""

    path: str  #: state['model']['fc.weight']; of a dict or list without tensors, for all that is in it
    dtype: str  #: "float32"; "" of what is no tensor
    shape: tuple[int, ...]  #: of a tensor
    why: str  #: a sentence


@dataclasses.dataclass(frozen=True)
class Saved:
    tensors: int
    bytes: int  #: of their storages


@dataclasses.dataclass(frozen=True)
class RepairReport:
    """What repair saved, what is lost, and in `notes` what was damaged and could be made good, and from what."""

    path: str
    saved: Saved
    lost: tuple[Lost, ...]
    notes: tuple[str, ...]


def repair(file, out, like=None, force: bool = False) -> RepairReport:
    """Saves every tensor whose checksum is right from a truncated or damaged file at the path `out`.

        report = perdure.repair("cut.pt", "whole.pt")
        for lost in report.lost: print(lost.path, lost.why)

    What is lost is left out of its dict; in a list or tuple None stands in its place. All else is as it was to the
    last bit, and what shared a storage still does. `file` is only read. What is saved is in memory as a whole.

    `like`: another checkpoint that the same program wrote, older or newer. Where a file of perdure's was cut off, the
        names, dtypes and shapes of its tensors are gone with its end; they are taken from this one, and nothing else
        is. Not looked at where the file still has its own.
    `force`: replaces `out` where it exists.

    Raises CorruptionError where there is nothing to save, or where tensors have lost their names and `like` would help
    (a checkpoint beside the file that could serve is named); UnsupportedError as load does, and for files without
    checksums; InvalidError where `out` exists or is one of the other files, and where `like` has another structure;
    and what save raises.
    """
    report = _core.repair(_path(file), _path(out), "" if like is None else _path(like), force)
    lost = tuple(Lost(item.path, item.dtype, tuple(item.shape), item.why) for item in report.lost)
    return RepairReport(report.path, Saved(report.tensors, report.bytes), lost, tuple(report.notes))


def libraries() -> dict[str, str]:
    """What a file says of the libraries that wrote it."""
    import torch

    return {"torch": str(torch.__version__)}


def _open(file, allow_opaque=False):
    if hasattr(file, "read"):
        return _core.CheckpointFile.open_bytes(*_whole(file), allow_opaque)
    return _core.CheckpointFile.open(_path(file), allow_opaque)


def _whole(file):
    data = file.read()
    if not isinstance(data, bytes):
        raise InvalidTypeError(f"{file!r} is not a binary file object: open it with mode 'rb'")
    return data, str(getattr(file, "name", "<file object>"))


def _path(file) -> str:
    """The path as str; bytes paths too."""
    try:
        return os.fsdecode(file)
    except TypeError:
        raise InvalidTypeError(
            f"a path or a binary file object is wanted, and {type(file).__qualname__} is neither; "
            "the order is perdure.save(state, path)"
        ) from None


def _key_paths(keys):
    if isinstance(keys, (str, tuple)):
        raise InvalidError(f"keys is a list of keys or of tuples of keys: keys=[{keys!r}]")
    return [[encode(k, "key") for k in (key if isinstance(key, tuple) else (key,))] for key in keys]
