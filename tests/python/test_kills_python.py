"""SIGKILL at random moments, in Python: a whole checkpoint at every restart, never older than the last acknowledged.

test_kills.py does the same to a C++ program, oftener. PERDURE_KILLS and PERDURE_SEED as there; a quarter of the kills
are done here.
"""

import os
import pathlib
import random
import signal
import subprocess
import sys
import time

import perdure

KILLS = -(-int(os.environ.get("PERDURE_KILLS", "200")) // 4)
SEED = int(os.environ.get("PERDURE_SEED") or random.SystemRandom().randrange(2**32))
KILLEE = pathlib.Path(__file__).with_name("killee.py")


class Nursery:
    """Starts trainers quickly."""

    def __init__(self, run):
        self._process = subprocess.Popen(
            [sys.executable, str(KILLEE), str(run)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self.line() == ["ready"]

    def line(self):
        return self._process.stdout.readline().split()

    def train_for(self, seconds, capture):
        """What a trainer says until it is killed, after so many seconds from where it has restored."""
        self._process.stdin.write(capture + "\n")
        self._process.stdin.flush()
        said = []
        while not (pid := [s[1] for s in said if s[0] == "pid"]) or not any(
            s[0] in ("restored", "wrong") for s in said
        ):
            said.append(self.line())
        time.sleep(seconds)
        os.kill(int(pid[0]), signal.SIGKILL)
        while said[-1] != ["ended"]:
            said.append(self.line())
        return said

    def close(self):
        self._process.stdin.close()
        self._process.wait(timeout=60)
        self._process.stdout.close()


def test_killed_at_random_moments_it_never_goes_back(tmp_path):
    print(f"PERDURE_SEED={SEED}")
    choose = random.Random(SEED)
    nursery = Nursery(tmp_path)
    acknowledged = 0
    for kill in range(KILLS):
        capture = ["eager", "overlapped", "checked"][kill % 3]
        said = nursery.train_for(choose.uniform(0, 0.05), capture)
        where = f"kill {kill}, PERDURE_SEED={SEED}: {said}"
        assert not [s for s in said if s[0] == "wrong"], where
        began_at = next(int(s[1]) for s in said if s[0] == "restored")
        assert acknowledged <= began_at <= acknowledged + 1, (
            where
        )  # one more: durable, and killed before it could say so
        saved = [int(s[1]) for s in said if s[0] == "saved"]
        assert saved == list(range(began_at + 1, began_at + 1 + len(saved))), where
        acknowledged = saved[-1] if saved else began_at
        check_files(tmp_path, acknowledged, where)
    nursery.close()
    assert acknowledged > KILLS / 4, "too few saves to have tested anything"


def check_files(run, acknowledged, where):
    """What a reader sees between two runs: whole checkpoints, and the newest is what was acknowledged, or one more."""
    found = perdure.list_checkpoints(run)
    assert len(found) == len(list(run.glob("step-*"))), where
    assert found or not acknowledged, where
    assert all(perdure.verify(c.path).good for c in found), where
    assert not found or found[0].step in (acknowledged, acknowledged + 1), where
