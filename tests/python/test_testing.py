"""check_exact_resume: says yes to runs that go on exactly, and to others what is wrong with them."""

import time

import numpy
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

import perdure
from perdure.testing import NotExactError, _digest, check_exact_resume


def training(loader=None, noise=None, register=(), seed=1):
    torch.manual_seed(seed)
    numpy.random.seed(seed)
    model = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.Dropout(0.5), torch.nn.Linear(8, 1))
    optimizer = torch.optim.AdamW(model.parameters())
    data = DataLoader(TensorDataset(torch.randn(20, 3)), batch_size=4, shuffle=True, num_workers=0)
    data = loader(data) if loader else data
    state = perdure.TrainingState(model=model, optimizer=optimizer, epoch=0, **dict(register))
    if hasattr(data, "state_dict"):
        state.add("loader", data)

    def train():
        while state.epoch < 5:
            for (batch,) in data:
                loss = model(batch).square().mean() + (noise() if noise else 0)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                state.step += 1
                yield loss
            state.epoch += 1

    return state, train


def exact():
    return training(perdure.ResumableLoader)


def forgets_the_place():
    return training()


def forgets_a_generator():
    rng = numpy.random.default_rng(1)
    return training(perdure.ResumableLoader, rng.random)


def never_the_same():
    return training(perdure.ResumableLoader, seed=time.time_ns() % 2**31)


class Forgetful:
    def __init__(self):
        self.x = 1

    def state_dict(self):
        return {"x": self.x}

    def load_state_dict(self, state):
        pass


def loses_a_value():
    thing = Forgetful()

    def count():
        thing.x += 1
        return 0.0

    return training(perdure.ResumableLoader, count, {"thing": thing})


def fails():
    raise ValueError("no data here")


def two_losses_at_every_third_step():
    rng = numpy.random.default_rng(1)
    things = {"noise": rng, "names": {"a", "b", "c", "d"}, "arrays": [numpy.zeros(2)]}
    state, train = training(perdure.ResumableLoader, rng.random, things)

    def every_third():
        for loss in train():
            if state.step % 3 == 0:
                yield {"loss": loss, "parts": [loss / 2, 1.0]}

    return state, every_third


@pytest.mark.parametrize("make", [exact, two_losses_at_every_third_step])
def test_says_nothing_of_an_exact_one(make):
    check_exact_resume(make, steps=12, kill_after=7)


@pytest.mark.parametrize(
    "make, words",
    [
        (forgets_the_place, ["from step 8 on", "The loss: ", "perdure.ResumableLoader"]),
        (forgets_a_generator, ["from step 8 on", "generator of one's own", "default_rng"]),
        (never_the_same, ["not deterministic", "from step 1 on", "torch.manual_seed"]),
        (loses_a_value, ["came back at step 7", "state['thing']['x']", "load_state_dict"]),
    ],
)
def test_says_what_is_wrong(make, words):
    with pytest.raises(NotExactError) as caught:
        check_exact_resume(make, steps=12, kill_after=7)
    for word in words:
        assert word in str(caught.value), caught.value


@pytest.mark.parametrize(
    "one, other, paths",
    [
        ({"a": torch.tensor(0.0)}, {"a": torch.tensor(-0.0)}, ["['a']"]),
        ({"a": torch.zeros(2)}, {"a": torch.zeros(2, 1)}, ["['a']"]),
        ([numpy.zeros(5000)], [numpy.eye(1, 5000, 2500)[0]], ["[0]"]),  # the same, when they are printed
        ({"a": [1, [0.1, 2]]}, {"a": [1, [0.1, 3]]}, ["['a'][1]"]),
        ({"a": 1, "b": {"x"}}, {"a": 1, "b": {"y"}}, ["['b']"]),
        ({"names": {"a", "b", "c"}}, {"names": {"c", "b", "a"}}, []),
    ],
)
def test_every_bit_is_compared(one, other, paths):
    digests = {}, {}
    _digest(one, "", digests[0]), _digest(other, "", digests[1])
    assert [path for path in digests[0] if digests[0][path] != digests[1][path]] == paths


def test_a_training_that_fails():
    with pytest.raises(RuntimeError, match="(?s)child process.*no data here"):
        check_exact_resume(fails, steps=4)


def test_a_training_that_ends_too_soon():
    with pytest.raises(RuntimeError, match="ended at step 25, before step 30"):
        check_exact_resume(exact, steps=30)


def test_a_training_that_nobody_can_import():
    with pytest.raises(perdure.InvalidError, match="at the top of a module"):
        check_exact_resume(lambda: exact(), steps=4)


def test_steps_that_mean_nothing():
    with pytest.raises(perdure.InvalidError, match="kill_after"):
        check_exact_resume(exact, steps=4, kill_after=4)
