"""ResumableLoader where loaders, samplers and loops are unusual, and what it refuses."""

import io
import random

import numpy
import pytest
import torch
from test_loader import LOADERS, SAMPLES, Numbers, Run, Stream, check, resumed, saved, seed
from torch.utils.data import BatchSampler, DataLoader, Dataset, DistributedSampler, RandomSampler, Sampler

import perdure


class Buckets(Sampler):
    """Batches of one's own, of samples of about one length; draws from generators of its own, of several kinds."""

    def __init__(self):
        self.inner = RandomSampler(range(SAMPLES), generator=torch.Generator().manual_seed(3))
        self.numbers = numpy.random.default_rng(3)
        self.choice = random.Random(3)

    def __len__(self):
        return -(-SAMPLES // 4)

    def __iter__(self):
        order = sorted(self.inner, key=lambda i: i // 8)
        batches = [order[i : i + 4] for i in range(0, SAMPLES, 4)]
        self.choice.shuffle(batches)
        yield from (batches[i] for i in self.numbers.permutation(len(batches)))


class Counting(Sampler):
    """Has no length, and counts its epochs itself."""

    epoch = 0

    def set_epoch(self, epoch):
        self.epoch = epoch

    def __iter__(self):
        order = torch.randperm(SAMPLES, generator=torch.Generator().manual_seed(self.epoch))
        self.epoch += 1
        yield from order.tolist()


UNUSUAL = {
    "buckets": lambda: {"batch_sampler": Buckets()},
    "buckets with workers": lambda: {"batch_sampler": Buckets(), "num_workers": 1},
    "lists of indices": lambda: {"batch_size": None, "sampler": BatchSampler(RandomSampler(range(SAMPLES)), 4, True)},
    "an epoch of its own": lambda: {"sampler": Counting(), "batch_size": 4},
    "more samples than there are": lambda: {
        "batch_size": 4,
        "sampler": RandomSampler(range(SAMPLES), num_samples=50, generator=torch.Generator().manual_seed(3)),
    },
}


class Rows(Numbers):
    def __getitem__(self, i):
        return torch.tensor(i) if isinstance(i, list) else super().__getitem__(i)


@pytest.mark.parametrize("name", UNUSUAL)
def test_every_place(name):
    points = [2, 7, -1] if "workers" in name else None
    check(lambda: Run(UNUSUAL[name], Rows()), points)


def test_distributed_without_set_epoch():
    check(lambda: Run(LOADERS["distributed"]), [1, 3, 4, -1], set_epoch=False)


def test_lists_of_indices_are_seeded():
    def noisy():
        return Run(UNUSUAL["lists of indices"], Noisy(), seed_samples=True)

    check(noisy, [1, 5, 7])


class Noisy(Dataset):
    def __len__(self):
        return SAMPLES

    def __getitem__(self, indices):
        return torch.rand(len(indices))


def test_the_number_of_workers_may_change():
    seed(1)
    whole = Run(LOADERS["shuffled"]).train()
    seed(1)
    first = Run(lambda: {**LOADERS["shuffled"](), "num_workers": 2})
    second = resumed(Run(LOADERS["shuffled"]), first.train(save_at=3))
    third = resumed(Run(lambda: {**LOADERS["shuffled"](), "num_workers": 1}), second.train(save_at=8))
    assert first.seen + second.seen + third.train() == whole


def test_two_loaders_in_one_state():
    class Both:
        def __init__(self):
            self.loaders = [perdure.ResumableLoader(DataLoader(range(n), 3, shuffle=True)) for n in (20, 11)]
            self.state = perdure.TrainingState(train=self.loaders[0], test=self.loaders[1], epoch=0)
            self.seen = []

        def train(self, save_at=None):
            """Looks at the whole of the second in the middle of the first."""
            train, test = self.loaders
            while self.state.epoch < 2:
                for batch in train:
                    self.seen.append((batch.tolist(), float(torch.rand(()))))
                    if self.state.step % 3 == 2:
                        self.seen += [x.tolist() for x in test]
                    self.state.step += 1
                    if self.state.step == save_at:
                        return saved(self.state)
                self.state.epoch += 1
            return self.seen

    check(Both, [1, 2, 3, 4, 7, 8, 13])


def test_saved_again_before_it_goes_on():
    seed(1)
    whole = Run(LOADERS["shuffled"]).train()
    seed(1)
    first = Run(LOADERS["shuffled"])
    again = saved(resumed(Run(LOADERS["shuffled"]), first.train(save_at=8)).state)
    assert first.seen + resumed(Run(LOADERS["shuffled"]), again).train() == whole


@pytest.mark.parametrize("dataset", [Numbers, Stream])
def test_a_second_attempt_to_go_on(monkeypatch, dataset):
    seed(1)
    whole = Run(lambda: {"batch_size": 4}, dataset()).train()
    seed(1)
    first = Run(lambda: {"batch_size": 4}, dataset())
    second = resumed(Run(lambda: {"batch_size": 4}, dataset()), first.train(save_at=8))
    with monkeypatch.context() as context:
        context.setattr(DataLoader, "_get_iterator", lambda self: 1 / 0)
        for _ in range(2):
            with pytest.raises(ZeroDivisionError):
                iter(second.loader)
    assert first.seen + second.train() == whole


@pytest.mark.parametrize("persistent", [False, True])
def test_restored_while_workers_are_busy(persistent):
    def more():
        return {**LOADERS["shuffled"](), "num_workers": 2, "persistent_workers": persistent}

    seed(1)
    whole = Run(more).train()
    seed(1)
    run = Run(more)
    file = run.train(save_at=2)
    run.seen, batches = run.seen[:2], iter(run.loader)
    next(batches), next(batches)
    assert resumed(run, file).train() == whole
    assert len(list(batches)) == 4  # it goes on as it was


def test_somebody_has_iterated_over_the_dataloader():
    def used():
        run = Run(lambda: {**LOADERS["shuffled"](), "num_workers": 1, "persistent_workers": True})
        list(run.loader._loader)
        return run

    check(used, [2, 7])


def test_two_loops_at_once():
    loader = perdure.ResumableLoader(DataLoader(range(8)))
    with pytest.raises(perdure.InvalidError, match="after another one.*of its own"):
        for _ in loader:
            for _ in loader:
                break
    first = iter(loader)
    next(first)
    assert len(list(loader)) == 8
    with pytest.raises(perdure.InvalidError, match="after another one"):
        next(first)
    assert len(list(loader)) == 8


@pytest.mark.parametrize(
    "other, words",
    [
        (lambda: DataLoader(range(24), 4, shuffle=True), "23 samples in an epoch in the file, 24"),
        (lambda: DataLoader(Numbers(), 5, shuffle=True), "6 batches in an epoch in the file, 5"),
        (
            lambda: DataLoader(Numbers(), 4, shuffle=True, generator=torch.Generator()),
            "0 generators in the loader and its samplers in the file, 1",
        ),
        (
            lambda: DataLoader(Numbers(), 4, sampler=DistributedSampler(range(23), 1, 0)),
            r"0 samplers with set_epoch\(\) in the file, 1",
        ),
        (lambda: DataLoader(Stream(), 4), "23 samples in an epoch in the file, None"),
    ],
)
def test_a_place_in_another_epoch(other, words):
    seed(1)
    file = Run(LOADERS["shuffled"]).train(save_at=2)
    state = perdure.TrainingState(loader=perdure.ResumableLoader(other()), optimizer=None, epoch=5)
    with pytest.raises(perdure.InvalidError, match=f"loader: {words} in this program"):
        state.load_state_dict(perdure.load(io.BytesIO(file)))
    assert state.epoch == 5 and not state.broken


def test_between_epochs_the_data_may_change():
    seed(1)
    file = Run(LOADERS["shuffled"]).train(save_at=-1)
    state = perdure.TrainingState(loader=perdure.ResumableLoader(DataLoader(range(9))), optimizer=None, epoch=0)
    state.load_state_dict(perdure.load(io.BytesIO(file)))
    assert state.epoch == 1 and len(list(state.loader)) == 9


def test_no_state_of_a_loader():
    loader = perdure.ResumableLoader(DataLoader(range(9)))
    with pytest.raises(perdure.InvalidError, match="no state_dict of a ResumableLoader"):
        loader.load_state_dict({"batches": 3})


def test_batches_in_any_order():
    with pytest.raises(perdure.InvalidError, match="in_order=False"):
        perdure.ResumableLoader(DataLoader(range(9), num_workers=2, in_order=False))


def test_a_dataloader_that_is_not_wrapped():
    with pytest.raises(perdure.InvalidError, match=r"'data' is a DataLoader.*perdure\.ResumableLoader"):
        perdure.TrainingState(data=DataLoader(range(9)))


class Shifts:
    """A worker_init_fn that looks for its dataset, as that of a shard does."""

    def __call__(self, worker_id):
        torch.utils.data.get_worker_info().dataset.shift = 100


class Shifted(Dataset):
    shift = 0

    def __len__(self):
        return 4

    def __getitem__(self, i):
        return self.shift + i


def test_a_worker_init_fn_finds_its_dataset_where_samples_are_seeded():
    plain = DataLoader(Shifted(), None, num_workers=1, worker_init_fn=Shifts())
    assert list(perdure.ResumableLoader(plain, seed_samples=True)) == [100, 101, 102, 103]
