"""CheckpointManager: what is saved is found again, damage is passed over, and nobody else's error is hidden."""

import logging
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from conftest import damage

import perdure


@pytest.fixture
def run(tmp_path):
    return tmp_path / "run"


def make_state(**values):
    return perdure.TrainingState(**{"x": torch.zeros(3), "epoch": 0, **values})


def finished(handle):
    """Waits for the save; its error stays unseen."""
    while not handle.done():
        time.sleep(0.0005)
    return handle


def save_steps(checkpoints, state, steps, **metrics):
    """Saves each step; x holds its number."""
    handles = []
    for step in steps:
        state.step = step
        state.x.fill_(step)
        metrics_now = {k: v[step] for k, v in metrics.items()}
        handles.append(finished(checkpoints.save(state, metrics=metrics_now)))
        checkpoints._wait_idle()  # pruning, too
    return handles


def start(code, *args, **options):
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, args)], stdout=subprocess.PIPE, text=True, **options
    )


# saving and restoring


def test_none_yet(run):
    state = make_state()
    with perdure.CheckpointManager(run) as checkpoints:
        assert checkpoints.restore(state) is None
        assert (
            checkpoints.latest() is None
            and checkpoints.latest_step() is None
            and checkpoints.all_steps() == []
        )
        assert repr(checkpoints).endswith("0 checkpoints>")


def test_newest_is_restored(run):
    state, other = make_state(), make_state()
    with perdure.CheckpointManager(str(run), keep_last=2) as checkpoints:
        save_steps(checkpoints, state, [10, 20, 30])
        assert checkpoints.all_steps() == [20, 30] and checkpoints.latest_step() == 30
    with perdure.CheckpointManager(run) as checkpoints:
        found = checkpoints.restore(other)
        assert (found.step, found.generation, found.path.parent) == (30, 3, run)
        assert found == checkpoints.latest()
    assert other.step == 30 and other.x.tolist() == [30] * 3


def test_a_named_step(run):
    state = make_state()
    with perdure.CheckpointManager(run) as checkpoints:
        save_steps(checkpoints, state, [1, 2, 3])
        assert checkpoints.restore(state, step=2).step == 2 and state.x.tolist() == [2] * 3
        handle = finished(checkpoints.save(state))
        assert handle.checkpoint.parent == 2 and handle.checkpoint.generation == 4
        assert checkpoints.latest_step() == 2  # the newest is the highest generation, not the highest step
        with pytest.raises(perdure.NotFoundError, match="7"):
            checkpoints.restore(state, step=7)


def test_a_named_path(run, tmp_path):
    torch.save({"x": torch.ones(3), "epoch": 5, "step": 9}, tmp_path / "other.pt")
    state = make_state()
    with perdure.CheckpointManager(run) as checkpoints:
        checkpoints.restore(state, path=tmp_path / "other.pt", strict=False)
    assert (state.epoch, state.step, state.x.tolist()) == (5, 9, [1, 1, 1])


def test_torch_load_opens_what_a_manager_saves(run):
    state = make_state()
    with perdure.CheckpointManager(run) as checkpoints:
        path = finished(checkpoints.save(state)).checkpoint.path
    loaded = torch.load(path)
    assert loaded["x"].tolist() == [0, 0, 0] and loaded.keys() == {"x", "epoch", "step", "rng"}
    assert perdure.verify(path).good


# metrics and retention


def test_metrics(run):
    with perdure.CheckpointManager(run) as checkpoints:
        metrics = {
            "a": torch.tensor(0.5, requires_grad=True),
            "b": np.float32(1.5),
            "c": 2,
            "d": True,
            "e": float("nan"),
            "f": float("-inf"),
        }
        finished(checkpoints.save(make_state(), metrics=metrics))
        found = checkpoints.latest().metrics
        assert {k: found[k] for k in "abcdf"} == {"a": 0.5, "b": 1.5, "c": 2.0, "d": 1.0, "f": float("-inf")}
        assert found["e"] != found["e"]
        with pytest.raises(perdure.InvalidError, match="'loss'"):
            checkpoints.save(make_state(), metrics={"loss": "low"})
        with pytest.raises(perdure.InvalidError, match="'loss'"):
            checkpoints.save(make_state(), metrics={"loss": torch.ones(2)})


LOSSES = {1: 3.0, 2: 1.0, 3: 2.0, 4: 5.0, 5: 4.0}


def test_best_are_kept(run):
    with perdure.CheckpointManager(run, keep_last=1, keep_best=perdure.Best("loss", "min", 2)) as checkpoints:
        save_steps(checkpoints, make_state(), LOSSES, loss=LOSSES)
        assert checkpoints.all_steps() == [2, 3, 5]
        assert checkpoints.best_step() == checkpoints.best_step("loss") == 2


def test_best_by_several_metrics(run):
    best = [perdure.Best("loss"), perdure.Best("accuracy", "max")]
    with perdure.CheckpointManager(run, keep_last=1, keep_best=best) as checkpoints:
        save_steps(checkpoints, make_state(), LOSSES, loss=LOSSES, accuracy=LOSSES)
        assert checkpoints.all_steps() == [2, 4, 5]
        assert checkpoints.best_step("accuracy") == 4


@pytest.mark.parametrize("arguments", [
    {"keep_last": 0}, {"on_error": "ignore"}, {"when_busy": "panic"}, {"keep_best": ["loss"]}, {"on_error": None},
])  # fmt: skip
def test_wrong_arguments(run, arguments):
    with pytest.raises((perdure.InvalidError, AttributeError)):
        perdure.CheckpointManager(run, **arguments)


def test_wrong_best():
    with pytest.raises(perdure.InvalidError, match="min"):
        perdure.Best("loss", "lowest")
    with pytest.raises(perdure.InvalidError, match="count"):
        perdure.Best("loss", "min", 0)


def test_only_a_training_state_is_taken(run):
    with perdure.CheckpointManager(run) as checkpoints:
        for thing in ({"model": 1}, torch.nn.Linear(1, 1)):
            with pytest.raises(TypeError, match="TrainingState"):
                checkpoints.save(thing)
            with pytest.raises(TypeError, match="TrainingState"):
                checkpoints.restore(thing)


def test_handle(run):
    with perdure.CheckpointManager(run) as checkpoints:
        handle = checkpoints.save(make_state())
        assert handle.wait() is True and handle.wait(5) is True and handle.done()
        assert handle.error is None and not handle.skipped
        assert handle.stats.bytes == handle.checkpoint.size == handle.checkpoint.path.stat().st_size
        assert 0 <= handle.stats.stalled <= handle.stats.durable + 0.001
        assert "step 0" in repr(handle) and "generation 1" in str(handle.checkpoint)


def test_list_without_the_lock(run):
    with perdure.CheckpointManager(run) as checkpoints:
        save_steps(checkpoints, make_state(), [1, 2])
        assert perdure.list_checkpoints(run) == checkpoints.checkpoints()


# damage


def test_fallback_past_damage(run, caplog):
    state = make_state()
    with perdure.CheckpointManager(run) as checkpoints:
        handles = save_steps(checkpoints, state, [1, 2, 3])
    newest = handles[-1].checkpoint.path
    damage(newest)
    state = make_state()
    with perdure.CheckpointManager(run) as checkpoints, caplog.at_level(logging.WARNING, "perdure"):
        assert checkpoints.restore(state).step == 2
        assert checkpoints.latest_step() == 2
    assert state.x.tolist() == [2] * 3 and state.step == 2
    assert newest.name in caplog.text and "damaged" in caplog.text
    assert not newest.exists() and any(
        p.name.startswith(newest.name) and "damaged" in p.name for p in run.iterdir()
    )


def test_damage_of_a_tensor_is_found_before_anything_changes(run, caplog):
    """The flipped bit is in the last of many tensors; none of the damaged file's values may be left."""
    state = perdure.TrainingState(tensors=[torch.full((50_000,), 1.0) for _ in range(8)])
    with perdure.CheckpointManager(run) as checkpoints:
        checkpoints.save(state)
        for t in state.tensors:
            t.fill_(2)
        path = finished(checkpoints.save(state)).checkpoint.path
    data = path.read_bytes()
    damage(path, data.rindex(torch.full((16,), 2.0).numpy().tobytes()))
    with perdure.CheckpointManager(run) as checkpoints:
        assert checkpoints.restore(state).generation == 1
    assert all(t.unique().tolist() == [1.0] for t in state.tensors)


def test_only_damaged_ones_left(run):
    state = make_state()
    with perdure.CheckpointManager(run) as checkpoints:
        paths = [h.checkpoint.path for h in save_steps(checkpoints, state, [1, 2])]
    for path in paths:
        damage(path)
    with perdure.CheckpointManager(run) as checkpoints, pytest.raises(perdure.CorruptionError):
        checkpoints.restore(state)


def test_a_named_step_never_falls_back(run):
    state = make_state()
    with perdure.CheckpointManager(run) as checkpoints:
        handles = save_steps(checkpoints, state, [1, 2])
        damage(handles[-1].checkpoint.path)
        with pytest.raises(perdure.CorruptionError):
            checkpoints.restore(state, step=2)


def test_misfit_is_no_reason_to_fall_back(run):
    with perdure.CheckpointManager(run) as checkpoints:
        checkpoints.save(make_state())
        checkpoints.save(make_state(extra=1))
        with pytest.raises(perdure.InvalidError, match="extra"):
            checkpoints.restore(make_state())
        assert len(checkpoints.checkpoints()) == 2


# one manager, one process


def test_lock(run):
    with perdure.CheckpointManager(run):
        with pytest.raises(perdure.LockedError):
            perdure.CheckpointManager(run)
    perdure.CheckpointManager(run).close()


HOLDER = """
import sys, time, torch, perdure
class Numbers(torch.utils.data.Dataset):
    def __len__(self): return 1000
    def __getitem__(self, i): time.sleep(0.01); return i
checkpoints = perdure.CheckpointManager(sys.argv[1])
state = perdure.TrainingState(epoch=0)
loader = torch.utils.data.DataLoader(Numbers(), num_workers=2, persistent_workers=True, multiprocessing_context="fork")
workers = iter(loader)
next(workers)
checkpoints.save(state).wait()
import multiprocessing
print(*[p.pid for p in multiprocessing.active_children()], flush=True)
time.sleep(60)
"""


def test_lock_is_free_after_sigkill_with_workers_alive(run):
    holder = start(HOLDER, run)
    workers = [int(p) for p in holder.stdout.readline().split()]
    assert len(workers) == 2
    for worker in workers:
        os.kill(worker, signal.SIGSTOP)  # or they would notice that their parent is gone
    try:
        with pytest.raises(perdure.LockedError, match=str(holder.pid)):
            perdure.CheckpointManager(run)
        holder.kill()
        holder.wait()
        with perdure.CheckpointManager(run) as checkpoints:
            assert checkpoints.restore(perdure.TrainingState(epoch=0)).step == 0
        assert all(os.path.exists(f"/proc/{w}") for w in workers)
    finally:
        for worker in workers:
            os.kill(worker, signal.SIGKILL)
        holder.stdout.close()


def test_forked_child_is_refused(run):
    state = make_state()
    with perdure.CheckpointManager(run) as checkpoints:
        checkpoints.save(state)
        child = os.fork()
        if not child:
            code = 1
            try:
                checkpoints.save(state)
            except perdure.InvalidError as error:
                code = 42 if "fork" in str(error) else 2
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 42
        checkpoints.save(state).wait()


def test_child_that_exits_normally_leaves_the_parents_manager_alone(run):
    code = """
import os, sys, perdure
checkpoints = perdure.CheckpointManager(sys.argv[1])
state = perdure.TrainingState(epoch=0)
if not os.fork(): sys.exit(0)
print(os.waitstatus_to_exitcode(os.wait()[1]), flush=True)
checkpoints.save(state).wait()
checkpoints.close()
print("saved", flush=True)
"""
    done = start(code, run)
    assert done.communicate()[0].split() == ["0", "saved"] and done.returncode == 0


# endings


def test_closed_manager(run):
    checkpoints = perdure.CheckpointManager(run)
    checkpoints.close()
    checkpoints.close()
    with pytest.raises(perdure.InvalidError, match="closed"):
        checkpoints.save(make_state())
    assert "closed" in repr(checkpoints)


def test_dropped_manager_gives_up_its_lock(run):
    perdure.CheckpointManager(run).save(make_state())
    perdure.CheckpointManager(run).close()


@pytest.mark.parametrize("ending", ["", "sys.exit(3)", "raise KeyboardInterrupt", "raise ValueError('mine')"])
def test_interpreter_exit(run, ending):
    code = f"""
import sys, perdure
checkpoints = perdure.CheckpointManager(sys.argv[1])
state = perdure.TrainingState(epoch=0, checkpoints=None)
handle = checkpoints.save(state)
{ending}
"""
    done = start(code, run, stderr=subprocess.PIPE)
    _, errors = done.communicate(timeout=60)
    assert "perdure" not in errors.replace("perdure.CheckpointManager", "").replace("import sys, perdure", "")
    assert len(perdure.list_checkpoints(run)) == 1
    perdure.CheckpointManager(run).close()


class Mine(Exception):
    pass


class Broken:
    """A state that can be registered, and cannot be saved."""

    def state_dict(self):
        raise Mine("from my state_dict")

    def load_state_dict(self, state):
        pass


@pytest.mark.parametrize("on_error", ["warn", "raise"])
def test_an_exception_of_my_state_dict_is_mine(run, on_error):
    with perdure.CheckpointManager(run, on_error=on_error) as checkpoints:
        with pytest.raises(Mine, match="from my state_dict"):
            checkpoints.save(perdure.TrainingState(thing=Broken()))


# failed saves


class Full:
    """Within it, files cannot grow: as on a full disk."""

    def __enter__(self):
        import resource

        self.old = resource.getrlimit(resource.RLIMIT_FSIZE)
        self.handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, self.old[1]))

    def __exit__(self, *exception):
        import resource

        resource.setrlimit(resource.RLIMIT_FSIZE, self.old)
        signal.signal(signal.SIGXFSZ, self.handler)


def test_on_error_warn(run, caplog):
    state = make_state()
    checkpoints = perdure.CheckpointManager(run)
    save_steps(checkpoints, state, [1])
    with Full(), caplog.at_level(logging.WARNING, "perdure"):
        handle = finished(checkpoints.save(state))
    assert handle.done() and isinstance(handle.error, perdure.FullError) and handle.checkpoint is None
    assert "failed" in repr(handle) and "not saved" in caplog.text
    with pytest.raises(perdure.FullError):
        handle.wait()
    save_steps(checkpoints, state, [2])
    assert checkpoints.all_steps() == [1, 2]
    checkpoints.close()  # handle.wait() has told it


def test_unseen_failure_is_raised_by_close(run):
    with pytest.raises(perdure.FullError):
        with perdure.CheckpointManager(run) as checkpoints, Full():
            finished(checkpoints.save(make_state()))
    perdure.CheckpointManager(run).close()


def test_third_failure_in_a_row_is_raised(run):
    state = make_state()
    with pytest.raises(perdure.FullError):
        with perdure.CheckpointManager(run) as checkpoints, Full():
            for _ in range(3):
                finished(checkpoints.save(state))
            with pytest.raises(OSError, match="step-0000000000-g00000003"):
                checkpoints.save(state)


def test_on_error_raise(run):
    checkpoints = perdure.CheckpointManager(run, on_error="raise")
    with Full():
        finished(checkpoints.save(make_state()))
    with pytest.raises(perdure.FullError):
        checkpoints.save(make_state())
    checkpoints.save(make_state()).wait()
    checkpoints.close()


def test_the_loops_own_exception_is_not_masked(run, caplog):
    with pytest.raises(Mine), caplog.at_level(logging.WARNING, "perdure"):
        with perdure.CheckpointManager(run) as checkpoints, Full():
            finished(checkpoints.save(make_state()))
            raise Mine
    assert "closing" in caplog.text
    perdure.CheckpointManager(run).close()


def test_saving_holds_up_no_other_thread(run):
    """The GIL is not held while bytes are written."""
    import threading

    state = perdure.TrainingState(x=torch.zeros(20_000_000))
    ticks, stop = [], threading.Event()

    def tick():
        while not stop.is_set():
            ticks.append(time.monotonic())
            time.sleep(0.001)

    thread = threading.Thread(target=tick)
    with perdure.CheckpointManager(run) as checkpoints:
        thread.start()
        begin = time.monotonic()
        checkpoints.save(state)
        end = time.monotonic()
        stop.set()
        thread.join()
    during = [t for t in ticks if begin <= t <= end]
    assert len(during) > (end - begin) / 0.05
