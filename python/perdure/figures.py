"""What the numbers in a checkpoint are like, and what differs between two."""

import dataclasses

from . import _core
from .files import _path


@dataclasses.dataclass(frozen=True)
class Figures:
    """Of a tensor or a group. `min`, `max`, `mean`, `rms` and `norm` are of the finite numbers: what is NaN or infinite
    is counted, and does not drown the rest. They are None where there is no finite number, and for dtypes of bits
    without a meaning as numbers.

    Of integers and bool, `min` and `max` are exact ints. Of complex numbers, `min`, `max`, `rms` and `norm` are of the
    magnitudes, `mean` is complex, and a number with a part that is NaN (infinite) counts as NaN (as +Inf).
    float4_e2m1fn_x2 has two numbers in an element; both count. An element that a view repeats counts as often as it
    is there.
    """

    elements: int
    nan: int
    pos_inf: int
    neg_inf: int
    zeros: int
    min: int | float | None
    max: int | float | None
    mean: float | complex | None
    rms: float | None  #: the root of the mean square
    norm: float | None  #: the root of the sum of squares (L2)


@dataclasses.dataclass(frozen=True)
class TensorStats:
    name: str  #: keys joined with dots: "optimizer.state.0.exp_avg"
    dtype: str  #: "float32"
    shape: tuple[int, ...]
    figures: Figures
    same_as: str  #: an earlier tensor with the same memory (tied weights), or ""; groups count them once
    parameter: str  #: of an optimizer's state: the name of the parameter that it belongs to, or ""
    problem: str  #: why there are no figures, or ""


@dataclasses.dataclass(frozen=True)
class GroupStats:
    """All tensors whose names begin alike, up to a dot."""

    name: str
    depth: int  #: how many parts the name has
    tensors: int
    figures: Figures


@dataclasses.dataclass(frozen=True)
class MomentumStats:
    """An optimizer's state of one parameter."""

    parameter: str
    optimizer: str
    weight: TensorStats | None  #: None where the file (or the pattern) lacks it
    momentum: tuple[TensorStats, ...]  #: exp_avg, exp_avg_sq, momentum_buffer, ...


@dataclasses.dataclass(frozen=True)
class StatsReport:
    path: str
    bytes: int  #: read
    tensors: dict[str, TensorStats]  #: by name (the second one of a name gets "#2"), in the order of the file
    groups: dict[str, GroupStats]
    momentum: tuple[MomentumStats, ...]


def stats(file, pattern: str = "") -> StatsReport:
    """What the numbers of every tensor in the checkpoint at the path `file` are like, and of groups of them; and an
    optimizer's momentum beside the weights that it belongs to.

        report = perdure.stats("cp.pt", "model")
        print([name for name, x in report.tensors.items() if x.figures.nan])

    `pattern`: only tensors whose name it matches as a whole or up to a dot; * stands for any characters, ? for one.

    The file is streamed once, with every checksum compared, in a few tens of MB of memory whatever its size. Things in
    it that are no plain data do not matter. Raises NotFoundError where nothing matches, and what load raises.
    """
    report = _core.stats(_path(file), pattern)
    tensors = [_tensor(t) for t in report.tensors]
    momentum = tuple(
        MomentumStats(
            m.parameter, m.optimizer, None if m.weight is None else tensors[m.weight],
            tuple(tensors[i] for i in m.momentum),
        )
        for m in report.momentum
    )  # fmt: skip
    return StatsReport(
        report.path,
        report.bytes,
        by_name(tensors),
        {g.name: GroupStats(g.name, g.depth, g.tensors, _figures(g.figures)) for g in report.groups},
        momentum,
    )


def by_name(things) -> dict:
    """Keys with dots in them can make two names alike: then the second one gets "#2" behind it."""
    found = {}
    for thing in things:
        name, count = thing.name, 2
        while name in found:
            name, count = f"{thing.name}#{count}", count + 1
        found[name] = thing
    return found


def _tensor(t) -> TensorStats:
    return TensorStats(t.name, t.dtype, tuple(t.shape), _figures(t.figures), t.same_as, t.parameter, t.problem)


def _figures(f) -> Figures:
    return Figures(
        f.elements, f.nan, f.pos_inf, f.neg_inf, f.zeros,
        f.min.scalar(), f.max.scalar(), f.mean.scalar(), f.rms.scalar(), f.norm.scalar(),
    )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Distance:
    """How far two tensors of one shape are apart, element by element; of complex ones by their parts. Two NaN of equal
    bits, and two infinities of one sign, are not apart."""

    elements: int
    changed: int  #: other bits; where the dtypes differ, another value
    beyond: int  #: |a - b| > atol + rtol |b|, or NaN on one side only; of complex ones, parts
    max_absolute: float  #: |a - b|; infinite beside an infinity; NaN does not count
    max_relative: float  #: |a - b| / max(|a|, |b|)
    max_ulp: int | None  #: how many floats of the dtype lie between them, at most; of floating and complex dtypes
    cosine: float | None  #: of the finite elements as two vectors; None where one is all zeros


@dataclasses.dataclass(frozen=True)
class Difference:
    what: str  #: "added" (only in the second file), "removed" (only in the first), "value", "tensor"
    name: str  #: keys joined with dots
    before: str  #: "0.5", "float32 [3, 4]"; "" where it was added
    after: str
    distance: Distance | None  #: of tensors whose elements can be compared


@dataclasses.dataclass(frozen=True)
class DiffReport:
    path_a: str
    path_b: str
    differences: tuple[Difference, ...]
    tensors: int  #: that are in both
    by_checksum: int  #: of these, equal by their checksums, and not read
    within_tolerance: int  #: of these, changed, and taken as equal
    values: int  #: plain values that are in both
    prefix: str  #: "module." or "_orig_mod.", where the names of one file have it; compared without it
    prefix_in_second: bool

    @property
    def equal(self) -> bool:
        return not self.differences and not self.prefix


def diff(a, b, pattern: str = "", atol: float = 0.0, rtol: float = 0.0, full: bool = False) -> DiffReport:
    """What differs between the checkpoints at the paths `a` and `b`, whatever their format.

        for d in perdure.diff("before.pt", "after.pt").differences: print(d.what, d.name, d.distance)

    What is compared is what the files mean: keys are matched by name (joined with dots), and tensors element by
    element, whatever their strides and storages are. Tuples are lists, OrderedDicts dicts; requires_grad, attributes of
    dicts and what is shared do not count. An int is no float: 1 and 1.0 differ.

    `pattern`: only what is called so: it matches a name as a whole or up to a dot; * stands for any characters.
    `atol`, `rtol`: a tensor whose elements all have |a - b| <= atol + rtol |b| counts as equal, as for
        torch.allclose(a, b, rtol, atol, equal_nan=True), of complex ones for torch.view_as_real of them. With 0 and 0,
        equal means equal bits.
    `full`: reads also tensors of the same dtype, shape and strides whose storages have the same size and CRC-32, which
        count as equal otherwise.

    Both files are streamed once, side by side, with every checksum compared, in bounded memory. Raises NotFoundError
    where nothing matches, and what load raises.
    """
    report = _core.diff(_path(a), _path(b), pattern, atol, rtol, full)
    differences = tuple(
        Difference(d.what.name, d.name, d.before, d.after, _distance(d.distance)) for d in report.differences
    )
    return DiffReport(
        report.path_a, report.path_b, differences, report.tensors, report.by_checksum, report.within_tolerance,
        report.values, report.prefix, report.prefix_in_second,
    )  # fmt: skip


def _distance(d) -> Distance | None:
    if d is None:
        return None
    return Distance(d.elements, d.changed, d.beyond, d.max_absolute, d.max_relative, d.max_ulp, d.cosine)
