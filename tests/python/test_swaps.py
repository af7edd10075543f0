"""Links that come and go in a run directory while a manager or the command works in it (hostile_swapper.py puts them
there): nothing outside is ever written, removed, or taken for a checkpoint.

PERDURE_SWAPS says for how many seconds each goes on, PERDURE_SEED makes the same choices again.
"""

import contextlib
import os
import random
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest
import torch

import perdure
from test_hostile import PERDURE

SECONDS = float(os.environ.get("PERDURE_SWAPS", "2"))
SEED = int(os.environ.get("PERDURE_SEED") or random.SystemRandom().randrange(2**32))
HERE = Path(__file__).parent
DECOY = 2**30  # a step that no test reaches; exact in float32


def a_state(step=0):
    state = perdure.TrainingState(w=torch.full((100_000,), float(step)), epoch=step)
    state.step = step
    return state


def tree(folder) -> dict:
    """All that there is below a folder, and whether it was touched."""
    return {
        str(path.relative_to(folder)): (path.lstat().st_ino, path.lstat().st_mtime_ns, path.is_file() and path.read_bytes())
        for path in sorted(folder.rglob("*"))
    }


@pytest.fixture
def outside(tmp_path) -> Path:
    """What must stay as it is: whole checkpoints under tempting names, and files that somebody needs."""
    folder = tmp_path / "outside"
    with perdure.CheckpointManager(folder / "run", keep_last=100) as checkpoints:
        for step in range(1, 4):
            state = a_state(DECOY)
            state.step = step
            checkpoints.save(state, metrics={"decoy": DECOY})
    decoy = {"w": torch.full((100_000,), float(DECOY)), "epoch": DECOY, "step": DECOY, "rng": {}, "decoy": True}
    perdure.save(decoy, folder / "decoy.pt")
    (folder / "precious").write_text("precious\n")
    (folder / "trash").mkdir()
    (folder / "trash" / "step-0000000001-g00000001.pt.0123456789abcdef").write_text("precious\n")
    (folder / "run" / ".step-0000000001-g00000001.pt.1-0123456789abcdef.tmp").write_text("precious\n")
    return folder


@contextlib.contextmanager
def swapping(run, outside, *options):
    """Swaps go on meanwhile. Yields a function that tells how many there were."""
    arguments = [sys.executable, "-S", HERE / "hostile_swapper.py", run, outside, str(SEED), *options]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) as swapper:
        try:
            yield lambda: swapper.poll() is None
        finally:
            swapper.terminate()
            counted = swapper.stdout.read().split()
    assert counted, "no hundred swaps: nothing was tested"


def at_work(directory, seconds) -> int:
    """Opens, restores, saves, prunes, closes, again and again; errors are those of perdure. How often it came through."""
    done, end, step = 0, time.monotonic() + seconds, 0
    while time.monotonic() < end:
        with warnings.catch_warnings(), contextlib.suppress(perdure.Error):
            warnings.simplefilter("ignore")
            with perdure.CheckpointManager(directory, keep_last=2) as checkpoints:
                state = a_state()
                checkpoints.restore(state)
                assert state.epoch != DECOY and float(state.w[0]) != DECOY, "restored what is outside"
                for _ in range(3):
                    step += 1
                    state.step = state.epoch = step
                    state.w.fill_(step)
                    checkpoints.save(state)
                    checkpoints.wait()
                done += 1
    return done


def test_a_manager_that_comes_and_goes(tmp_path, outside):
    run, before = tmp_path / "run", tree(outside)
    at_work(run, 0.3)
    with swapping(run, outside) as alive:
        done = at_work(run, SECONDS)
        assert alive()
    assert tree(outside) == before, f"PERDURE_SEED={SEED}"
    assert done, "nothing ever came through"
    assert at_work(run, 0.3), "nothing goes any more"


def test_a_manager_whose_directory_moves(tmp_path, outside):
    """It holds on to the directory that it has opened, whatever its path means meanwhile."""
    run, before = tmp_path / "run", tree(outside)
    state = a_state()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with perdure.CheckpointManager(run, keep_last=2, on_error="warn") as checkpoints:
            checkpoints.save(state)
            checkpoints.wait()
            with swapping(run, outside, "--run-too"):
                end = time.monotonic() + SECONDS
                while time.monotonic() < end:
                    state.step += 1
                    state.epoch = state.step
                    with contextlib.suppress(perdure.Error):
                        checkpoints.save(state)
                        checkpoints.wait()
                    with contextlib.suppress(perdure.Error):
                        checkpoints.restore(state)
                    assert state.epoch != DECOY
            with contextlib.suppress(perdure.Error):
                checkpoints.wait()
    assert tree(outside) == before, f"PERDURE_SEED={SEED}"


def test_the_command(tmp_path, outside):
    run, before = tmp_path / "run", tree(outside)
    with perdure.CheckpointManager(run, keep_last=10) as checkpoints:
        for step in range(1, 6):
            checkpoints.save(a_state(step))
    lines = [["ls"], ["ls", "--json"], ["verify"], ["show"], ["show", "--json"], ["prune", "--keep-last", "2"]]
    with swapping(run, outside):
        end = time.monotonic() + SECONDS
        while time.monotonic() < end:
            for command, *options in lines:
                done = subprocess.run([PERDURE, command, run, *options], capture_output=True, text=True, timeout=60)
                assert done.returncode in (0, 1, 2), done
                assert "decoy" not in done.stdout, f"{command} (PERDURE_SEED={SEED}): {done.stdout}"
    assert tree(outside) == before, f"PERDURE_SEED={SEED}"


# Whether the tests can see.


def test_a_careless_program_is_found_out(tmp_path, outside):
    """It writes and reads by name, whatever that leads to."""
    run, before = tmp_path / "run", tree(outside)
    run.mkdir()
    (run / "step-0000000001-g00000001.pt").write_bytes(b"mine")
    read = set()
    with swapping(run, outside):
        begin, found_out = time.monotonic(), False
        while time.monotonic() < begin + (1 if found_out else 60):
            found_out = tree(outside) != before and len(read) > 1
            for _ in range(100):
                with contextlib.suppress(OSError), open(run / "step-0000000001-g00000001.pt", "rb") as file:
                    read.add(file.read(100))
                with contextlib.suppress(OSError), open(run / "history.jsonl", "a") as file:
                    file.write("careless\n")
    assert found_out
