"""When to save, what is kept, and what the run tells of itself."""

import logging
import os
import pty
import subprocess
import sys
import termios
import time

import pytest
import torch

import perdure


@pytest.fixture
def state():
    return perdure.TrainingState(weights=torch.zeros(100))


def train(checkpoints, state, steps, seconds=0.0):
    """The steps at which should_save() said so."""
    saved = []
    for _ in range(steps):
        time.sleep(seconds)
        state.step += 1
        if checkpoints.should_save(state.step):
            checkpoints.save(state)
            saved.append(state.step)
    checkpoints.wait()
    return saved


def test_every_so_many_steps_across_restarts(tmp_path, state):
    with perdure.CheckpointManager(tmp_path, save_every=10) as checkpoints:
        assert train(checkpoints, state, 25) == [10, 20]
    state.step = 0
    with perdure.CheckpointManager(tmp_path, save_every=perdure.Every(steps=10)) as checkpoints:
        checkpoints.restore(state)
        assert train(checkpoints, state, 25) == [30, 40]


def test_every_so_much_time(tmp_path, state):
    with perdure.CheckpointManager(tmp_path, save_every=perdure.Every(seconds=0.05)) as checkpoints:
        assert 2 <= len(train(checkpoints, state, 20, seconds=0.01)) <= 5


def test_overhead_says_what_it_picked(tmp_path, state, caplog):
    caplog.set_level(logging.INFO, "perdure")
    with perdure.CheckpointManager(tmp_path, overhead=0.5) as checkpoints:
        assert checkpoints.interval is None
        assert len(train(checkpoints, state, 700, seconds=0.002)) >= 2  # one to measure it, and after a second
        assert checkpoints.interval >= 1
    assert "overhead=0.5: a save costs the training" in caplog.text
    assert any(event["event"] == "interval" for event in perdure.read_history(tmp_path))


def test_without_a_rule_it_says_what_to_do(tmp_path):
    with perdure.CheckpointManager(tmp_path) as checkpoints:
        with pytest.raises(perdure.InvalidError, match="give the manager save_every, overhead or save_on_signal"):
            checkpoints.should_save(1)


@pytest.mark.parametrize("wrong", ["100", 1.5, True, [10]])
def test_what_every_takes(tmp_path, wrong):
    with pytest.raises(TypeError, match="save_every is a number of steps, or perdure.Every"):
        perdure.CheckpointManager(tmp_path, save_every=wrong)


def test_what_cannot_be_a_rule(tmp_path):
    for options, text in [
        ({"overhead": 1.5}, "overhead is 1.5"),
        ({"save_every": -3}, "neither may be negative"),
        ({"keep_every": perdure.Every(hours=-1)}, "neither may be negative"),
        ({"save_on_signal": 9}, "9 is no signal that a process can handle"),
        ({"grace": -1.0}, "grace is -1"),
    ]:
        with pytest.raises(perdure.InvalidError, match=text):
            perdure.CheckpointManager(tmp_path, **options)


def test_pins_and_the_plan(tmp_path, state):
    best = perdure.Best("loss", "min", 1)
    with perdure.CheckpointManager(tmp_path, keep_last=1, keep_best=best, keep_every=100) as checkpoints:
        for step in (50, 60, 110, 120, 130):
            state.step = step
            checkpoints.save(state, metrics={"loss": 1 / step if step != 60 else 0.0}).wait()
            if step == 50:
                checkpoints.pin(50, "for the paper")
        checkpoints.wait()
        plan = {item.checkpoint.step: item for item in checkpoints.retention_plan()}
        assert {step: item.reasons for step, item in plan.items()} == {
            130: ("the newest",),
            110: ("every 100 steps",),
            60: ("best by loss (min)",),
            50: ("pinned: for the paper",),
        }
        assert all(item.kept for item in plan.values())
        assert str(plan[50]).startswith("keep step 50 (generation 1, loss 0.02)")
        checkpoints.unpin(50)
        assert [i.checkpoint.step for i in checkpoints.retention_plan() if not i.kept] == [50]
        assert checkpoints.all_steps() == [50, 60, 110, 130]  # it was only a plan
        others = perdure.retention_plan(tmp_path, keep_last=2)
        assert [i.checkpoint.step for i in others if i.kept] == [130, 110]
        checkpoints.prune()
        assert checkpoints.all_steps() == [60, 110, 130]
        with pytest.raises(perdure.NotFoundError, match="there are 60, 110, 130"):
            checkpoints.pin(7)


def test_the_history(tmp_path, state):
    assert not tmp_path.joinpath("history.jsonl").exists() and perdure.read_history(tmp_path) == []
    with perdure.CheckpointManager(tmp_path, keep_last=1) as checkpoints:
        for state.step in (1, 2):
            checkpoints.save(state, metrics={"loss": float("nan")}).wait()
        checkpoints.restore(state)
    events = perdure.read_history(tmp_path)
    assert [event["event"] for event in events] == ["save", "save", "prune", "restore"]
    assert events[0]["step"] == 1 and events[0]["metrics"] == {"loss": "nan"} and events[0]["durable"] > 0
    with open(tmp_path / "history.jsonl", "a") as history:
        history.write('{"event": "sa')
    assert perdure.read_history(tmp_path) == events
    with perdure.CheckpointManager(tmp_path) as checkpoints:
        checkpoints.restore(state)
    assert [event["event"] for event in perdure.read_history(tmp_path)] == ["save", "save", "prune", "restore", "restore"]


def on_a_terminal(code, **environment) -> str:
    """What a program prints to a terminal on its standard error."""
    terminal, program = pty.openpty()
    termios.tcsetwinsize(program, (24, 80))  # of one without columns, tqdm makes no use
    child = subprocess.Popen([sys.executable, "-c", code], stderr=program, env={**os.environ, **environment})
    os.close(program)
    shown = b""
    try:
        while chunk := os.read(terminal, 4096):
            shown += chunk
    except OSError:  # the program has ended
        pass
    os.close(terminal)
    assert child.wait(timeout=60) == 0, shown
    return shown.decode()


SLOW = """
import sys, time
%s
from perdure.progress import shown
begin = time.monotonic()
with shown("perdure: saving", lambda: (time.monotonic() - begin) / 2):
    time.sleep(%s)
"""


@pytest.mark.parametrize("without", ["", "sys.modules['tqdm'] = None"])
def test_what_takes_long_is_shown_on_a_terminal(without):
    shown = on_a_terminal(SLOW % (without, 1.7))
    assert "perdure: saving" in shown and "%" in shown


def test_what_is_quick_is_not_shown():
    assert on_a_terminal(SLOW % ("", 0.3)) == ""


def test_nothing_is_shown_where_there_is_no_terminal():
    done = subprocess.run([sys.executable, "-c", SLOW % ("", 1.3)], capture_output=True, timeout=60)
    assert done.returncode == 0 and done.stderr == b""
