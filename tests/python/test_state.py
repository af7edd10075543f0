"""TrainingState: what fits goes back exactly, what does not is listed before anything changes."""

import gc
import random
import weakref

import numpy as np
import pytest
import torch
from torch import nn

import perdure


def trained(model, optimizer, steps=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.randn(4, 3, generator=generator, dtype=next(model.parameters()).dtype)).sum().backward()
        optimizer.step()


def network(dtype=torch.float32):
    return nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.Linear(5, 2)).to(dtype)


def adam(model, cls=torch.optim.AdamW, **options):
    return cls(model.parameters(), lr=0.1, **options)


def file_of(state, tmp_path):
    """A run directory with one checkpoint of `state`."""
    with perdure.CheckpointManager(tmp_path / "run") as checkpoints:
        checkpoints.save(state).wait()
    return tmp_path / "run"


def restore(state, run, **options):
    with perdure.CheckpointManager(run) as checkpoints:
        return checkpoints.restore(state, **options)


def optimizer_bits(optimizer):
    out = []
    for group in optimizer.param_groups:
        for p in group["params"]:
            out += [
                (k, x.dtype, x.detach().contiguous().reshape(-1).view(torch.uint8).tolist())
                for k, x in optimizer.state[p].items()
                if isinstance(x, torch.Tensor)
            ]
    return out


def assert_refused(state, run, *parts, **options):
    """Restoring says all of `parts` and changes nothing."""
    before = [t.clone() for t in tensors(state)]
    with pytest.raises(perdure.InvalidError) as caught:
        restore(state, run, **options)
    for part in parts:
        assert part in str(caught.value)
    assert all(torch.equal(a, b) for a, b in zip(before, tensors(state)))
    assert not state.broken
    return str(caught.value)


def tensors(state):
    return list(state.model.state_dict().values())


def test_everything_comes_back(tmp_path):
    model, again = network(), network()
    optimizer, fresh = adam(model), adam(again)
    trained(model, optimizer)
    state = perdure.TrainingState(model=model, optimizer=optimizer, epoch=7, best={"loss": 0.5}, name="x")
    state.step = 30
    other = perdure.TrainingState(model=again, optimizer=fresh, epoch=0, best=None, name="")
    restore(other, file_of(state, tmp_path))
    assert (other.step, other.epoch, other.best, other.name) == (30, 7, {"loss": 0.5}, "x")
    assert all(torch.equal(a, b) for a, b in zip(tensors(state), tensors(other)))
    assert optimizer_bits(fresh) == optimizer_bits(optimizer)


def test_values_are_filled_in_place(tmp_path):
    def make():
        return [1], {"a": 1}, {1}, torch.zeros(3), np.zeros(2), torch.zeros(2)

    values = make()
    names = ("losses", "config", "seen", "tensor", "array", "grows")
    state = perdure.TrainingState(**dict(zip(names, values)))
    state.losses.append(2)
    state.config["b"] = 2
    state.seen.add(5)
    state.tensor.fill_(3)
    state.array[:] = 4
    state.grows = torch.ones(9)
    run = file_of(state, tmp_path)
    held = make()
    other = perdure.TrainingState(**dict(zip(names, held)))
    restore(other, run)
    assert held[0] == [1, 2] and held[1] == {"a": 1, "b": 2} and held[2] == {1, 5}
    assert held[3].tolist() == [3, 3, 3] and held[4].tolist() == [4, 4]
    assert other.losses is held[0] and other.grows.tolist() == [1] * 9


def test_attributes():
    model = network()
    state = perdure.TrainingState(model=model, optimizer=None, epoch=0)
    state.epoch += 1
    state.step += 2
    assert (state.epoch, state.step, state.model) == (1, 2, model)
    with pytest.raises(AttributeError, match="epoc"):
        state.epoc
    with pytest.raises(AttributeError, match=r"state\.add\('epcoh'"):
        state.epcoh = 3
    with pytest.raises(AttributeError, match="cannot be replaced"):
        state.model = network()
    assert "epoch" in dir(state) and "step=2, model=Sequential" in repr(state)


@pytest.mark.parametrize("name", ["step", "rng", "add", "state_dict", "broken"])
def test_reserved_names(name):
    with pytest.raises(perdure.InvalidError, match=name):
        perdure.TrainingState(**{name: 1})


def test_names_are_taken_once():
    state = perdure.TrainingState(epoch=1)
    with pytest.raises(perdure.InvalidError, match="epoch"):
        state.add("epoch", 2)
    assert state.epoch == 1


@pytest.mark.parametrize("thing", [frozenset(), object(), nn.Linear, lambda: 1])
def test_unsuitable_things(thing):
    with pytest.raises(perdure.InvalidError, match="thing"):
        perdure.TrainingState(thing=thing)


def test_module_without_optimizer(tmp_path):
    state = perdure.TrainingState(model=network())
    with pytest.raises(perdure.InvalidError, match="optimizer=None|optimizer"):
        state.state_dict()
    perdure.TrainingState(model=network(), optimizer=None).state_dict()


def test_state_dict_is_plain_data(path):
    model = network()
    state = perdure.TrainingState(model=model, optimizer=adam(model), epoch=1)
    perdure.save(state.state_dict(), path)
    loaded = torch.load(path)
    assert loaded.keys() == {"model", "optimizer", "epoch", "step", "rng"}
    assert loaded["rng"].keys() >= {"torch", "python", "numpy"}
    state.epoch = 5
    state.load_state_dict(perdure.load(path))
    assert state.epoch == 1


# random numbers


def draw():
    return random.random(), np.random.standard_normal(), torch.rand(1).item()


def test_rng(tmp_path):
    np.random.standard_normal()  # leaves a cached Gaussian behind
    state = perdure.TrainingState()
    run = file_of(state, tmp_path)
    expected = draw()
    random.seed(99), np.random.seed(99), torch.manual_seed(99)
    restore(state, run)
    assert draw() == expected


def test_own_generators(tmp_path):
    def make(seed):
        generators = torch.Generator().manual_seed(seed), random.Random(seed), np.random.default_rng(seed)
        return perdure.TrainingState(t=generators[0], p=generators[1], n=generators[2])

    def numbers(state):
        return torch.rand(2, generator=state.t).tolist(), state.p.random(), state.n.random()

    state, other = make(1), make(2)
    numbers(state)
    run = file_of(state, tmp_path)
    restore(other, run)
    assert numbers(other) == numbers(state)


def test_grad_scaler_and_own_classes(tmp_path):
    class Sampler:
        def __init__(self):
            self.position = 0

        def state_dict(self):
            return {"position": self.position}

        def load_state_dict(self, state):
            self.position = state["position"]

    def start():
        return perdure.TrainingState(scaler=torch.amp.GradScaler("cpu", init_scale=8.0), sampler=Sampler())

    state, other = start(), start()
    state.sampler.position = 12
    restore(other, file_of(state, tmp_path))
    assert other.sampler.position == 12 and other.scaler.state_dict() == state.scaler.state_dict()


# modules that do not fit


def state_with(model, optimizer=None, **things):
    return perdure.TrainingState(model=model, optimizer=optimizer, **things)


def test_module_mismatches_are_all_listed(tmp_path):
    run = file_of(
        state_with(nn.ModuleDict({"a": nn.Linear(3, 4), "b": nn.Linear(2, 2), "old": nn.Linear(1, 1)})),
        tmp_path,
    )
    other = state_with(
        nn.ModuleDict({"a": nn.Linear(3, 5), "b": nn.Linear(2, 2).double(), "new": nn.Linear(1, 1)})
    )
    shapes = "\n  model.a.weight    wrong shape  float32 [4, 3]                  float32 [5, 3]\n"
    dtypes = "\n  model.b.weight    wrong dtype  float32 [2, 2]                  float64 [2, 2]\n"
    renamed = "\n  model.new.weight  missing      did you mean model.old.weight?  float32 [1, 1]\n"
    advice = "cast=True", 'rename={"model.old.*": "model.new.*"}', "strict=False"
    assert_refused(other, run, shapes, dtypes, renamed, *advice)


def test_not_strict_skips_names_but_not_shapes(tmp_path):
    run = file_of(state_with(nn.ModuleDict({"a": nn.Linear(3, 4), "old": nn.Linear(1, 1)})), tmp_path)
    other = state_with(nn.ModuleDict({"a": nn.Linear(3, 4), "new": nn.Linear(1, 1)}))
    restore(other, run, strict=False)
    assert_refused(state_with(nn.ModuleDict({"a": nn.Linear(3, 9)})), run, "[9, 3]", strict=False)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod."])
def test_wrapped_modules(tmp_path, prefix):
    class Wrapped(nn.Module):
        def __init__(self):
            super().__init__()
            self.add_module(prefix.strip("."), network())

    wrapped, plain, again = state_with(Wrapped()), state_with(network()), state_with(Wrapped())
    restore(plain, file_of(wrapped, tmp_path / "a"))
    restore(again, file_of(plain, tmp_path / "b"))
    for state in (plain, again):
        assert all(torch.equal(x, y) for x, y in zip(state.model.parameters(), wrapped.model.parameters(), strict=True))


class Tied(nn.Module):
    def __init__(self, tie):
        super().__init__()
        self.a, self.b = nn.Linear(3, 3), nn.Linear(3, 3)
        if tie:
            self.b.weight = self.a.weight


def test_tied_weights(tmp_path):
    state, other = state_with(Tied(True)), state_with(Tied(True))
    restore(other, file_of(state, tmp_path))
    assert torch.equal(other.model.b.weight, state.model.a.weight)


def test_two_values_for_one_tied_weight(tmp_path):
    assert_refused(
        state_with(Tied(True)),
        file_of(state_with(Tied(False)), tmp_path),
        "model: a.weight and b.weight",
        "tied",
    )


def test_things_that_only_one_side_has(tmp_path):
    run = file_of(state_with(network(), extra=1), tmp_path)
    assert_refused(state_with(network(), other=1), run, "extra", "other")
    other = state_with(network(), other=1)
    restore(other, run, strict=False)
    assert other.other == 1


def test_forgotten_optimizer_is_named(tmp_path):
    model = network()
    run = file_of(state_with(model, adam(model)), tmp_path)
    assert_refused(state_with(network()), run, "optimizer")


# optimizers


def test_class_must_be_the_same(tmp_path):
    model, again = network(), network()
    run = file_of(state_with(model, adam(model, torch.optim.Adam)), tmp_path)
    assert_refused(state_with(again, adam(again, torch.optim.AdamW)), run, "Adam", "AdamW")


def test_class_of_a_foreign_file(tmp_path, path):
    model, again = network(), network()
    state = state_with(model, adam(model, torch.optim.Adam))
    torch.save({k: v for k, v in state.state_dict().items() if k != "rng"}, path)
    for cls in (torch.optim.AdamW, torch.optim.SGD):
        assert_refused(
            state_with(again, adam(again, cls)), tmp_path / "new", "optimizer", cls.__name__, path=path
        )
    restore(state_with(again, adam(again, torch.optim.Adam)), tmp_path / "new", path=path, strict=False)


def test_parameters_in_another_order(tmp_path):
    model, again = network(), network()
    optimizer = torch.optim.AdamW(
        [
            {"params": [model[0].weight, model[0].bias]},
            {"params": [model[2].weight, model[2].bias], "lr": 0.5},
        ]
    )
    fresh = torch.optim.AdamW(
        [{"params": [again[0].bias, again[0].weight]}, {"params": [again[2].weight, again[2].bias]}]
    )
    trained(model, optimizer)
    restore(state_with(again, fresh), file_of(state_with(model, optimizer), tmp_path))
    for p, q in zip(model.parameters(), again.parameters()):
        if p in optimizer.state:
            assert torch.equal(optimizer.state[p]["exp_avg"], fresh.state[q]["exp_avg"])
    assert fresh.param_groups[1]["lr"] == 0.5


def test_groups_that_do_not_match_are_a_table(tmp_path):
    model, again = network(), network()
    optimizer = torch.optim.SGD(
        [{"params": [model[0].weight, model[0].bias]}, {"params": [model[2].weight]}], lr=0.1
    )
    fresh = torch.optim.SGD(
        [{"params": [again[0].weight]}, {"params": [again[2].weight, again[2].bias, again[0].bias]}], lr=0.1
    )
    text = assert_refused(
        state_with(again, fresh), file_of(state_with(model, optimizer), tmp_path), "in the file"
    )
    assert "model.0.weight" not in text  # it is where it was
    assert "model.0.bias  group 0      group 1 [5]  moved from group 0 to 1: keeps its momentum" in text
    assert "model.2.bias  -            group 1 [2]  new: starts without momentum" in text


def test_group_count_without_names(tmp_path):
    loose = [nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(3))]
    run = file_of(perdure.TrainingState(optimizer=torch.optim.SGD(loose, lr=0.1)), tmp_path)
    other = perdure.TrainingState(optimizer=torch.optim.SGD(loose[:1], lr=0.1))
    with pytest.raises(perdure.InvalidError, match=r"(?s)2 parameters +1 parameter \[2\].*Register the modules"):
        restore(other, run)


def test_state_of_another_shape(tmp_path):
    a, b = [nn.Parameter(torch.ones(2))], [nn.Parameter(torch.ones(3))]
    optimizer = torch.optim.Adam(a)
    a[0].grad = torch.ones(2)
    optimizer.step()
    run = file_of(perdure.TrainingState(optimizer=optimizer), tmp_path)
    with pytest.raises(perdure.InvalidError, match=r"parameter 0 +\[2\] +\[3\]"):
        restore(perdure.TrainingState(optimizer=torch.optim.Adam(b)), run)


def test_fp32_moments_of_bf16_parameters(tmp_path):
    """Optimizer.load_state_dict casts them to bf16; what it lost is put back."""
    model, again = network(torch.bfloat16), network(torch.bfloat16)
    optimizer, fresh = adam(model), adam(again)
    trained(model, optimizer, 1)
    for p in model.parameters():
        optimizer.state[p]["exp_avg"] = torch.randn(p.shape)
    restore(state_with(again, fresh), file_of(state_with(model, optimizer), tmp_path))
    assert all(fresh.state[p]["exp_avg"].dtype == torch.float32 for p in again.parameters())
    assert optimizer_bits(fresh) == optimizer_bits(optimizer)


# foreign files, failures half way


def test_from_plain_torch_save(tmp_path, path):
    model, again = network(), network()
    optimizer, fresh = adam(model), adam(again)
    trained(model, optimizer)
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "epoch": 4}, path)
    state = perdure.TrainingState(model=again, optimizer=fresh, epoch=0)
    with pytest.raises(perdure.InvalidError, match="rng"):
        restore(state, tmp_path / "run", path=path)
    restore(state, tmp_path / "run", path=path, strict=False)
    assert state.epoch == 4 and optimizer_bits(fresh) == optimizer_bits(optimizer)


class Stubborn:
    """Fails when its state is loaded, as long as it is told to."""

    fails = False

    def state_dict(self):
        return {}

    def load_state_dict(self, state):
        if self.fails:
            raise ZeroDivisionError("half way")


def test_broken_state_is_not_saved(tmp_path):
    state = perdure.TrainingState(epoch=1, stubborn=Stubborn())
    run = file_of(state, tmp_path)
    state.stubborn.fails = True
    with perdure.CheckpointManager(run, on_error="raise") as checkpoints:
        with pytest.raises(perdure.InvalidError, match='"stubborn" could not .*ZeroDivisionError: half way'):
            checkpoints.restore(state)
        assert state.broken and "broken" in repr(state)
        with pytest.raises(perdure.InvalidError, match="restore"):
            checkpoints.save(state)
        assert checkpoints.all_steps() == [0]
        state.stubborn.fails = False
        checkpoints.restore(state)
        assert not state.broken
        checkpoints.save(state).wait()


class Trainer:
    """Of a class of the user's own."""

    def state_dict(self):
        return {"count": 1}

    def load_state_dict(self, state_dict):
        pass


def test_it_goes_when_nobody_has_it(tmp_path):
    """Nothing of a training stays in memory because it was registered, saved or restored once."""

    def train():
        model = nn.Linear(3, 2)
        optimizer = torch.optim.AdamW(model.parameters())
        state = perdure.TrainingState(
            model=model, optimizer=optimizer, scheduler=torch.optim.lr_scheduler.StepLR(optimizer, 1), trainer=Trainer(),
            generator=torch.Generator(), numpy=np.random.default_rng(), python=random.Random(), epoch=0, values=[torch.ones(2)],
            loader=perdure.ResumableLoader(torch.utils.data.DataLoader(range(8), batch_size=2)),
        )  # fmt: skip
        with perdure.CheckpointManager(tmp_path, capture="overlapped") as checkpoints:
            checkpoints.restore(state)
            model(torch.ones(1, 3)).sum().backward()
            optimizer.step()
            checkpoints.save(state)
            for _ in state.loader:
                pass
        state.load_state_dict(state.state_dict())
        return [weakref.ref(thing) for thing in (state, model, optimizer, state.trainer, state.loader, state.values[0])]

    for _ in range(2):
        left = train()
        gc.collect()
        assert [ref() for ref in left] == [None] * len(left)
