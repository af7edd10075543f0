"""Restoring into something that changed: strict, only, rename, cast, and the table that says what does not fit."""

import logging

import pytest
import torch
from torch import nn

import perdure
from test_state import adam, assert_refused, file_of, network, restore, state_with


def named(*names):
    """A module with a Linear(2, 3) under each name."""
    return nn.ModuleDict({name: nn.Linear(2, 3) for name in names})


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


# only


def test_only_an_entry(tmp_path):
    model = network()
    saved = state_with(model, adam(model), epoch=7)
    saved.step = 5
    run = file_of(saved, tmp_path)
    fresh = network()
    state = state_with(fresh, adam(fresh), epoch=0)
    before = torch.get_rng_state()
    restore(state, run, only=["model"])
    assert same(fresh.state_dict(), model.state_dict())
    assert state.epoch == 0 and state.step == 0 and not state.optimizer.state
    assert torch.equal(torch.get_rng_state(), before)
    restore(state, run, only=["ep*", "step"])
    assert state.epoch == 7 and state.step == 5


def test_only_some_tensors(tmp_path):
    saved = state_with(named("a", "b"))
    state = state_with(named("a", "b"))
    b = state.model.b.weight.detach().clone()
    run = file_of(saved, tmp_path)
    restore(state, run, only=["model.a.*"])
    assert torch.equal(state.model.a.weight, saved.model.a.weight) and torch.equal(state.model.b.weight, b)
    restore(state, run, only="model.b")  # a name stands for all that is below it
    assert same(state.model.state_dict(), saved.model.state_dict())


def test_what_is_not_named_is_no_problem_on_either_side(tmp_path):
    run = file_of(state_with(named("a", "gone"), scheduler=1), tmp_path)
    state = state_with(named("a", "new"), epoch=3)
    restore(state, run, only=["model.a.*"])
    assert state.epoch == 3
    assert_refused(state, run, "did you mean model.gone.weight?", only=["model"])


def test_only_what_is_not_there(tmp_path):
    run = file_of(state_with(named("a"), extra=1), tmp_path)
    state = state_with(named("a"), best=1)
    assert_refused(state, run, 'nothing here has such a name; did you mean "model"?', only=["modle"])
    assert_refused(state, run, '"model.a.weight"', "nothing here", only=["model.aa.*"])
    assert_refused(state, run, "nothing in the file has such a name", '"extra"', only=["best"])
    assert_refused(state, run, 'restored whole or not at all: write only=["best"]', only=["best.x"])


def test_only_part_of_a_broken_state_does_not_mend_it(tmp_path):
    class Sampler:
        def __init__(self):
            self.fails = False

        def state_dict(self):
            return {}

        def load_state_dict(self, state):
            if self.fails:
                raise OSError("no")

    state = perdure.TrainingState(epoch=1, sampler=Sampler())
    run = file_of(state, tmp_path)
    state.sampler.fails = True
    with pytest.raises(perdure.InvalidError, match='"sampler" could not take its state from the file: OSError: no'):
        restore(state, run)
    restore(state, run, only=["epoch"])
    assert state.broken
    state.sampler.fails = False
    restore(state, run)
    assert not state.broken


# rename


def test_rename_a_group(tmp_path):
    saved, state = state_with(named("old", "b")), state_with(named("new", "b"))
    restore(state, file_of(saved, tmp_path), rename={"model.old.*": "model.new.*"})
    assert torch.equal(state.model.new.weight, saved.model.old.weight)
    assert torch.equal(state.model.b.bias, saved.model.b.bias)


def test_rename_by_the_advice_of_the_error(tmp_path):
    saved = state_with(nn.ModuleDict({"layers": nn.ModuleList(named("attn", "mlp") for _ in range(12))}))
    state = state_with(nn.ModuleDict({"layers": nn.ModuleList(named("attention", "mlp") for _ in range(12))}))
    run = file_of(saved, tmp_path)
    rename = {"model.layers.*.attn.*": "model.layers.*.attention.*"}
    assert_refused(state, run, f"rename={rename}".replace("'", '"'))
    restore(state, run, rename=rename)
    for mine, theirs in zip(state.model["layers"], saved.model["layers"]):
        assert torch.equal(mine.attention.weight, theirs.attn.weight)


def test_rename_whole_entries_and_parameters_of_the_optimizer(tmp_path):
    model = named("old", "b")
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    saved = perdure.TrainingState(net=model, opt=adam(model), epochs=4)
    saved.opt.step()
    fresh = named("b", "new")  # another order: the names say which momentum is whose
    state = state_with(fresh, adam(fresh), epoch=0)
    rules = {"net.old": "model.new", "net": "model", "opt": "optimizer", "epochs": "epoch"}
    restore(state, file_of(saved, tmp_path), rename=rules)
    assert state.epoch == 4 and torch.equal(fresh.new.weight, model.old.weight)
    moment = saved.opt.state[model.old.weight]["exp_avg"]
    assert torch.equal(state.optimizer.state[fresh.new.weight]["exp_avg"], moment)


def test_rename_two_names_into_each_other(tmp_path):
    saved, state = state_with(named("a", "b")), state_with(named("a", "b"))
    restore(state, file_of(saved, tmp_path), rename={"model.a.*": "model.b.*", "model.b.*": "model.a.*"})
    assert torch.equal(state.model.a.weight, saved.model.b.weight)


def test_rules_that_are_wrong(tmp_path):
    run = file_of(state_with(named("a", "b")), tmp_path)
    state = state_with(named("a", "b"))
    unknown = 'nothing in the file has the name "model.aa.*"; did you mean "model.a'
    assert_refused(state, run, unknown, rename={"model.aa.*": "model.b.*"})
    assert_refused(state, run, '"model.a.weight" the name "model.b.weight"', rename={"model.a.*": "model.b.*"})
    assert_refused(state, run, "as many *", rename={"model.*": "model.x"})
    with pytest.raises(perdure.InvalidError, match="rename is a dict"):
        restore(state, run, rename=["model"])


def test_a_lightning_like_file(tmp_path, path):
    model = network()
    weights = {f"model.{k}": v for k, v in model.state_dict().items()}
    torch.save({"state_dict": weights, "optimizer_states": [1], "global_step": 9}, path)
    state = state_with(network())
    text = assert_refused(state, tmp_path / "new", "model", path=path)
    assert 'rename={"state_dict.model.*": "model.*"}' in text
    rename = {"state_dict.model.*": "model.*", "global_step": "step"}
    restore(state, tmp_path / "new", path=path, rename=rename, only=["model", "step"])
    assert same(state.model.state_dict(), model.state_dict()) and state.step == 9


def test_the_state_dict_of_a_module_as_a_file(tmp_path, path):
    model = network()
    torch.save(model.state_dict(), path)
    state = state_with(network(), epoch=1)
    text = assert_refused(state, tmp_path / "new", "model", path=path)
    assert 'rename={"*": "model.*"}, only=["model"]' in text
    restore(state, tmp_path / "new", path=path, rename={"*": "model.*"}, only=["model"])
    assert same(state.model.state_dict(), model.state_dict())


class Versioned(nn.Linear):
    """Tells which version its _metadata said."""

    _version = 3

    def _load_from_state_dict(self, state_dict, prefix, metadata, *rest):
        self.seen = metadata.get("version")
        super()._load_from_state_dict(state_dict, prefix, metadata, *rest)


@pytest.mark.parametrize("wrapped", [False, True])
def test_versions_of_modules_go_with_their_names(tmp_path, path, wrapped):
    model = nn.ModuleDict({"old": Versioned(2, 2)})
    saved = nn.DataParallel(model) if wrapped else model
    torch.save({"model": saved.state_dict()}, path)
    state = state_with(nn.ModuleDict({"new" if not wrapped else "old": Versioned(2, 2)}))
    rename = None if wrapped else {"model.old.*": "model.new.*"}
    restore(state, tmp_path / "new", path=path, rename=rename, only=["model"])
    assert next(iter(state.model.values())).seen == 3


# cast


FLOATS = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2]


@pytest.mark.parametrize("here", FLOATS[:4])
@pytest.mark.parametrize("in_file", FLOATS)
def test_cast_between_floats(tmp_path, in_file, here):
    saved, state = state_with(nn.Linear(3, 4)), state_with(nn.Linear(3, 4).to(here))
    saved.model.weight.data = saved.model.weight.data.to(in_file)
    saved.model.bias.data = saved.model.bias.data.to(in_file)
    run = file_of(saved, tmp_path)
    if in_file is not here:
        assert_refused(state, run, "model.weight  wrong dtype", "cast=True")
    restore(state, run, cast=True)
    assert state.model.weight.dtype is here
    assert torch.equal(state.model.weight, saved.model.weight.to(here))


def buffer(dtype):
    module = nn.Module()
    module.register_buffer("x", torch.ones(3, dtype=dtype))
    return module


SIGNED = [torch.int8, torch.int16, torch.int32, torch.int64]
INTEGERS = [torch.bool, torch.uint8, torch.uint16, torch.uint32, torch.uint64, *SIGNED]


def is_wider(here, in_file):
    if in_file is torch.bool or here is in_file:
        return True
    if here is torch.bool:
        return False
    a, b = torch.iinfo(in_file), torch.iinfo(here)
    return b.min <= a.min and a.max <= b.max


@pytest.mark.parametrize("in_file", INTEGERS)
def test_cast_of_integers_to_wider_ones(tmp_path, in_file):
    run = file_of(state_with(buffer(in_file)), tmp_path)
    for here in INTEGERS:
        state = state_with(buffer(here))
        if is_wider(here, in_file):
            restore(state, run, cast=True)
            assert state.model.x.tolist() == [1, 1, 1]
        else:
            assert_refused(state, run, "wrong dtype", "model.to(dtype)", cast=True)


@pytest.mark.parametrize(
    "in_file, here", [(torch.complex64, torch.float32), (torch.float32, torch.int64), (torch.int64, torch.float32)]
)
def test_other_kinds_of_number_are_not_cast(tmp_path, in_file, here):
    run = file_of(state_with(buffer(in_file)), tmp_path)
    text = assert_refused(state_with(buffer(here)), run, "wrong dtype", "model.to(dtype)")
    assert "cast=True converts" not in text
    assert_refused(state_with(buffer(here)), run, "wrong dtype", cast=True)


def test_cast_between_complex_numbers(tmp_path):
    state = state_with(buffer(torch.complex128))
    restore(state, file_of(state_with(buffer(torch.complex64)), tmp_path), cast=True)
    assert state.model.x.dtype is torch.complex128 and state.model.x.tolist() == [1, 1, 1]


# strict=False


def test_what_is_skipped_is_told_once(tmp_path, caplog):
    run = file_of(state_with(named("a", "gone"), extra=1), tmp_path)
    state = state_with(named("a", "new"), best=1)
    with caplog.at_level(logging.WARNING, "perdure"):
        restore(state, run, strict=False)
    (record,) = [r for r in caplog.records if "skipped" in r.message]
    for line in (
        "model.new.weight   missing",
        "best               missing",
        "model.gone.bias    unexpected",
        "extra              unexpected",
    ):
        assert line in record.message
    caplog.clear()
    restore(state_with(named("a", "gone"), extra=1), run, strict=False)
    assert not caplog.records


def test_not_strict_is_not_nothing(tmp_path):
    run = file_of(state_with(named("a")), tmp_path)
    assert_refused(state_with(named("b")), run, "none of its keys is in the file", strict=False)


# the table


def test_long_tables_are_cut(tmp_path):
    run = file_of(state_with(nn.Sequential(*(nn.Linear(1, 1) for _ in range(30)))), tmp_path)
    other = state_with(nn.Sequential(*(nn.Linear(1, 2) for _ in range(30))))
    text = assert_refused(other, run, "... and 40 more  wrong shape")
    assert text.count("\n") < 30


def test_every_kind_of_misfit_in_one_table(tmp_path):
    there = {"a": nn.Linear(3, 4), "b": nn.Linear(2, 2), "old": nn.Linear(5, 1), "x": nn.Linear(7, 7)}
    here = {"a": nn.Linear(3, 5), "b": nn.Linear(2, 2).half(), "new": nn.Linear(5, 1)}
    run = file_of(state_with(nn.ModuleDict(there)), tmp_path)
    text = assert_refused(state_with(nn.ModuleDict(here), epoch=1), run)
    assert text == (
        "the file does not fit this state, and nothing was changed:\n"
        "  name              what         in the file                     here\n"
        "  model.a.weight    wrong shape  float32 [4, 3]                  float32 [5, 3]\n"
        "  model.a.bias      wrong shape  float32 [4]                     float32 [5]\n"
        "  model.b.weight    wrong dtype  float32 [2, 2]                  float16 [2, 2]\n"
        "  model.b.bias      wrong dtype  float32 [2]                     float16 [2]\n"
        "  model.new.weight  missing      did you mean model.old.weight?  float32 [1, 5]\n"
        "  model.new.bias    missing      did you mean model.old.bias?    float32 [1]\n"
        "  epoch             missing      -                               registered\n"
        "  model.x.weight    unexpected   float32 [7, 7]                  -\n"
        "  model.x.bias      unexpected   float32 [7]                     -\n"
        "What can be done:\n"
        '  rename={"model.old.*": "model.new.*"} takes what has another name in the file\n'
        "  cast=True converts the dtype of a module's tensors\n"
        '  strict=False skips what only one side has, only=["name", ...] restores nothing but what it names'
    )


class Many(nn.Module):
    def __init__(self, count):
        super().__init__()
        for i in range(count):
            self.add_module(str(i), nn.Linear(1, 1, bias=False))


def test_many_renamed_keys_end_in_seconds():
    """A hundred thousand are in the engine's tests, without the time that torch takes to make them."""
    state = state_with(Many(10_000))
    file = state.state_dict()
    file["model"] = {f"old.{k}": v for k, v in file["model"].items()}
    with pytest.raises(perdure.InvalidError) as caught:
        state.load_state_dict(file)
    assert "... and 9980 more" in str(caught.value)
    assert 'rename={"model.old.*": "model.*"}' in str(caught.value)
    state.load_state_dict(file, rename={"model.old.*": "model.*"})
