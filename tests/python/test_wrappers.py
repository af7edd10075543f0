"""Modules wrapped by DistributedDataParallel, DataParallel and torch.compile: the file is that of the plain module."""

import zipfile

import pytest
import torch
from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

import perdure

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module", autouse=True)
def process_group(tmp_path_factory):
    store = torch.distributed.FileStore(str(tmp_path_factory.mktemp("store") / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def compiled(module):
    return torch.compile(module, backend="eager")


def compiled_inside(module):
    module.inner = compiled(module.inner)
    module.module = DistributedDataParallel(compiled(module.module))
    return module


WRAPPINGS = {
    "plain": lambda module: module,
    "ddp": DistributedDataParallel,
    "compiled": compiled,
    "dp": DataParallel,
    "compiled ddp": lambda module: compiled(DistributedDataParallel(module)),
    "ddp of compiled": lambda module: DistributedDataParallel(compiled(module)),
    "inside": compiled_inside,
}
MAIN = ["plain", "ddp", "compiled"]
CROSSINGS = [(a, b) for a in MAIN for b in MAIN]
CROSSINGS += [(a, b) for a in WRAPPINGS if a not in MAIN for b in ["plain", a]]


class Network(nn.Module):
    """Has a child that is really called `module`, and tied weights."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.2))
        self.module = nn.Linear(4, 4)
        self.tied = nn.Linear(4, 4)
        self.tied.weight = self.module.weight
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x):
        return self.tied(self.module(self.inner(x))) * self.scale


class Run:
    def __init__(self, wrapping, seed):
        torch.manual_seed(seed)
        self.plain = Network()
        self.named = dict(self.plain.named_parameters())
        self.tensors = self.plain.state_dict()
        self.model = WRAPPINGS[wrapping](self.plain)
        self.optimizer = torch.optim.AdamW(list(self.named.values()), lr=0.1)
        self.state = perdure.TrainingState(model=self.model, optimizer=self.optimizer)

    def train(self, steps):
        for _ in range(steps):
            self.optimizer.zero_grad()
            self.model(torch.randn(6, 3)).square().mean().backward()
            self.optimizer.step()
            self.state.step += 1
        return self

    def bits(self):
        out = {name: x.detach().numpy().tobytes() for name, x in self.tensors.items()}
        for name, p in self.named.items():
            out.update({f"{key} of {name}": x.numpy().tobytes() for key, x in self.optimizer.state[p].items()})
        return out


def saved(run, directory):
    with perdure.CheckpointManager(directory) as checkpoints:
        checkpoints.save(run.state)
        checkpoints.wait()
        return checkpoints.latest().path


def restored(run, directory, **options):
    with perdure.CheckpointManager(directory) as checkpoints:
        checkpoints.restore(run.state, **options)
    return run


@pytest.mark.parametrize("before, after", CROSSINGS)
def test_crossing(tmp_path, before, after):
    first = Run(before, seed=1).train(3)
    saved(first, tmp_path)
    at_save = first.bits()
    first.train(2)
    second = restored(Run(after, seed=2), tmp_path)
    assert second.bits() == at_save
    assert second.train(2).bits() == first.bits()


@pytest.mark.parametrize("before, after", [("ddp", "plain"), ("plain", "compiled"), ("compiled", "ddp")])
def test_an_optimizer_of_named_parameters(tmp_path, before, after):
    """PyTorch notes their names in it, with those of the wrappers."""

    def named(wrapping, seed):
        run = Run(wrapping, seed)
        run.optimizer = torch.optim.AdamW(list(run.model.named_parameters()), lr=0.1)
        run.state = perdure.TrainingState(model=run.model, optimizer=run.optimizer)
        return run

    first = named(before, seed=1).train(2)
    saved(first, tmp_path)
    second = named(after, seed=2)
    names = second.optimizer.param_groups[0]["param_names"]
    assert restored(second, tmp_path).bits() == first.bits()
    assert second.optimizer.param_groups[0]["param_names"] == names


@pytest.mark.parametrize("wrapping", [w for w in WRAPPINGS if w != "plain"])
def test_the_file_is_that_of_the_plain_module(tmp_path, wrapping):
    def records(wrapping):
        with zipfile.ZipFile(saved(Run(wrapping, seed=1).train(2), tmp_path / wrapping)) as file:
            names = [name for name in file.namelist() if not name.endswith("checkpoint.json")]
            return {name: file.read(name) for name in names}

    assert records(wrapping) == records("plain")


def test_names_of_the_parameters(tmp_path):
    path = saved(Run("ddp of compiled", seed=1).train(1), tmp_path)
    with zipfile.ZipFile(path) as file:
        described = file.read(next(n for n in file.namelist() if n.endswith("checkpoint.json"))).decode()
    assert "model.inner.0.weight" in described and "model.module.weight" in described
    assert "_orig_mod" not in described and "module.module" not in described


@pytest.mark.parametrize("wrapping", WRAPPINGS)
def test_restored_in_place(tmp_path, monkeypatch, wrapping):
    """What load_state_dict (BatchNorm has one of its own) is given is the module's own memory already."""
    first, run = Run("plain", seed=1).train(2), Run(wrapping, seed=2)
    saved(first, tmp_path)
    seen = []

    def watched(module, state_dict, **options):
        seen.append({key: x.data_ptr() for key, x in state_dict.items()})

    monkeypatch.setattr(nn.Module, "load_state_dict", watched)
    restored(run, tmp_path)
    assert seen == [{key: x.data_ptr() for key, x in run.model.state_dict().items()}]
    assert run.bits() == first.bits()


def test_wrapped_after_it_was_registered(tmp_path):
    run = Run("plain", seed=1)
    run.plain.inner = compiled(run.plain.inner)
    saved(run.train(2), tmp_path)
    assert restored(Run("plain", seed=2), tmp_path).bits() == run.bits()


@pytest.mark.parametrize("wrapping", ["ddp", "compiled", "inside"])
def test_a_file_with_the_wrappers_names(tmp_path, wrapping):
    """As torch.save({"model": model.state_dict()}) writes it: it fits the same wrapping, and none."""
    first, path = Run(wrapping, seed=1).train(2), tmp_path / "foreign.pt"
    torch.save({"model": first.model.state_dict(), "optimizer": first.optimizer.state_dict()}, path)
    for other in (wrapping, "plain"):
        second = restored(Run(other, seed=2), tmp_path / "run", path=path, strict=False)
        assert second.bits() == first.bits()


@pytest.mark.parametrize("wrapping", ["plain", "ddp", "compiled", "inside"])
def test_an_averaged_model_keeps_its_own_names(tmp_path, wrapping):
    class Averaged(Run):
        def __init__(self, wrapping, seed):
            super().__init__("plain", seed)
            self.averaged = AveragedModel(self.plain)
            self.averaged.module = WRAPPINGS[wrapping](self.averaged.module)
            self.state.add("averaged", self.averaged)

        def train(self, steps):
            for _ in range(steps):
                super().train(1)
                self.averaged.update_parameters(self.model)
            return self

        def bits(self):
            averages = [p.detach().numpy().tobytes() for p in self.averaged.parameters()]
            return super().bits(), averages, int(self.averaged.n_averaged)

    first = Averaged(wrapping, seed=1).train(3)
    path = saved(first, tmp_path)
    plain = AveragedModel(Network())
    assert torch.load(path)["averaged"].keys() == plain.state_dict().keys()
    for other in ("plain", wrapping):
        second = restored(Averaged(other, seed=2), tmp_path)
        assert second.bits() == first.bits() and int(second.averaged.n_averaged) == 3
        assert restored(Averaged(other, seed=2), tmp_path).train(2).bits() == Averaged("plain", seed=1).train(5).bits()
