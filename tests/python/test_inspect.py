"""perdure.inspect: what a checkpoint holds, of every format, without reading its tensors."""

import argparse
import collections
import io
import json
import os
import subprocess

import pytest
import torch

import perdure

PERDURE = os.environ.get("PERDURE_CLI", "perdure")

shared = torch.arange(12.0)
STATE = {
    "model": collections.OrderedDict(
        [("weight", shared.view(3, 4)), ("tied", shared), ("bf16", torch.ones(5).bfloat16())]
    ),
    "sparse": torch.eye(3).to_sparse(),
    "epoch": 3,
    "betas": (0.9, 0.999),
    "nothing": {},
    "names": ["a", "b"],
    7: None,
}


def test_a_saved_state(tmp_path):
    perdure.save(STATE, tmp_path / "x.pt")
    found = perdure.inspect(tmp_path / "x.pt")
    assert found.path == str(tmp_path / "x.pt") and found.format == "perdure (PyTorch zip)"
    assert found.bytes == (tmp_path / "x.pt").stat().st_size and found.checksums
    assert found.step is None and found.reason == "" and found.metrics == {}
    assert found.writer.startswith("perdure ")
    assert list(found.entries) == [
        "model.weight", "model.tied", "model.bf16",
        "sparse.form", "sparse.indices", "sparse.values", "sparse.size", "sparse.is_coalesced",
        "epoch", "betas", "nothing", "names", "7",
    ]  # fmt: skip
    weight, tied, half = list(found.tensors.values())[:3]
    assert (weight.type, weight.dtype, weight.shape, weight.bytes) == ("tensor", "float32", (3, 4), 48)
    assert (half.dtype, half.shape, half.bytes, half.device) == ("bfloat16", (5,), 10, "cpu")
    assert weight.storage == tied.storage != half.storage
    values = {name: x.value for name, x in found.entries.items()}
    assert (values["epoch"], values["betas"], values["nothing"]) == (3, (0.9, 0.999), {})
    assert (values["names"], values["7"], values["sparse.size"]) == (["a", "b"], None, (3, 3))
    assert [found.entries[x].type for x in ("epoch", "betas", "nothing", "7")] == ["int", "tuple", "dict", "None"]


def test_a_checkpoint_of_a_run(tmp_path):
    with perdure.CheckpointManager(tmp_path / "run") as checkpoints:
        state = perdure.TrainingState(model=torch.nn.Linear(2, 3), optimizer=None)
        state.step = 41
        checkpoints.save(state, metrics={"loss": 0.25}).wait()
        latest = checkpoints.latest()
    found = perdure.inspect(latest.path)
    assert (found.step, found.metrics, found.reason) == (41, {"loss": 0.25}, "regular")
    assert found.created == latest.created and found.libraries == {"torch": torch.__version__}
    assert found.entries["step"].value == 41 and found.tensors["model.weight"].shape == (3, 2)


@pytest.mark.parametrize(
    "pattern, names",
    [
        ("model", ["model.weight", "model.tied", "model.bf16"]),
        ("*e*t*", ["model.weight", "model.tied", "betas"]),
        ("model.?????", []),
        ("betas", ["betas"]),
        ("absent", []),
    ],
)
def test_a_pattern(tmp_path, pattern, names):
    perdure.save(STATE, tmp_path / "x.pt")
    assert list(perdure.inspect(tmp_path / "x.pt", pattern).entries) == names


def test_all_formats_say_the_same(tmp_path):
    state = {"a.weight": torch.randn(3, 2), "a.bias": torch.zeros(0)}
    torch.save(state, tmp_path / "zip.pt")
    torch.save(state, tmp_path / "legacy.pt", _use_new_zipfile_serialization=False)
    perdure.convert(tmp_path / "zip.pt", tmp_path / "x.safetensors")
    perdure.convert(tmp_path / "zip.pt", tmp_path / "dcp")
    formats = {}
    for name in ("zip.pt", "legacy.pt", "x.safetensors", "dcp"):
        found = perdure.inspect(tmp_path / name)
        formats[name] = found.format
        assert {x.name: (x.dtype, x.shape, x.bytes) for x in found.tensors.values()} == {
            "a.weight": ("float32", (3, 2), 24), "a.bias": ("float32", (0,), 0)
        }  # fmt: skip
        assert found.created is None and found.writer == "" or found.format.startswith("perdure")
    assert formats["zip.pt"] == "PyTorch zip" and formats["legacy.pt"] == "PyTorch legacy"
    assert len(set(formats.values())) == 4, formats


def test_what_load_refuses_is_shown(tmp_path):
    torch.save({"options": argparse.Namespace(x=torch.ones(2)), "epoch": 1}, tmp_path / "x.pt")
    with pytest.raises(perdure.UnsupportedError):
        perdure.load(tmp_path / "x.pt")
    found = perdure.inspect(tmp_path / "x.pt")
    assert found.entries["options"].type == "argparse.Namespace" and found.entries["options"].refused
    assert found.tensors["options.(state).x"].shape == (2,)
    assert not found.entries["epoch"].refused


def test_a_file_object_and_trouble(tmp_path):
    buffer = io.BytesIO()
    torch.save(torch.ones(2, 2), buffer)
    buffer.seek(0)
    assert perdure.inspect(buffer).tensors["(root)"].shape == (2, 2)
    with pytest.raises(perdure.NotFoundError, match="absent"):
        perdure.inspect(tmp_path / "absent.pt")
    (tmp_path / "x").write_bytes(b"nothing that is known")
    with pytest.raises(perdure.Error, match="'?.*x'?"):
        perdure.inspect(tmp_path / "x")
    with pytest.raises(perdure.InvalidError):
        perdure.inspect(3)


def test_no_tensor_is_read(tmp_path):
    """A damaged tensor is no trouble to it."""
    perdure.save({"x": torch.arange(1000)}, tmp_path / "x.pt")
    data = bytearray((tmp_path / "x.pt").read_bytes())
    at = data.index(torch.arange(500, 501).numpy().tobytes())
    data[at] ^= 1
    (tmp_path / "x.pt").write_bytes(data)
    assert perdure.verify(tmp_path / "x.pt").state == "damaged"
    assert perdure.inspect(tmp_path / "x.pt").tensors["x"].shape == (1000,)


def test_the_command_says_the_same(tmp_path):
    perdure.save(STATE, tmp_path / "x.pt")
    told = json.loads(
        subprocess.run([PERDURE, "show", "--json", tmp_path / "x.pt"], capture_output=True, check=True).stdout
    )
    for entry in told["entries"]:
        if entry["kind"] == "tensor":
            ours = perdure.inspect(tmp_path / "x.pt").tensors[entry["key"]]
            assert (entry["dtype"], tuple(entry["shape"]), entry["bytes"]) == (ours.dtype, ours.shape, ours.bytes)


class Custom:
    pass


def test_an_empty_dict_whose_attributes_are_no_plain_data(tmp_path):
    empty = collections.OrderedDict()
    empty.thing = Custom()
    torch.save({"empty": empty, "x": 1}, tmp_path / "cp.pt")
    entries = perdure.inspect(tmp_path / "cp.pt").entries
    assert entries["empty"].value == {} and entries["x"].value == 1
    assert list(entries) == ["empty", "x"]
