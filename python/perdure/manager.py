"""CheckpointManager: the checkpoints of one training run, in one directory."""

import atexit
import dataclasses
import logging
import os
import pathlib
import time
import weakref

import torch

from . import _core
from .devices import pinned
from .errors import InvalidError, InvalidTypeError
from .state import TrainingState

_logger = logging.getLogger("perdure")
_MODES = {"min": _core.Mode.min, "max": _core.Mode.max}
_ON_ERROR = {"warn": _core.OnError.warn, "raise": _core.OnError.raise_error}
_WHEN_BUSY = {"wait": _core.WhenBusy.wait, "skip": _core.WhenBusy.skip}
_CAPTURE = {
    "eager": _core.Capture.eager,
    "overlapped": _core.Capture.overlapped,
    "checked": _core.Capture.checked,
}
_POLL = 0.2  # seconds between looks for Ctrl-C while waiting


@dataclasses.dataclass(frozen=True)
class Best:
    """Keep the `count` checkpoints with the lowest ("min") or highest ("max") value of a metric.

    NaN never is best; of equal ones the older is kept.
    """

    metric: str
    mode: str = "min"
    count: int = 1

    def __post_init__(self):
        if self.mode not in _MODES:
            raise InvalidError(f'mode is "min" or "max", not {self.mode!r}')
        if self.count < 1:
            raise InvalidError(f"count is at least 1, not {self.count}")


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
        metrics = "".join(f", {k} {v:g}" for k, v in self.metrics.items())
        return f"step {self.step} (generation {self.generation}{metrics}) in {self.path}"


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
        return _checkpoint(self._core.checkpoint())

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


class CheckpointManager:
    """The checkpoints of one training run, in one directory, which is made where it is not there.

        best = perdure.Best("val_loss", "min", 2)
        with perdure.CheckpointManager("runs/gpt", keep_last=3, keep_best=best) as checkpoints:
            checkpoints.restore(state)
            ...
            checkpoints.save(state, metrics={"val_loss": loss})

    One manager per directory at a time: it is locked while it is open (LockedError names the process that has it),
    and free at once when that process dies. To be called from the training thread. A forked child (a DataLoader
    worker) cannot use it and gets InvalidError.

    keep_last: how many of the newest to keep, at least 1.
    keep_best: a Best, or a list of them, to keep beside those.
    on_error: what becomes of a save that failed. "warn": the training goes on, logging.getLogger("perdure") is told;
        after the third failure in a row the next save() raises it all the same. "raise": the next save() raises it.
        Either way the handle has it, and wait() and close() raise it.
    when_busy: what a save does while another one is in flight: "wait" for it, or "skip" itself.
    capture: when the bytes are copied. "eager": all of them by save(), which is always right. "overlapped": save()
        returns at once; the parameters and the state of registered optimizers are copied during the next forward and
        backward pass, and the optimizer's next step waits for what is left. For loops in which nothing but
        optimizer.step() changes parameters: a change that PyTorch's version counters see fails the save; they do not
        see writes through .data or numpy. "checked": eager, and at the next
        step the live bytes are compared with what was saved: run a loop with it once to see whether it qualifies.
    staging_bytes: the most memory for copies on their way to the disk, at least 16 MiB. A state that fits is captured
        at the speed of memory, a larger one streams through at that of the disk (eagerly). None: as much as the state
        takes, up to half of the memory that is free (or left within the limits of the container) when it is needed.

    As a context manager it is closed at the end of the block. An exception of the block's own is never replaced by
    one of the closing (that is logged). A manager that is never closed is closed when the interpreter exits.
    """

    def __init__(
        self,
        directory,
        keep_last: int = 3,
        keep_best=(),
        on_error: str = "warn",
        when_busy: str = "wait",
        capture: str = "eager",
        staging_bytes: int | None = None,
    ):
        best = [keep_best] if isinstance(keep_best, Best) else list(keep_best)
        self._best = best
        self._pid = os.getpid()
        self._core = _core.CheckpointManager(
            os.fsdecode(directory),
            keep_last,
            [_core.Best(b.metric, _MODES[b.mode], b.count) for b in best],
            _choice(_ON_ERROR, "on_error", on_error),
            _choice(_WHEN_BUSY, "when_busy", when_busy),
            _choice(_CAPTURE, "capture", capture),
            staging_bytes or 0,
            pinned,
            _warn,
        )
        self._waits = when_busy == "wait"
        self._fenced = weakref.WeakKeyDictionary() if capture != "eager" else None  # optimizer -> hook
        self._closed = False
        _open_managers.add(self)

    def restore(
        self, state: TrainingState, step: int | None = None, path=None, strict: bool = True
    ) -> Checkpoint | None:
        """Puts the newest whole checkpoint into `state`. Returns it, or None where the directory has none yet.

        A checkpoint that is provably damaged is set aside (as *.damaged), that is logged, and the one before is
        taken. Any other trouble is raised: going on from an older step would be silent loss.

        step: this step instead of the newest (it never falls back). path: this file, any that perdure.load takes.
        strict: whether everything registered must be in the file and the other way round. The error lists all that
            does not fit, and nothing is changed.

        Tensors of registered modules and optimizers that fit are read into where they are, each block verified
        before: no second copy of the state is in memory. When the file of a named step or path turns out damaged, or
        the disk fails, the state may be a mix by then: state.broken says so, and it is not saved before another
        restore succeeds.
        """
        _require_state(state)

        def take(file):
            state._restore(file, strict)

        return _checkpoint(
            self._core.restore(step, None if path is None else os.fsdecode(path), strict, take)
        )

    def save(self, state: TrainingState, metrics=None) -> SaveHandle:
        """Saves `state` as the next checkpoint of its step, and prunes those that need not be kept.

        Returns when the state is captured; the rest goes on behind the training, and the handle tells of it.

        First make the state say "done" (state.epoch += 1), then save it. `metrics` are numbers by name; 0-dim
        tensors and numpy scalars are taken too.
        """
        _require_state(state)
        numbers = {name: _number(name, x) for name, x in (metrics or {}).items()}
        if self._waits:
            self._wait_idle()
        state._register_rng()
        self._add_fences(state)
        return SaveHandle(self._core.save(state._state, numbers))

    def prepare(self, state: TrainingState) -> None:
        """Makes the first save as fast as the later ones: allocates the memory for staging, and has it touched by a
        thread of its own while the training begins."""
        _require_state(state)
        state._register_rng()
        self._core.prepare(state._state)

    def fence(self) -> None:
        """Waits until what an optimizer's step changes has been copied. With capture="overlapped" and "checked" the
        steps of registered optimizers do it by themselves; call it before you change parameters in any other way.
        """
        self._core.fence()

    def _add_fences(self, state):
        if self._fenced is None:
            return
        manager = weakref.ref(self)

        def fence(optimizer, args, kwargs):
            alive = manager()
            if alive is not None and not alive._closed and alive._pid == os.getpid():
                alive._core.fence()

        for optimizer in state._things.values():
            if isinstance(optimizer, torch.optim.Optimizer) and optimizer not in self._fenced:
                self._fenced[optimizer] = optimizer.register_step_pre_hook(fence)

    def _wait_idle(self):
        """As the core does, but Ctrl-C is heard."""
        while not self._core.idle(_POLL):
            pass

    @property
    def directory(self) -> pathlib.Path:
        return pathlib.Path(self._core.directory)

    def checkpoints(self) -> list[Checkpoint]:
        """All there are, the newest first."""
        return [_checkpoint(c) for c in self._core.checkpoints()]

    def latest(self) -> Checkpoint | None:
        """The newest one."""
        return next(iter(self.checkpoints()), None)

    def latest_step(self) -> int | None:
        """The step of the newest one."""
        return self._core.latest_step()

    def best_step(self, metric: str | None = None) -> int | None:
        """The step of the one with the best value of `metric` (by default the first of keep_best)."""
        if metric is None and not self._best:
            raise InvalidError(
                'name the metric, best_step("val_loss"), or say keep_best=perdure.Best("val_loss")'
            )
        return self._core.best_step(metric or self._best[0].metric)

    def all_steps(self) -> list[int]:
        """Every step that has a checkpoint, ascending."""
        return self._core.all_steps()

    def wait(self) -> None:
        """Waits until no save is in flight. Raises the error of one that nobody has seen."""
        self._wait_idle()
        self._core.wait()

    def close(self) -> None:
        """wait(), then gives up the lock. Afterwards nothing but close() can be called."""
        self._closed = True
        for hook in (self._fenced or {}).values():
            hook.remove()
        self._core.close()

    def _close_quietly(self):
        if self._closed or self._pid != os.getpid():
            return
        try:
            self.close()
        except Exception as error:  # nobody is left to raise it to
            _warn(f"closing {self.directory}: {error}")

    def __enter__(self):
        return self

    def __exit__(self, exception_type, exception, traceback):
        if exception_type is None:
            self.close()
        else:
            self._close_quietly()

    def __del__(self):
        if hasattr(self, "_closed"):
            self._close_quietly()

    def __repr__(self):
        if self._closed:
            return f"<CheckpointManager {str(self.directory)!r}: closed>"
        found = self.checkpoints()
        newest = f", newest {found[0].step}" if found else ""
        return f"<CheckpointManager {str(self.directory)!r}: {len(found)} checkpoints{newest}>"


def list_checkpoints(directory) -> list[Checkpoint]:
    """The readable checkpoints in a run directory, newest first, also while a training run has its lock."""
    return [
        _checkpoint(c.checkpoint) for c in _core.list_checkpoints(os.fsdecode(directory)) if not c.problem
    ]


_open_managers: "weakref.WeakSet[CheckpointManager]" = weakref.WeakSet()


@atexit.register
def _close_all():
    for manager in list(_open_managers):
        manager._close_quietly()


def _warn(text: str) -> None:
    _logger.warning("%s", text)


def _choice(choices, name, word):
    if word not in choices:
        words = " or ".join(f'"{choice}"' for choice in choices)
        raise InvalidError(f"{name} is {words}, not {word!r}")
    return choices[word]


def _require_state(state):
    if not isinstance(state, TrainingState):
        raise InvalidTypeError(
            f"a perdure.TrainingState is wanted, not a {type(state).__qualname__}: "
            "state = perdure.TrainingState(model=model, optimizer=optimizer, ...)"
        )


def _number(name, x) -> float:
    try:
        return float(x.item() if hasattr(x, "item") else x)
    except (TypeError, ValueError, RuntimeError):
        raise InvalidTypeError(f"the metric {name!r} is {x!r}, which is not a number") from None


def _checkpoint(core) -> Checkpoint | None:
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
