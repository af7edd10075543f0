"""safetensors, read and written, beside the library of the format."""

import json
import os
import struct
import subprocess

import pytest
import safetensors
import safetensors.torch
import torch
from states import elements
from test_cli import PERDURE

import perdure

DTYPES = [
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8,
    torch.uint8, torch.uint16, torch.uint32, torch.uint64, torch.bool, torch.complex64, torch.float8_e4m3fn,
    torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz, torch.float8_e8m0fnu,
]  # fmt: skip


def tensor_of(dtype, *shape):
    size = torch.empty(0, dtype=dtype).element_size()
    raw = torch.randint(0, 2 if dtype == torch.bool else 256, (*shape, size), dtype=torch.uint8)
    return raw.view(dtype).reshape(shape)


@pytest.fixture
def tensors():
    torch.manual_seed(1)
    state = {str(dtype).removeprefix("torch."): tensor_of(dtype, 3, 5) for dtype in DTYPES}
    return state | {"scalar": torch.tensor(1.5), "empty": torch.zeros(3, 0), "pairs": tensor_of(torch.float4_e2m1fn_x2, 2, 3), "ä\"\\\n": torch.ones(1)}


def assert_equal(a, b):
    assert list(sorted(a)) == list(sorted(b))
    for name in a:
        assert (a[name].dtype, a[name].shape) == (b[name].dtype, b[name].shape), name
        assert elements(a[name]) == elements(b[name]), name


def test_reads_what_the_library_writes(tensors, tmp_path):
    path = tmp_path / "x.safetensors"
    safetensors.torch.save_file(tensors, path, {"format": "pt", "step": "3"})
    loaded = perdure.load(path)
    assert type(loaded) is dict and list(loaded) == list(safetensors.torch.load_file(path))
    assert_equal(loaded, tensors)
    assert_equal(perdure.load(path, mmap=True), tensors)
    assert_equal(perdure.load(path, keys=["bfloat16"]), {"bfloat16": tensors["bfloat16"]})
    assert perdure.verify(path).state == "unchecked"
    with open(path, "rb") as file:
        assert_equal(perdure.load(file), tensors)


def test_writes_what_the_library_would(tensors, tmp_path):
    path, theirs, ours = tmp_path / "x.pt", tmp_path / "theirs.safetensors", tmp_path / "ours.safetensors"
    torch.save(tensors, path)
    safetensors.torch.save_file(tensors, theirs)
    report = perdure.convert(path, ours)
    assert (report.path, report.rest, report.format, report.tensors) == (ours, None, "safetensors", len(tensors))
    assert ours.read_bytes() == theirs.read_bytes()


def test_metadata_survives(tensors, tmp_path):
    first, second, third = tmp_path / "a.safetensors", tmp_path / "b.pt", tmp_path / "c.safetensors"
    safetensors.torch.save_file(tensors, first, {"format": "pt", "ä": "ö"})
    perdure.convert(first, second)
    assert_equal(torch.load(second), tensors)
    for path in (first, second):
        shown = subprocess.run([PERDURE, "show", "--json", path], capture_output=True, check=True).stdout
        assert json.loads(shown)["metadata"] == {"format": "pt", "ä": "ö"}
        assert "format: pt" in subprocess.run([PERDURE, "show", path], capture_output=True, text=True, check=True).stdout
    perdure.convert(second, third)
    with safetensors.safe_open(third, "pt") as file:
        assert file.metadata() == {"format": "pt", "ä": "ö"}
    assert_equal(safetensors.torch.load_file(third), tensors)


def sharded(folder, tensors, count=3):
    names = list(tensors)
    places = {}
    for i in range(count):
        name = f"model-{i + 1:05}-of-{count:05}.safetensors"
        part = {key: tensors[key] for key in names[i::count]}
        safetensors.torch.save_file(part, folder / name, {"format": "pt"})
        places |= dict.fromkeys(part, name)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": places}))
    return index


def test_reads_sharded_models(tensors, tmp_path):
    index = sharded(tmp_path, tensors)
    assert_equal(perdure.load(index), tensors)
    assert_equal(perdure.load(tmp_path), tensors)
    assert perdure.verify(tmp_path).state == "unchecked"


def test_reads_the_cache_of_the_hub(tensors, tmp_path):
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "abc"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    sharded(snapshot, tensors)
    for number, file in enumerate(sorted(snapshot.iterdir())):
        os.rename(file, blobs / str(number))
        file.symlink_to(f"../../blobs/{number}")
    assert_equal(perdure.load(snapshot), tensors)


def test_refuses_shards_that_lie_elsewhere(tensors, tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    sharded(folder, tensors)
    shard = folder / "model-00001-of-00003.safetensors"
    os.rename(shard, tmp_path / "elsewhere")
    with pytest.raises(perdure.NotFoundError, match="model-00001-of-00003"):
        perdure.load(folder)
    for target in ("../elsewhere", str(tmp_path / "elsewhere"), "../../blobs/../elsewhere"):
        shard.symlink_to(target)
        with pytest.raises(perdure.InvalidError, match="symbolic link"):
            perdure.load(folder)
        shard.unlink()


def test_says_which_shard_is_wrong(tensors, tmp_path):
    index = sharded(tmp_path, tensors)
    shard = tmp_path / "model-00002-of-00003.safetensors"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-1])
    with pytest.raises(perdure.CorruptionError, match="model-00002-of-00003.*(that there are|follow the header)"):
        perdure.load(index)
    safetensors.torch.save_file({"x": torch.ones(1)}, shard)
    with pytest.raises(perdure.CorruptionError, match="'x', which the index does not name"):
        perdure.load(index)
    safetensors.torch.save_file({}, shard)
    with pytest.raises(perdure.CorruptionError, match="should be in model-00002-of-00003.safetensors"):
        perdure.load(index)


def test_writes_sharded_models(tensors, tmp_path):
    path, out = tmp_path / "x.pt", tmp_path / "model"
    torch.save(tensors, path)
    perdure.convert(path, out, to="safetensors", max_shard_size=200)
    index = json.loads((out / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in tensors.values())
    files = sorted(p.name for p in out.glob("*.safetensors"))
    assert sorted(set(index["weight_map"].values())) == files and len(files) > 3
    loaded = {}
    for name in files:
        part = safetensors.torch.load_file(out / name)
        assert all(index["weight_map"][key] == name for key in part)
        assert sum(t.nbytes for t in part.values()) <= 200 or len(part) == 1
        loaded |= part
    assert_equal(loaded, tensors)
    assert_equal(perdure.load(out), tensors)
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


def test_what_cannot_be_held_is_named_or_kept(tmp_path):
    base = torch.arange(6.0)
    state = {"model": {"w": base, "tied": base}, "epoch": 3, "list": [1, torch.ones(1)], "odd": torch.ones(2, dtype=torch.complex128)}
    path, out = tmp_path / "x.pt", tmp_path / "x.safetensors"
    torch.save(state, path)
    for only, what in {
        ("epoch",): r"state\['epoch'\] is a int",
        ("list",): r"state\['list'\]\[0\] is a int",
        ("odd",): "complex128",
        ("model",): r"state\['model'\]\['tied'\] shares memory with 'model.w'",
    }.items():
        with pytest.raises(perdure.InvalidError, match=what):
            perdure.convert(path, out, only=only)
        assert sorted(p.name for p in tmp_path.iterdir()) == ["x.pt"]
    report = perdure.convert(path, out, rest=True)
    assert report.rest == tmp_path / "x.rest.pt"
    assert_equal(safetensors.torch.load_file(out), {"model.w": base, "list.1": torch.ones(1)})
    rest = torch.load(report.rest)
    assert rest["epoch"] == 3 and torch.equal(rest["model"]["tied"], base) and rest["odd"].dtype == torch.complex128


@pytest.mark.parametrize("shards", [{}, {"max_shard_size": 10}])
def test_no_rest_is_left_where_the_tensors_fail(shards, tmp_path):
    torch.save({"w": torch.arange(6.0), "n": 3, "t": torch.ones(1000, 3)}, tmp_path / "x.pt")
    data = (tmp_path / "x.pt").read_bytes()
    (tmp_path / "x.pt").write_bytes(data.replace(torch.arange(6.0).numpy().tobytes(), bytes(24)))
    with pytest.raises(perdure.CorruptionError):
        perdure.convert(tmp_path / "x.pt", tmp_path / "out.safetensors", rest=True, **shards)
    assert [p.name for p in tmp_path.iterdir()] == ["x.pt"]


def test_halves_of_one_memory_are_two_tensors(tmp_path):
    base = torch.arange(8.0)
    torch.save({"a": base[:4], "b": base[4:]}, tmp_path / "x.pt")
    perdure.convert(tmp_path / "x.pt", tmp_path / "x.safetensors")
    assert_equal(safetensors.torch.load_file(tmp_path / "x.safetensors"), {"a": base[:4], "b": base[4:]})


def test_does_not_believe_a_header(tmp_path):
    path = tmp_path / "x.safetensors"
    header = json.dumps({"x": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(4))
    with pytest.raises(perdure.CorruptionError, match=r"x\.safetensors: 'x' has 4 bytes"):
        perdure.load(path)
    with pytest.raises(perdure.CorruptionError):
        perdure.convert(path, tmp_path / "x.pt")
    assert not (tmp_path / "x.pt").exists()
