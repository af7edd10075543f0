"""Modules and optimizers of a TrainingState, saved again and again: the same bytes as from nothing, and what is said
of their tensors."""

import gc
import weakref

import pytest
import torch

import perdure
from perdure import _core

LIVENESS = _core.Liveness


def file_of(value):
    """The file that would be written for it."""
    pieces = []
    _core.write_to(pieces.append, value, _core.CheckpointInfo())
    return b"".join(pieces)


def training(seed=0, groups=True, **options):
    torch.manual_seed(seed)
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 2))
    params = list(model.parameters())
    groups = [{"params": params[:2]}, {"params": params[2:], "weight_decay": 0.0}] if groups else params
    optimizer = torch.optim.AdamW(groups, lr=0.1, **options)
    step(model, optimizer)
    return model, optimizer


def step(model, optimizer):
    model(torch.ones(2, 3)).square().sum().backward()
    optimizer.step()
    optimizer.zero_grad()


def registered(model, optimizer, **more):
    return perdure.TrainingState(model=model, optimizer=optimizer, **more)


def expect_same_as_from_nothing(state, model, optimizer):
    assert file_of(state._captured()) == file_of(registered(model, optimizer)._captured())


def identities(state):
    return [value.identity for key, value in state._captured().entries() if key.scalar() in ("model", "optimizer")]


def tensors(value, path=()):
    """(path, tensor) of all below a value, in order."""
    if value.kind == _core.Kind.tensor:
        yield path, value.as_tensor()
    elif value.kind in (_core.Kind.dict, _core.Kind.ordered_dict):
        for key, item in value.entries():
            yield from tensors(item, (*path, key.scalar()))
    elif value.kind in (_core.Kind.list, _core.Kind.tuple):
        for i, item in enumerate(value.items()):
            yield from tensors(item, (*path, i))


def liveness(state, name):
    return {path[1:]: t.liveness for path, t in tensors(state._captured()) if path[0] == name}


def versions(state):
    return [encoder.versions() for encoder in state._encoders]


@pytest.fixture
def run():
    model, optimizer = training()
    state = registered(model, optimizer)
    state._captured()
    return state, model, optimizer


def test_what_is_unchanged_is_not_made_anew(run):
    state, model, optimizer = run
    if not hasattr(torch.Tensor, "__dlpack_c_exchange_api__"):
        pytest.skip("every time anew with this torch")
    before = identities(state)
    step(model, optimizer)
    optimizer.param_groups[0]["lr"] = 0.5
    assert identities(state) == before
    expect_same_as_from_nothing(state, model, optimizer)


def set_weight(model, optimizer, make):
    model[0].weight.data = make(model[0].weight.data)


CHANGES = {
    "nothing": lambda m, o: None,
    "a step": step,
    "a number": lambda m, o: o.param_groups[1].update(lr=7),
    "a number for none": lambda m, o: o.param_groups[0].update(foreach=True),
    "a number for a text": lambda m, o: o.param_groups[0].update(lr="fast"),
    "another text": lambda m, o: o.param_groups[0].update(note="b"),
    "the text of a storage": lambda m, o: o.param_groups[0].update(note="0"),
    "a complex number": lambda m, o: o.param_groups[0].update(z=complex(0.0, -0.0)),
    "a container for a number": lambda m, o: o.param_groups[0].update(lr=[1, 2]),
    "a tensor for a number": lambda m, o: o.param_groups[0].update(lr=torch.tensor(0.5)),
    "a new key": lambda m, o: o.param_groups[0].update(initial_lr=0.1),
    "a key less": lambda m, o: o.param_groups[0].pop("maximize"),
    "another order of keys": lambda m, o: o.param_groups[0].update(lr=o.param_groups[0].pop("lr")),
    "other parts that were one": lambda m, o: o.param_groups[0].update(betas=(0.9, float("0.999"))),
    "one part for two": lambda m, o: [g.update(extra=o.defaults) for g in o.param_groups],
    "other memory": lambda m, o: set_weight(m, o, torch.clone),
    "another dtype": lambda m, o: set_weight(m, o, torch.Tensor.double),
    "another shape": lambda m, o: set_weight(m, o, lambda w: w[:2]),
    "other strides": lambda m, o: set_weight(m, o, lambda w: w.t().contiguous().t()),
    "larger storage": lambda m, o: set_weight(m, o, lambda w: torch.zeros(100)[:12].view(4, 3)),
    "tied": lambda m, o: setattr(m[0], "bias", m[1].bias),
    "tied memory": lambda m, o: setattr(m[0].bias, "data", m[1].bias.data),
    "a state less": lambda m, o: o.state.pop(m[0].weight),
    "no state": lambda m, o: o.state.clear(),
    "a state that is loaded": lambda m, o: o.load_state_dict(o.state_dict()),
    "a state tensor twice": lambda m, o: o.state[m[0].weight].update(again=o.state[m[0].weight]["exp_avg"]),
    "a layer more": lambda m, o: m.append(torch.nn.Linear(2, 2)),
    "a buffer more": lambda m, o: m.register_buffer("extra", torch.ones(3)),
    "a buffer less": lambda m, o: setattr(m[1], "running_mean", None),
    "a buffer that is complex": lambda m, o: m.register_buffer("z", torch.ones(2, dtype=torch.complex64).conj()),
    "a buffer that is negated": lambda m, o: m.register_buffer("n", torch.ones(2, dtype=torch.complex64).conj().imag),
    "an empty buffer": lambda m, o: m.register_buffer("none", torch.empty(0, 3)),
    "a part of a buffer": lambda m, o: m.register_buffer("part", torch.arange(9.0).view(3, 3)[:, 1]),
    "frozen": lambda m, o: m.requires_grad_(False),
    "a hook that copies": lambda m, o: m.register_state_dict_post_hook(
        lambda module, sd, prefix, meta: sd.update({k: v.clone() for k, v in sd.items()})
    ),
    "a hook that renames": lambda m, o: m.register_state_dict_post_hook(
        lambda module, sd, prefix, meta: sd.update({"new": sd.pop("0.weight")})
    ),
}  # fmt: skip


@pytest.mark.parametrize("second", CHANGES)
@pytest.mark.parametrize("first", ["nothing", "another text", "a tensor for a number", "a hook that copies", "tied"])
def test_bytes_are_those_of_a_first_save(run, first, second):
    state, model, optimizer = run
    for change in (first, second, "nothing"):
        CHANGES[change](model, optimizer)
        expect_same_as_from_nothing(state, model, optimizer)
    expect_same_as_from_nothing(state, model, optimizer)


def test_what_cannot_be_saved_is_said_each_time(run):
    state, model, optimizer = run
    optimizer.state[model[0].weight]["exp_avg"].note = frozenset("mine")
    for _ in range(2):
        with pytest.raises(perdure.InvalidError, match=r"state\['optimizer'\]\['state'\]\[0\]\['exp_avg'\].*note"):
            state._captured()
    del optimizer.state[model[0].weight]["exp_avg"].note
    expect_same_as_from_nothing(state, model, optimizer)


def test_parameters_of_an_optimizer_are_stepped_and_buffers_live(run):
    state, model, optimizer = run
    found = liveness(state, "model")
    assert found[("0.weight",)] == found[("2.bias",)] == LIVENESS.stepped
    assert found[("1.running_mean",)] == found[("1.num_batches_tracked",)] == LIVENESS.live
    assert liveness(state, "model") == found  # the second time, too


def test_state_of_an_optimizer_is_stepped_and_its_tensor_lr_detached():
    model, optimizer = training()
    for group in optimizer.param_groups:
        group["lr"] = torch.tensor(0.1)
    state = registered(model, optimizer)
    for _ in range(2):
        found = liveness(state, "optimizer")
        assert {v for k, v in found.items() if k[0] == "state"} == {LIVENESS.stepped}
        assert found[("param_groups", 0, "lr")] == LIVENESS.detached


def test_what_no_optimizer_steps_is_live_and_the_rest_detached():
    model, _ = training()
    optimizer = torch.optim.AdamW(list(model.parameters())[:-1])
    average = torch.optim.swa_utils.AveragedModel(model)
    state = registered(model, optimizer, average=average, values=[torch.ones(2), model[0].weight])
    assert set(liveness(state, "average").values()) == {LIVENESS.live}
    assert set(liveness(state, "values").values()) == {LIVENESS.detached}
    assert set(liveness(state, "rng").values()) == {LIVENESS.detached}
    assert liveness(state, "model")[("2.bias",)] == LIVENESS.live


def test_copies_of_a_hook_are_detached(run):
    state, model, optimizer = run
    CHANGES["a hook that copies"](model, optimizer)
    assert set(liveness(state, "model").values()) == {LIVENESS.detached}


def test_a_slice_of_a_parameter_is_detached(run):
    state, model, optimizer = run
    model.register_state_dict_post_hook(lambda m, sd, p, meta: sd.update({"0.weight": sd["0.weight"][:2]}))
    assert liveness(state, "model")[("0.weight",)] == LIVENESS.detached


def test_an_optimizer_that_hands_out_copies_is_detached():
    model, optimizer = training()
    optimizer.register_state_dict_post_hook(
        lambda o, sd: {**sd, "state": {k: {n: t.clone() for n, t in v.items()} for k, v in sd["state"].items()}}
    )
    state = registered(model, optimizer)
    assert set(liveness(state, "optimizer").values()) == {LIVENESS.detached}


def test_an_optimizer_that_hands_out_other_dicts_is_stepped():
    model, optimizer = training()
    optimizer.register_state_dict_post_hook(
        lambda o, sd: {**sd, "state": {k: dict(v) for k, v in sd["state"].items()}}
    )
    state = registered(model, optimizer)
    assert set(liveness(state, "optimizer").values()) == {LIVENESS.stepped}


@pytest.mark.parametrize("saves", [1, 2])
def test_versions_tell_what_was_written_to(run, saves):
    state, model, optimizer = run
    for _ in range(saves):
        state._captured()
    stepped = [t for _, t in tensors(state._captured()) if t.liveness == LIVENESS.stepped]
    before = versions(state)
    assert sum(map(len, before)) == len(stepped)
    assert versions(state) == before
    with torch.no_grad():
        model[2].weight.add_(1)
    assert [a != b for a, b in zip(versions(state)[0], before[0])] == [False, False, False, False, True, False]
    before = versions(state)
    optimizer.state[model[0].bias]["exp_avg"].mul_(2)
    changed = [a != b for a, b in zip(versions(state)[1], before[1])]
    assert [i for i, x in enumerate(changed) if x] == [4]  # step, exp_avg, exp_avg_sq of each


def test_temporary_tensors_are_not_kept(run):
    state, model, optimizer = run
    made = []

    def copies(module, state_dict, prefix, metadata):
        for key in state_dict:
            state_dict[key] = state_dict[key].clone()
            made.append(weakref.ref(state_dict[key].untyped_storage()))

    model.register_state_dict_post_hook(copies)
    for _ in range(2):
        state._captured()
        gc.collect()
        assert made and not any(ref() is not None for ref in made)


def test_a_load_lets_go_of_what_was_there_before(run):
    state, model, optimizer = run
    old = weakref.ref(optimizer.state[model[0].weight]["exp_avg"])
    state._captured()
    state.load_state_dict(state.state_dict())
    gc.collect()
    assert old() is None


def test_names_are_those_of_pytorch():
    model, optimizer = training(groups=False)
    model.tied = model[0]
    info = registered(model, optimizer)._state.optimizers()["optimizer"]
    assert info.class_name == "AdamW"
    own = {id(p): n for n, p in reversed(list(model.named_parameters(remove_duplicate=False)))}
    assert info.param_names == [[f"model.{own[id(p)]}" for p in model.parameters()]]


def test_names_of_a_module_that_names_them_itself():
    class Wrapped(torch.nn.Linear):
        def named_parameters(self, *args, **kwargs):
            return ((f"mine.{n}", p) for n, p in super().named_parameters(*args, **kwargs))

    model = Wrapped(2, 2)
    optimizer = torch.optim.SGD(model.parameters())
    info = registered(model, optimizer)._state.optimizers()["optimizer"]
    assert info.param_names == [["model.mine.weight", "model.mine.bias"]]
