"""Every system call of real trainings fails once, with every errno, and is where they are killed (faults.py says how many).

Each time, either all goes well and the result is right, or there is an error that says what and where; the training goes
on after a save that failed; nothing is called damaged; no descriptor is leaked; and the next start finds a whole
checkpoint that is no older than the last acknowledged one, and cleans up.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import syscalls
import torch
from faults import HOW_MANY, ONLY, debris, go_through, is_clear, is_of_no_concern, wait_until_dead
from killee import Numbers, fill
from syscalls import KILL, OF_MEMORY, Fault

import perdure
from perdure.bits import same_bits

KILLEE = os.environ.get("PERDURE_KILLEE")
HERE = Path(__file__).parent
EXAMPLES = HERE.parents[1] / "examples"
BUILT_EXAMPLES = Path(KILLEE).parents[2] / "examples" / "cpp" if KILLEE else None
SAVES = 3

pytestmark = pytest.mark.skipif(bool(syscalls.why_not()), reason=syscalls.why_not())


# A training that saves, in C++ and in Python.


class Saver:
    """What both have in common: a run to begin with, and what has to be true after a fault."""

    def __init__(self, folder, name, capture, also=()):
        self.folder, self.name, self.capture, self.also = folder, name, capture, also
        self.environment = None
        self.template = folder / "template"
        self.acknowledged = 4

    def counts(self):
        outcome = self.run_in_copy(None)[1]
        assert outcome.status == 0 and outcome.leaked == [], (outcome.lines, outcome.leaked)
        return syscalls.counts(outcome.log)

    def run_in_copy(self, fault):
        run = self.folder / "run"
        shutil.rmtree(run, ignore_errors=True)
        shutil.copytree(self.template, run)
        return run, self.examine(run, fault)

    def try_fault(self, fault):
        if fault.call in {x.partition(":")[0] for x in self.also}:
            return False  # has failed in any case
        run, outcome = self.run_in_copy(fault)
        killed = fault.what == KILL and outcome.status == -9
        if not killed and not outcome.injections:
            return False
        saved = [int(line.split()[1]) for line in outcome.lines if line.startswith("saved ")]
        if not killed and not is_of_no_concern(outcome):
            self.judge(run, fault, outcome, saved)
        assert not list(run.glob("*.damaged*")), "what cannot be read was called damaged"
        if killed:
            wait_until_dead(run)
        step = self.go_on(run)
        assert step >= max([self.acknowledged, *saved]), f"goes on from {step}, after {outcome.lines}"
        assert not debris(run), debris(run)
        return True

    def judge(self, run, fault, outcome, saved):
        text = "\n".join(outcome.lines)
        if outcome.status == 0:
            assert len(saved) == SAVES, text
            leaked = [x for x in outcome.leaked if fault.call != "close"]
            assert not leaked, f"descriptors that were left open: {leaked}"
        else:
            assert outcome.status == 1, f"status {outcome.status}: {text}"
            assert is_clear(outcome.lines[-1], fault, run, f"'{run.parent}'"), text
        for line in outcome.lines:
            if line.startswith("failed "):
                assert is_clear(line, fault, run, f"'{run.parent}'"), line


class SaverInCpp(Saver):
    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.train(self.template, self.acknowledged)

    def train(self, run, saves):
        command = [KILLEE, str(run), "1", self.capture, str(saves)]
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stdout + done.stderr
        return [int(line.split()[1]) for line in done.stdout.splitlines() if line.startswith("restored")][0]

    def examine(self, run, fault):
        driver = syscalls.Driver([KILLEE, run, 1, self.capture, SAVES], self.environment)
        driver.read_until("ready")
        outcome = driver.examine(self.folder / "log", fault, self.also)
        driver.end()
        return outcome

    def go_on(self, run):
        return self.train(run, 1)


class SaverInPython(Saver):
    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.nursery = syscalls.Driver([sys.executable, HERE / "faultee.py"])
        self.nursery.read_until("begin")
        self.ask_for(self.template, self.acknowledged)
        self.nursery.ask()
        self.nursery.read_until("closed")
        self.nursery.ask()
        assert self.nursery.read_until("ended")[-1] == "ended 0"

    def ask_for(self, run, saves):
        self.nursery.ask(f"save {run} {self.capture} {saves}")
        return int(self.nursery.read_until("ready")[-1].split()[1])

    def examine(self, run, fault):
        pid = self.ask_for(run, SAVES)
        return self.nursery.examine(self.folder / "log", fault, self.also, pid)

    def go_on(self, run):
        model = Numbers()
        expected = [torch.empty_like(t) for t in model.parameters()]
        state = perdure.TrainingState(model=model, optimizer=torch.optim.SGD(model.parameters(), lr=0.1))
        with perdure.CheckpointManager(run, keep_last=2) as checkpoints:
            step = checkpoints.restore(state).step
            fill(expected, step)
            assert all(torch.equal(a, b) for a, b in zip(model.parameters(), expected))
            checkpoints.save(state).wait()
        return step


NO_RING = ["io_uring_setup:error=EPERM"]
SAVERS = {
    "cpp-eager": (SaverInCpp, "eager", (), 60),
    "cpp-eager-without-ring": (SaverInCpp, "eager", NO_RING, 25),
    "cpp-overlapped": (SaverInCpp, "overlapped", (), 25),
    "cpp-checked": (SaverInCpp, "checked", (), 10),
    "python-eager": (SaverInPython, "eager", (), 20),
    "python-overlapped": (SaverInPython, "overlapped", (), 10),
}


@pytest.mark.parametrize("name", SAVERS)
@pytest.mark.skipif(KILLEE is None, reason="PERDURE_KILLEE does not name the program that saves")
def test_a_training(tmp_path, name):
    kind, capture, also, sample = SAVERS[name]
    saver = kind(tmp_path, name, capture, also)
    go_through(name, saver.counts(), saver.try_fault, sample)


@pytest.mark.parametrize("limit", [1000, 4096, 100_000])
@pytest.mark.skipif(KILLEE is None, reason="PERDURE_KILLEE does not name the program that saves")
def test_transfers_that_are_always_short(tmp_path, limit):
    saver = SaverInCpp(tmp_path, "short", "eager", NO_RING)
    library = Path(KILLEE).with_name("libshort_transfers.so")
    saver.environment = os.environ | {"LD_PRELOAD": str(library), "PERDURE_SHORT_TRANSFERS": str(limit)}
    run, outcome = saver.run_in_copy(None)
    assert outcome.status == 0 and outcome.leaked == [], outcome.lines
    moved = [int(n) for n in re.findall(r"p(?:read|write)64\(.* = (\d+)$", outcome.log, re.MULTILINE)]
    assert max(moved) <= limit and len(moved) > 20
    assert saver.go_on(run) == saver.acknowledged + SAVES


# A kernel that takes nothing more through a ring that it has opened, from the n-th submission on.
@pytest.mark.parametrize("n", range(1, 8))
@pytest.mark.skipif(KILLEE is None, reason="PERDURE_KILLEE does not name the program that saves")
def test_a_ring_that_is_closed_to_us(tmp_path, n):
    saver = SaverInCpp(tmp_path, "ring", "eager")
    assert saver.try_fault(Fault("io_uring_enter", "error=EPERM", f"{n}+")) or n > 1


# The examples: whatever failed, they end with what an undisturbed run ends with.


class Example:
    def __init__(self, folder):
        self.folder, self.undisturbed = folder, folder / "undisturbed"
        self.first = self.run(self.undisturbed, None)
        assert self.first.status == 0, self.first.lines

    def counts(self):
        counts = syscalls.counts(self.first.log, begin=str(self.undisturbed))
        return {call: x for call, x in counts.items() if call not in OF_MEMORY}  # those are PyTorch's

    def try_fault(self, fault):
        run = self.folder / "run"
        shutil.rmtree(run, ignore_errors=True)
        outcome = self.run(run, fault)
        ours = [x for x in outcome.injections if str(run) in x.text or "io_uring" in x.text]
        if not ours and outcome.status != -9:
            return bool(outcome.injections)  # somebody else's call
        text = "\n".join(outcome.lines)
        assert outcome.status in (0, -9) or is_clear(text, fault, run, f"'{run.parent}'"), text
        if outcome.status != 0:
            wait_until_dead(run)
            outcome = self.run(run, None)
            assert outcome.status == 0, "\n".join(outcome.lines)
        elif debris(run) and any(keeps_the_pruned(x, run) for x in ours):  # until the next start
            assert not list(run.glob("*.tmp")) and self.run(run, None).status == 0
        assert not list(run.glob("*.damaged*")) and not debris(run)
        newest = [perdure.load(max(x.glob("step-*.pt"))) for x in (run, self.undisturbed)]
        assert equal(*(state["model"] for state in newest)) and equal(*(state["optimizer"] for state in newest)), text
        return True


def keeps_the_pruned(injection, run):
    """Of what a prune does with what is in .trash already: the sync of the run directory, which looks at it afterwards,
    and the removal itself."""
    looks_after_sync = injection.call == "newfstatat" and f'<{run}>, "", ' in injection.text
    return injection.call == "fsync" or looks_after_sync or injection.call == "unlinkat" and "/.trash>" in injection.text


def equal(a, b):
    if isinstance(a, torch.Tensor):
        return same_bits(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(equal, a, b))
    return a == b


class ExampleInCpp(Example):
    def run(self, run, fault):
        return syscalls.run([BUILT_EXAMPLES / "everyday", run], self.folder / "log", fault)


class ExampleInPython(Example):
    def __init__(self, folder):
        self.nursery = syscalls.Driver([sys.executable, HERE / "faultee.py"])
        self.nursery.read_until("begin")
        super().__init__(folder)

    def run(self, run, fault):
        self.nursery.ask(f"run {EXAMPLES / 'python' / 'everyday.py'} {run}")
        pid = int(self.nursery.read_until("ready")[-1].split()[1])
        return self.nursery.examine(self.folder / "log", fault, pid=pid)


@pytest.mark.parametrize("name, kind", [("example-cpp", ExampleInCpp), ("example-python", ExampleInPython)])
@pytest.mark.skipif(not HOW_MANY and not ONLY, reason="takes long: PERDURE_SYSCALLS=all")
def test_an_example(tmp_path, name, kind):
    example = kind(tmp_path)
    go_through(name, example.counts(), example.try_fault, 0)


# Whether the tests can see.


class CarelessSaver(SaverInPython):
    """Writes over the file that it has, as torch.save does."""

    def ask_for(self, run, saves):
        self.nursery.ask(f"careless {run} {self.capture} {saves}")
        return int(self.nursery.read_until("ready")[-1].split()[1])

    def go_on(self, run):
        try:
            return torch.load(run / "checkpoint.pt")["step"]
        except Exception as error:
            raise AssertionError("nothing is left") from error


def test_a_careless_program_is_found_out(tmp_path):
    saver = CarelessSaver(tmp_path, "careless", "-")
    with pytest.raises(AssertionError, match="nothing is left"):
        for n in range(1, 30):
            saver.try_fault(Fault("write", KILL, n))
    with pytest.raises(AssertionError, match="error"):
        for n in range(1, 30):
            saver.try_fault(Fault("write", "error=ENOSPC", n))


def test_what_the_trace_tells():
    log = """\
10 openat(AT_FDCWD</>, "/lib/x.so", O_RDONLY) = 3</lib/x.so>
10 openat(AT_FDCWD</>, "/tmp/run", O_RDONLY) = 3</tmp/run>
10 fsync(3</tmp/run> <unfinished ...>
11 fsync(4</tmp/run/a>) = 0
10 <... fsync resumed>) = -1 EIO (Input/output error) (INJECTED)
11 futex(0x7f, FUTEX_WAIT, 0) = 0
11 fsync(4</tmp/run/a>) = 0
"""
    assert syscalls.counts(log, "/tmp/run") == {"openat": (2, 2), "fsync": (1, 2)}
    injected = syscalls.injections(log)
    assert [x.call for x in injected] == ["fsync"] and "/tmp/run" in injected[0].text
