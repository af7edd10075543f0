"""The example trainings: killed and preempted in the middle of epochs and saves, they end as if nothing had happened.

PERDURE_SEED makes the same moments again.
"""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import perdure
from perdure.bits import same_bits

ROOT = Path(__file__).resolve().parents[2]
CPP = ROOT / "build" / "dev" / "examples" / "cpp" / "train"
SEED = int(os.environ.get("PERDURE_SEED") or random.SystemRandom().randrange(2**32))
STEPS = 6 * 64
PREEMPTED = 75


def command(language):
    if language == "python":
        return [sys.executable, ROOT / "examples" / "python" / "train.py"]
    if not CPP.exists():
        pytest.skip(f"{CPP} is not built: make build")
    return [CPP]


def newest(run):
    """Its step and path; step 0 where there is none. Never reads a file: one may be pruned meanwhile."""
    found = max(run.glob("step-*.pt"), key=lambda path: path.name.split("-g")[1], default=None)
    return (int(found.name.split("-")[1]), found) if found else (0, None)


def start(language, run):
    program = [*command(language), run, "--epochs", "6", "--save-every", "5"]
    return subprocess.Popen(program, stdout=subprocess.DEVNULL, process_group=0)


def stop(child, run, step, number, pause):
    """Sends a signal to the whole job, somewhat after the checkpoint of a step."""
    deadline = time.monotonic() + 120
    while newest(run)[0] < step:
        assert child.poll() is None and time.monotonic() < deadline, f"PERDURE_SEED={SEED}"
        time.sleep(0.001)
    time.sleep(pause)
    os.killpg(child.pid, number)
    assert child.wait(timeout=30) == (PREEMPTED if number == signal.SIGTERM else -number), f"PERDURE_SEED={SEED}"


def differences(a, b, where=""):
    if isinstance(a, torch.Tensor):
        return [] if same_bits(a, b) else [where]
    if isinstance(a, dict) and a.keys() == b.keys():
        return [d for key in a for d in differences(a[key], b[key], f"{where}[{key!r}]")]
    if isinstance(a, (list, tuple)) and len(a) == len(b):
        return [d for i, (x, y) in enumerate(zip(a, b)) for d in differences(x, y, f"{where}[{i}]")]
    return [] if a == b else [where]


@pytest.mark.parametrize("language", ["python", "cpp"])
def test_killed_and_preempted_is_as_undisturbed(tmp_path, language):
    choose = random.Random(SEED)
    once, often = tmp_path / "once", tmp_path / "often"
    assert start(language, once).wait(timeout=300) == 0
    for number in (signal.SIGKILL, signal.SIGTERM, signal.SIGKILL):
        step = newest(often)[0] + choose.randint(20, STEPS // 6)
        stop(start(language, often), often, step, number, choose.uniform(0, 0.1))
        if number == signal.SIGTERM:
            assert perdure.list_checkpoints(often)[0].reason == "preemption"
    assert start(language, often).wait(timeout=300) == 0
    (step, undisturbed), (other, stopped) = newest(once), newest(often)
    assert step == other == STEPS
    states = [perdure.load(path) for path in (undisturbed, stopped)]
    for state in states:
        state["rng"] = state["rng"]["torch"]  # nobody seeds the others there, or draws from them
    assert differences(*states) == [], f"PERDURE_SEED={SEED}"
