"""The code in the README and in docs/ is run: Python as it stands, C++ as part of what is built and run."""

import os
import pathlib
import re
import signal
import subprocess
import sys

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

import perdure
from ranks import run
from test_testing import exact

ROOT = pathlib.Path(__file__).resolve().parents[2]


def blocks(language, page="README.md"):
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)


def words_of_the_reader():
    """What the samples take for granted."""
    model = torch.nn.Linear(4, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)

    def train_one_epoch(state):
        loss = model(torch.ones(1, 4)).sum()
        loss.backward()
        optimizer.step()
        scheduler.step()
        state.step += 1
        return loss.detach()

    return {
        "model": model, "optimizer": optimizer, "scheduler": scheduler, "epochs": 3, "train_one_epoch": train_one_epoch,
        "train_one_step": train_one_epoch, "done": lambda state: state.step >= 10, "perdure": perdure, "signal": signal,
    }  # fmt: skip


def test_python_samples_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    samples = blocks("python")
    assert len(samples) == 4
    names = words_of_the_reader()
    names |= {"DataLoader": DataLoader, "dataset": TensorDataset(torch.randn(20, 4)), "make_training": exact}
    for sample in samples:
        exec(sample, names)
    assert names["state"]["epoch"] == 3
    assert [checkpoint.step for checkpoint in perdure.CheckpointManager("runs/gpt").checkpoints()] == [3, 2, 1]
    assert perdure.verify("cp.pt").state == "good"
    assert perdure.list_checkpoints("runs/steps")


@pytest.mark.parametrize("number, example", [(0, "everyday.cpp"), (1, "everyday.cpp"), (2, "one_file.cpp")])
def test_cpp_samples_stand_in_an_example(number, example):
    assert blocks("cpp")[number] in (ROOT / "examples" / "cpp" / example).read_text()


def cpp_example(name):
    program = ROOT / "build" / "dev" / "examples" / "cpp" / name
    if not program.exists():
        pytest.skip(f"{program} is not built: make build")
    return program


def test_cpp_examples_run(tmp_path):
    everyday = [cpp_example("everyday"), tmp_path / "run"]
    assert "epoch 10:" in subprocess.run(everyday, check=True, capture_output=True, text=True).stdout
    again = subprocess.run(everyday, check=True, capture_output=True, text=True).stdout
    assert again.startswith("restored: ") and "epoch 1:" not in again
    one_file = [cpp_example("one_file"), tmp_path / "cp.pt"]
    assert subprocess.run(one_file, check=True, capture_output=True, text=True).stdout == "epoch 3, best loss 0.5\n"
    assert torch.load(tmp_path / "cp.pt")["epoch"] == 3


def test_python_example_runs(tmp_path):
    command = [sys.executable, ROOT / "examples" / "python" / "everyday.py", tmp_path / "run"]
    assert "epoch 10:" in subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert "epoch 1:" not in subprocess.run(command, check=True, capture_output=True, text=True).stdout


def test_restoring_says_what_its_page_shows(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {}
    save, change, *rest = blocks("python", "docs/restoring.md")
    exec(save, names)
    exec(change, names)
    with pytest.raises(perdure.InvalidError) as refused:
        names["checkpoints"].restore(names["state"])
    (table,) = blocks("text", "docs/restoring.md")
    assert f"{refused.value}\n" == table
    state = names["state"]
    exec(rest[0], names)
    assert state.epoch == 3 and state.best_loss == 1.0
    stored = perdure.load(names["checkpoints"].latest().path)["model"]["encoder.weight"]
    assert torch.equal(state.model["backbone"].weight, stored.bfloat16())
    for sample, file in zip(rest[1:], ("model.pt", "lightning.ckpt"), strict=True):
        exec(sample, names)
        weights = perdure.load(file)
        weights = {key.removeprefix("model."): x for key, x in weights.get("state_dict", weights).items()}
        assert torch.equal(names["state"].model.weight, weights["weight"])
    assert names["state"].step == 9


def test_the_sample_of_many_ranks_runs(tmp_path):
    """On two of them: manager_ranks.run_the_sample."""
    assert run(2, "", "manager_ranks.run_the_sample", tmp_path) == ["3 epochs"] * 2
    assert [checkpoint.step for checkpoint in perdure.list_checkpoints(tmp_path / "runs" / "gpt")] == [3, 2, 1]


def test_the_sample_of_distributed_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = torch.nn.Linear(4, 2)
    saved = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    names = {"model_state": model.state_dict()}
    _, sample = blocks("python", "docs/distributed.md")
    save, load = sample.rsplit("\n", 2)[:2]
    exec(save, names)
    torch.nn.init.zeros_(model.weight)
    exec(load, names)
    assert torch.equal(model.weight, saved["weight"])


def test_the_cpp_sample_of_restoring_is_tested():
    """It stands in a test, as it is but for the white space."""
    (sample,) = blocks("cpp", "docs/restoring.md")
    test = (ROOT / "tests" / "cpp" / "engine" / "matching_test.cpp").read_text()
    assert "".join(sample.split()) in "".join(test.split())


def test_optimizer_surgery_prints_what_its_page_shows(tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    names = {}
    for sample in blocks("python", "docs/optimizer-surgery.md"):
        exec(sample, names)
    checkpoints, state = names["checkpoints"], names["state"]
    (table,) = blocks("text", "docs/optimizer-surgery.md")
    with pytest.raises(perdure.InvalidError) as refused:
        checkpoints.restore(state)
    checkpoints.restore(state, strict=False)
    checkpoints.close()
    assert table in [record.getMessage() + "\n" for record in caplog.records]
    rows = [line for line in table.splitlines() if "momentum" in line and "parameter" not in line]
    assert len(rows) == 7 and all(row in str(refused.value) for row in rows)
    assert names["optimizer"].param_groups[1]["lr"] == 0.001


def test_the_command_line_prints_what_its_page_shows(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {}
    for sample in blocks("python", "docs/command-line.md"):
        exec(sample, names)
    program = os.environ.get("PERDURE_CLI", "perdure")
    samples = blocks("console", "docs/command-line.md")
    assert len(samples) == 6
    for sample in samples:
        line, _, shown = sample.partition("\n")
        words = line.removeprefix("$ perdure ").split()
        printed = subprocess.run([program, *words], capture_output=True, text=True)
        assert printed.stderr == ""
        # How long the record of the time and the versions is, differs.
        assert re.sub(r"[\d.]+ k?B read", "N read", printed.stdout) == re.sub(r"[\d.]+ k?B read", "N read", shown), line
