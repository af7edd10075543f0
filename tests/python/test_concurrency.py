"""Several processes on one run, several threads on one manager, and every way for a process to end or to become another
one while a save is in flight.

PERDURE_SECONDS is how long the tests go on that have no end of their own. Where it is set, the others are done in both
ways to capture, and not only in the one that has more threads.
"""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from faults import wait_until_dead
from killee import Numbers, fill

import perdure

PERDURE = os.environ.get("PERDURE_CLI", "perdure")
SECONDS = float(os.environ.get("PERDURE_SECONDS") or 2)
HERE = Path(__file__).parent
CAPTURES = ["overlapped", "eager"] if os.environ.get("PERDURE_SECONDS") else ["overlapped"]


@pytest.fixture
def run(tmp_path):
    return tmp_path / "run"


def start(code, *arguments, **options):
    command = [sys.executable, "-c", PRELUDE + code, *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=HERE, **options)


# Programs are forked from one that has imported everything, which takes longer than all they do; in all else they are
# programs of their own, and end as such.
NURSERY = """
import json, os, sys, torch, perdure
torch.set_num_threads(1)
torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.1).step()  # imports, too
while line := sys.stdin.readline():
    job = json.loads(line)
    child = os.fork()
    if not child:
        os.dup2(os.open(job["output"], os.O_WRONLY | os.O_CREAT, 0o600), 1)
        os.dup2(1, 2)
        sys.argv = ["-c", *job["arguments"]]
        exec(job["code"])
        break
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@pytest.fixture(scope="module")
def nursery():
    pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    process = subprocess.Popen([sys.executable, "-c", NURSERY], cwd=HERE, process_group=0, **pipes)
    yield process
    process.communicate(timeout=60)


@pytest.fixture
def finish(nursery, tmp_path):
    """A function: runs a program, and gives what it prints."""

    def run_program(code, *arguments, status=0):
        job = {"code": PRELUDE + code, "arguments": [*map(str, arguments)], "output": str(tmp_path / "output")}
        alarm = threading.Timer(120, os.killpg, [nursery.pid, signal.SIGKILL])
        alarm.start()
        nursery.stdin.write(json.dumps(job) + "\n")
        nursery.stdin.flush()
        ended = nursery.stdout.readline()
        alarm.cancel()
        output = Path(job["output"]).read_text()
        assert ended and int(ended) == status, f"status {ended or 'none in time'}: {output}"
        Path(job["output"]).unlink()
        return output.split()

    return run_program


# A state that is in flight for a while; `saved` is what a save of it that is in flight now will have.
PRELUDE = """
import atexit, gc, os, sys, threading, time, torch, perdure
torch.set_num_threads(1)
run, capture, *rest = sys.argv[1:] + ["eager"]
class Loop:
    def __init__(self):
        torch.manual_seed(1)
        self.model = torch.nn.Linear(3000, 2000)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1, momentum=0.9)
        self.state = perdure.TrainingState(model=self.model, optimizer=self.optimizer)
        self.checkpoints = perdure.CheckpointManager(run, capture=capture)
    def step(self):
        self.model(torch.ones(1, 3000)).sum().backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.state.step += 1
    def save(self):
        self.saved = self.model.weight.detach().clone()
        self.handle = self.checkpoints.save(self.state)
        return self.handle
    def check(self):
        saved = perdure.load(self.handle.checkpoint.path)
        assert torch.equal(saved["model"]["weight"], self.saved), "the checkpoint is not what was saved"
def says(what):
    print(what, flush=True)
"""


def check_run(run, *steps):
    """The next process finds these, whole, and nothing else but what the run's files are."""
    wait_until_dead(run)
    with perdure.CheckpointManager(run) as checkpoints:
        assert checkpoints.all_steps() == list(steps)
    found = perdure.list_checkpoints(run)
    assert sorted({c.step for c in found}) == list(steps)
    assert all(perdure.verify(c.path).good for c in found)
    assert sorted(p.name for p in run.iterdir() if not p.name.startswith("step-")) in (
        [".lock", "history.jsonl"], [".lock", ".trash", "history.jsonl"], [".lock"],
    )  # fmt: skip


# Several processes


def test_the_second_process_is_told_who_has_it(run):
    holder = start("loop = Loop(); says('open'); sys.stdin.read()", run, stdin=subprocess.PIPE)
    assert holder.stdout.readline() == "open\n"
    with pytest.raises(perdure.LockedError, match=rf"{run}.* process {holder.pid};"):
        perdure.CheckpointManager(run)
    done = subprocess.run([PERDURE, "prune", "--keep-last", "1", run], capture_output=True, text=True)
    assert done.returncode == 2 and f"process {holder.pid}" in done.stderr
    holder.communicate("", timeout=60)
    with perdure.CheckpointManager(run):
        with pytest.raises(perdure.LockedError, match=rf"another CheckpointManager of this process \({os.getpid()}\)"):
            perdure.CheckpointManager(run)


def looks_of_the_command(run, stop, failures, counts):
    while not stop.is_set():
        for words in (["ls", "--json"], ["verify", "--json"], ["show"]):
            done = subprocess.run([PERDURE, *words, run], capture_output=True, text=True, timeout=60)
            gone = words == ["show"] and done.returncode == 2 and "No such file" in done.stderr
            if done.returncode != 0 and not gone:
                failures.append((words, done.returncode, done.stdout, done.stderr))
            if words[0] == "ls" and done.returncode == 0:
                entries = json.loads(done.stdout)["checkpoints"]
                failures.extend(entry for entry in entries if not entry["whole"])
            counts[words[0]] = counts.get(words[0], 0) + 1


def looks_of_python(run, stop, failures, counts):
    """What is read is what was written: a function of the step."""
    expected = [torch.empty_like(p) for p in Numbers().parameters()]
    while not stop.is_set():
        for checkpoint in perdure.list_checkpoints(run):
            try:
                assert perdure.verify(checkpoint.path).good
                numbers = perdure.load(checkpoint.path)["model"].values()
            except perdure.NotFoundError as error:
                assert str(checkpoint.path) in str(error)
                counts["gone"] = counts.get("gone", 0) + 1
                continue
            except perdure.Error as error:
                failures.append(error)
                continue
            fill(expected, checkpoint.step)
            if not all(torch.equal(a, b) for a, b in zip(numbers, expected)):
                failures.append((checkpoint, "has other numbers"))
            counts["loaded"] = counts.get("loaded", 0) + 1


def test_readers_while_another_process_saves_and_prunes(run):
    writer = start("import killee; killee.train(run, capture)", run)
    failures, counts, stop = [], {}, threading.Event()
    assert writer.stdout.readline().startswith("restored")
    assert writer.stdout.readline().startswith("saved")
    looks = [threading.Thread(target=look, args=(run, stop, failures, counts))
             for look in (looks_of_the_command, looks_of_python)]  # fmt: skip
    for look in looks:
        look.start()
    end = time.monotonic() + SECONDS
    while time.monotonic() < end and not failures:
        saved = int(writer.stdout.readline().split()[1])
    stop.set()
    for look in looks:
        look.join()
    writer.kill()
    writer.communicate()
    assert not failures, failures[0]
    assert saved > 5 * SECONDS and counts["loaded"] > 5 and counts["ls"] > 2, (saved, counts)


# Several threads


def test_threads_that_do_everything_at_once(run):
    state = perdure.TrainingState(x=torch.arange(50_000), epoch=0)
    failures, calls, stop = [], [], threading.Event()

    def keep_doing(action):
        while not stop.is_set():
            try:
                action()
                calls.append(action)
            except BaseException as error:
                failures.append(error)
                return

    with perdure.CheckpointManager(run, keep_last=2, save_every=1) as checkpoints:
        checkpoints.save(state).wait()

        def restore():
            checkpoints.restore(state)

        actions = [
            lambda: checkpoints.save(state, metrics={"loss": 1}), lambda: checkpoints.save(state).wait(),
            lambda: checkpoints.should_save(state.step), checkpoints.wait, checkpoints.fence, restore,
            checkpoints.prune, lambda: (checkpoints.pin(0), checkpoints.unpin(0)), lambda: checkpoints.prepare(state),
            checkpoints.checkpoints, checkpoints.all_steps, checkpoints.latest_step, checkpoints.retention_plan,
            lambda: checkpoints.preempted, lambda: checkpoints.interval, lambda: repr(checkpoints),
        ]  # fmt: skip
        threads = [threading.Thread(target=keep_doing, args=[action]) for action in actions]
        for thread in threads:
            thread.start()
        stop.wait(SECONDS / 2)
        stop.set()
        for thread in threads:
            thread.join()
    assert not failures, failures
    assert {id(a) for a in calls} == {id(a) for a in actions}, "a thread never got its turn"
    generations = [c.generation for c in perdure.list_checkpoints(run)]
    assert len(generations) == len(set(generations))
    check_run(run, 0)
    assert perdure.load(perdure.list_checkpoints(run)[0].path)["x"].equal(torch.arange(50_000))


def test_close_while_other_threads_save(run):
    state = perdure.TrainingState(x=torch.arange(50_000), epoch=0)
    checkpoints = perdure.CheckpointManager(run)
    ended = []

    def save_until_closed():
        try:
            while True:
                checkpoints.save(state)
        except perdure.InvalidError as error:
            ended.append(str(error))

    threads = [threading.Thread(target=save_until_closed) for _ in range(4)]
    for thread in threads:
        thread.start()
    time.sleep(0.1)
    checkpoints.close()
    for thread in threads:
        thread.join(timeout=60)
    assert len(ended) == 4 and all("is closed" in text for text in ended)
    check_run(run, 0)


# A fork while a save is in flight


@pytest.mark.parametrize("capture", CAPTURES)
def test_workers_are_forked_while_a_save_is_in_flight(finish, run, capture):
    finish("""
class Data(torch.utils.data.Dataset):
    def __len__(self): return 8
    def __getitem__(self, i): return i
loop = Loop()
for epoch in range(3):
    loop.step()
    loop.save()
    flying = not loop.handle.done()
    batches = torch.utils.data.DataLoader(Data(), num_workers=2, multiprocessing_context="fork")
    assert sorted(int(x) for x in batches) == list(range(8))
    assert flying, "nothing was in flight"
    loop.handle.wait()
    loop.check()
loop.checkpoints.close()
""", run, capture)  # fmt: skip
    check_run(run, 1, 2, 3)


@pytest.mark.parametrize("capture", CAPTURES)
@pytest.mark.parametrize(
    "ending", ["sys.exit(0)", "os._exit(0)", "del loop; gc.collect(); sys.exit(0)", "loop.step(); sys.exit(0)"]
)
def test_a_child_that_is_forked_in_the_middle_of_a_save_ends(finish, run, capture, ending):
    said = finish(f"""
loop = Loop()
loop.save()
begin = time.monotonic()
if not os.fork():
    {ending}
status = os.waitstatus_to_exitcode(os.wait()[1])
assert status == 0, status
assert time.monotonic() - begin < 30
loop.handle.wait()
loop.check()
loop.step()
loop.save().wait()
loop.check()
loop.checkpoints.close()
says("saved")
""", run, capture)  # fmt: skip
    assert said == ["saved"]
    check_run(run, 0, 1)


def test_a_child_may_have_a_manager_of_its_own(finish, run, tmp_path):
    finish("""
loop = Loop()
loop.save()
if not os.fork():
    with perdure.CheckpointManager(rest[0]) as mine:
        mine.save(perdure.TrainingState(x=torch.ones(10), epoch=1)).wait()
    sys.exit(0)
assert os.waitstatus_to_exitcode(os.wait()[1]) == 0
loop.handle.wait()
loop.check()
""", run, "eager", tmp_path / "other")  # fmt: skip
    check_run(run, 0)
    check_run(tmp_path / "other", 0)


# The end of a process while a save is in flight


@pytest.mark.parametrize("capture", CAPTURES)
@pytest.mark.parametrize("ending, status", [
    ("", 0), ("sys.exit(3)", 3), ("raise ValueError('mine')", 1), ("del loop", 0), ("loop = None; gc.collect()", 0),
    ("loop.checkpoints = None", 0), ("atexit.register(loop.save)", 0), ("sys.modules['kept'] = loop", 0),
    ("loop.me = loop; del loop", 0), ("threading.Thread(target=lambda: (time.sleep(0.2), loop.save())).start()", 0),
])  # fmt: skip
def test_what_is_in_flight_at_the_end_is_finished(finish, run, capture, ending, status):
    finish(f"loop = Loop()\nloop.save()\n{ending}", run, capture, status=status)
    check_run(run, 0)


def test_an_exception_within_with_finishes_what_is_in_flight(finish, run):
    finish("""
loop = Loop()
try:
    with loop.checkpoints:
        loop.save()
        raise ValueError("mine")
except ValueError:
    assert loop.handle.done()
    loop.check()
""", run)  # fmt: skip
    check_run(run, 0)


@pytest.mark.parametrize("ending", ["os._exit(7)", "os.kill(os.getpid(), 9)", "os.abort()"])
def test_what_is_cut_off_leaves_the_one_before(finish, run, ending):
    status = {"os._exit(7)": 7, "os.kill(os.getpid(), 9)": -9, "os.abort()": -6}[ending]
    finish(f"""
loop = Loop()
loop.save().wait()
loop.step()
loop.save()
{ending}
""", run, status=status)  # fmt: skip
    steps = [c.step for c in perdure.list_checkpoints(run)]
    assert 0 in steps
    check_run(run, *sorted(steps))


# Becoming another program


@pytest.mark.parametrize("capture", CAPTURES)
def test_exec_while_a_save_is_in_flight(finish, run, capture):
    """The next program has the same process id, and neither the lock nor the descriptors of the one before."""
    after = PRELUDE + """
loop = Loop()
assert loop.checkpoints.restore(loop.state).step in (0, 1)
names = {os.path.realpath(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd")}
assert not [name for name in names if name.endswith(".tmp")], names
says(loop.state.step)
loop.state.step = 5
loop.save().wait()
loop.checkpoints.close()
"""
    step, = finish("""
loop = Loop()
loop.save().wait()
loop.step()
loop.save()
os.execv(sys.executable, [sys.executable, "-c", rest[0], run, capture])
""", run, capture, after)  # fmt: skip
    check_run(run, *sorted({0, int(step), 5}))
