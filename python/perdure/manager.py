"""CheckpointManager: the checkpoints of one training run, in one directory."""

import logging
import os
import pathlib
import signal
import weakref

import torch

from . import _core
from .closing import Closing
from .devices import pinned
from .errors import InvalidError, InvalidTypeError
from .handles import Checkpoint, PlannedCheckpoint, SaveHandle, checkpoint_of, plan_of
from .logger import note, warn
from .policies import Best, as_every, as_list, core_best
from .process_group import ranks_of
from .progress import shown
from .state import TrainingState, match_options
from .values import decode

_logger = logging.getLogger("perdure")
_ON_ERROR = {"warn": _core.OnError.warn, "raise": _core.OnError.raise_error}
_WHEN_BUSY = {"wait": _core.WhenBusy.wait, "skip": _core.WhenBusy.skip}
_CAPTURE = {
    "eager": _core.Capture.eager,
    "overlapped": _core.Capture.overlapped,
    "checked": _core.Capture.checked,
}


class CheckpointManager(Closing):
    """The checkpoints of one training run, in one directory, which is made where it is not there.

        best = perdure.Best("val_loss", "min", 2)
        with perdure.CheckpointManager("runs/gpt", keep_last=3, keep_best=best) as checkpoints:
            checkpoints.restore(state)
            ...
            checkpoints.save(state, metrics={"val_loss": loss})

    Or in every step, where save_every, overhead or save_on_signal say when:

        if checkpoints.should_save(state.step):
            checkpoints.save(state)
        if checkpoints.preempted:
            break

    One manager per directory at a time: it is locked while it is open (LockedError names the process that has it),
    and free at once when that process dies. To be called from the training thread: calls of other threads are
    made one after the other, but what is saved must not change while that goes on. A forked child (a DataLoader
    worker) cannot use it and gets InvalidError.

    keep_last: how many of the newest to keep, at least 1.
    keep_best: a Best, or a list of them, to keep beside those.
    keep_every: an Every, or a number of steps. Of steps, the first checkpoint at or after each multiple stays; of
        time, the first one, and after it the next that was created so much later.
    save_every: an Every, or a number of steps: when should_save() says so.
    overhead: the part of the training's time that saving may cost, such as 0.02. should_save() then measures what a
        save costs (the call, the fence, and how much slower steps are meanwhile) and says so at the shortest interval
        that keeps to it (a second at least): `interval`, also told to the logger.
    save_on_signal: signals that announce the end of the process, such as (signal.SIGTERM, signal.SIGUSR1). They are
        noticed, not acted upon: `preempted` becomes true, and should_save() says so. An earlier handler still runs.
        Forked children ignore them, unless they come from their parent. DataLoader workers (where PyTorch handles
        SIGTERM) do so in a ResumableLoader whose iteration begins after the manager is made.
    grace: seconds from such a signal to the end of the process: Kubernetes' terminationGracePeriodSeconds (30), the
        time in Slurm's --signal. Where a save is in flight and that leaves no time for another one, it is finished
        and no other is begun.
    on_error: what becomes of a save that failed. "warn": the training goes on, logging.getLogger("perdure") is told;
        after the third failure in a row the next save() raises it all the same. "raise": the next save() raises it.
        Either way the handle has it, and wait() and close() raise it.
    when_busy: what a save does while another one is in flight: "wait" for it, or "skip" itself.
    stuck_after: seconds without progress of the save in flight after which a warning is logged: a disk or a network
        file system that hangs would stop a training without a word. 0: never.
    capture: when the bytes are copied. "eager": all of them by save(), which is always right. "overlapped": save()
        returns at once; the parameters and the state of registered optimizers are copied during the next forward and
        backward pass, and the optimizer's next step waits for what is left. For loops in which nothing but
        optimizer.step() changes parameters: a change that PyTorch's version counters see fails the save; they do not
        see writes through .data or numpy. "checked": eager, and at the next
        step the live bytes are compared with what was saved: run a loop with it once to see whether it qualifies.
    staging_bytes: the most memory for copies on their way to the disk, at least 16 MiB. A state that fits is captured
        at the speed of memory, a larger one streams through at that of the disk (eagerly). None: as much as the state
        takes, up to half of the memory that is free (or left within the limits of the container) when it is needed.
    process_group: the ranks that train together, such as torch.distributed.group.WORLD: each makes a manager with the
        same options and directory (on a file system that all of them see), and calls restore, save, should_save and
        close where the others do. A checkpoint is a directory that torch.distributed.checkpoint reads, too. What all
        ranks have alike is written once, and DTensors are restored on any number of ranks; random numbers and places
        in the data are each rank's own. docs/distributed.md says more.
    rank_timeout: seconds to wait for a sign of life of another rank before a save or restore fails.

    As a context manager it is closed at the end of the block. An exception of the block's own is never replaced by
    one of the closing (that is logged). A manager that is never closed is closed when the interpreter exits.
    """

    def __init__(
        self,
        directory,
        keep_last: int = 3,
        keep_best=(),
        keep_every=None,
        save_every=None,
        overhead: float | None = None,
        save_on_signal=(),
        grace: float = 30.0,
        on_error: str = "warn",
        when_busy: str = "wait",
        stuck_after: float = 60.0,
        capture: str = "eager",
        staging_bytes: int | None = None,
        process_group=None,
        rank_timeout: float = 600.0,
    ):
        keep_every, save_every = as_every(keep_every, "keep_every"), as_every(save_every, "save_every")
        self._best = as_list(keep_best, Best)
        options = {
            "keep_last": keep_last,
            "keep_best": core_best(self._best),
            "keep_every_steps": keep_every.steps,
            "keep_every_seconds": keep_every.time,
            "save_every_steps": save_every.steps,
            "save_every_seconds": save_every.time,
            "overhead": overhead or 0.0,
            "save_on_signal": [int(s) for s in as_list(save_on_signal, (int, signal.Signals))],
            "grace": grace,
            "on_error": _choice(_ON_ERROR, "on_error", on_error),
            "when_busy": _choice(_WHEN_BUSY, "when_busy", when_busy),
            "stuck_after": stuck_after,
            "capture": _choice(_CAPTURE, "capture", capture),
            "staging_bytes": staging_bytes or 0,
            "ranks": ranks_of(process_group),
            "rank_timeout": rank_timeout,
            "allocate_staging": pinned,
            "warning": warn,
            "note": note,
        }
        self._rank, self._ranks = _rank_and_size(process_group)
        super().__init__(_core.CheckpointManager(os.fsdecode(directory), options), os.fsdecode(directory))
        self._waits = when_busy == "wait"
        self._fenced = weakref.WeakKeyDictionary() if capture != "eager" else None  # optimizer -> hook

    def restore(
        self,
        state: TrainingState,
        step: int | None = None,
        path=None,
        strict: bool = True,
        only=(),
        rename: dict[str, str] | None = None,
        cast: bool = False,
    ) -> Checkpoint | None:
        """Puts the newest whole checkpoint into `state`. Returns it, or None where the directory has none yet.

        A checkpoint that is provably damaged is set aside (as *.damaged), that is logged, and the one before is
        taken. Any other trouble is raised: going on from an older step would be silent loss.

        step: this step instead of the newest (it never falls back). path: this file, any that perdure.load takes.

        What does not fit is an error with a table of all of it, which says what can be done; nothing is changed then.
        Names are those of entries, and of what is in them with the keys joined by dots ("optimizer",
        "model.fc.weight"); a name stands for all that is below it, and patterns with "*" in them for whole names.

        strict: whether everything registered must be in the file and the other way round. What is skipped otherwise
            is logged. A wrong shape or dtype is an error all the same.
        only: names or patterns of what is to be restored, ["model", "other.encoder.*"]; all else, also "step" and
            "rng", stays as it is. Of modules also single tensors; other entries whole.
        rename: from names or patterns of the file to those here, {"net": "model", "model.old.*": "model.new.*"}.
        cast: converts the tensors of modules whose dtype is another one in the file: floating point (and complex)
            numbers to any precision, integers to wider ones.

        Tensors of registered modules and optimizers that fit are read into where they are, each block verified
        before: no second copy of the state is in memory. (With strict=False or `only` there is one.) When the file of
        a named step or path turns out damaged, or the disk fails, the state may be a mix by then: state.broken says
        so, and it is not saved before another restore succeeds.
        """
        _require_state(state)
        options = match_options(strict, only, rename, cast)

        took = False

        def take(file):
            nonlocal took
            state._restore(file, options, self._rank, self._ranks)
            took = True

        try:
            with shown("perdure: restoring", self._core.progress):
                return checkpoint_of(self._core.restore(step, None if path is None else os.fsdecode(path), take))
        except BaseException:
            if took and self._ranks > 1:  # it is not what the others have
                state._state.mark_broken()
            raise

    def save(self, state: TrainingState, metrics=None) -> SaveHandle:
        """Saves `state` as the next checkpoint of its step, and prunes those that need not be kept.

        Returns when the state is captured; the rest goes on behind the training, and the handle tells of it.

        First make the state say "done" (state.epoch += 1), then save it. `metrics` are numbers by name; 0-dim
        tensors and numpy scalars are taken too.
        """
        _require_state(state)
        numbers = {name: _number(name, x) for name, x in (metrics or {}).items()}
        if self._waits and not self._core.preempted:
            self._wait_idle()
        state._register_rng()
        self._add_fences(state)
        with shown("perdure: saving", self._core.progress):
            return SaveHandle(self._core.save(state._state, numbers))

    def should_save(self, step: int) -> bool:
        """Whether the loop should save now, to be asked after every step:

            state.step += 1
            if checkpoints.should_save(state.step):
                checkpoints.save(state)

        By save_every, by overhead, and once `preempted`, unless the save in flight is all that `grace` leaves time
        for. Goes on across restarts: steps count from the last save or restore. Raises InvalidError where the manager
        was given nothing to go by.
        """
        return self._core.should_save(int(step))

    @property
    def preempted(self) -> bool:
        """One of save_on_signal has come: save (should_save() says so, too), leave the loop and close. What is saved
        from now on says "preemption" for its reason. Stays as it is when the manager is closed. Where should_save()
        is used, it is what notices the signal: ask it first."""
        return self._core.preempted

    @property
    def interval(self) -> float | None:
        """Seconds between saves that keep to `overhead`, once a save was measured."""
        return self._core.interval

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

    @property
    def directory(self) -> pathlib.Path:
        return pathlib.Path(self._core.directory)

    def checkpoints(self) -> list[Checkpoint]:
        """All there are, the newest first."""
        return [checkpoint_of(c) for c in self._core.checkpoints()]

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

    def pin(self, step: int, reason: str = "") -> None:
        """Keeps this step whatever retention says, until unpin(). A pin is a file beside the checkpoint, "<its
        name>.pin", with the reason (one line) in it."""
        self._core.pin(step, reason)

    def unpin(self, step: int) -> None:
        self._core.unpin(step)

    def retention_plan(self) -> list[PlannedCheckpoint]:
        """What retention would do now, and why, the newest first."""
        return plan_of(self._core.retention_plan())

    def prune(self) -> list[PlannedCheckpoint]:
        """Carries out the retention_plan(), as every save does, and returns it."""
        return plan_of(self._core.prune())

    def close(self) -> None:
        """wait(), then gives up the lock, the memory and the directory. Afterwards nothing but close() can be called."""
        for hook in (self._fenced or {}).values():
            hook.remove()
        super().close()

    def __repr__(self):
        if self._closed:
            return f"<CheckpointManager {str(self.directory)!r}: closed>"
        found = self.checkpoints()
        newest = f", newest {found[0].step}" if found else ""
        return f"<CheckpointManager {str(self.directory)!r}: {len(found)} checkpoints{newest}>"


def list_checkpoints(directory) -> list[Checkpoint]:
    """The readable checkpoints in a run directory, newest first, also while a training run has its lock."""
    return [
        checkpoint_of(c.checkpoint) for c in _core.list_checkpoints(os.fsdecode(directory)) if not c.problem
    ]


def retention_plan(directory, keep_last: int = 3, keep_best=(), keep_every=None) -> list[PlannedCheckpoint]:
    """What a manager with these options would keep in a run directory, and why, also while a training has its lock."""
    every = as_every(keep_every, "keep_every")
    best = core_best(keep_best)
    return plan_of(
        _core.retention_plan(os.fsdecode(directory), keep_last, best, every.steps, every.time)
    )


def read_history(directory) -> list[dict]:
    """What history.jsonl in a run directory tells, oldest first: one dict for each save, restore, skip, failure and
    prune, as docs/format.md says. For people and their plots: nothing in perdure relies on it."""
    return [decode(event) for event in _core.read_history(os.fsdecode(directory))]


def _choice(choices, name, word):
    if word not in choices:
        words = " or ".join(f'"{choice}"' for choice in choices)
        raise InvalidError(f"{name} is {words}, not {word!r}")
    return choices[word]


def _rank_and_size(group):
    return (0, 1) if group is None else (torch.distributed.get_rank(group), torch.distributed.get_world_size(group))


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

