"""Signals that announce the end: every life of a training ends by itself, in time, with a whole checkpoint that says
"preemption"; and all of them together are exactly one training.

PERDURE_SEED makes the same moments again.
"""

import itertools
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import threading
import time

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

import perdure
from perdure.workers import WorkerInit

KILLEE = os.environ.get("PERDURE_KILLEE")
SEED = int(os.environ.get("PERDURE_SEED") or random.SystemRandom().randrange(2**32))
GRACE = 20.0


class Training:
    """Dropout, momentum, a shuffled loader, and a state that is large enough for a save to take a while."""

    def __init__(self):
        torch.manual_seed(7)
        self.model = torch.nn.Sequential(torch.nn.Linear(8, 32), torch.nn.Dropout(0.2), torch.nn.Linear(32, 1))
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-2)
        self.data = perdure.ResumableLoader(DataLoader(TensorDataset(torch.randn(90, 8), torch.randn(90, 1)), 4, shuffle=True))
        self.state = perdure.TrainingState(
            model=self.model, optimizer=self.optimizer, data=self.data, losses=[], ballast=torch.zeros(200_000)
        )

    def steps(self):
        while True:
            for x, y in self.data:
                loss = torch.nn.functional.mse_loss(self.model(x), y)
                self.optimizer.zero_grad()
                loss.backward()
                self.optimizer.step()
                self.state.losses.append(loss.item())
                self.state.ballast[self.state.step] = loss.item()
                self.state.step += 1
                yield self.state.step


def live(directory, ready):
    """One life, in a process of its own."""
    training = Training()
    with perdure.CheckpointManager(directory, save_every=7, save_on_signal=signal.SIGTERM, grace=GRACE) as checkpoints:
        checkpoints.restore(training.state)
        os.write(ready, b"x")
        for step in training.steps():
            if checkpoints.should_save(step):
                checkpoints.save(training.state)
            if checkpoints.preempted:
                break


def in_a_child(body) -> int:
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        body()
        code = 0
    except BaseException as error:
        print(repr(error), file=sys.stderr, flush=True)
    finally:
        os._exit(code)


def end_of(child, limit=GRACE) -> int:
    """The exit code of a child that has been told to end."""
    deadline = time.monotonic() + limit
    while time.monotonic() < deadline:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.001)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    raise AssertionError(f"it did not end within {limit} s, PERDURE_SEED={SEED}")


def test_a_hundred_preemptions_are_one_training(tmp_path):
    choose = random.Random(SEED)
    Training()  # what torch imports late, it need not import in each child
    before = 0
    for _ in range(100):
        ready, ready_end = os.pipe()
        child = in_a_child(lambda: live(tmp_path, ready_end))
        os.close(ready_end)
        assert os.read(ready, 1) == b"x"
        os.close(ready)
        time.sleep(choose.uniform(0, 0.05))
        for _ in range(choose.randint(1, 3)):  # more than one is harmless
            os.kill(child, signal.SIGTERM)
        assert end_of(child) == 0, f"PERDURE_SEED={SEED}"
        newest = perdure.list_checkpoints(tmp_path)[0]
        assert newest.reason == "preemption" and newest.step > before, f"PERDURE_SEED={SEED}"
        assert perdure.verify(newest.path).good
        before = newest.step
    resumed = Training()
    with perdure.CheckpointManager(tmp_path) as checkpoints:
        checkpoints.restore(resumed.state)
    once = Training()  # seeds the generators anew
    for step in once.steps():
        if step == before:
            break
    assert resumed.state.losses == once.state.losses, f"PERDURE_SEED={SEED}"
    for (name, a), b in zip(resumed.model.state_dict().items(), once.model.state_dict().values()):
        assert torch.equal(a, b), f"{name}, PERDURE_SEED={SEED}"
    for a, b in zip(resumed.optimizer.state.values(), once.optimizer.state.values()):
        assert all(torch.equal(a[key], b[key]) for key in a), f"PERDURE_SEED={SEED}"


@pytest.mark.skipif(KILLEE is None, reason="PERDURE_KILLEE does not name the program to preempt")
def test_a_cpp_training_ends_by_itself(tmp_path):
    choose = random.Random(SEED)
    last = 0
    for _ in range(100):
        capture = choose.choice(["eager", "overlapped", "checked"])
        child = subprocess.Popen([KILLEE, tmp_path, str(choose.randrange(2**32)), capture], stdout=subprocess.PIPE, text=True)
        assert child.stdout.readline() == f"restored {last}\n", f"PERDURE_SEED={SEED}"
        time.sleep(choose.uniform(0, 0.05))
        child.send_signal(signal.SIGTERM)
        child.communicate(timeout=GRACE)
        assert child.returncode == 0, f"PERDURE_SEED={SEED}"
        newest = perdure.list_checkpoints(tmp_path)[0]
        assert newest.reason == "preemption" and newest.step > last and perdure.verify(newest.path).good
        last = newest.step


@pytest.fixture
def state():
    return perdure.TrainingState(weights=torch.zeros(10))


def test_an_earlier_handler_of_pythons_still_runs(tmp_path, state):
    seen = []
    earlier = signal.signal(signal.SIGUSR2, lambda number, frame: seen.append(number))
    try:
        with perdure.CheckpointManager(tmp_path, save_on_signal=[signal.SIGUSR1, signal.SIGUSR2]) as checkpoints:
            assert not checkpoints.preempted and not checkpoints.should_save(1)
            os.kill(os.getpid(), signal.SIGUSR2)
            assert seen == [signal.SIGUSR2]
            assert checkpoints.should_save(1) and checkpoints.preempted
            assert checkpoints.save(state).wait() and checkpoints.latest().reason == "preemption"
            assert not checkpoints.should_save(2)
        os.kill(os.getpid(), signal.SIGUSR2)
        assert len(seen) == 2
    finally:
        signal.signal(signal.SIGUSR2, earlier)


def test_it_is_seen_in_a_thread_that_is_not_the_main_one(tmp_path, state):
    found = []

    def work():
        with perdure.CheckpointManager(tmp_path, save_on_signal=signal.SIGUSR2) as checkpoints:
            os.kill(os.getpid(), signal.SIGUSR2)
            while not checkpoints.preempted:
                time.sleep(0.001)
            found.append(True)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(timeout=30)
    assert found == [True]


class Slow(torch.utils.data.Dataset):
    def __len__(self):
        return 40

    first = 0

    def __getitem__(self, index):
        time.sleep(0.005)
        return self.first + index


class Endless(torch.utils.data.IterableDataset):
    first = 0

    def __iter__(self):
        return itertools.count(self.first)


class Own:
    """A user's worker_init_fn."""

    def __call__(self, worker_id):
        torch.utils.data.get_worker_info().dataset.first = 100


@pytest.mark.parametrize(
    "number, method, workers", [(signal.SIGTERM, "fork", 2), (signal.SIGUSR1, "fork", 2), (signal.SIGTERM, "spawn", 1)]
)
def test_the_workers_of_a_loader_live_on(tmp_path, state, number, method, workers):
    """A scheduler signals every process of a job. (PyTorch's workers would end with SIGTERM.)"""

    def signal_all():
        subprocess.run(["kill", f"-{int(number)}", "--", f"-{os.getpgid(0)}"], check=False, process_group=0)

    def body():
        os.setpgid(0, 0)
        plain = DataLoader(Slow(), 2, num_workers=workers, worker_init_fn=Own(), multiprocessing_context=method)
        with perdure.CheckpointManager(tmp_path, save_on_signal=(signal.SIGTERM, signal.SIGUSR1)) as checkpoints:
            batches = iter(perdure.ResumableLoader(plain))
            signal_all()  # while they start
            seen = []
            for batch in batches:
                seen += batch.tolist()
                if len(seen) == 6:
                    signal_all()
            assert checkpoints.preempted and seen == list(range(100, 140))
        assert signal.SIGTERM not in signal.pthread_sigmask(signal.SIG_BLOCK, [])

    assert end_of(in_a_child(body), limit=60) == 0


@pytest.mark.parametrize("dataset", [Slow(), Endless()], ids=["ordered", "replayed"])
def test_a_worker_init_fn_is_the_users_own_again(tmp_path, dataset):
    own = Own()
    plain = DataLoader(dataset, 2, num_workers=1, worker_init_fn=own)
    with perdure.CheckpointManager(tmp_path, save_on_signal=signal.SIGUSR2):
        batches = iter(perdure.ResumableLoader(plain))
        assert next(batches).tolist() == [100, 101]
    assert plain.worker_init_fn is own


def sleeper(init, ready):
    init(0)
    ready.set()
    time.sleep(60)


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_a_worker_ends_at_its_parents_signal_alone(tmp_path, method):
    context = multiprocessing.get_context(method)
    ready = context.Event()
    child = context.Process(target=sleeper, args=(WorkerInit(None, [signal.SIGTERM], []), ready), daemon=True)
    child.start()
    assert ready.wait(60)
    subprocess.run(["kill", f"{child.pid}"], check=True)
    child.join(0.3)
    assert child.is_alive()
    child.terminate()
    child.join(30)
    assert child.exitcode == -signal.SIGTERM


def test_workers_end_with_the_program(tmp_path):
    """Persistent workers are ended by their parent's SIGTERM at its exit."""
    code = f"""
import signal, perdure, torch
from torch.utils.data import DataLoader
loader = perdure.ResumableLoader(DataLoader(list(range(8)), num_workers=2, persistent_workers=True))
checkpoints = perdure.CheckpointManager({str(tmp_path)!r}, save_on_signal=signal.SIGTERM)
for batch in loader: pass
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
