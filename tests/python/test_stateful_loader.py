"""torchdata's StatefulDataLoader, registered as it is."""

import random

import pytest
import torch
from torch.utils.data import IterableDataset

import perdure

stateful_dataloader = pytest.importorskip(
    "torchdata.stateful_dataloader", reason="torchdata is not installed: pip install -r requirements-dev.txt"
)
pytestmark = pytest.mark.filterwarnings("ignore")

SAMPLES, EPOCHS = 20, 3


class Stream(IterableDataset):
    """An IterableDataset that knows its place."""

    def __init__(self):
        self.place = 0

    def __iter__(self):
        while self.place < SAMPLES:
            self.place += 1
            yield self.place
        self.place = 0

    def state_dict(self):
        return {"place": self.place}

    def load_state_dict(self, state):
        self.place = state["place"]


ARGUMENTS = {
    "in order": lambda: {"dataset": list(range(SAMPLES))},
    "shuffled": lambda: {"dataset": list(range(SAMPLES)), "shuffle": True},
    "shuffled by a generator": lambda: {
        "dataset": list(range(SAMPLES)),
        "shuffle": True,
        "generator": torch.Generator().manual_seed(int(torch.randint(99, ()))),
    },
    "a stream": lambda: {"dataset": Stream()},
}


class Run:
    def __init__(self, seed, arguments, workers):
        torch.manual_seed(seed), random.seed(seed)
        options = {"batch_size": 3, "num_workers": workers, **ARGUMENTS[arguments]()}
        self.loader = stateful_dataloader.StatefulDataLoader(**options)
        self.state = perdure.TrainingState(loader=self.loader, epoch=0, optimizer=None)
        self.seen = []

    def train(self, steps=None):
        """By the random numbers, too, one sees whether all is as it would have been."""
        while self.state.epoch < EPOCHS:
            for batch in self.loader:
                self.seen.append((batch.tolist(), float(torch.rand(())), random.random()))
                self.state.step += 1
                if self.state.step == steps:
                    return self
            self.state.epoch += 1
        return self


def check(tmp_path, arguments, workers, steps):
    whole = Run(1, arguments, workers).train()
    first = Run(1, arguments, workers)
    first.train(steps) if steps else None
    with perdure.CheckpointManager(tmp_path) as checkpoints:
        checkpoints.save(first.state)
    second = Run(2, arguments, workers)
    with perdure.CheckpointManager(tmp_path) as checkpoints:
        checkpoints.restore(second.state)
    assert first.seen + second.train().seen == whole.seen, f"saved at step {steps}"


@pytest.mark.parametrize("steps", [0, 1, 6, 7, 8, 14, 15])  # an epoch has 7
@pytest.mark.parametrize("arguments", ARGUMENTS)
def test_every_place(tmp_path, arguments, steps):
    check(tmp_path, arguments, 0, steps)


@pytest.mark.parametrize("steps", [0, 3, 7, 11])
@pytest.mark.parametrize("arguments", ["shuffled", "shuffled by a generator"])
def test_with_workers(tmp_path, arguments, steps):
    check(tmp_path, arguments, 2, steps)


def test_its_state_is_torchdatas_own(tmp_path):
    whole, first, second = Run(1, "shuffled", 0).train(), Run(1, "shuffled", 0).train(4), Run(2, "shuffled", 0)
    with perdure.CheckpointManager(tmp_path) as checkpoints:
        checkpoints.save(first.state).wait()
        file = torch.load(checkpoints.latest().path)
    second.loader.load_state_dict(file["loader"])
    assert [batch.tolist() for batch in second.loader] == [batch for batch, *_ in whole.seen[4:7]]


def test_it_is_not_wrapped():
    with pytest.raises(perdure.InvalidError, match="StatefulDataLoader keeps its own place.*as it is"):
        perdure.ResumableLoader(Run(1, "shuffled", 0).loader)
