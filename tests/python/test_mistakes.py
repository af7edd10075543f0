"""The mistakes that users of PyTorch make most: each gets an error that names what to write instead.

(Passing the module or the optimizer itself to perdure.save: test_errors.py has more of that.)
"""

import pytest
import torch
from torch import nn

import perdure
from test_state import adam, file_of, network, restore


def said(function, *args, **options):
    with pytest.raises(perdure.InvalidError) as caught:
        function(*args, **options)
    return str(caught.value)


def trained(cls=torch.optim.AdamW, model=None):
    """A module and its optimizer with state."""
    model = model or network()
    optimizer = cls(model.parameters(), lr=0.1)
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step()
    return model, optimizer


def test_the_module_itself_instead_of_its_state_dict(path):
    assert "write its state_dict(): model.state_dict()" in said(perdure.save, network(), path)
    assert "model.state_dict()" in said(perdure.save, {"model": network()}, path)
    assert not path.exists()


def test_the_optimizer_itself_instead_of_its_state_dict(path):
    model = network()
    text = said(perdure.save, {"model": model.state_dict(), "optimizer": adam(model)}, path)
    assert "state['optimizer']" in text and "write its state_dict(): optimizer.state_dict()" in text


def test_a_scheduler_itself_instead_of_its_state_dict(path):
    scheduler = torch.optim.lr_scheduler.StepLR(adam(network()), 1)
    assert "scheduler.state_dict()" in said(perdure.save, {"scheduler": scheduler}, path)


def test_a_module_without_an_optimizer(tmp_path):
    state = perdure.TrainingState(model=network())
    with perdure.CheckpointManager(tmp_path) as checkpoints:
        text = said(checkpoints.save, state)
    assert "no optimizer" in text and "momentum" in text and "Python: optimizer=None" in text


def test_the_optimizer_forgotten_at_the_restore(tmp_path):
    model, optimizer = trained()
    run = file_of(perdure.TrainingState(model=model, optimizer=optimizer), tmp_path)
    text = said(restore, perdure.TrainingState(model=network(), optimizer=None), run)
    assert "\n  optimizer  unexpected  a dict" in text
    assert 'state.add("optimizer", ...)' in text and "strict=False" in text and "only=" in text


def test_all_that_nothing_takes_and_all_that_the_file_lacks_is_named(tmp_path):
    run = file_of(perdure.TrainingState(epoch=1, best=0.5, names=["a"]), tmp_path)
    text = said(restore, perdure.TrainingState(epoch=1, loss=0.5, seed=3), run)
    for row in ("best   unexpected  a float", "names  unexpected  a list", "loss   missing", "seed   missing"):
        assert f"\n  {row}" in text
    assert "epoch" not in text


def test_generators_of_the_other_language_are_kept(tmp_path, path):
    state = perdure.TrainingState(epoch=1)
    file = state.state_dict()
    file["rng"] = {"other": [1, 2]}  # as a C++ program has "torch" and no "python"
    perdure.save(file, path)
    restore(state, tmp_path / "run", path=path)
    assert state.state_dict()["rng"]["other"] == [1, 2]


CLASSIC = "loaded state dict contains a parameter group that doesn't match"


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize(
    "groups",
    [
        lambda m: [{"params": list(m[0].parameters())}, {"params": list(m[2].parameters())}],
        lambda m: [{"params": list(m[2].parameters())}],
        lambda m: [{"params": [*m.parameters(), nn.Parameter(torch.ones(2))]}],
    ],
)
def test_the_classic_text_about_parameter_groups_reaches_nobody(tmp_path, groups, strict):
    model, optimizer = trained()
    run = file_of(perdure.TrainingState(model=model, optimizer=optimizer), tmp_path)
    again = network()
    state = perdure.TrainingState(model=again, optimizer=torch.optim.AdamW(groups(again)))
    try:
        restore(state, run, strict=strict)
    except perdure.InvalidError as error:
        assert CLASSIC not in str(error) and "optimizer: " in str(error) and not state.broken


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
def test_keys_with_the_prefixes_of_wrappers(tmp_path, path, prefix):
    model = network()
    torch.save({"model": {prefix + k: v for k, v in model.state_dict().items()}}, path)
    state = perdure.TrainingState(model=network(), optimizer=None)
    restore(state, tmp_path / "run", path=path, only=["model"])
    assert all(torch.equal(a, b) for a, b in zip(state.model.parameters(), model.parameters(), strict=True))


def test_keys_with_a_prefix_that_no_wrapper_puts_there(tmp_path, path):
    model = network()
    torch.save({"model": {f"model.{k}": v for k, v in model.state_dict().items()}}, path)
    state = perdure.TrainingState(model=network(), optimizer=None)
    text = said(restore, state, tmp_path / "run", path=path, only=["model"])
    assert 'rename={"model.model.*": "model.*"}' in text
    restore(state, tmp_path / "run", path=path, only=["model"], rename={"model.model.*": "model.*"})
    assert torch.equal(state.model[0].weight, model[0].weight)


def test_a_state_dict_where_a_state_is_wanted(tmp_path):
    with perdure.CheckpointManager(tmp_path) as checkpoints:
        assert "state = perdure.TrainingState(" in said(checkpoints.restore, network().state_dict())
