"""SIGKILL at random moments: at every restart a whole checkpoint, never older than the last acknowledged one.

The trainer is a C++ program (tests/cpp/engine/killee.cpp) that does nothing but save, so that nearly every kill hits a
save. PERDURE_KILLS says how many there are, PERDURE_SEED makes the same moments again.
"""

import os
import random
import signal
import subprocess
import time

import pytest

KILLEE = os.environ.get("PERDURE_KILLEE")
PERDURE = os.environ.get("PERDURE_CLI", "perdure")
KILLS = int(os.environ.get("PERDURE_KILLS", "200"))
SEED = int(os.environ.get("PERDURE_SEED") or random.SystemRandom().randrange(2**32))


def steps_of(output: str, what: str) -> list[int]:
    """The steps of the whole lines that begin with `what`; the kill may have cut off the last one."""
    lines = output.splitlines(keepends=True)
    return [int(line.split()[1]) for line in lines if line.startswith(what) and line.endswith("\n")]


def train_for(seconds: float, directory, seed: int, capture: str) -> tuple[int, list[int]]:
    """Starts the trainer, kills it; the step that it began with and those that it was told were safe."""
    trainer = subprocess.Popen([KILLEE, str(directory), str(seed), capture], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    time.sleep(seconds)
    trainer.send_signal(signal.SIGKILL)
    output, errors = trainer.communicate(timeout=60)
    assert trainer.returncode == -signal.SIGKILL, f"the trainer ended by itself: {errors}"
    restored = steps_of(output, "restored")
    return (restored[0] if restored else -1), steps_of(output, "saved")


def check_files(directory) -> None:
    """What a reader sees between two runs: only whole checkpoints."""
    verified = subprocess.run([PERDURE, "verify", str(directory)], capture_output=True, text=True, timeout=60)
    assert verified.returncode == 0, verified.stdout + verified.stderr
    assert verified.stdout.count("good ") <= 8  # two last ones, the best, the restored, and few yet to be pruned
    assert not list(directory.glob("*.damaged"))


@pytest.mark.skipif(KILLEE is None, reason="PERDURE_KILLEE does not name the program to kill")
def test_killed_at_random_moments_it_never_goes_back(tmp_path):
    print(f"PERDURE_SEED={SEED}")
    choose = random.Random(SEED)
    acknowledged = started = 0
    for kill in range(KILLS):
        capture = ["eager", "overlapped", "checked"][kill % 3]
        began_at, saved = train_for(choose.uniform(0.001, 0.08), tmp_path, choose.randrange(2**32), capture)
        if began_at >= 0:
            started += 1
            # One more than acknowledged: durable already, and killed before it could say so.
            assert acknowledged <= began_at <= acknowledged + 1, f"kill {kill}, PERDURE_SEED={SEED}"
            assert saved == list(range(began_at + 1, began_at + 1 + len(saved)))
            acknowledged = saved[-1] if saved else began_at
        if acknowledged and kill % 10 == 0:
            check_files(tmp_path)
    assert acknowledged > KILLS / 4 and started > KILLS / 2, "too few saves to have tested anything"
