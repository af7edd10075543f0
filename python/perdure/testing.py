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


class NotExactError(AssertionError):
    """The resumed run was another one. The text says from where on, in what, and what is usually the cause."""


def check_exact_resume(make_training, steps: int = 20, kill_after: int | None = None) -> None:
    """Trains twice for `steps` steps, in child processes: once in one go, once killed (SIGKILL) a step after a save and
    resumed by a new process. Compares the loss of every step and every tensor and number of the state behind it,
    bit by bit.

    `make_training` is called in each child process and returns a TrainingState and a generator function: see this
    module's text. It must be importable by name (no lambda, nothing local). Both runs begin with the same states of the
    global generators, for it does not matter here whether the training seeds them, and save at the same step,
    `kill_after` (default: the middle), into a directory that is removed afterwards.

    Raises NotExactError, with the first step that differs and what differs; and RuntimeError where a child process
    fails, with its traceback.
    """
    kill_after = steps // 2 if kill_after is None else kill_after
    if not 0 < kill_after < steps:
        raise InvalidError(f"kill_after is between 0 and the number of steps ({steps}), not {kill_after}")
    with tempfile.TemporaryDirectory(prefix="perdure-exact-") as folder:
        task = _Task(make_training, steps, kill_after, Path(folder))
        whole = task.run("whole")
        task.run("killed", kill=True)
        resumed = task.run("killed", log="resumed")
        difference = _first_difference(whole, resumed, kill_after)
        if difference is None:
            return
        again = _first_difference(whole, task.run("again"), 0)
        raise NotExactError(_explain(difference, kill_after, again))


class _Task:
    def __init__(self, make_training, steps, kill_after, folder):
        self.make_training, self.steps, self.kill_after, self.folder = make_training, steps, kill_after, folder

    def run(self, name, kill=False, log=None) -> dict:
        """What a child process saw: {step: {"loss": ..., "state": {path: digest}}}."""
        record = self.folder / f"{log or name}.jsonl"
        arguments = (
            self.make_training, self.steps, self.kill_after, self.folder / name, record, kill
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


def _child(make_training, steps, kill_after, run, record, kill):
    try:
        seed_host(1 if not run.exists() else 2)  # what a resumed run draws must come from the checkpoint
        state, train = make_training()
        with CheckpointManager(run, on_error="raise") as checkpoints, record.open("a") as out:
            if checkpoints.restore(state) is not None:
                _write(out, state, None)
            for loss in train():
                _write(out, state, loss)
                if state.step == kill_after:
                    checkpoints.save(state).wait()
                elif kill and state.step > kill_after:
                    os.kill(os.getpid(), signal.SIGKILL)
                if state.step >= steps:
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


def _loss(loss):
    value = float(loss.detach() if isinstance(loss, torch.Tensor) else loss)
    return [repr(value), value.hex()]


def _digest(value, path, out):
    if isinstance(value, dict):
        for key, item in value.items():
            _digest(item, f"{path}[{key!r}]", out)
    elif isinstance(value, list | tuple) and any(isinstance(x, torch.Tensor | dict | list | tuple) for x in value):
        for i, item in enumerate(value):
            _digest(item, f"{path}[{i}]", out)
    elif isinstance(value, torch.Tensor):
        data = raw(value).cpu().numpy().tobytes()
        out[path] = f"{value.dtype} {tuple(value.shape)} {hashlib.blake2b(data, digest_size=16).hexdigest()}"
    else:
        text = value.tobytes() if hasattr(value, "tobytes") else repr(value).encode()
        out[path] = hashlib.blake2b(text, digest_size=16).hexdigest()


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
        text += f" The loss: {here[0]} without the kill, {there[0]} resumed."
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
