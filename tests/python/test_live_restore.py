"""A restore reads straight into the tensors that are there, and does everything else as before."""

import subprocess
import sys

import pytest
import torch
from torch import nn

import perdure

from conftest import damage


def restored_into(thing_to_save, thing, tmp_path, **more):
    """Saves one, restores the other, and returns what was given to its load_state_dict."""
    with perdure.CheckpointManager(tmp_path / "run") as checkpoints:
        checkpoints.save(perdure.TrainingState(thing=thing_to_save, optimizer=None, **more)).wait()
        checkpoints.restore(perdure.TrainingState(thing=thing, optimizer=None, **more))


class Watched:
    """Counts the copies of a module by load_state_dict."""

    def __init__(self, monkeypatch):
        self.calls = []
        original = nn.Module.load_state_dict

        def load_state_dict(module, *args, **kwargs):
            self.calls.append(module)
            return original(module, *args, **kwargs)

        monkeypatch.setattr(nn.Module, "load_state_dict", load_state_dict)


@pytest.fixture
def watched(monkeypatch):
    return Watched(monkeypatch)


def bits(module):
    return {k: (v.dtype, v.clone().contiguous().view(-1).tolist()) for k, v in module.state_dict().items()}


def places(module):
    return {k: v.data_ptr() for k, v in [*module.named_parameters(), *module.named_buffers()]}


def same_module(make, tmp_path):
    """Restores a module of one seed into one of another; the second one, with what it had been."""
    torch.manual_seed(1)
    saved = make()
    torch.manual_seed(2)
    module = make()
    before = places(module)
    restored_into(saved, module, tmp_path)
    assert bits(module) == bits(saved)
    assert places(module) == before
    return module


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.head = nn.Embedding(11, 5), nn.Linear(5, 11, bias=False)
        self.head.weight = self.embedding.weight
        self.register_buffer("positions", torch.randint(0, 9, (7,)))


class Flat(nn.Module):
    """Parameters that are views of one buffer, as some data parallel wrappers make them."""

    def __init__(self):
        super().__init__()
        flat = torch.randn(100)
        self.flat = [flat]  # no part of the state
        self.a = nn.Parameter(flat[3:33].view(5, 6))
        self.b = nn.Parameter(flat[33:40])
        self.c = nn.Parameter(flat[60:100].view(8, 5).t())


def channels_last():
    return nn.Conv2d(3, 8, 3).to(memory_format=torch.channels_last)


class Strided(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Parameter(torch.randn(6, 4)[:, ::2])


@pytest.mark.parametrize(
    "make", [lambda: nn.Linear(300, 700), Tied, channels_last, lambda: nn.Linear(2, 3, dtype=torch.float64)]
)
def test_a_plain_module_is_read_in_place(make, tmp_path, watched):
    same_module(make, tmp_path)
    assert not watched.calls


def test_views_of_one_buffer(tmp_path):
    torch.manual_seed(2)
    beside = Flat().flat[0]
    module = same_module(Flat, tmp_path)
    flat = module.flat[0]
    assert torch.equal(flat[:3], beside[:3]) and torch.equal(flat[40:60], beside[40:60])


def test_what_is_not_dense_is_copied(tmp_path, watched):
    same_module(Strided, tmp_path)
    assert watched.calls


def test_parameters_stay_what_they_are(tmp_path):
    saved, module = nn.Linear(3, 4), nn.Linear(3, 4)
    module.weight.grad = torch.ones(4, 3)
    weight = module.weight
    restored_into(saved, module, tmp_path)
    assert module.weight is weight and weight.requires_grad and weight.is_leaf
    assert torch.equal(weight.grad, torch.ones(4, 3))
    module(torch.ones(3)).sum().backward()


def test_hooks_are_heard(tmp_path):
    heard = []
    for place in ("pre", "post"):
        saved, module = nn.Sequential(nn.Linear(3, 4)), nn.Sequential(nn.Linear(3, 4))
        if place == "pre":
            module[0].register_load_state_dict_pre_hook(lambda *a: heard.append("pre"))
        else:
            module.register_load_state_dict_post_hook(lambda *a: heard.append("post"))
        restored_into(saved, module, tmp_path / place)
        assert bits(module) == bits(saved)
    assert heard == ["pre", "post"]


class Overriding(nn.Linear):
    heard = 0

    def _load_from_state_dict(self, *args, **kwargs):
        Overriding.heard += 1
        return super()._load_from_state_dict(*args, **kwargs)


def test_an_override_is_called(tmp_path):
    same_module(lambda: nn.Sequential(Overriding(3, 4)), tmp_path)
    assert Overriding.heard == 1


def test_batch_norm(tmp_path):
    module = same_module(lambda: nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)), tmp_path)
    assert module[1].num_batches_tracked.item() == 0


class WithExtra(nn.Linear):
    extra = None

    def get_extra_state(self):
        return {"calls": self.extra}

    def set_extra_state(self, state):
        self.extra = state["calls"]


def test_extra_state(tmp_path):
    saved, module = WithExtra(3, 4), WithExtra(3, 4)
    saved.extra = 7
    restored_into(saved, module, tmp_path)
    assert module.extra == 7 and bits_of_tensors(module) == bits_of_tensors(saved)


def bits_of_tensors(module):
    return [p.tolist() for p in module.parameters()]


class Renaming(nn.Linear):
    """Its state_dict gives a copy under another name, and its hook takes it back."""

    def __init__(self, *args):
        super().__init__(*args)
        self.register_state_dict_post_hook(self._rename)
        self.register_load_state_dict_pre_hook(self._name_back)

    @staticmethod
    def _rename(module, state_dict, prefix, metadata):
        state_dict[prefix + "w"] = state_dict.pop(prefix + "weight").t().clone()

    @staticmethod
    def _name_back(module, state_dict, prefix, *rest):
        state_dict[prefix + "weight"] = state_dict.pop(prefix + "w").t()


def test_state_dict_hooks_that_clone(tmp_path):
    same_module(lambda: Renaming(3, 4), tmp_path)


def test_lazy_modules(tmp_path):
    saved = nn.Linear(3, 4)
    lazy = nn.LazyLinear(4)
    restored_into(saved, lazy, tmp_path)
    assert torch.equal(lazy.weight, saved.weight)


def test_two_values_for_one_tied_weight_are_seen_before_anything_changes(tmp_path):
    class Untied(Tied):
        def __init__(self):
            super().__init__()
            self.head.weight = nn.Parameter(self.embedding.weight + 1)

    tied = Tied()
    before = bits(tied)
    with pytest.raises(perdure.InvalidError, match="embedding.weight and head.weight"):
        restored_into(Untied(), tied, tmp_path)
    assert bits(tied) == before


def test_equal_values_for_one_tied_weight(tmp_path):
    class Twice(Tied):
        def __init__(self):
            super().__init__()
            self.head.weight = nn.Parameter(self.embedding.weight.detach().clone())

    saved, tied = Twice(), Tied()
    restored_into(saved, tied, tmp_path)
    assert bits(tied) == bits(saved) and tied.head.weight is tied.embedding.weight


def test_a_wrong_dtype_is_listed_and_nothing_changes(tmp_path):
    module = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2).double())
    before = bits(module)
    with pytest.raises(perdure.InvalidError, match=r"thing\.1\.weight  wrong dtype  float32"):
        restored_into(nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)), module, tmp_path)
    assert bits(module) == before


# ---- optimizers

OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    "adam": lambda p: torch.optim.Adam(p, amsgrad=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=torch.tensor(0.01), foreach=False),
    "nadam": torch.optim.NAdam,
    "radam": torch.optim.RAdam,
    "adamax": torch.optim.Adamax,
    "adadelta": torch.optim.Adadelta,
    "adagrad": torch.optim.Adagrad,
    "rmsprop": lambda p: torch.optim.RMSprop(p, momentum=0.5, centered=True),
    "rprop": torch.optim.Rprop,
    "asgd": torch.optim.ASGD,
    "lbfgs": lambda p: torch.optim.LBFGS(p, max_iter=3),
}


def train(model, optimizer, steps, seed):
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        x = torch.randn(4, 30, generator=generator)

        def loss():
            optimizer.zero_grad()
            value = model(x).square().mean()
            value.backward()
            return value

        optimizer.step(loss)


def moments(optimizer):
    """Where the per-parameter state is: tensors that a step changes in place."""
    return {
        (n, k): x.data_ptr()
        for n, s in optimizer.state_dict()["state"].items()
        for k, x in s.items()
        if isinstance(x, torch.Tensor) and x.numel() > 1
    }


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("fresh", [True, False])
def test_every_optimizer(name, fresh, tmp_path):
    def make(seed):
        torch.manual_seed(seed)
        model = nn.Linear(30, 50)
        return model, OPTIMIZERS[name](model.parameters())

    model, optimizer = make(1)
    train(model, optimizer, 3, seed=1)
    with perdure.CheckpointManager(tmp_path) as checkpoints:
        checkpoints.save(perdure.TrainingState(model=model, optimizer=optimizer)).wait()
    train(model, optimizer, 3, seed=2)

    other, other_optimizer = make(2)
    if not fresh:
        train(other, other_optimizer, 2, seed=3)
    parameters, before = places(other), moments(other_optimizer)
    with perdure.CheckpointManager(tmp_path) as checkpoints:
        checkpoints.restore(perdure.TrainingState(model=other, optimizer=other_optimizer))
    assert places(other) == parameters
    after = moments(other_optimizer)
    if name != "lbfgs":  # its state is lists: as ever
        assert before.items() <= after.items()
    train(other, other_optimizer, 3, seed=2)
    assert bits(other) == bits(model)


def test_fp32_moments_of_bf16_parameters_stay_fp32(tmp_path):
    def make():
        model = nn.Linear(30, 50).bfloat16()
        return model, torch.optim.AdamW(model.parameters())

    model, optimizer = make()
    for p in model.parameters():
        optimizer.state[p] = {
            "step": torch.tensor(3.0),
            "exp_avg": torch.randn(p.shape),
            "exp_avg_sq": torch.rand(p.shape),
        }
    with perdure.CheckpointManager(tmp_path) as checkpoints:
        checkpoints.save(perdure.TrainingState(model=model, optimizer=optimizer)).wait()
        other, other_optimizer = make()
        for _ in range(2):  # without state at first; then in place
            checkpoints.restore(perdure.TrainingState(model=other, optimizer=other_optimizer))
            for p, q in zip(model.parameters(), other.parameters()):
                for key, x in optimizer.state[p].items():
                    y = other_optimizer.state[q][key]
                    assert x.dtype == y.dtype and torch.equal(x, y)


# ---- damage, memory, other files


def test_damage_leaves_it_broken_until_a_restore(tmp_path):
    module = nn.Linear(1000, 1500)
    state = perdure.TrainingState(thing=module, optimizer=None)
    with perdure.CheckpointManager(tmp_path) as checkpoints:
        checkpoints.save(state).wait()
        good = bits(module)
        state.step = 1
        with torch.no_grad():
            module.weight += 1
        newest = checkpoints.save(state)
        newest.wait()
        damage(newest.checkpoint.path)
        with pytest.raises(perdure.CorruptionError, match="weight"):
            checkpoints.restore(state, step=1)
        assert state.broken
        assert checkpoints.restore(state).step == 0
        assert not state.broken and bits(module) == good


def test_a_file_of_torch_save(tmp_path):
    torch.manual_seed(1)
    model = nn.Linear(30, 50)
    torch.save({"thing": model.state_dict()}, tmp_path / "cp.pt")
    other = nn.Linear(30, 50)
    before = places(other)
    with perdure.CheckpointManager(tmp_path / "run") as checkpoints:
        state = perdure.TrainingState(thing=other, optimizer=None)
        checkpoints.restore(state, path=tmp_path / "cp.pt", strict=False)
    assert bits(other) == bits(model) and places(other) == before


PEAK = """
import resource, sys, torch, perdure
model = torch.nn.Sequential(*(torch.nn.Linear(2000, 2000, bias=False) for _ in range(16)))  # 256 MB
optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
with torch.no_grad():
    for p in model.parameters():
        p.fill_(1.0)
        if sys.argv[2] == "there":
            optimizer.state[p]["momentum_buffer"] = torch.ones_like(p)
state = perdure.TrainingState(model=model, optimizer=optimizer)
with perdure.CheckpointManager(sys.argv[1]) as checkpoints:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    checkpoints.restore(state)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.parametrize("momentum, live", [("there", 0), ("fresh", 256)])
def test_no_second_copy_in_memory(momentum, live, tmp_path):
    """The peak of a restore is what lives afterwards and a few MiB for each thread."""
    model = nn.Sequential(*(nn.Linear(2000, 2000, bias=False) for _ in range(16)))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for p in model.parameters():
        optimizer.state[p]["momentum_buffer"] = torch.ones_like(p)
    with perdure.CheckpointManager(tmp_path) as checkpoints:
        checkpoints.save(perdure.TrainingState(model=model, optimizer=optimizer)).wait()
    done = subprocess.run(
        [sys.executable, "-c", PEAK, str(tmp_path), momentum], capture_output=True, text=True, check=True
    )
    assert int(done.stdout) / 1024 <= live + 60
