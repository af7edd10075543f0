"""perdure prune, and what perdure ls tells of pins and restarts."""

import json
import os
import subprocess

import pytest
import torch

import perdure

PERDURE = os.environ.get("PERDURE_CLI", "perdure")


def run(*arguments):
    return subprocess.run([PERDURE, *map(str, arguments)], capture_output=True, text=True, timeout=60)


@pytest.fixture
def directory(tmp_path):
    """Steps 10 to 50; the loss is lowest at 20, and 10 is pinned."""
    state = perdure.TrainingState(weights=torch.zeros(10))
    with perdure.CheckpointManager(tmp_path / "run", keep_last=9) as checkpoints:
        for step, loss in [(10, 3.0), (20, 1.0), (30, 2.0), (40, 2.5), (50, float("nan"))]:
            state.step = step
            checkpoints.save(state, metrics={"val:loss": loss}).wait()
        checkpoints.wait()
        checkpoints.pin(10, "for the paper")
    return tmp_path / "run"


def steps(directory):
    return [c.step for c in perdure.list_checkpoints(directory)]


def test_a_dry_run_only_shows(directory):
    done = run("prune", "--keep-last", 1, "--keep-best", "val:loss", "--dry-run", directory)
    assert done.returncode == 0 and done.stderr == ""
    lines = done.stdout.splitlines()
    assert lines[0].split() == ["STEP", "GENERATION", "SIZE", "WOULD", "BE", "WHY", "FILE"]
    assert "the newest" in lines[1] and "removed" in lines[2] and "best by val:loss (min)" in lines[4]
    assert "pinned: for the paper" in lines[5]
    assert lines[-1].startswith("2 of 5 checkpoints, ") and lines[-1].endswith("would be removed")
    assert steps(directory) == [50, 40, 30, 20, 10]


def test_it_does_what_it_showed(directory):
    rules = ["--keep-last", 1, "--keep-best", "val:loss:max:1", "--keep-every-steps", 20, "--json"]
    shown = json.loads(run("prune", *rules, "--dry-run", directory).stdout)
    done = json.loads(run("prune", *rules, directory).stdout)
    assert shown["dry_run"] and not done["dry_run"] and shown["checkpoints"] == done["checkpoints"]
    kept = [c["step"] for c in done["checkpoints"] if c["kept"]]
    assert kept == [50, 40, 20, 10] == steps(directory)
    assert perdure.read_history(directory)[-1]["removed"][0]["step"] == 30


def test_it_must_be_told_what_to_keep(directory):
    done = run("prune", directory)
    assert done.returncode == 2 and "--keep-last is required" in done.stderr
    assert run("prune", "--keep-last", 0, directory).returncode == 2
    assert run("prune", "--keep-last", 1, "--keep-best", "loss:0", directory).returncode == 2
    assert steps(directory) == [50, 40, 30, 20, 10]


def test_it_leaves_a_training_alone(directory):
    with perdure.CheckpointManager(directory, keep_last=9):
        done = run("prune", "--keep-last", 1, directory)
        assert done.returncode == 2 and str(os.getpid()) in done.stderr
        assert run("prune", "--keep-last", 1, "--dry-run", directory).returncode == 0
    assert len(steps(directory)) == 5


def test_it_makes_no_directory(tmp_path):
    done = run("prune", "--keep-last", 1, tmp_path / "nowhere")
    assert done.returncode == 2 and "does not exist" in done.stderr
    assert not (tmp_path / "nowhere").exists()


def test_ls_shows_pins_and_restarts(directory):
    state = perdure.TrainingState(weights=torch.zeros(10))
    for step in (50, 30):
        with perdure.CheckpointManager(directory, keep_last=9) as checkpoints:
            checkpoints.restore(state, step=step)
    text = run("ls", directory).stdout
    assert "for the paper" in text.splitlines()[5]
    assert text.splitlines()[6] == "2 restarts:"
    assert "from step 30 (generation 3)" in text.splitlines()[7]
    listed = json.loads(run("ls", "--json", directory).stdout)
    assert [c["pin"] for c in listed["checkpoints"]] == [None, None, None, None, "for the paper"]
    assert [r["step"] for r in listed["restarts"]] == [50, 30]


def test_ls_does_not_need_the_history(directory):
    (directory / "history.jsonl").write_bytes(b'\xff{"event": "restore"}\n{"event": "restore", "time": "x"}\n')
    listed = run("ls", "--json", directory)
    assert listed.returncode == 0 and json.loads(listed.stdout)["restarts"] == []
