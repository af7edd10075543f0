"""What a manager gives out: checkpoints, saves under way, plans."""

import dataclasses
import pathlib
import time

from . import _core
from .progress import shown

_POLL = 0.2  # seconds between looks for Ctrl-C while waiting


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """One checkpoint of a run."""

    path: pathlib.Path
    step: int  #: optimizer steps done when it was saved
    generation: int  #: a counter over the whole run: the highest one is the newest checkpoint
    parent: int  #: generation that the run was restored from before; 0: it began anew
    metrics: dict[str, float]
    created: float  #: seconds since 1970 by the writer's clock: for people, never for order
    reason: str  #: "regular", "preemption", "final"
    size: int  #: bytes of the file

    def __str__(self):
        if not self.generation:  # a file of an AsyncSaver's
            return str(self.path)
        metrics = "".join(f", {k} {v:g}" for k, v in self.metrics.items())
        return f"step {self.step} (generation {self.generation}{metrics}) in {self.path}"


@dataclasses.dataclass(frozen=True)
class PlannedCheckpoint:
    """What retention wants of one checkpoint."""

    checkpoint: Checkpoint
    reasons: tuple[str, ...]  #: to keep it: "last 3", "best by val_loss (min)", "pinned: ..."; none: it goes

    @property
    def kept(self) -> bool:
        return bool(self.reasons)

    def __str__(self):
        return f"{'keep' if self.kept else 'remove'} {self.checkpoint}{': ' * self.kept}{', '.join(self.reasons)}"


@dataclasses.dataclass(frozen=True)
class SaveStats:
    """What a save took, so far. Points in time are seconds since save() was called; 0.0: not yet reached."""

    bytes: int  #: of the file
    stalled: float  #: how long save() held the caller
    fence_waited: float  #: how long the optimizer's step waited for what was left to copy
    copied: float  #: when the state was free to change
    written: float  #: when all of it was handed to the disk
    durable: float  #: when it was acknowledged


class SaveHandle:
    """One save that was asked for. Safe to use from any thread."""

    def __init__(self, core: _core.SaveHandle):
        self._core = core

    def done(self) -> bool:
        """Whether it is over: durable, failed or skipped."""
        return self._core.done()

    def wait(self, timeout: float | None = None) -> bool:
        """Waits until it is done; False where `timeout` seconds pass before. Raises what the save had to say."""
        deadline = None if timeout is None else time.monotonic() + timeout
        with shown("perdure: saving", self._core.progress):
            while True:
                left = _POLL if deadline is None else min(_POLL, deadline - time.monotonic())
                if self._core.wait(max(left, 0.0)):
                    return True
                if left <= 0:
                    return False

    @property
    def error(self) -> BaseException | None:
        """What went wrong; None while it is not done, and when it went well."""
        return self._core.error()

    @property
    def skipped(self) -> bool:
        """Nothing was saved, because another save was in flight (when_busy="skip")."""
        return self._core.skipped()

    @property
    def checkpoint(self) -> Checkpoint | None:
        """What was saved, once it is durable."""
        return checkpoint_of(self._core.checkpoint())

    @property
    def stats(self) -> SaveStats:
        s = self._core.stats()
        return SaveStats(s.bytes, s.stalled, s.fence_waited, s.copied, s.written, s.durable)

    @property
    def progress(self) -> float:
        """What part of the file was handed to the disk, 0.0 to 1.0."""
        return self._core.progress()

    def __repr__(self):
        if not self.done():
            return "<SaveHandle: in flight>"
        if self.skipped:
            return "<SaveHandle: skipped>"
        return f"<SaveHandle: failed: {self.error}>" if self.error else f"<SaveHandle: {self.checkpoint}>"


def checkpoint_of(core) -> Checkpoint | None:
    if core is None:
        return None
    i = core.info
    return Checkpoint(
        pathlib.Path(core.path),
        i.step,
        i.generation,
        i.parent,
        dict(i.metrics),
        i.created,
        i.reason,
        core.size,
    )


def plan_of(core_plan) -> list[PlannedCheckpoint]:
    return [PlannedCheckpoint(checkpoint_of(item.checkpoint), tuple(item.reasons)) for item in core_plan]
