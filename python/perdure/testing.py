"""Proof that a training run goes on exactly where it was killed.

    def make_training():                       # at the top of a module: child processes import it
        ...
        state = perdure.TrainingState(model=model, optimizer=optimizer, loader=loader, epoch=0)

        def train():                           # goes on from where `state` is; yields the loss of each step
            while state.epoch < 3:
                for batch in loader:
                    ...
                    state.step += 1
                    yield loss
                state.epoch += 1

        return state, train

    def test_exact_resume():
        perdure.testing.check_exact_resume(make_training, steps=20)
"""

import hashlib
import json
import multiprocessing
import os
import pickle
import signal
import tempfile
import traceback
from pathlib import Path

import torch

from .bits import raw
from .errors import InvalidError
from .manager import CheckpointManager
from .rng import seed_host

_MOST_NAMES = 8
_PLAIN = (bool, int, float, complex, str, bytes, type(None))


class NotExactError(AssertionError):
    """The resumed run was another one. The text says from where on, in what, and what is usually the cause."""


def check_exact_resume(make_training, steps: int = 20, kill_after: int | None = None) -> None:
    """Trains twice for `steps` steps, in child processes: once in one go, once killed (SIGKILL) a step after a save and
    resumed by a new process. Compares the loss of every step and every tensor and number of the state behind it,
    bit by bit.

    `make_training` is called in each child process and returns a TrainingState and a generator function: see this
    module's text. What it yields at each step is the loss: a number, a tensor, or a list or dict of them. It must be
    importable by name (no lambda, nothing local). Both runs begin with the same states of the global generators, for
    it does not matter here whether the training seeds them, and save at the same step, the first one that is not below
    `kill_after` (default: the middle), into a directory that is removed afterwards.

    Raises NotExactError, with the first step that differs, what differs, and what is usually the cause; and
    RuntimeError where a child process fails, with its traceback.
    """
    kill_after = steps // 2 if kill_after is None else kill_after
    if not 0 < kill_after < steps:
        raise InvalidError(f"kill_after is between 0 and the number of steps ({steps}), not {kill_after}")
    _require_importable(make_training)
    with tempfile.TemporaryDirectory(prefix="perdure-exact-") as folder:
        task = _Task(make_training, steps, kill_after, Path(folder))
        whole = task.run("whole")
        task.run("killed", kill=True)
        resumed = task.run("killed", log="resumed", resume=True)
        saved_at = min(resumed)
        difference = _first_difference(whole, resumed, saved_at)
        if difference is None:
            return
        again = _first_difference(whole, task.run("again"), 0)
        raise NotExactError(_explain(difference, saved_at, again))


def _require_importable(make_training):
    try:
        pickle.dumps(make_training)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise InvalidError(
            f"child processes cannot import make_training ({error}): define it at the top of a module"
        ) from None


class _Task:
    def __init__(self, make_training, steps, kill_after, folder):
        self.make_training, self.steps, self.kill_after, self.folder = make_training, steps, kill_after, folder

    def run(self, name, kill=False, resume=False, log=None) -> dict:
        """What a child process saw: {step: {"loss": ..., "state": {path: digest}}}."""
        record = self.folder / f"{log or name}.jsonl"
        arguments = (
            self.make_training, self.steps, self.kill_after, self.folder / name, record, kill, resume
        )  # fmt: skip
        child = multiprocessing.get_context("spawn").Process(target=_child, args=arguments)
        child.start()
        child.join()
        failure = record.with_suffix(".failure")
        if failure.exists():
            raise RuntimeError(f"the training failed in its child process:\n{failure.read_text()}")
        if child.exitcode != (-signal.SIGKILL if kill else 0):
            raise RuntimeError(f"the training's child process ended with {child.exitcode}")
        return {line["step"]: line for line in map(json.loads, record.read_text().splitlines())}


def _child(make_training, steps, kill_after, run, record, kill, resume):
    try:
        seed_host(2 if resume else 1)  # what a resumed run draws must come from the checkpoint
        state, train = make_training()
        with CheckpointManager(run, on_error="raise") as checkpoints, record.open("a") as out:
            if resume:
                checkpoints.restore(state)
                _write(out, state, None)
            saved = resume
            for loss in train():
                _write(out, state, loss)
                if kill and saved:
                    os.kill(os.getpid(), signal.SIGKILL)
                if state.step >= kill_after and not saved:
                    checkpoints.save(state).wait()
                    saved = True
                if state.step >= steps and not kill:
                    return
            raise RuntimeError(f"train() ended at step {state.step}, before step {steps}: does it count state.step?")
    except BaseException:
        record.with_suffix(".failure").write_text(traceback.format_exc())
        raise


def _write(out, state, loss):
    digests = {}
    _digest(state.state_dict(), "state", digests)
    out.write(json.dumps({"step": state.step, "loss": None if loss is None else _loss(loss), "state": digests}) + "\n")
    out.flush()


def _loss(loss) -> str:
    if isinstance(loss, dict):
        return ", ".join(f"{name} {_loss(x)}" for name, x in loss.items())
    if isinstance(loss, list | tuple):
        return ", ".join(map(_loss, loss))
    return repr(float(loss.detach() if isinstance(loss, torch.Tensor) else loss))  # as many digits as it takes


def _digest(value, path, out):
    if isinstance(value, dict):
        for key, item in value.items():
            _digest(item, f"{path}[{key!r}]", out)
    elif isinstance(value, list | tuple) and not all(isinstance(x, _PLAIN) for x in value):
        for i, item in enumerate(value):
            _digest(item, f"{path}[{i}]", out)
    elif isinstance(value, torch.Tensor):
        out[path] = f"{value.dtype} {tuple(value.shape)} {_hash(raw(value).cpu().numpy().tobytes())}"
    elif hasattr(value, "tobytes"):
        out[path] = f"{value.dtype} {value.shape} {_hash(value.tobytes())}"
    elif isinstance(value, set):  # their order is another one in each process
        out[path] = _hash(repr(sorted(map(repr, value))).encode())
    else:
        out[path] = _hash(repr(value).encode())


def _hash(data) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def _first_difference(whole, other, begin):
    """(step, loss here, loss there, paths) of the first step from `begin` on that is not the same; None: none."""
    for step in sorted(step for step in whole if step >= begin):
        if step not in other:
            return step, whole[step]["loss"], None, []
        here, there = whole[step], other[step]
        paths = [p for p in here["state"] if there["state"].get(p) != here["state"][p]]
        paths += [p for p in there["state"] if p not in here["state"]]
        loss_differs = there["loss"] is not None and here["loss"] != there["loss"]
        if paths or loss_differs:
            return step, here["loss"], there["loss"], paths
    return None


def _explain(difference, kill_after, again):
    step, here, there, paths = difference
    names = ", ".join(paths[:_MOST_NAMES]) + (f" and {len(paths) - _MOST_NAMES} more" if len(paths) > _MOST_NAMES else "")
    where = (
        f"the state that came back at step {step} is not the one that was saved"
        if step == kill_after
        else f"resumed at step {kill_after}, the run is another one from step {step} on"
    )
    text = f"{where}."
    if there is not None and here != there:
        text += f" The loss: {here} without the kill, {there} resumed."
    if names:
        text += f" What differs: {names}."
    return text + "\n" + _cause(step, kill_after, paths, again)


def _cause(step, kill_after, paths, again):
    if again is not None:
        return (
            f"But the training itself is not deterministic: run twice without a kill, it differs from step {again[0]} on. "
            "Seed every generator (torch.manual_seed, numpy.random.seed, random.seed, those of one's own), and see "
            "torch.use_deterministic_algorithms(True) for the kernels."
        )
    if step == kill_after:
        return "Some state_dict() or load_state_dict() of what is named there does not give or take all of it."
    if paths and all("['rng']" in path for path in paths):
        return (
            "Random numbers are drawn that were not drawn before, or no more: by a loader's new iterator "
            "(perdure.ResumableLoader), a cache that is filled again, or code that runs only at the start."
        )
    return (
        "Usual causes: the data come in another order or from another place of the epoch (register the loader as a "
        "perdure.ResumableLoader, and shuffle in it), a generator of one's own that is not registered in the "
        "TrainingState (numpy.random.default_rng, torch.Generator, random.Random), random transforms in workers "
        "(seed_samples=True), or state that nobody registered (a scheduler, a GradScaler, a counter)."
    )
