"""perdure.dcp: DCP's storage by perdure, with one process and with several, beside the stock one."""

import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from ranks import run
from test_dcp import assert_bits
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save
from torch.distributed.checkpoint.state_dict_saver import AsyncCheckpointerType

import perdure
import perdure.dcp
from perdure.dcp import StorageReader, StorageWriter

HERE = Path(__file__).parent


def torchrun(size, wrapping, command, folder):
    """What each rank said."""
    program = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={size}", "--standalone"]
    done = subprocess.run(
        [*program, str(HERE / "ranks.py"), wrapping, command, str(folder)],
        capture_output=True, text=True, timeout=300, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    return [line.partition(" ")[2] for line in sorted(done.stdout.splitlines()) if line[:1].isdigit()]


# One process


def some_state():
    torch.manual_seed(3)
    base = torch.randn(6, 8)
    return {
        "model": {"w": torch.randn(5, 7), "t": base.t(), "part": base[1:4, 2:6], "tied": base, "empty": torch.zeros(0, 3)},
        "half": torch.randn(9).bfloat16(),
        "scalar": torch.tensor(3),
        "bool": torch.tensor([True, False]),
        "step": 7,
        "lists": [1, "two", {"three": 3.0}],
        "bytes": b"\0\1",
    }


def zeroed(state):
    if isinstance(state, dict):
        return {key: zeroed(x) for key, x in state.items()}
    if isinstance(state, list):
        return [zeroed(x) for x in state]
    return torch.zeros_like(state) if isinstance(state, torch.Tensor) else None


@pytest.mark.parametrize("writer", [StorageWriter, dcp.FileSystemWriter])
@pytest.mark.parametrize("reader", [StorageReader, dcp.FileSystemReader])
def test_with_the_stock_ones(tmp_path, writer, reader):
    state = some_state()
    dcp.save(state, storage_writer=writer(tmp_path / "cp"))
    back = zeroed(state)
    dcp.load(back, storage_reader=reader(tmp_path / "cp"))
    assert_bits(back, state)
    dcp_to_torch_save(tmp_path / "cp", tmp_path / "x.pt")
    assert_bits(torch.load(tmp_path / "x.pt", weights_only=False), state)
    assert perdure.verify(tmp_path / "cp").state == "good"


def test_by_checkpoint_id(tmp_path):
    writer, reader = StorageWriter(), StorageReader()
    for step in (1, 2):
        dcp.save({"x": torch.full((3,), step)}, checkpoint_id=tmp_path / f"step-{step}", storage_writer=writer)
    for step in (1, 2):
        back = {"x": torch.zeros(3, dtype=torch.int64)}
        dcp.load(back, checkpoint_id=tmp_path / f"step-{step}", storage_reader=reader)
        assert back["x"].tolist() == [step] * 3
    with pytest.raises(BaseException, match="a path"):
        dcp.save({"x": 1}, storage_writer=StorageWriter())


def test_an_existing_one_is_replaced_as_a_whole_or_kept(tmp_path):
    dcp.save({"x": torch.ones(3), "old": 1}, storage_writer=StorageWriter(tmp_path / "cp"))
    with pytest.raises(BaseException, match="exists already"):
        dcp.save({"x": torch.zeros(3)}, storage_writer=StorageWriter(tmp_path / "cp", overwrite=False))
    with pytest.raises(BaseException):
        dcp.save({"x": torch.zeros(3), "bad": lambda: None}, storage_writer=StorageWriter(tmp_path / "cp"))
    assert perdure.load(tmp_path / "cp")["x"].tolist() == [1, 1, 1]
    dcp.save({"x": torch.zeros(3)}, storage_writer=StorageWriter(tmp_path / "cp"))
    assert list(perdure.load(tmp_path / "cp")) == ["x"]
    assert os.listdir(tmp_path) == ["cp"]


class Evil:
    def __init__(self, path):
        self._path = path

    def __reduce__(self):
        return os.mkdir, (self._path,)


def test_nothing_is_executed(tmp_path):
    canary = str(tmp_path / "canary")
    dcp.save({"x": torch.ones(3), "evil": Evil(canary)}, storage_writer=dcp.FileSystemWriter(tmp_path / "cp"))
    with pytest.raises(BaseException, match="evil"):
        dcp.load({"x": torch.zeros(3), "evil": None}, storage_reader=StorageReader(tmp_path / "cp"))
    (tmp_path / "cp" / ".metadata").write_bytes(pickle.dumps(Evil(canary)))
    with pytest.raises(BaseException, match="metadata"):
        dcp.load({"x": torch.zeros(3)}, storage_reader=StorageReader(tmp_path / "cp"))
    assert not os.path.exists(canary)


def test_damage_is_found_and_named(tmp_path):
    dcp.save(some_state(), storage_writer=StorageWriter(tmp_path / "cp"))
    path = tmp_path / "cp" / "__0_0.distcp"
    data = bytearray(path.read_bytes())
    data[data.index(some_state()["half"].view(torch.uint8).numpy().tobytes()) + 3] ^= 4
    path.write_bytes(data)
    dcp.load({"step": 0}, storage_reader=StorageReader(tmp_path / "cp"))
    with pytest.raises(BaseException, match=r"__0_0.distcp.*half.*checksum"):
        dcp.load(zeroed(some_state()), storage_reader=StorageReader(tmp_path / "cp"))


def test_a_target_of_another_dtype_or_without_order(tmp_path):
    x = torch.randn(4, 6)
    dcp.save({"x": x, "y": x}, storage_writer=StorageWriter(tmp_path / "cp"))
    back = {"x": torch.zeros(6, 4).t(), "y": torch.zeros(4, 6, dtype=torch.float64)}
    dcp.load(back, storage_reader=StorageReader(tmp_path / "cp"))
    assert torch.equal(back["x"], x) and torch.equal(back["y"], x.double())


def test_ranks_that_are_not_coordinated(tmp_path):
    with pytest.raises(BaseException, match="coordinated"):
        dcp.save({"x": torch.ones(1)}, storage_writer=StorageWriter(tmp_path / "cp"), use_collectives=False)


@pytest.mark.parametrize("kind", AsyncCheckpointerType)
def test_async_save(tmp_path, kind):
    x = torch.ones(100)
    torch.distributed.init_process_group("gloo", rank=0, world_size=1, store=torch.distributed.HashStore())
    try:
        done = dcp.async_save({"x": x}, storage_writer=StorageWriter(tmp_path / "cp"), async_checkpointer_type=kind)
        x.zero_()
        done.result()
    finally:
        torch.distributed.destroy_process_group()
    assert perdure.load(tmp_path / "cp")["x"].tolist() == [1] * 100


# Several


@pytest.fixture(scope="module", params=["fsdp", "tp", "fsdp+tp", "ddp"])
def saved(request, tmp_path_factory):
    """What four ranks have saved."""
    folder = tmp_path_factory.mktemp("saved")
    start = torchrun if request.param == "fsdp" else run
    assert start(4, request.param, "save", folder) == ["saved"] * 4
    return request.param, folder


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_on_any_number_of_ranks(saved, size):
    wrapping, folder = saved
    onto = "plain" if size == 1 else "fsdp" if size == 3 and wrapping == "fsdp+tp" else wrapping
    assert run(size, onto, "load", folder) == ["equal"] * size


def test_across_wrappings(saved):
    wrapping, folder = saved
    for other in {"fsdp", "tp"} - {wrapping}:
        assert run(2, other, "load", folder) == ["equal"] * 2


def test_of_stock_and_for_stock(saved, tmp_path):
    wrapping, folder = saved
    assert run(2, "fsdp", "load", folder, STOCK_READER="1") == ["equal"] * 2
    assert run(2, wrapping, "save", tmp_path, STOCK_WRITER="1") == ["saved"] * 2
    assert run(2, "fsdp", "load", tmp_path) == ["equal"] * 2


def test_what_many_saved_is_one_state_to_the_command(saved):
    _, folder = saved
    assert perdure.verify(folder / "cp").state == "good"
    whole = torch.load(folder / "whole.pt", weights_only=False)
    model = perdure.load(folder / "cp", keys=["model"])["model"]
    assert_bits({key: model[key] for key in whole["model"]}, dict(whole["model"]))
    assert model.keys() == whole["model"].keys()


def test_async_of_several(tmp_path):
    assert run(2, "fsdp", "save_async", tmp_path) == ["saved"] * 2
    assert run(2, "fsdp", "load", tmp_path) == ["equal"] * 2


def test_a_rank_that_fails_leaves_what_was_there(tmp_path):
    assert run(2, "fsdp", "save", tmp_path) == ["saved"] * 2
    assert run(2, "fsdp", "fail_one", tmp_path) == ["failed: CheckpointException"] * 2
    assert run(2, "fsdp", "load", tmp_path) == ["equal"] * 2
    assert run(2, "fsdp", "save", tmp_path) == ["saved"] * 2  # and takes away what the failed one has left
    assert sorted(os.listdir(tmp_path)) == ["cp", "whole.pt"]
