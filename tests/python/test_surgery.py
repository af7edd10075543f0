"""Optimizers whose parameters are not those of the file: what has a name on both sides keeps its momentum, bit for
bit, and a table says what becomes of the rest."""

import logging

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

import perdure

OPTIMIZERS = {
    "SGD": lambda params: torch.optim.SGD(params, lr=0.1, momentum=0.9),
    "Adam": lambda params: torch.optim.Adam(params, lr=0.1),
    "AdamW": lambda params: torch.optim.AdamW(params, lr=0.1),
    "RMSprop": lambda params: torch.optim.RMSprop(params, lr=0.1, momentum=0.9),
    "Adagrad": lambda params: torch.optim.Adagrad(params, lr=0.1),
}


class Chain(nn.Module):
    """Layers of one size, by name."""

    def __init__(self, layers):
        super().__init__()
        for name in layers:
            setattr(self, name, nn.Linear(3, 3))

    def forward(self, x):
        for layer in self.children():
            x = torch.tanh(layer(x))
        return x


def groups_of(model, names):
    params = dict(model.named_parameters())
    return [{"params": [params[n] for n in group]} for group in names]


def plain(model):
    """An optimizer from a list that has no names: what most people write."""
    return list(model.parameters())


def train(model, optimizer, steps):
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.randn(4, 3)).sum().backward()
        optimizer.step()


def momentum(model, optimizer):
    """State by parameter name and key, as it is now."""
    return {
        n: {k: x.clone() for k, x in optimizer.state[p].items()}
        for n, p in model.named_parameters()
        if p in optimizer.state
    }


def same(a, b):
    return a.keys() == b.keys() and all(perdure.bits.same_bits(x, b[k]) for k, x in a.items())


def assert_survivors_kept(before, after, names):
    survivors = [n for n in names if n in before]
    assert survivors
    for name in survivors:
        assert same(before[name], after[name]), name


class Run:
    """A run directory with one checkpoint of `state`."""

    def __init__(self, directory, state):
        self.directory = directory
        with perdure.CheckpointManager(directory) as checkpoints:
            checkpoints.save(state).wait()

    def restore(self, state, **options):
        with perdure.CheckpointManager(self.directory) as checkpoints:
            return checkpoints.restore(state, **options)


# Layers and groups in the file and here, whether that fits a strict restore, and the table.
SURGERIES = {
    "add": ("ab", plain, "abc", plain, """
    parameter       in the file  here            what happened
    model.c.weight  -            group 0 [3, 3]  new: starts without momentum
    model.c.bias    -            group 0 [3]     new: starts without momentum
    and 4 others keep their momentum"""),
    "add in front": ("bc", plain, "abc", plain, """
    parameter       in the file  here            what happened
    model.a.weight  -            group 0 [3, 3]  new: starts without momentum
    model.a.bias    -            group 0 [3]     new: starts without momentum
    and 4 others keep their momentum"""),
    "remove": ("abc", plain, "ac", plain, """
    parameter       in the file     here  what happened
    model.b.weight  group 0 [3, 3]  -     not here: its momentum is dropped
    model.b.bias    group 0 [3]     -     not here: its momentum is dropped
    and 4 others keep their momentum"""),
    "split": ("ab", plain, "ab", lambda m: groups_of(m, [["a.weight", "b.weight"], ["a.bias", "b.bias"]]), """
    parameter     in the file  here         what happened
    model.a.bias  group 0 [3]  group 1 [3]  moved from group 0 to 1: keeps its momentum
    model.b.bias  group 0 [3]  group 1 [3]  moved from group 0 to 1: keeps its momentum
    and 2 others keep their momentum
    group 0: its options are those of this program, but lr is that of group 0 in the file
    group 1: its options are those of this program, but lr is that of group 0 in the file"""),
    "move": ("ab", lambda m: groups_of(m, [["a.weight", "a.bias"], ["b.weight", "b.bias"]]),
             "ab", lambda m: groups_of(m, [["a.weight", "a.bias", "b.bias"], ["b.weight"]]), """
    parameter     in the file  here         what happened
    model.b.bias  group 1 [3]  group 0 [3]  moved from group 1 to 0: keeps its momentum
    and 3 others keep their momentum"""),
    "reorder": ("abc", plain, "abc", lambda m: list(m.parameters())[::-1], ""),
    "define in another order": ("abc", plain, "cab", plain, ""),
}  # fmt: skip


@pytest.mark.parametrize("steps_before", [0, 2], ids=["fresh", "trained"])
@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("surgery", SURGERIES)
def test_survivors_keep_every_bit(tmp_path, caplog, surgery, kind, steps_before):
    layers, groups, own_layers, own_groups, table = SURGERIES[surgery]
    model, own = Chain(layers), Chain(own_layers)
    optimizer, own_optimizer = OPTIMIZERS[kind](groups(model)), OPTIMIZERS[kind](own_groups(own))
    train(model, optimizer, 3)
    train(own, own_optimizer, steps_before)
    state = perdure.TrainingState(model=own, optimizer=own_optimizer)
    run = Run(tmp_path, perdure.TrainingState(model=model, optimizer=optimizer))
    if table:
        with pytest.raises(perdure.InvalidError) as caught:
            run.restore(state)
        assert "optimizer: its parameters are not those of the file:" in str(caught.value)
        assert "strict=False does what the last column says" in str(caught.value)
    run.restore(state, strict=not table)
    assert_survivors_kept(momentum(model, optimizer), momentum(own, own_optimizer), momentum(own, own_optimizer))
    told = [r.getMessage() for r in caplog.records if "its parameters are not" in r.getMessage()]
    assert len(told) == bool(table)
    has_state = steps_before or kind == "Adagrad"
    if table and not ("add" in surgery and has_state):
        assert told[0] == "optimizer: its parameters are not those of the file (strict=False):" + table
    train(own, own_optimizer, 1)


@pytest.mark.parametrize("in_place", [True, False])
def test_a_reordered_optimizer_is_read_in_place(tmp_path, in_place):
    model, own = Chain("abc"), Chain("abc")
    optimizer = torch.optim.Adam(model.parameters())
    own_optimizer = torch.optim.Adam(list(own.parameters())[::-1])
    train(model, optimizer, 2)
    train(own, own_optimizer, 1)
    places = {p: own_optimizer.state[p]["exp_avg"].data_ptr() for p in own.parameters()}
    run = Run(tmp_path, perdure.TrainingState(model=model, optimizer=optimizer))
    run.restore(perdure.TrainingState(model=own, optimizer=own_optimizer), strict=in_place)
    assert_survivors_kept(momentum(model, optimizer), momentum(own, own_optimizer), dict(own.named_parameters()))
    kept = [own_optimizer.state[p]["exp_avg"].data_ptr() == place for p, place in places.items()]
    assert all(kept) if in_place else not all(kept)


def test_what_the_file_lacks_stays_as_it_is(tmp_path):
    model, own = Chain("a"), Chain("ab")
    optimizer, own_optimizer = (torch.optim.Adagrad(m.parameters()) for m in (model, own))
    train(model, optimizer, 2)
    train(own, own_optimizer, 1)
    before = momentum(own, own_optimizer)
    Run(tmp_path, perdure.TrainingState(model=model, optimizer=optimizer)).restore(
        perdure.TrainingState(model=own, optimizer=own_optimizer), strict=False
    )
    after = momentum(own, own_optimizer)
    assert same(before["b.weight"], after["b.weight"])
    assert same(momentum(model, optimizer)["a.weight"], after["a.weight"])


def test_a_parameter_of_another_shape_starts_anew(caplog):
    a, b = nn.Linear(3, 4), nn.Linear(3, 5)
    optimizer, own_optimizer = torch.optim.Adam(a.parameters()), torch.optim.Adam(b.parameters())
    a(torch.ones(3)).sum().backward()
    optimizer.step()
    saved = perdure.TrainingState(model=a, optimizer=optimizer)
    value = saved._captured()
    recorded = saved._state.optimizers()["optimizer"]
    for strict in (True, False):
        aligned, problems, notes = _entry(b, own_optimizer).align(
            _optimizer_in(value), recorded, [(id(p), f"model.{n}") for n, p in b.named_parameters()], strict
        )
        text = (problems or notes)[0]
        assert "shape [4, 3] in the file, [5, 3] here: starts without momentum" in text
        assert bool(problems) == strict
    own_optimizer.load_state_dict(perdure.values.decode(aligned))
    assert not own_optimizer.state


def _entry(model, optimizer):
    return perdure.optimizers.OptimizerEntry("optimizer", optimizer)


def _optimizer_in(value):
    return next(x for k, x in value.entries() if k.scalar() == "optimizer")


def test_another_model_is_an_error(tmp_path):
    model, own = Chain("ab"), Chain("cd")
    run = Run(tmp_path, perdure.TrainingState(model=model, optimizer=torch.optim.Adam(model.parameters())))
    state = perdure.TrainingState(model=own, optimizer=torch.optim.Adam(own.parameters()))
    for strict in (True, False):
        with pytest.raises(perdure.InvalidError, match="optimizer: none of its parameters is in the file"):
            run.restore(state, strict=strict)


def test_lbfgs_takes_the_same_parameters_in_the_same_order(tmp_path):
    model, own = Chain("ab"), Chain("ab")

    def make(params):
        return torch.optim.LBFGS(params, max_iter=2)

    optimizer = make(model.parameters())
    optimizer.step(lambda: _loss(model))
    run = Run(tmp_path, perdure.TrainingState(model=model, optimizer=optimizer))
    for params in (plain(own)[::-1], plain(own)[:-1]):
        with pytest.raises(perdure.InvalidError, match="LBFGS has one history for all its parameters together"):
            run.restore(perdure.TrainingState(model=own, optimizer=make(params)), strict=False)
    fresh = make(own.parameters())
    run.restore(perdure.TrainingState(model=own, optimizer=fresh))
    key = next(iter(fresh.state))
    assert torch.equal(fresh.state[key]["d"], optimizer.state[next(iter(optimizer.state))]["d"])


def _loss(model):
    model.zero_grad()
    loss = model(torch.ones(2, 3)).square().sum()
    loss.backward()
    return loss


def test_a_foreign_file_with_pytorchs_names(tmp_path, path):
    model, own = Chain("abc"), Chain("acd")
    optimizer = torch.optim.AdamW(model.named_parameters(), lr=0.5)
    train(model, optimizer, 2)
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, path)
    for own_optimizer in (torch.optim.AdamW(own.parameters()), torch.optim.AdamW(own.named_parameters())):
        state = perdure.TrainingState(model=own, optimizer=own_optimizer)
        with perdure.CheckpointManager(tmp_path / "run") as checkpoints:
            checkpoints.restore(state, path=path, strict=False)
        names = ["a.weight", "a.bias", "c.weight", "c.bias"]
        assert_survivors_kept(momentum(model, optimizer), momentum(own, own_optimizer), names)
        assert "d.weight" not in momentum(own, own_optimizer)
        assert own_optimizer.param_groups[0]["lr"] == 0.5
        own_names = own_optimizer.param_groups[0].get("param_names", [])
        assert own_names in ([], [n for n, _ in own.named_parameters()])
        train(own, own_optimizer, 1)


def test_wrapped_modules_name_the_same_parameters(tmp_path):
    model, own = Chain("ab"), Chain("ab")
    optimizer, own_optimizer = torch.optim.Adam(model.parameters()), torch.optim.Adam(plain(own)[::-1])
    train(model, optimizer, 2)
    names = [(id(p), f"model.module._orig_mod.{n}") for n, p in own.named_parameters()]
    saved = perdure.TrainingState(model=model, optimizer=optimizer)
    aligned, problems, notes = _entry(own, own_optimizer).align(
        _optimizer_in(saved._captured()), saved._state.optimizers()["optimizer"], names, True
    )
    assert not problems and not notes
    own_optimizer.load_state_dict(perdure.values.decode(aligned))
    assert_survivors_kept(momentum(model, optimizer), momentum(own, own_optimizer), dict(own.named_parameters()))


@st.composite
def groupings(draw):
    """Some of eight parameters in some groups, in some order."""
    names = draw(st.permutations(range(8)))[: draw(st.integers(1, 8))]
    groups = [[] for _ in range(draw(st.integers(1, 4)))]
    for name in names:
        groups[draw(st.integers(0, len(groups) - 1))].append(name)
    return [g for g in groups if g]


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(groupings(), groupings())
def test_random_surgery(theirs, ours):
    params, own_params = ([nn.Parameter(torch.zeros(i + 1)) for i in range(8)] for _ in range(2))

    def make(params, groups):
        made = [{"params": [params[i] for i in g], "lr": k + 1.0, "weight_decay": k / 8} for k, g in enumerate(groups)]
        return torch.optim.Adam(made)

    def registered(params, optimizer):
        module = nn.ParameterDict({f"p{i}": p for i, p in enumerate(params)})
        return perdure.TrainingState(model=module, optimizer=optimizer)

    optimizer, own_optimizer = make(params, theirs), make(own_params, ours)
    for p in params:
        p.grad = torch.randn_like(p)
    optimizer.step()
    saved, state = registered(params, optimizer), registered(own_params, own_optimizer)
    here, there = ({i for g in groups for i in g} for groups in (ours, theirs))
    logging.getLogger("perdure").setLevel(logging.CRITICAL)
    try:
        value = saved._captured()
        with state._loading(value):
            options = perdure.state.match_options(strict=False, only=(), rename=None, cast=False)
            state._state.load_state_dict(value, saved._state.optimizers(), options)
    except perdure.InvalidError as error:
        assert not here & there and "none of its parameters is in the file" in str(error)
        return
    finally:
        logging.getLogger("perdure").setLevel(logging.NOTSET)
    for i in range(8):
        found = own_optimizer.state.get(own_params[i])
        if i in here & there:
            assert same(found, optimizer.state[params[i]])
        else:
            assert not found
    same_groups = sorted(map(sorted, theirs)) == sorted(map(sorted, ours))
    assert bool(state._state.notes) == (not same_groups)
    sources = {frozenset(g): k for k, g in enumerate(theirs)}
    for group, names in zip(own_optimizer.param_groups, ours):
        if same_groups:  # its options came along
            assert group["lr"] == sources[frozenset(names)] + 1
            assert group["weight_decay"] == sources[frozenset(names)] / 8
        elif set(names) & there:  # the rate of one of the groups that its parameters come from
            assert group["lr"] - 1 in [k for k, g in enumerate(theirs) if set(g) & set(names)]
