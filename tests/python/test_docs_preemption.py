"""The samples of docs/preemption.md: the Python is run, and so are the scripts for Slurm and Kubernetes."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import perdure

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "preemption.md").read_text()


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


def test_python_samples_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    when, kept, preempted = blocks("python")
    model = torch.nn.Linear(4, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    state = perdure.TrainingState(model=model, optimizer=optimizer)

    def train_one_step(state):
        model(torch.ones(1, 4)).sum().backward()
        optimizer.step()
        state.step += 1
        if state.step == 25:
            os.kill(os.getpid(), signal.SIGUSR1)

    names = dict(perdure=perdure, signal=signal, state=state, steps=20, train_one_step=train_one_step)
    exec(when, names)
    assert perdure.list_checkpoints("runs/when")
    with perdure.CheckpointManager("runs/when") as checkpoints:
        checkpoints.save(state)
    exec(kept, names)
    exec(preempted, names)
    newest = perdure.list_checkpoints("runs/when")
    assert newest[0].step == 25 and newest[0].reason == "preemption"
    reasons = {planned.checkpoint.step: planned.reasons for planned in perdure.retention_plan("runs/when")}
    assert "pinned: the one in the paper" in reasons[20]


def until_saved(process, limit=60):
    deadline = time.monotonic() + limit
    while not list(Path("runs/waves").glob("step-*.pt")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)


def program(name, text):
    name.write_text(text)
    name.chmod(0o755)


@pytest.fixture
def job(tmp_path, monkeypatch):
    """A folder with the examples in it."""
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{Path(sys.executable).parent}:{os.environ['PATH']}")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def children(process):
    return [int(child) for child in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


def test_the_slurm_script_goes_back_into_the_queue(job, monkeypatch):
    (script,) = blocks("bash")
    program(job / "train.sbatch", script)
    program(job / "bin" / "srun", '#!/bin/sh\nexec "$@"\n')
    program(job / "bin" / "scontrol", '#!/bin/sh\necho "$@" >>requeued\n')
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    batch = subprocess.Popen(["./train.sbatch"])
    until_saved(batch)
    (training,) = children(batch.pid)
    os.kill(training, signal.SIGUSR1)
    assert batch.wait(timeout=120) == 75
    assert (job / "requeued").read_text() == "requeue 7\n"
    assert perdure.list_checkpoints("runs/waves")[0].reason == "preemption"


def test_the_pod_ends_within_its_grace_period(job):
    (manifest,) = blocks("yaml")
    command = json.loads(re.search(r"command: (\[.*\])", manifest)[1])
    grace = int(re.search(r"terminationGracePeriodSeconds: (\d+)", manifest)[1])
    assert command.pop() == "/runs/waves"
    pod = subprocess.Popen([*command, "runs/waves"], process_group=0)
    until_saved(pod)
    os.killpg(pod.pid, signal.SIGTERM)
    assert pod.wait(timeout=grace) == 75
    assert perdure.list_checkpoints("runs/waves")[0].reason == "preemption"
