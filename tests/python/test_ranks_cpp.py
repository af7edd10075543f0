"""Ranks of a C++ program, and what Python makes of their checkpoints."""

import os
import subprocess

import pytest
import torch

import perdure

CROSSING = os.environ.get("PERDURE_CROSSING")
pytestmark = pytest.mark.skipif(not CROSSING, reason="the C++ side is not built (PERDURE_CROSSING)")


def train(folder, steps, meeting):
    """What both ranks said at the end."""
    ranks = [
        subprocess.Popen(
            [CROSSING, "ranks", folder / "run", str(rank), "2", folder / meeting, str(steps)], text=True, stdout=subprocess.PIPE
        )
        for rank in range(2)
    ]  # fmt: skip
    said = [process.communicate(timeout=120)[0].split() for process in ranks]
    assert [process.returncode for process in ranks] == [0, 0]
    return said


def test_two_ranks_go_on_and_python_reads_them(tmp_path):
    whole, parted = tmp_path / "whole", tmp_path / "parted"
    whole.mkdir(), parted.mkdir()
    uninterrupted = train(whole, 7, "meeting")
    train(parted, 4, "first")
    assert train(parted, 7, "second") == uninterrupted
    (_, first, model), (_, second, same) = uninterrupted
    assert first != second and model == same
    newest = perdure.list_checkpoints(parted / "run")[0]
    state = perdure.load(newest.path)
    assert newest.step == state["step"] == 7
    assert state["drawn"] == float.fromhex(first) and state["ranks"]["1"]["drawn"] == float.fromhex(second)
    total = sum(float(x.double().sum()) for name, x in state["model"].items() if name.split(".")[1] in ("weight", "bias"))
    assert total == pytest.approx(float.fromhex(model), rel=1e-6)
    assert all(isinstance(x, torch.Tensor) for x in state["model"].values())
    assert perdure.verify(newest.path).state == "good"
