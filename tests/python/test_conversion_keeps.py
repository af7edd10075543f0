"""What a conversion must not change, and what diff and stats must not be misled by: cases that once went wrong."""

import io
import os
import pickle
import subprocess
import sys

import numpy
import pytest
import torch
import torch.distributed.checkpoint as dcp
from test_cli import PERDURE
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata, Metadata, MetadataIndex, TensorProperties, TensorStorageMetadata,
)  # fmt: skip
from torch.distributed.checkpoint.filesystem import _StorageInfo

import perdure


@pytest.mark.parametrize("out", ["x.safetensors", "x.ckpt", "dcp"])
def test_each_conversion_of_a_process_has_its_own_bytes(tmp_path, out):
    """Of tensors that must be brought in order, which are kept while they are written."""
    for i, size in enumerate((64, 64, 16, 700)):
        wanted = torch.full((size, size), float(i)).t()[:, : size - 1]
        torch.save({"w": wanted}, tmp_path / "x.pt")
        perdure.convert(tmp_path / "x.pt", tmp_path / out, force=True)
        assert torch.equal(perdure.load(tmp_path / out)["w"], wanted)


@pytest.mark.parametrize("length", [640, 896, 1152, 1408])
def test_safetensors_may_begin_as_a_pickle_does(tmp_path, length):
    """Their first bytes are a length: of such ones, 80 02 to 80 05."""
    name = "n" * (length - 60)
    torch.save({name: torch.ones(1)}, tmp_path / "x.pt")
    perdure.convert(tmp_path / "x.pt", tmp_path / "x.safetensors")
    data = (tmp_path / "x.safetensors").read_bytes()
    assert data[:8] == length.to_bytes(8, "little"), data[:80]
    assert torch.equal(perdure.load(tmp_path / "x.safetensors")[name], torch.ones(1))
    assert perdure.verify(tmp_path / "x.safetensors").state == "unchecked"


@pytest.mark.parametrize("to", [torch.bfloat16, torch.float16, torch.float64])
def test_a_dtype_is_not_given_to_what_says_its_own(tmp_path, to):
    array = numpy.arange(3, dtype="f4")
    perdure.save({"a": array, "w": torch.ones(2)}, tmp_path / "x.pt")
    perdure.convert(tmp_path / "x.pt", tmp_path / "y.pt", dtype=to)
    back = perdure.load(tmp_path / "y.pt")
    assert back["w"].dtype == to and back["a"].dtype == array.dtype and (back["a"] == array).all()


def test_a_quantized_tensor_keeps_its_scales(tmp_path):
    scales, zeros = torch.tensor([0.3333, 0.1]), torch.tensor([0, 1])
    x = torch.quantize_per_channel(torch.randn(2, 3), scales, zeros, 0, torch.qint8)
    torch.save({"x": x}, tmp_path / "x.pt")
    perdure.convert(tmp_path / "x.pt", tmp_path / "y.pt", dtype=torch.bfloat16)
    back = torch.load(tmp_path / "y.pt")["x"]
    assert torch.equal(back.q_per_channel_scales(), x.q_per_channel_scales())
    assert torch.equal(back.int_repr(), x.int_repr())


def sparse_state():
    return {"model": {"w": torch.eye(3).to_sparse(), "b": torch.ones(2)}, "epoch": 1}


def test_a_sparse_tensor_is_one_in_dcp_too(tmp_path):
    torch.save(sparse_state(), tmp_path / "x.pt")
    perdure.convert(tmp_path / "x.pt", tmp_path / "dcp")
    assert perdure.load(tmp_path / "dcp")["model"]["w"].to_dense().equal(torch.eye(3))
    stock = {"model": {"w": None, "b": torch.zeros(2)}, "epoch": 0}
    dcp.load(stock, checkpoint_id=tmp_path / "dcp", planner=None)
    assert stock["model"]["w"].is_sparse and stock["model"]["w"].to_dense().equal(torch.eye(3))
    perdure.convert(tmp_path / "dcp", tmp_path / "back.pt")
    assert torch.load(tmp_path / "back.pt")["model"]["w"].is_sparse


def test_a_sparse_tensor_goes_into_the_rest_as_a_whole(tmp_path):
    torch.save(sparse_state(), tmp_path / "x.pt")
    with pytest.raises(perdure.InvalidError, match=r"\['w'\]"):
        perdure.convert(tmp_path / "x.pt", tmp_path / "x.safetensors")
    perdure.convert(tmp_path / "x.pt", tmp_path / "x.safetensors", rest=True)
    assert list(perdure.load(tmp_path / "x.safetensors")) == ["model.b"]
    assert torch.load(tmp_path / "x.rest.pt")["model"]["w"].is_sparse


def test_parts_of_a_sparse_tensor_have_no_names_to_convert(tmp_path):
    torch.save(sparse_state(), tmp_path / "x.pt")
    with pytest.raises(perdure.InvalidError, match="nothing in the file has the name"):
        perdure.convert(tmp_path / "x.pt", tmp_path / "y.pt", only=["model.w.values"])
    with pytest.raises(perdure.InvalidError, match="nothing in the file has the name"):
        perdure.convert(tmp_path / "x.pt", tmp_path / "y.pt", rename={"model.w.values": "v"})
    perdure.convert(tmp_path / "x.pt", tmp_path / "y.pt", only=["model.w"])
    assert torch.load(tmp_path / "y.pt")["model"]["w"].is_sparse


def refused(match, *arguments, **options):
    with pytest.raises(perdure.InvalidError, match=match):
        perdure.convert(*arguments, force=True, **options)


def test_what_is_read_is_never_replaced(tmp_path):
    perdure.save({"a": torch.ones(3), "n": 1}, tmp_path / "x.rest.pt")
    refused("never changed", tmp_path / "x.rest.pt", tmp_path / "x.safetensors", rest=True)

    with perdure.CheckpointManager(tmp_path / "runs") as checkpoints:
        state = perdure.TrainingState(model=torch.nn.Linear(2, 2), optimizer=None)
        newest = checkpoints.save(state)
        newest.wait()
        path = newest.checkpoint.path
    refused("never changed", tmp_path / "runs", path, only=["model"])

    perdure.save({"a": torch.ones(30), "b": torch.zeros(30)}, tmp_path / "s.pt")
    perdure.convert(tmp_path / "s.pt", tmp_path / "sh", to="safetensors", max_shard_size=130)
    index = tmp_path / "sh" / "model.safetensors.index.json"
    refused("never changed", index, tmp_path / "sh", to="safetensors", max_shard_size=130, only=["a"])
    refused(
        "never changed",
        tmp_path / "sh",
        tmp_path / "link" if os.symlink("sh", tmp_path / "link") else tmp_path / "link",
    )

    assert perdure.load(tmp_path / "x.rest.pt")["n"] == 1
    assert "optimizer" not in perdure.load(path) and perdure.verify(path).good
    assert set(perdure.load(tmp_path / "sh")) == {"a", "b"}


def test_a_set_has_no_order(tmp_path):
    """That of its strings is another one in every process."""
    code = "import sys, perdure; perdure.save({'s': {'alpha', 'beta', 'gamma', 'delta'}}, sys.argv[1])"
    for seed in "12":
        environment = os.environ | {"PYTHONHASHSEED": seed}
        subprocess.run([sys.executable, "-c", code, tmp_path / f"{seed}.pt"], check=True, env=environment)
    assert (tmp_path / "1.pt").read_bytes() != (tmp_path / "2.pt").read_bytes()
    assert perdure.diff(tmp_path / "1.pt", tmp_path / "2.pt").equal
    perdure.save({"s": {"alpha", "beta", "gamma", "epsilon"}}, tmp_path / "3.pt")
    assert not perdure.diff(tmp_path / "1.pt", tmp_path / "3.pt").equal


def test_a_rename_keeps_what_a_state_dict_says_beside_its_tensors(tmp_path):
    state = torch.nn.Sequential(torch.nn.BatchNorm1d(2)).state_dict()
    torch.save(state, tmp_path / "x.pt")
    perdure.convert(tmp_path / "x.pt", tmp_path / "y.pt", rename={"0.weight": "0.w"})
    back = torch.load(tmp_path / "y.pt")
    assert back._metadata == state._metadata and "0.w" in back


def test_many_names_move_into_one_dict(tmp_path):
    """Each as fast as the first."""
    state = {"model": {"x": 0}, "ema": {f"n{i}": i for i in range(20_000)}}
    perdure.save(state, tmp_path / "x.pt")
    perdure.convert(tmp_path / "x.pt", tmp_path / "y.pt", rename={"ema.*": "model.*"})
    assert perdure.load(tmp_path / "y.pt") == {"model": {"x": 0, **state["ema"]}}
    assert perdure.load(tmp_path / "x.pt") == state


def test_nested_tensors_share_their_offsets(tmp_path):
    a = torch.nested.nested_tensor([torch.ones(2, 3), torch.ones(4, 3)], layout=torch.jagged)
    perdure.save([a, a * 2], tmp_path / "x.pt")
    for load in (torch.load, perdure.load):
        x, y = load(tmp_path / "x.pt")
        assert torch.equal((x + y).values(), torch.full((6, 3), 3.0))


def test_nested_tensors_with_lengths_that_do_not_fit(tmp_path):
    a = torch.nested.nested_tensor([torch.ones(2, 3), torch.ones(4, 3), torch.ones(1, 3)], layout=torch.jagged)
    a._lengths = torch.tensor([1])
    torch.save(a, tmp_path / "x.pt")
    with pytest.raises(perdure.UnsupportedError, match="do not fit"):
        perdure.load(tmp_path / "x.pt")


@pytest.mark.parametrize("dtype", [torch.int8, torch.int16, torch.int64, torch.float32, torch.complex64])
def test_numbers_that_are_negated_lazily(tmp_path, dtype):
    wanted = -torch.tensor([1, 2, 3]).to(dtype)
    torch.save({"x": torch._neg_view(-wanted)}, tmp_path / "x.pt")
    figures = perdure.stats(tmp_path / "x.pt").tensors["x"].figures
    if dtype.is_complex:
        assert (figures.min, figures.max, figures.mean) == (1, 3, -2)
    else:
        assert (figures.min, figures.max, figures.mean) == (-3, -1, -2)
    npy = subprocess.run([PERDURE, "cat", tmp_path / "x.pt", "x"], capture_output=True, check=True).stdout
    assert (numpy.load(io.BytesIO(npy)) == wanted.numpy()).all()


def test_the_report_counts_what_is_written(tmp_path):
    x = torch.arange(10.0)
    torch.save({"a": x[:5], "b": x[5:]}, tmp_path / "x.pt")
    for out in ("x.ckpt", "x.safetensors", "dcp"):
        report = perdure.convert(tmp_path / "x.pt", tmp_path / out)
        assert (report.tensors, report.bytes) == (2, 40)
    assert perdure.convert(tmp_path / "x.pt", tmp_path / "half", dtype=torch.float16).bytes == 20


def test_names_that_are_alike(tmp_path):
    perdure.save({"a.b": torch.ones(2), "a": {"b": torch.zeros(3)}}, tmp_path / "x.pt")
    assert [t.shape for t in perdure.stats(tmp_path / "x.pt").tensors.values()] == [(2,), (3,)]
    assert list(perdure.inspect(tmp_path / "x.pt").entries) == ["a.b", "a.b#2"]


def test_boxes_of_many_dimensions_end(tmp_path):
    """Comparing each with each would take minutes."""
    dimensions, count = 500, 8000
    chunks = [
        ChunkStorageMetadata(torch.Size([0] * (dimensions - 1) + [i]), torch.Size([1] * dimensions))
        for i in range(count)
    ]
    entry = TensorStorageMetadata(TensorProperties(torch.float32), torch.Size([1] * (dimensions - 1) + [count]), chunks)
    places = {MetadataIndex("x", chunk.offsets): _StorageInfo("__0_0.distcp", 0, 1) for chunk in chunks}
    (tmp_path / ".metadata").write_bytes(pickle.dumps(Metadata({"x": entry}, {"x": ("x",)}, places)))
    with pytest.raises(perdure.UnsupportedError, match="more chunks than perdure joins"):
        perdure.inspect(tmp_path)


def test_what_a_checkpoint_says_of_itself_stays(tmp_path):
    model = torch.nn.Linear(2, 3)
    state = perdure.TrainingState(model=model, optimizer=torch.optim.AdamW(model.parameters()))
    state.step = 7
    with perdure.CheckpointManager(tmp_path / "run") as checkpoints:
        checkpoints.save(state, metrics={"loss": 0.5})
    perdure.convert(tmp_path / "run", tmp_path / "x.pt", dtype=torch.float16)
    found = perdure.inspect(tmp_path / "x.pt")
    assert found.metrics == {"loss": 0.5} and found.step is None, "it is no checkpoint of a run"
    assert found.libraries == {"torch": torch.__version__}
    restored = perdure.TrainingState(model=model, optimizer=torch.optim.AdamW(model.parameters()))
    with perdure.CheckpointManager(tmp_path / "other") as checkpoints:
        checkpoints.restore(restored, path=tmp_path / "x.pt", cast=True)
    assert restored.step == 7
