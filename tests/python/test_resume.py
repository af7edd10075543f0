"""Resumed means identical: the steps after a restore have the bits of a run that nothing happened to."""

import random

import numpy as np
import pytest
import torch
from torch import nn

import perdure

STEPS, STOP = 24, 11
DATA = torch.randn(64, 6, generator=torch.Generator().manual_seed(3))
LABELS = (DATA.sum(dim=1) > 0).long()


class Training:
    """Dropout, batch norm, data shuffled and noised from every generator, momentum, and a schedule."""

    def __init__(self, seed):
        torch.manual_seed(seed), random.seed(seed), np.random.seed(seed)
        self.model = nn.Sequential(
            nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, 2)
        )
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.05, momentum=0.9)
        self.scheduler = torch.optim.lr_scheduler.StepLR(self.optimizer, 5, 0.5)
        self.order = []
        self.losses = []

    def things(self):
        return {
            "model": self.model,
            "optimizer": self.optimizer,
            "scheduler": self.scheduler,
            "order": self.order,
            "losses": self.losses,
        }

    def batch(self):
        if not self.order:
            self.order.extend(torch.randperm(len(DATA)).tolist())
        chosen, self.order[:8] = self.order[:8], []
        noise = 0.01 * (random.random() + np.random.standard_normal())
        return DATA[chosen] + noise, LABELS[chosen]

    def step(self):
        x, y = self.batch()
        loss = nn.functional.cross_entropy(self.model(x), y)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.scheduler.step()
        self.losses.append(loss.item())

    def result(self):
        tensors = [t.numpy().tobytes() for t in self.model.state_dict().values()]
        momentum = [
            self.optimizer.state[p]["momentum_buffer"].numpy().tobytes() for p in self.model.parameters()
        ]
        return [x.hex() for x in self.losses], tensors, momentum, self.optimizer.param_groups[0]["lr"]


def run_through(steps):
    training = Training(seed=1)
    for _ in range(steps):
        training.step()
    return training


def save_at_stop(run):
    training = run_through(STOP)
    state = perdure.TrainingState(**training.things())
    state.step = STOP
    with perdure.CheckpointManager(run) as checkpoints:
        checkpoints.save(state)


def resume(run, without=()):
    """A new program (other seeds) that goes on from the checkpoint; `without` restoring some of it."""
    training = Training(seed=2)
    things = {k: v for k, v in training.things().items() if k not in without}
    state = perdure.TrainingState(**{"optimizer": None, **things})
    kept_rng = torch.get_rng_state(), random.getstate(), np.random.get_state()
    with perdure.CheckpointManager(run) as checkpoints:
        checkpoints.restore(state, strict=not without)
    if "rng" in without:
        torch.set_rng_state(kept_rng[0]), random.setstate(kept_rng[1]), np.random.set_state(kept_rng[2])
    for kind, put in (
        ("torch", torch.set_rng_state),
        ("python", random.setstate),
        ("numpy", np.random.set_state),
    ):
        if kind in without:
            put(kept_rng[("torch", "python", "numpy").index(kind)])
    while len(training.losses) < STEPS:
        training.step()
    return training


def test_resumed_is_identical(tmp_path):
    save_at_stop(tmp_path)
    assert resume(tmp_path).result() == run_through(STEPS).result()


@pytest.mark.parametrize(
    "part", ["model", "optimizer", "scheduler", "order", "rng", "torch", "python", "numpy"]
)
def test_that_the_test_can_see(tmp_path, part):
    """Leaving any part out makes the resumed run differ."""
    save_at_stop(tmp_path)
    training = resume(tmp_path, without=(part,))
    assert training.result() != run_through(STEPS).result()
    assert training.losses[:STOP] == run_through(STOP).losses


def test_leaving_out_is_an_error_unless_asked_for(tmp_path):
    save_at_stop(tmp_path)
    things = Training(seed=2).things()
    del things["optimizer"]
    state = perdure.TrainingState(**things, optimizer=None)
    with (
        perdure.CheckpointManager(tmp_path) as checkpoints,
        pytest.raises(perdure.InvalidError, match="optimizer"),
    ):
        checkpoints.restore(state)


def test_every_single_step_can_be_resumed_from(tmp_path):
    training = Training(seed=1)
    state = perdure.TrainingState(**training.things())
    with perdure.CheckpointManager(tmp_path, keep_last=STEPS) as checkpoints:
        for _ in range(STEPS):
            checkpoints.save(state)
            training.step()
            state.step += 1
    expected = training.result()
    for step in range(STEPS):
        again = Training(seed=step + 5)
        with perdure.CheckpointManager(tmp_path) as checkpoints:
            assert checkpoints.restore(perdure.TrainingState(**again.things()), step=step).step == step
        while len(again.losses) < STEPS:
            again.step()
        assert again.result() == expected
