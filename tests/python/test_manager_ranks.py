"""CheckpointManager with several ranks: what they save together, on how many they go on, and what becomes of failures."""

import json

import pytest
import torch
from ranks import run

import perdure

RANKS = 4


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    assert run(RANKS, "eager", "manager_ranks.save_all", folder) == ["saved"] * RANKS
    return folder


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_restored_on_any_number_and_across_wrappings(saved, size):
    said = run(size, "", "manager_ranks.load_all", saved)
    assert said == ["equal: %d" % {1: 8, 2: 32, 3: 24, 4: 32}[size]] * size


def test_goes_on_bit_for_bit(tmp_path):
    whole = run(RANKS, "fsdp", "manager_ranks.train", tmp_path / "whole")
    with pytest.raises(RuntimeError, match="-9"):
        run(RANKS, "fsdp", "manager_ranks.train", tmp_path / "killed", PERDURE_END="8")
    resumed = run(RANKS, "fsdp", "manager_ranks.train", tmp_path / "killed")
    for uninterrupted, after in zip(whole, resumed, strict=True):
        losses, rest = json.loads(uninterrupted), json.loads(after)
        assert list(rest) == [str(step) for step in range(6, 12)]
        assert rest.items() <= losses.items()


def test_a_dtensor_that_is_changed_before_the_step_fails_the_save(tmp_path):
    said = run(2, "", "manager_ranks.change_before_the_step", tmp_path)
    assert all("changed before they were copied" in text and "embedding" in text for text in said)
    assert said[0].startswith("rank 1: ")
