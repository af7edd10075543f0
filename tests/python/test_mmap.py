"""perdure.load(mmap=True): tensors that look into the file."""

import io

import numpy as np
import pytest
import torch

import perdure

from conftest import damage
from states import SHARINGS, assert_same, plain_values


def resident():
    """MiB of the process's own memory, file mappings not counted."""
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("RssAnon:"))


@pytest.mark.parametrize("sharing", SHARINGS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bool, torch.bfloat16, torch.complex128], ids=str)
@pytest.mark.parametrize("save", [perdure.save, torch.save])
def test_loads_the_same(path, sharing, dtype, save):
    state = {"tensors": SHARINGS[sharing](dtype), "numbers": [1, 2.5, "x"]}
    save(state, path)
    for verify in (False, True):
        assert_same(perdure.load(path, mmap=True, verify=verify), perdure.load(path))


def test_plain_values_and_arrays(path):
    state = {"plain": plain_values(), "array": np.arange(6.0).reshape(2, 3), "none": torch.zeros(0, 3)}
    perdure.save(state, path)
    assert_same(perdure.load(path, mmap=True), state)


def test_writing_does_not_change_the_file(path):
    perdure.save({"x": torch.ones(1000), "y": torch.ones(3)}, path)
    before = path.read_bytes()
    state = perdure.load(path, mmap=True)
    state["x"].fill_(7)
    state["x"] += 1
    assert state["x"].sum() == 8000
    assert path.read_bytes() == before
    assert perdure.load(path, mmap=True)["x"].sum() == 1000


def test_nothing_is_read_before_it_is_touched(path):
    perdure.save({"large": torch.ones(64 << 18), "small": torch.arange(3)}, path)  # 64 MiB
    before = resident()
    state = perdure.load(path, mmap=True)
    assert state["small"].tolist() == [0, 1, 2]
    assert resident() - before < 16
    assert state["large"].sum() == 64 << 18


def test_tensors_outlive_everything_but_the_file(path):
    perdure.save({"x": torch.arange(100_000)}, path)
    x = perdure.load(path, mmap=True)["x"]
    perdure.save({"x": torch.zeros(3)}, path)  # another file by that name
    path.unlink()
    assert torch.equal(x, torch.arange(100_000))
    assert torch.equal(x.clone(), torch.arange(100_000))


def test_only_what_is_asked_is_verified(path):
    perdure.save({"x": torch.ones(10_000)}, path)
    damage(path)
    assert perdure.load(path, mmap=True)["x"].shape == (10_000,)
    with pytest.raises(perdure.CorruptionError, match=r"state\['x'\] is damaged"):
        perdure.load(path, mmap=True, verify=True)


def test_with_keys_and_map_location(path):
    perdure.save({"a": torch.ones(3), "b": {"c": torch.zeros(2)}}, path)
    assert perdure.load(path, mmap=True, keys=[("b", "c")])["b"]["c"].tolist() == [0, 0]
    assert perdure.load(path, mmap=True, map_location="meta")["a"].is_meta
    assert perdure.load(path, mmap=True, map_location=lambda s, place: s)["a"].tolist() == [1, 1, 1]


def test_training_goes_on_from_it(path):
    model = torch.nn.Linear(3, 4)
    perdure.save(model.state_dict(), path)
    other = torch.nn.Linear(3, 4)
    other.load_state_dict(perdure.load(path, mmap=True), assign=True)
    torch.optim.SGD(other.parameters(), lr=0.1).step(lambda: other(torch.ones(3)).sum().backward())
    assert not torch.equal(other.weight, model.weight)
    assert torch.equal(perdure.load(path)["weight"], model.weight)


def test_a_file_object_cannot_be_mapped(path):
    perdure.save({"x": torch.ones(3)}, path)
    with pytest.raises(perdure.InvalidError, match="path"):
        perdure.load(io.BytesIO(path.read_bytes()), mmap=True)


def test_what_is_not_there_or_no_checkpoint(path):
    with pytest.raises(perdure.NotFoundError):
        perdure.load(path, mmap=True)
    path.write_bytes(b"PK\x03\x04 but no more")
    with pytest.raises(perdure.CorruptionError):
        perdure.load(path, mmap=True)
