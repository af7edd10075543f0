"""Converting checkpoints: between PyTorch's format, safetensors and DCP directories."""

import dataclasses
import pathlib

from . import _core
from .errors import InvalidError
from .files import _path
from .tensors import DTYPE_NAMES


@dataclasses.dataclass(frozen=True)
class ConvertReport:
    """What convert wrote."""

    path: pathlib.Path
    rest: pathlib.Path | None  #: the file of what safetensors cannot hold, where there is one
    format: str  #: "torch", "safetensors" or "dcp"
    tensors: int
    bytes: int  #: of the tensors
    left_out: tuple[str, ...]  #: names, by strip_optimizer


def convert(
    file,
    out,
    to: str | None = None,
    only=(),
    rename=(),
    dtype=None,
    strip_optimizer: bool = False,
    rest: bool = False,
    max_shard_size: int = 0,
    force: bool = False,
    progress=None,
) -> ConvertReport:
    """Writes what is in `file` to the path `out`, in another format or only a part of it.

        perdure.convert("cp.pt", "model.safetensors", only=["model"], rename={"model.*": "*"}, dtype=torch.bfloat16)
        perdure.convert("checkpoints/step-1000", "whole.pt")        # of a torch.distributed.checkpoint directory

    `file`: a PyTorch file, safetensors (one file, an index of several, or a directory that has one), a directory of
    torch.distributed.checkpoint, or a run directory (its newest whole checkpoint). Tensors stream through: files that
    are larger than memory are fine. What is written is complete and durable before it gets its name; when convert
    raises, nothing is there, or what was there before.

    `to`: "torch", "safetensors" or "dcp". Without it, the ending of `out` says it: .pt, .pth, .bin and .ckpt for
        PyTorch's format, .safetensors, and none for a DCP directory.
    `only`: names; what has one of them, or is below it, is written. A name is keys joined by dots, and "*" in it stands
        for any run of characters.
    `rename`: a dict, or pairs, of old names and new ones, with as many "*" on both sides: {"model.*": "*"}. The first
        that fits counts. A new name goes into the dict at the top whose name it begins with, or to the top.
    `dtype`: floating-point tensors become this (float64, float32, float16 or bfloat16), as `Tensor.to` makes them.
    `strip_optimizer`: leaves out the state of optimizers (dicts with "state" and "param_groups").
    `rest`: safetensors hold nothing but tensors, each in memory of its own. What they cannot hold goes into a PyTorch
        file beside `out`, x.rest.pt for x.safetensors; without this it is an error.
    `max_shard_size`: bytes; `out` becomes a directory of safetensors files of no more than that, with an index.
    `force`: replaces `out` where it exists.
    `progress`: called with the bytes done and the bytes in all; what it raises ends the conversion, and nothing is left.

    Raises what load and save raise, and InvalidError where the format that is wanted cannot hold something (it names the
    place), for names that are not there, and where `out` exists or is `file`.
    """
    options = _core.ConvertOptions()
    if to is not None:
        if to not in ("torch", "safetensors", "dcp"):
            raise InvalidError(f'to={to!r}: it is "torch", "safetensors" or "dcp"')
        options.to = getattr(_core.FileFormat, to)
    if isinstance(only, str):
        raise InvalidError(f"only is a list of names: only=[{only!r}]")
    options.only = list(only)
    options.rename = [tuple(rule) for rule in (rename.items() if hasattr(rename, "items") else rename)]
    if dtype is not None:
        options.set_dtype(DTYPE_NAMES.get(dtype, str(dtype)))
    options.strip_optimizer, options.rest, options.force = strip_optimizer, rest, force
    options.max_shard_size = max_shard_size
    report = _core.convert(_path(file), _path(out), options, progress)
    return ConvertReport(
        pathlib.Path(report.path),
        pathlib.Path(report.rest) if str(report.rest) not in ("", ".") else None,
        report.format.name,
        report.tensors,
        report.bytes,
        tuple(report.left_out),
    )
