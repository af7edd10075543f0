"""Every system call of the perdure command fails once, and is where it is killed (faults.py says how many).

Each time, the output is right and so is the exit code; or there is an error that says what and where, and the exit code
is 2: 1 is for damage, and there is none in what cannot be read. A prune takes away nothing but what it was to.
"""

import os
import re
import shutil
import subprocess

import pytest
import syscalls
import torch
from faults import debris, go_through, is_clear, is_of_no_concern

import perdure

PERDURE = os.environ.get("PERDURE_CLI", "perdure")

pytestmark = pytest.mark.skipif(bool(syscalls.why_not()), reason=syscalls.why_not())


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A whole run, and one whose newest checkpoint is damaged."""
    folder = tmp_path_factory.mktemp("runs")
    state = perdure.TrainingState(x=torch.zeros(100_000), epoch=0)
    with perdure.CheckpointManager(folder / "whole", keep_last=3) as checkpoints:
        for state.step in range(4):
            state.x.fill_(state.step)
            checkpoints.save(state, metrics={"loss": state.step}).wait()
    with perdure.CheckpointManager(folder / "whole", keep_last=3) as checkpoints:
        checkpoints.restore(state)
    shutil.copytree(folder / "whole", folder / "damaged")
    newest = max((folder / "damaged").glob("step-*.pt"))
    data = bytearray(newest.read_bytes())
    data[len(data) // 2] ^= 1
    newest.write_bytes(data)
    return folder


COMMANDS = {
    "ls": (["ls", "--json", "RUN"], 15),
    "show": (["show", "RUN"], 10),
    "show-file": (["show", "--json", "FILE"], 10),
    "verify": (["verify", "RUN"], 15),
    "verify-file": (["verify", "--json", "FILE"], 10),
    "verify-damaged": (["verify", "DAMAGED"], 10),
    "prune": (["prune", "--keep-last", "1", "RUN"], 20),
    "prune-dry": (["prune", "--keep-last", "1", "--dry-run", "RUN"], 5),
}


class Command:
    def __init__(self, folder, runs, words):
        self.folder, self.runs, self.words = folder, runs, words
        _, self.normal = self.run(None)
        self.may_be_damaged = "DAMAGED" in words
        assert self.normal.status == (1 if self.may_be_damaged else 0), self.normal.lines

    def counts(self):
        return syscalls.counts(self.normal.log, begin=f"{self.folder}/")

    def run(self, fault):
        for name in ("whole", "damaged"):
            shutil.rmtree(self.folder / name, ignore_errors=True)
            shutil.copytree(self.runs / name, self.folder / name)
        whole, damaged = self.folder / "whole", self.folder / "damaged"
        places = {"RUN": whole, "FILE": max(whole.glob("step-*.pt")), "DAMAGED": damaged}
        command = [PERDURE, *(places.get(word, word) for word in self.words)]
        return whole, syscalls.run(command, self.folder / "log", fault)

    def try_fault(self, fault):
        whole, outcome = self.run(fault)
        if not outcome.injections and outcome.status != -9:
            return False
        if outcome.status != -9:
            self.judge(fault, outcome)
        self.judge_run(whole)
        return True

    def judge(self, fault, outcome):
        text = "\n".join(outcome.lines)
        complaints = re.search("^perdure: ", text, re.MULTILINE)
        where = is_clear(text, fault, self.folder, "standard output")
        in_table = re.search(r"cannot be read: .* step-\d+-g\d+\.pt", text)  # where a long text is cut in the middle
        if outcome.status in (0, 1) and outcome.status == self.normal.status:
            assert outcome.lines == self.normal.lines or self.may_be_damaged or (complaints and where) or in_table, text
        else:
            assert outcome.status == 2, f"status {outcome.status}: {text}"
            assert where or is_of_no_concern(outcome), text

    def judge_run(self, whole):
        """Nothing but what was to be pruned may be gone; and what is there is whole."""
        steps = [checkpoint.step for checkpoint in perdure.list_checkpoints(whole)]
        assert steps in ([3, 2, 1], [3, 2], [3, 1], [3]), steps
        assert not list(whole.glob("*.damaged*"))
        if "prune" in self.words and "--dry-run" not in self.words:
            done = subprocess.run([PERDURE, "prune", "--keep-last", "1", whole], capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
            assert [checkpoint.step for checkpoint in perdure.list_checkpoints(whole)] == [3]
            assert not debris(whole), debris(whole)
        assert perdure.verify(next(whole.glob("step-0000000003-*.pt"))).good


@pytest.mark.parametrize("name", COMMANDS)
def test_the_command(tmp_path, runs, name):
    words, sample = COMMANDS[name]
    command = Command(tmp_path, runs, words)
    go_through(name, command.counts(), command.try_fault, sample)
