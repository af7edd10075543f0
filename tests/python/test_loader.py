"""ResumableLoader: the rest of an epoch is what it would have been."""

import gc
import io
import random

import numpy
import pytest
import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    WeightedRandomSampler,
)

import perdure

SAMPLES, EPOCHS = 23, 3


class Numbers(Dataset):
    """Knows which samples this process has loaded."""

    def __init__(self, noise=False):
        self.noise, self.loaded = noise, []

    def __len__(self):
        return SAMPLES

    def __getitem__(self, i):
        self.loaded.append(i)
        if not self.noise:
            return torch.tensor(float(i))
        return torch.tensor([float(i), random.random(), numpy.random.random(), float(torch.rand(()))], dtype=torch.float64)


class Stream(IterableDataset):
    def __iter__(self):
        return iter(torch.arange(float(SAMPLES)))


class ByPython(torch.utils.data.Sampler):
    def __len__(self):
        return SAMPLES

    def __iter__(self):
        return iter(random.sample(range(SAMPLES), SAMPLES))


def generator():
    return torch.Generator().manual_seed(7)


def batches(sampler):
    return {"batch_sampler": BatchSampler(sampler, 4, drop_last=False)}


LOADERS = {
    "in order": lambda: {"batch_size": 4},
    "shuffled": lambda: {"batch_size": 4, "shuffle": True},
    "shuffled, the last one dropped": lambda: {"batch_size": 4, "shuffle": True, "drop_last": True},
    "shuffled by a generator": lambda: {"batch_size": 4, "shuffle": True, "generator": generator()},
    "a sampler with a generator": lambda: {
        "batch_size": 4,
        "sampler": RandomSampler(range(SAMPLES), generator=generator()),
    },
    "with replacement": lambda: {
        "batch_size": 4,
        "sampler": RandomSampler(range(SAMPLES), replacement=True, num_samples=70),
    },
    "weighted": lambda: {"batch_size": 4, "sampler": WeightedRandomSampler(torch.linspace(1, 2, SAMPLES), SAMPLES)},
    "distributed": lambda: {
        "batch_size": 4,
        "sampler": DistributedSampler(range(SAMPLES), num_replicas=2, rank=1, shuffle=True),
    },
    "batches of one's own": lambda: batches(RandomSampler(range(SAMPLES))),
    "single samples": lambda: {"batch_size": None, "shuffle": True},
    "a sampler of one's own": lambda: {"batch_size": 4, "sampler": ByPython()},
}


class Run:
    """A loop that draws random numbers as it trains: by these, too, one sees whether all is as it would have been."""

    def __init__(self, arguments, dataset=None, draws=False, **options):
        self.draws = draws  # from the loader's generator between epochs: its state is seen, too
        self.dataset = Numbers() if dataset is None else dataset
        self.loader = perdure.ResumableLoader(DataLoader(self.dataset, **arguments()), **options)
        self.state = perdure.TrainingState(loader=self.loader, optimizer=None, epoch=0)
        self.seen = []

    def train(self, save_at=None, leave_at=None, save=None, set_epoch=True):
        """Everything seen; or, at batch number `save_at` (-1: behind the first epoch, -2: behind the second), the state
        in a file, or what else `save` does with it."""
        while self.state.epoch < EPOCHS:
            if set_epoch and isinstance(getattr(self.loader, "sampler", None), DistributedSampler):
                self.loader.sampler.set_epoch(self.state.epoch)
            for batch in self.loader:
                self.seen.append((batch.tolist(), float(torch.rand(())), random.random()))
                self.state.step += 1
                if self.state.step == save_at:
                    return (save or saved)(self.state)
                if leave_at and self.state.step % leave_at == 0:
                    break
            self.state.epoch += 1
            if self.draws:
                self.seen.append(float(torch.rand((), generator=self.loader.generator)))
            if save_at == -self.state.epoch:
                return (save or saved)(self.state)
        return self.seen


def saved(state):
    file = io.BytesIO()
    perdure.save(state.state_dict(), file)
    return file.getvalue()


def seed(number):
    torch.manual_seed(number), random.seed(number), numpy.random.seed(number)


def resumed(run, file):
    seed(99)
    run.state.load_state_dict(perdure.load(io.BytesIO(file)))
    return run


def check(make, points, **train):
    seed(1)
    whole = make().train(**train)
    for at in points if points is not None else [-2, -1, *range(1, len(whole) + 1)]:
        seed(1)
        first = make()
        file = first.train(save_at=at, **train)
        second = resumed(make(), file)
        assert first.seen + second.train(**train) == whole, f"saved at batch {at}"


@pytest.mark.parametrize("arguments", LOADERS.values(), ids=LOADERS)
def test_every_place_of_every_epoch(arguments):
    check(lambda: Run(arguments), None)


@pytest.mark.parametrize("persistent", [False, True])
@pytest.mark.parametrize("arguments", ["shuffled", "shuffled by a generator", "distributed", "single samples"])
def test_with_workers(arguments, persistent):
    def more():
        return {**LOADERS[arguments](), "num_workers": 2, "persistent_workers": persistent, "prefetch_factor": 3}

    check(lambda: Run(more), [6, 8, -1])


def test_random_transforms_in_the_main_process():
    check(lambda: Run(LOADERS["shuffled"], Numbers(noise=True)), None)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("arguments", ["shuffled", "single samples"])
def test_seeded_samples(arguments, workers):
    def more():
        return {**LOADERS[arguments](), "num_workers": workers, "persistent_workers": workers > 0}

    check(lambda: Run(more, Numbers(noise=True), seed_samples=True), [1, 6, 14])


def test_seeded_samples_are_the_same_with_any_number_of_workers():
    found = []
    for workers in (0, 1, 2):
        seed(1)
        run = Run(lambda: {**LOADERS["shuffled"](), "num_workers": workers}, Numbers(True), seed_samples=True)  # noqa: B023
        found.append([batch for batch, _, _ in run.train()])
    assert found[0] == found[1] == found[2]
    first, second = found[0][:6], found[0][6:12]
    assert {s[0] for b in first for s in b} == {s[0] for b in second for s in b}
    assert {s[1] for b in first for s in b}.isdisjoint({s[1] for b in second for s in b})  # another epoch, other noise


def test_nothing_that_was_received_is_loaded_again():
    seed(1)
    file = Run(LOADERS["shuffled"]).train(save_at=4)
    run = resumed(Run(LOADERS["shuffled"]), file)
    rest = [batch for batch in run.loader]
    assert len(run.dataset.loaded) == SAMPLES - 4 * 4 == sum(map(len, rest))


def test_a_stream_is_replayed():
    check(lambda: Run(lambda: {"batch_size": 4}, Stream()), None)


@pytest.mark.parametrize("persistent", [False, True])
def test_a_stream_of_workers_is_replayed(persistent):
    def more():
        return {"batch_size": 4, "num_workers": 2, "persistent_workers": persistent, "generator": generator()}

    check(lambda: Run(more, Stream(), draws=True), [1, 9, -1])


def test_a_loop_that_is_left_ends_its_epoch():
    check(lambda: Run(LOADERS["shuffled"]), [1, 3, 5, 7, 9, -1], leave_at=4)


def test_a_loop_that_is_left_with_workers():
    def more():
        return {**LOADERS["shuffled"](), "num_workers": 2, "persistent_workers": True}

    check(lambda: Run(more), [3, 6, -1], leave_at=4)


def test_it_behaves_as_the_loader_does():
    def plain():
        seed(1)
        loader = DataLoader(Numbers(), batch_size=4, shuffle=True)
        return [(batch.tolist(), float(torch.rand(()))) for _ in range(2) for batch in loader]

    def wrapped():
        seed(1)
        loader = perdure.ResumableLoader(DataLoader(Numbers(), batch_size=4, shuffle=True))
        assert len(loader) == 6 and loader.batch_size == 4 and isinstance(loader.sampler, RandomSampler)
        with pytest.raises(AttributeError):
            loader.no_such_thing  # noqa: B018
        return [(batch.tolist(), float(torch.rand(()))) for _ in range(2) for batch in loader]

    assert plain() == wrapped()


def test_a_restore_in_a_running_loop_counts_from_its_own_place():
    seed(1)
    run = Run(LOADERS["shuffled"])
    file = run.train(save_at=2)
    gc.collect()
    batches = iter(run.loader)
    next(batches), next(batches), next(batches)
    run.state.load_state_dict(perdure.load(io.BytesIO(file)))
    next(batches)
    assert run.loader.state_dict()["received"] == 2
    del batches
    assert run.loader.state_dict()["received"] == 2
    assert len(list(run.loader)) == 4


def test_an_order_drawn_in_cpp_is_refused():
    loader = Run(LOADERS["shuffled"]).loader
    start = {"torch": torch.get_rng_state(), "own": [], "epochs": []}
    with pytest.raises(perdure.InvalidError, match="drawn in C\\+\\+"):
        loader.load_state_dict({"received": 2, "start": start})
    loader.load_state_dict({"received": 0, "start": None})


def test_it_is_registered_in_a_run(tmp_path):
    seed(1)
    whole = Run(LOADERS["shuffled"]).train()
    seed(1)
    first = Run(LOADERS["shuffled"])
    with perdure.CheckpointManager(tmp_path) as checkpoints:
        first.train(save_at=8, save=checkpoints.save)
    second = Run(LOADERS["shuffled"])
    with perdure.CheckpointManager(tmp_path) as checkpoints:
        checkpoints.restore(second.state)
    assert first.seen + second.train() == whole


@pytest.mark.parametrize("wrong", [[1, 2], None, iter(())])
def test_what_is_no_loader(wrong):
    with pytest.raises(perdure.InvalidError, match="DataLoader is wanted"):
        perdure.ResumableLoader(wrong)


def test_seeds_need_indices():
    with pytest.raises(perdure.InvalidError, match="IterableDataset"):
        perdure.ResumableLoader(DataLoader(Stream()), seed_samples=True)
