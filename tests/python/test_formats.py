"""PyTorch's own other formats: what torch reads from them, perdure reads, bit for bit."""

import collections
import io
import json
import os
import random
import subprocess
import zipfile

import pytest
import torch

import perdure
from states import assert_same

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")  # torch.jit, quantized
LEGACY = {"_use_new_zipfile_serialization": False}


def training():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    model(torch.randn(5, 3)).sum().backward()
    optimizer.step()
    base = torch.arange(12.0)
    return {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "views": [base[2:5], base.reshape(3, 4).T, base, base[3]],
        "dtypes": [torch.zeros(3, dtype=d) for d in (torch.bool, torch.bfloat16, torch.complex64, torch.int8)],
        "parameter": torch.nn.Parameter(torch.ones(2)),
        "empty": torch.ones(0, 3),
        "epoch": 3,
        "big": 2**70,
        "text": ["a", b"\x00\xff", {1: None, 2.5: (True, -1)}],
        "counter": collections.Counter("aab"),
    }


def show(path, *options):
    command = [os.environ["PERDURE_CLI"], "show", *options, str(path)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


class TestLegacy:
    @pytest.mark.parametrize("protocol", [2, 3, 4, 5])
    def test_is_loaded_as_torch_does(self, protocol, path):
        torch.save(training(), path, pickle_protocol=protocol, **LEGACY)
        loaded = perdure.load(path)
        assert_same(loaded, torch.load(path, weights_only=False))
        assert loaded["views"][0].untyped_storage().data_ptr() == loaded["views"][2].untyped_storage().data_ptr()
        assert perdure.load(io.BytesIO(path.read_bytes()))["epoch"] == 3

    def test_becomes_a_file_of_perdures(self, path, tmp_path):
        torch.save(training(), path, **LEGACY)
        perdure.save(perdure.load(path), tmp_path / "new.pt")
        assert_same(torch.load(tmp_path / "new.pt"), torch.load(path, weights_only=False))

    def test_by_parts_and_mapped(self, path):
        torch.save(training(), path, **LEGACY)
        expected = torch.load(path, weights_only=False)
        part = perdure.load(path, keys=[("model", "0.weight")])
        assert_same(part["model"]["0.weight"], expected["model"]["0.weight"])
        assert_same(perdure.load(path, mmap=True)["model"], expected["model"])
        assert perdure.load(path, map_location="meta")["views"][1].is_meta

    def test_is_restored_from(self, path):
        model = torch.nn.Linear(3, 4)
        torch.save({"model": model.state_dict(), "step": 7, "rng": {}}, path, **LEGACY)
        other = torch.nn.Linear(3, 4)
        state = perdure.TrainingState(model=other, optimizer=None)
        with perdure.CheckpointManager(path.parent / "run") as checkpoints:
            checkpoints.restore(state, path=path)
        assert_same(other.state_dict(), model.state_dict())

    def test_says_what_it_is_and_that_it_is_unchecked(self, path):
        torch.save(training(), path, **LEGACY)
        report = perdure.verify(path)
        assert report.state == "unchecked" and report.tensors > 10 and not report.findings
        assert json.loads(show(path, "--json"))["format"] == "PyTorch legacy"
        assert "PyTorch legacy" in show(path) and "no checksums" in show(path)

    def test_cut_anywhere_it_is_damaged(self, path):
        torch.save({"w": torch.ones(3), "n": 1}, path, **LEGACY)
        whole = path.read_bytes()
        for size in range(15, len(whole)):
            path.write_bytes(whole[:size])
            with pytest.raises(perdure.CorruptionError):
                perdure.load(path)

    def test_any_change_is_an_error_or_another_value(self, path):
        torch.save(training(), path, **LEGACY)
        whole = path.read_bytes()
        seed = int(os.environ.get("PERDURE_SEED", random.randrange(2**32)))
        choices = random.Random(seed)
        for _ in range(int(os.environ.get("PERDURE_CHANGES", 300))):
            data = bytearray(whole)
            for _ in range(choices.choice([1, 1, 1, 4])):
                data[choices.randrange(len(data))] = choices.randrange(256)
            try:
                perdure.load(io.BytesIO(bytes(data)))
            except perdure.Error:
                pass
            except Exception as error:
                raise AssertionError(f"replay with PERDURE_SEED={seed}") from error

    def test_sparse_and_quantized(self, path):
        dense = torch.eye(3)
        quantized = torch.quantize_per_tensor(dense, 0.1, 3, torch.qint8)
        torch.save({"s": dense.to_sparse(), "q": quantized}, path, **LEGACY)
        loaded = perdure.load(path)
        assert_same(loaded["s"].to_dense(), dense)
        assert_same(loaded["q"].int_repr(), quantized.int_repr())


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 2))
        self.register_buffer("steps", torch.arange(5, dtype=torch.int16))
        self.tied = self.layers[0].weight
        self.scale = 2.5
        self.name = "net"
        self.sizes = [1, 2, 2**40]

    def forward(self, x):
        return self.layers(x) * self.scale + torch.tensor([0.5, 1.5])


def attribute(state, dotted):
    for key in dotted.split("."):
        state = state[key]
    return state


class TestTorchScript:
    @pytest.mark.parametrize("make", [torch.jit.script, lambda m: torch.jit.trace(m.eval(), torch.ones(2, 3))])
    def test_every_tensor_is_there(self, make, path):
        torch.manual_seed(1)
        module = make(Net())
        torch.jit.save(module, path)
        state = perdure.load(path)
        expected = torch.jit.load(path).state_dict()
        assert len(expected) > 8
        for key, tensor in expected.items():
            assert_same(attribute(state, key), tensor.detach().requires_grad_(attribute(state, key).requires_grad))
        assert attribute(state, "tied").data_ptr() == attribute(state, "layers.0.weight").data_ptr()
        assert perdure.verify(path).good

    def test_attributes_and_classes(self, path):
        torch.jit.save(torch.jit.script(Net()), path)
        state = perdure.load(path)
        assert (state["scale"], state["name"], state["sizes"]) == (2.5, "net", [1, 2, 2**40])
        assert vars(state)["_class"].startswith("__torch__.") and vars(state)["_class"].endswith("Net")
        assert "BatchNorm1d" in vars(state["layers"]["1"])["_class"]
        shown = show(path)
        assert "TorchScript" in shown and "class '__torch__.torch.nn.modules.linear.Linear" in shown

    def test_constants(self, path):
        torch.manual_seed(2)
        net = Net().eval()
        torch.jit.save(torch.jit.freeze(torch.jit.script(net)), path)
        constants = perdure.load(path)["(constants)"]
        assert any(x.shape == (2, 4) and torch.equal(x, net.layers[2].weight) for x in constants)
        assert perdure.verify(path).tensors == len(constants)

    def test_becomes_a_checkpoint(self, path, tmp_path):
        torch.jit.save(torch.jit.script(Net()), path)
        perdure.save(perdure.load(path), tmp_path / "new.pt")
        again = torch.load(tmp_path / "new.pt")
        assert_same(again["layers"]["2"]["weight"], perdure.load(path)["layers"]["2"]["weight"])

    def test_quantized_modules(self, path):
        net = torch.ao.quantization.quantize_dynamic(torch.nn.Sequential(torch.nn.Linear(3, 4)), dtype=torch.qint8)
        torch.jit.save(torch.jit.script(net), path)
        weight = net[0].weight()
        found = []

        def look(value):
            if isinstance(value, torch.Tensor):
                found.append(value)
            elif isinstance(value, dict):
                list(map(look, value.values()))
            elif isinstance(value, (list, tuple)):
                list(map(look, value))

        look(perdure.load(path))
        (quantized,) = [x for x in found if x.is_quantized]
        assert torch.equal(quantized.int_repr(), weight.int_repr()) and quantized.qscheme() == weight.qscheme()

    def test_damage_is_named(self, path):
        torch.jit.save(torch.jit.script(Net()), path)
        whole = path.read_bytes()
        with zipfile.ZipFile(path) as archive:
            code = next(info for info in archive.infolist() if "/code/" in info.filename and info.compress_type)
        data = bytearray(whole)
        data[code.header_offset + 30 + len(code.filename) + 70] ^= 4
        path.write_bytes(data)
        report = perdure.verify(path)
        assert report.state == "damaged"
        assert report.findings[0].record == code.filename.partition("/")[2]
