"""Every scheduler and every optimizer of torch.optim goes on from a save in the middle as if nothing had happened."""

import functools
import inspect

import pytest
import torch
from states import assert_same
from torch import nn
from torch.amp import GradScaler
from torch.optim import lr_scheduler, swa_utils

import perdure

pytestmark = pytest.mark.filterwarnings("ignore")

STEPS, POINTS = 9, (0, 1, 5)


class Warmup:
    """A callable with state, which is part of the scheduler's state_dict."""

    def __init__(self):
        self.calls = 0

    def __call__(self, epoch):
        self.calls += 1
        return 1 / (1 + epoch + 0.1 * self.calls)


def one_after_the_other(o):
    return lr_scheduler.SequentialLR(o, [lr_scheduler.ConstantLR(o), lr_scheduler.ExponentialLR(o, 0.9)], [2])


SCHEDULERS = {
    "LambdaLR": lambda o: lr_scheduler.LambdaLR(o, lambda epoch: 0.9**epoch),
    "LambdaLR, a callable object": lambda o: lr_scheduler.LambdaLR(o, [Warmup(), Warmup()]),
    "MultiplicativeLR": lambda o: lr_scheduler.MultiplicativeLR(o, lambda epoch: 0.9 + 0.01 * epoch),
    "MultiplicativeLR, a callable object": lambda o: lr_scheduler.MultiplicativeLR(o, [Warmup(), lambda epoch: 0.5]),
    "StepLR": lambda o: lr_scheduler.StepLR(o, 3),
    "MultiStepLR": lambda o: lr_scheduler.MultiStepLR(o, [2, 5, 5]),
    "ConstantLR": lambda o: lr_scheduler.ConstantLR(o, 0.5, 5),
    "LinearLR": lambda o: lr_scheduler.LinearLR(o, 0.3, 1.0, 6),
    "ExponentialLR": lambda o: lr_scheduler.ExponentialLR(o, 0.9),
    "SequentialLR": one_after_the_other,
    "SequentialLR, nested": lambda o: lr_scheduler.SequentialLR(
        o, [one_after_the_other(o), lr_scheduler.StepLR(o, 1)], [4]
    ),
    "PolynomialLR": lambda o: lr_scheduler.PolynomialLR(o, 7, 2.0),
    "CosineAnnealingLR": lambda o: lr_scheduler.CosineAnnealingLR(o, 4, 1e-3),
    "ChainedScheduler": lambda o: lr_scheduler.ChainedScheduler(
        [lr_scheduler.ConstantLR(o, 0.5, 3), lr_scheduler.ExponentialLR(o, 0.8)]
    ),
    "ChainedScheduler, nested": lambda o: lr_scheduler.ChainedScheduler(
        [one_after_the_other(o), lr_scheduler.StepLR(o, 3)]
    ),
    "ReduceLROnPlateau": lambda o: lr_scheduler.ReduceLROnPlateau(o, patience=1, cooldown=1, threshold=0.5),
    "CyclicLR": lambda o: lr_scheduler.CyclicLR(o, 1e-3, 0.1, 2, 3, mode="exp_range", gamma=0.9),
    "CyclicLR, a callable object": lambda o: lr_scheduler.CyclicLR(o, 1e-3, 0.1, 2, 3, scale_fn=Warmup()),
    "CyclicLR, a lambda": lambda o: lr_scheduler.CyclicLR(o, 1e-3, 0.1, 2, 3, scale_fn=lambda x: 0.5 * x),
    "CosineAnnealingWarmRestarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 2, 2),
    "OneCycleLR": lambda o: lr_scheduler.OneCycleLR(o, [0.1, 0.2], total_steps=20, three_phase=True),
    "SWALR": lambda o: swa_utils.SWALR(o, 0.01, anneal_epochs=4),
}

OPTIMIZERS = {
    "Adadelta": torch.optim.Adadelta,
    "Adafactor": torch.optim.Adafactor,
    "Adagrad": torch.optim.Adagrad,
    "Adagrad, fused": functools.partial(torch.optim.Adagrad, fused=True),
    "Adam": functools.partial(torch.optim.Adam, amsgrad=True, weight_decay=0.1),
    "Adam, fused": functools.partial(torch.optim.Adam, fused=True),
    "AdamW": functools.partial(torch.optim.AdamW, maximize=True),
    "AdamW, fused": functools.partial(torch.optim.AdamW, amsgrad=True, fused=True),
    "AdamW, foreach": functools.partial(torch.optim.AdamW, foreach=True),
    "Adamax": torch.optim.Adamax,
    "ASGD": functools.partial(torch.optim.ASGD, t0=2),
    "LBFGS": functools.partial(torch.optim.LBFGS, max_iter=3, history_size=4),
    "LBFGS, line search": functools.partial(torch.optim.LBFGS, max_iter=3, line_search_fn="strong_wolfe"),
    "Muon": torch.optim.Muon,
    "NAdam": functools.partial(torch.optim.NAdam, decoupled_weight_decay=True),
    "RAdam": torch.optim.RAdam,
    "RMSprop": functools.partial(torch.optim.RMSprop, momentum=0.9, centered=True),
    "Rprop": torch.optim.Rprop,
    "SGD": torch.optim.SGD,
    "SGD, momentum": functools.partial(torch.optim.SGD, momentum=0.9, nesterov=True, foreach=True),
    "SGD, fused": functools.partial(torch.optim.SGD, momentum=0.9, fused=True),
    "SparseAdam": torch.optim.SparseAdam,
}


def classes_of(module, base):
    found = {n for n, c in vars(module).items() if inspect.isclass(c) and issubclass(c, base) and c is not base}
    return {name for name in found if not name.startswith("_")}


@pytest.mark.parametrize(
    "module, base, tested",
    [
        (lr_scheduler, lr_scheduler.LRScheduler, SCHEDULERS),
        (swa_utils, lr_scheduler.LRScheduler, SCHEDULERS),
        (torch.optim, torch.optim.Optimizer, OPTIMIZERS),
    ],
    ids=["lr_scheduler", "swa_utils", "optim"],
)
def test_none_is_left_out(module, base, tested):
    missing = classes_of(module, base) - {name.partition(",")[0] for name in tested}
    assert not missing, f"add to this file: {', '.join(sorted(missing))}"


def sgd(parameters):
    return torch.optim.SGD(parameters, lr=0.05, momentum=0.9)


class Sparse(nn.Module):
    """Has sparse gradients."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(20, 3, sparse=True)

    def forward(self, x):
        return self.table((10 * x.abs()).long() % 20).sum(dim=1)


class Loop:
    """One model, an optimizer with two parameter groups where it takes them, and a scheduler."""

    def __init__(self, seed, make_optimizer=sgd, make_scheduler=None):
        torch.manual_seed(seed)
        bias = make_optimizer is not torch.optim.Muon  # it takes matrices only
        sparse = make_optimizer is torch.optim.SparseAdam
        dense = nn.Sequential(nn.Linear(3, 4, bias), nn.Dropout(0.2), nn.Linear(4, 2, bias))
        self.model = Sparse() if sparse else dense
        first, *rest = self.model.parameters()
        alone = sparse or getattr(make_optimizer, "func", None) is torch.optim.LBFGS
        groups = [first, *rest] if alone else [{"params": [first]}, {"params": rest}]
        self.optimizer = make_optimizer(groups)
        self.scheduler = make_scheduler(self.optimizer) if make_scheduler else None
        things = {"scheduler": self.scheduler} if make_scheduler else {}
        self.state = perdure.TrainingState(model=self.model, optimizer=self.optimizer, **things)

    def step(self):
        x = torch.randn(5, 3)

        def loss():
            self.optimizer.zero_grad()
            value = self.model(x).square().mean()
            value.backward()
            return value

        value = self.optimizer.step(loss)
        if isinstance(self.scheduler, lr_scheduler.ReduceLROnPlateau):
            self.scheduler.step(value)
        elif self.scheduler:
            self.scheduler.step()
        self.state.step += 1

    def result(self):
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict() if self.scheduler else None,
        }


def check(directory, make):
    """A loop that is saved at every point of POINTS; each of its checkpoints goes on to the same end."""
    whole = make(1)
    with perdure.CheckpointManager(directory, keep_last=len(POINTS)) as checkpoints:
        for step in range(STEPS):
            if step in POINTS:
                checkpoints.save(whole.state)
            whole.step()
        checkpoints.wait()
        for point in POINTS:
            again = make(2 + point)
            checkpoints.restore(again.state, step=point)
            for _ in range(STEPS - point):
                again.step()
            assert_same(again.result(), whole.result())


@pytest.mark.parametrize("name", SCHEDULERS)
def test_schedulers(tmp_path, name):
    check(tmp_path, lambda seed: Loop(seed, make_scheduler=SCHEDULERS[name]))


@pytest.mark.parametrize("name", SCHEDULERS)
def test_schedulers_of_a_tensor(tmp_path, name):
    def adam(groups):
        return torch.optim.AdamW([{**group, "lr": torch.tensor(0.05)} for group in groups], foreach=False)

    check(tmp_path, lambda seed: Loop(seed, adam, SCHEDULERS[name]))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizers(tmp_path, name):
    check(tmp_path, lambda seed: Loop(seed, OPTIMIZERS[name]))


class Gan:
    """Two models, each with an optimizer and a schedule, one GradScaler for both, and an average of one of them."""

    def __init__(self, seed, device, enabled):
        torch.manual_seed(seed)
        self.make, self.judge = nn.Linear(4, 3), nn.Sequential(nn.Linear(3, 8), nn.Dropout(0.3), nn.Linear(8, 1))
        self.makes = torch.optim.Adam(self.make.parameters(), lr=0.01)
        self.judges = torch.optim.RMSprop(self.judge.parameters(), lr=0.01, momentum=0.5)
        self.schedules = [lr_scheduler.StepLR(o, 2) for o in (self.makes, self.judges)]
        self.scaler = GradScaler(device, init_scale=2.0**40, growth_interval=2, enabled=enabled)
        self.average = swa_utils.AveragedModel(self.make, multi_avg_fn=swa_utils.get_ema_multi_avg_fn(0.9))
        self.state = perdure.TrainingState(
            make=self.make, judge=self.judge, makes_optimizer=self.makes, judges_optimizer=self.judges,
            first=self.schedules[0], second=self.schedules[1], scaler=self.scaler, average=self.average,
        )  # fmt: skip

    def step(self):
        for optimizer, schedule, target in zip((self.makes, self.judges), self.schedules, (1.0, 0.0)):
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.float16 if self.state.step % 2 else torch.bfloat16):  # overflows at times
                loss = (self.judge(self.make(torch.randn(6, 4))) - target).square().mean()
            self.scaler.scale(loss).backward()
            self.scaler.step(optimizer)
            self.scaler.update()
            schedule.step()
        self.average.update_parameters(self.make)
        self.state.step += 1

    def result(self):
        return {name: thing.state_dict() for name, thing in self.state._things.items()}


@pytest.mark.parametrize("enabled", [True, False])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_several_of_each(tmp_path, device, enabled):
    check(tmp_path, lambda seed: Gan(seed, device, enabled))


def test_the_scaler_had_overflows():
    gan = Gan(1, "cpu", True)
    for _ in range(STEPS):
        gan.step()
    assert 1.0 < gan.scaler.get_scale() < 2.0**40
