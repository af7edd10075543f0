"""What is done to a disk that records it, and what has to be found on it after a power cut at any moment.

A writer notes what was promised, as `note(newest=STEP, kept=STEPS)`: a higher promise after what it rests on was
acknowledged, a lower one before what takes it back is begun.
"""

import contextlib
import os
import threading

import torch
from conftest import damage
from numbered import NumberedState, check_verifies, debris_in, equals_step, numbers_of

import perdure


@contextlib.contextmanager
def neighbour(directory):
    """Somebody who syncs a file of his own all the time, and so commits what others have half done."""
    over = threading.Event()

    def work():
        with open(directory / "neighbour", "ab", buffering=0) as file:
            while not over.wait(0.002):
                file.write(b"x" * 100)
                os.fsync(file.fileno())

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


# writers


def saves(directory, note, choose):
    """Saves and prunes, one step of them twice."""
    numbered = NumberedState()
    best = perdure.Best("loss", "min", 1)
    with perdure.CheckpointManager(directory / "run", keep_last=2, keep_best=best, on_error="raise") as checkpoints:
        for step in (1, 2, 3, 4, 5, 5, 6, 7, 8):
            numbered.go_to(step)
            checkpoints.save(numbered.state, metrics={"loss": choose.random()}).wait()
            note(newest=step)


def pins(directory, note, choose):
    numbered = NumberedState()
    with perdure.CheckpointManager(directory / "run", keep_last=1, on_error="raise") as checkpoints:
        for step in range(1, 8):
            numbered.go_to(step)
            checkpoints.save(numbered.state).wait()
            note(newest=step, kept=[2] if 2 < step < 5 else [])
            if step == 2:
                checkpoints.pin(2, "a good one")
                note(newest=2, kept=[2])
            if step == 5:
                checkpoints.unpin(2)


def falls_back(directory, note, choose):
    """The newest is damaged, is set aside by the next run, and that goes on from the one before."""
    run, numbered = directory / "run", NumberedState()
    with perdure.CheckpointManager(run) as checkpoints:
        for step in (1, 2, 3):
            numbered.save(checkpoints, step).wait()
            note(newest=step)
        newest = checkpoints.latest().path
    note(newest=2)
    damage(newest)
    with open(newest, "rb") as file:
        os.fsync(file.fileno())
    with perdure.CheckpointManager(run, keep_last=2) as checkpoints:
        assert numbered.restore(checkpoints) == 2
        for step in (4, 5):
            numbered.save(checkpoints, step).wait()
            note(newest=step)


def overwrites(directory, note, choose):
    for step in range(1, 9):
        perdure.save({"step": step, "numbers": numbers_of(step)}, directory / "cp.pt")
        note(newest=step)


def overwrites_with_torch(directory, note, choose):
    """What perdure.save is there to replace."""
    for step in range(1, 9):
        torch.save({"step": step, "numbers": numbers_of(step)}, directory / "cp.pt")
        note(newest=step)


# checks


def check_run(directory, newest, kept=(), may_be_damaged=False):
    """Readers first, then the next manager."""
    run = directory / "run"
    if list(run.glob("step-*")) and not may_be_damaged:
        check_verifies(run)
    numbered = NumberedState()
    with perdure.CheckpointManager(run, keep_last=2) as checkpoints:
        step = numbered.restore(checkpoints)
        assert step >= newest, f"step {newest} was acknowledged, and {step} is restored"
        assert set(kept) <= set(checkpoints.all_steps()), f"of the pinned {kept} is there {checkpoints.all_steps()}"
        numbered.save(checkpoints, 100).wait()
    assert may_be_damaged or not list(run.glob("*.damaged")), os.listdir(run)
    assert not debris_in(run), f"debris: {os.listdir(run)}"
    with perdure.CheckpointManager(run) as checkpoints:
        assert numbered.restore(checkpoints) == 100
    events = [event["event"] for event in perdure.read_history(run)]
    assert events[-2:] == ["save", "restore"] or events[-3:] == ["save", "prune", "restore"], events


def check_damaged_run(directory, newest, kept=()):
    check_run(directory, newest, may_be_damaged=True)


def check_file(directory, newest, kept=(), load=perdure.load):
    path = directory / "cp.pt"
    if newest or path.exists():
        found = load(path)
        assert found["step"] >= newest, f"step {newest} was acknowledged, and {found['step']} is loaded"
        assert equals_step(found["numbers"], found["step"]), f"step {found['step']} came back with other numbers"
    perdure.save({"step": 100, "numbers": numbers_of(100)}, path)
    assert load(path)["step"] == 100
    assert not debris_in(directory), f"debris: {os.listdir(directory)}"


def check_torch_file(directory, newest, kept=()):
    check_file(directory, newest, load=torch.load)


WRITERS = {
    "saves": (saves, check_run),
    "pins": (pins, check_run),
    "falls_back": (falls_back, check_damaged_run),
    "overwrites": (overwrites, check_file),
    "overwrites_with_torch": (overwrites_with_torch, check_torch_file),
}
