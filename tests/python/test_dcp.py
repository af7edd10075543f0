"""Directories of torch.distributed.checkpoint, read and written, beside torch itself."""

import os
import pathlib
import pickle
import subprocess
import sys

import pytest
import torch
import torch.distributed.checkpoint as dcp
from dcp_ranks import whole_state
from states import assert_same, elements
from test_safetensors import DTYPES, tensor_of
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

import perdure

RANKS = pathlib.Path(__file__).with_name("dcp_ranks.py")


@pytest.fixture(scope="module")
def of_four_ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dcp") / "four"
    ranks = [
        subprocess.Popen([sys.executable, RANKS, str(rank), "4", folder], env=os.environ | {"OMP_NUM_THREADS": "1"})
        for rank in range(4)
    ]
    assert [rank.wait(timeout=240) for rank in ranks] == [0] * 4
    return folder


def state_of_one():
    torch.manual_seed(3)
    tensors = {str(dtype): tensor_of(dtype, 3, 4) for dtype in DTYPES if dtype != torch.complex64}
    model = torch.nn.Linear(3, 2)
    return {
        "model": model.state_dict(),
        "dtypes": tensors,
        "odd": {"scalar": torch.tensor(2.5), "empty": torch.zeros(0, 3), "transposed": torch.randn(3, 4).T, "view": torch.arange(9.0)[2:5]},
        "step": 3,
        "nested": {"none": None, "tuple": (1, "x"), "list": [1, 2.5], "mixed": [{"lr": 0.1, "t": torch.ones(2)}, 4]},
    }  # fmt: skip


def assert_bits(a, b, place="state"):
    """The same values and bits; a tensor may lie in memory otherwise."""
    if isinstance(a, torch.Tensor):
        assert (a.dtype, a.shape, elements(a)) == (b.dtype, b.shape, elements(b)), place
    elif isinstance(a, dict):
        assert list(map(str, a)) == list(map(str, b)), place
        for key in a:
            assert_bits(a[key], b[key], f"{place}.{key}")
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b) and type(a) is type(b), place
        for i, (x, y) in enumerate(zip(a, b)):
            assert_bits(x, y, f"{place}.{i}")
    else:
        assert a == b and type(a) is type(b), place


def test_reads_what_one_process_saved(tmp_path):
    dcp.save(state_of_one(), checkpoint_id=tmp_path / "one")
    assert_bits(state_of_one(), perdure.load(tmp_path / "one"))
    assert perdure.verify(tmp_path / "one").state == "good"
    assert_bits({"step": 3}, perdure.load(tmp_path / "one", keys=["step"]))


def test_joins_what_four_ranks_saved(of_four_ranks, tmp_path):
    assert len(list(of_four_ranks.glob("*.distcp"))) == 4
    loaded = perdure.load(of_four_ranks)
    plain = whole_state()["plain"]
    order = list(loaded["model"])
    wanted = {"model": {k: whole_state()[k] for k in order}, "step": 5, "groups": [{"lr": 0.5, "w": plain}, 2]}
    assert sorted(order) == sorted(whole_state())
    assert_bits({key: wanted[key] for key in loaded}, loaded)
    dcp_to_torch_save(of_four_ranks, tmp_path / "theirs.pt")
    theirs = torch.load(tmp_path / "theirs.pt")
    perdure.convert(of_four_ranks, tmp_path / "ours.pt")
    ours = torch.load(tmp_path / "ours.pt")
    assert_bits({key: theirs[key] for key in ours}, ours)


def test_a_flipped_bit_is_found_wherever_it_is(of_four_ranks, tmp_path):
    metadata = pickle.loads((of_four_ranks / ".metadata").read_bytes())
    for name in ("model.rows", "model.large", "model.grid", "model.plain"):
        index, info = next((i, s) for i, s in metadata.storage_data.items() if i.fqn == name)
        folder = tmp_path / name
        folder.mkdir()
        for file in of_four_ranks.iterdir():
            data = bytearray(file.read_bytes())
            if file.name == info.relative_path:
                name_end = data.index(b"archive/data/0", info.offset) + len("archive/data/0") - info.offset
                data[info.offset + (name_end + 4 + 63) // 64 * 64 + 1] ^= 0x10  # of the first element
            (folder / file.name).write_bytes(data)
        with pytest.raises(perdure.CorruptionError, match=f"{info.relative_path}.*{name.split('.')[1]}.*is damaged"):
            perdure.load(folder)
        report = perdure.verify(folder)
        assert report.state == "damaged" and info.relative_path in report.findings[0].what
        with pytest.raises(perdure.CorruptionError):
            perdure.convert(folder, tmp_path / "out.pt")
        assert not (tmp_path / "out.pt").exists()


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_reads_every_protocol_and_old_metadata(tmp_path, protocol):
    folder = tmp_path / "x"
    dcp.save({"a": {"w": torch.ones(3)}, "n": 1}, checkpoint_id=folder)
    metadata = pickle.loads((folder / ".metadata").read_bytes())
    (folder / ".metadata").write_bytes(pickle.dumps(metadata, protocol))
    assert_bits({"a": {"w": torch.ones(3)}, "n": 1}, perdure.load(folder))
    for name in ("version", "storage_meta", "planner_data"):
        metadata.__dict__.pop(name)
    (folder / ".metadata").write_bytes(pickle.dumps(metadata, protocol))
    assert_bits({"a.w": torch.ones(3), "n": 1}, perdure.load(folder))


def changed(folder, change):
    path = folder / ".metadata"
    metadata = pickle.loads(path.read_bytes())
    change(metadata)
    path.write_bytes(pickle.dumps(metadata))


def first_of(metadata):
    return next(iter(metadata.storage_data.items()))


def of_tensor(metadata):
    return next(v for v in metadata.state_dict_metadata.values() if hasattr(v, "chunks"))


def drop_chunk(metadata):
    of_tensor(metadata).chunks.pop()


def shift_chunk(metadata):
    of_tensor(metadata).chunks[-1].offsets = torch.Size([10**6, 0])


def grow_chunk(metadata):
    of_tensor(metadata).chunks[-1].sizes = torch.Size([2**40, 5])


def vast(metadata):
    tensor = of_tensor(metadata)
    tensor.size = torch.Size([2**60, 4])
    tensor.chunks = tensor.chunks[:1]
    tensor.chunks[0].sizes = tensor.size


def same_chunk(metadata):
    chunks = of_tensor(metadata).chunks
    chunks[-1].offsets = chunks[0].offsets


def negative_chunk(metadata):
    of_tensor(metadata).chunks[-1].sizes = torch.Size([-1, 5])


def no_place(metadata):
    metadata.storage_data.pop(first_of(metadata)[0])


def past_the_end(metadata):
    first_of(metadata)[1].offset = 2**40


def huge(metadata):
    first_of(metadata)[1].length = 2**63 - 1


def outside(metadata):
    first_of(metadata)[1].relative_path = "../four/__0_0.distcp"


def absolute(metadata):
    first_of(metadata)[1].relative_path = "/etc/passwd"


def missing(metadata):
    first_of(metadata)[1].relative_path = "__9_0.distcp"


def transformed(metadata):
    first_of(metadata)[1].transform_descriptors = ["stream.zstd/1"]


def other_dtype(metadata):
    of_tensor(metadata).properties.dtype = torch.float64


def two_at_one_place(metadata):
    names = list(metadata.planner_data)
    metadata.planner_data[names[0]] = metadata.planner_data[names[1]]


def below_a_leaf(metadata):
    names = list(metadata.planner_data)
    metadata.planner_data[names[0]] = (*metadata.planner_data[names[1]], "more")


@pytest.mark.parametrize(
    ("change", "error", "what"),
    [
        (drop_chunk, perdure.CorruptionError, "is not whole"),
        (shift_chunk, perdure.CorruptionError, "outside of the tensor"),
        (grow_chunk, perdure.CorruptionError, "outside of the tensor"),
        (negative_chunk, perdure.CorruptionError, "unknown form"),
        (vast, perdure.CorruptionError, "more bytes than there can be"),
        (same_chunk, perdure.CorruptionError, "is not whole|overlap"),
        (no_place, perdure.CorruptionError, "is in no file"),
        (past_the_end, perdure.CorruptionError, "cut off, or of another checkpoint"),
        (huge, perdure.CorruptionError, "cut off, or of another checkpoint"),
        (outside, perdure.InvalidError, "not in the directory"),
        (absolute, perdure.InvalidError, "not in the directory"),
        (missing, perdure.NotFoundError, "__9_0.distcp"),
        (transformed, perdure.UnsupportedError, "extension"),
        (other_dtype, perdure.CorruptionError, "where .metadata has a float64"),
        (two_at_one_place, perdure.CorruptionError, "two values"),
        (below_a_leaf, perdure.CorruptionError, "two values"),
    ],
)
def test_refuses_metadata_that_lies(of_four_ranks, tmp_path, change, error, what):
    folder = tmp_path / "x"
    folder.mkdir()
    for file in of_four_ranks.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    assert perdure.load(folder)["step"] == 5
    changed(folder, change)
    with pytest.raises(error, match=what):
        perdure.load(folder)


def test_never_runs_what_is_in_it(tmp_path):
    class Trap:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path}/sprung",)

    folder = tmp_path / "x"
    dcp.save({"a": torch.ones(1)}, checkpoint_id=folder)
    changed(folder, lambda metadata: setattr(metadata, "storage_meta", Trap()))
    assert_bits({"a": torch.ones(1)}, perdure.load(folder))
    (folder / ".metadata").write_bytes(pickle.dumps(Trap()))
    with pytest.raises(perdure.CorruptionError, match="Metadata of an unknown form"):
        perdure.load(folder)
    assert not (tmp_path / "sprung").exists()


def test_links_are_not_followed(tmp_path):
    folder = tmp_path / "x"
    dcp.save({"a": torch.ones(1)}, checkpoint_id=folder)
    os.rename(folder / "__0_0.distcp", tmp_path / "y")
    (folder / "__0_0.distcp").symlink_to("../y")
    with pytest.raises(perdure.InvalidError, match="symbolic link"):
        perdure.load(folder)


def test_stock_dcp_loads_what_is_written(tmp_path):
    state = state_of_one()
    torch.save(state, tmp_path / "x.pt")
    report = perdure.convert(tmp_path / "x.pt", tmp_path / "out")
    assert report.format == "dcp"
    assert sorted(os.listdir(tmp_path)) == ["out", "x.pt"]
    dcp_to_torch_save(tmp_path / "out", tmp_path / "theirs.pt")
    assert_bits(state, torch.load(tmp_path / "theirs.pt"))
    into = {"model": {k: torch.zeros_like(v) for k, v in state["model"].items()}, "step": 0}
    dcp.load(into, checkpoint_id=tmp_path / "out")
    assert_bits({"model": state["model"], "step": 3}, into)
    assert_bits(state, perdure.load(tmp_path / "out"))


def test_assert_bits_can_see():
    state = state_of_one()
    other = state_of_one()
    other["odd"]["view"][1] += 1
    with pytest.raises(AssertionError):
        assert_bits(state, other)
    assert_same(1, 1)
