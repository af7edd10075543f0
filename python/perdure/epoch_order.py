"""The order in which a DataLoader takes its samples, drawn again and entered in the middle."""

from typing import Any, NamedTuple

import torch
from torch.utils.data import Sampler, get_worker_info

from .generators import generator_functions
from .rng import host_state, put_host_state, seed_host

_END = object()


class Generators:
    """What the order of an epoch may be drawn from: the global generators, those that the loader and its samplers
    have, and the epoch of those with set_epoch()."""

    def __init__(self, loader):
        samplers = _samplers(loader)
        self._own = {}  # by identity: mostly, loader and sampler have the same one
        for holder in (loader, *samplers):
            for thing in vars(holder).values():
                if functions := generator_functions(thing):
                    self._own[id(thing)] = functions
        self._with_epoch = [s for s in samplers if hasattr(s, "set_epoch") and hasattr(s, "epoch")]

    def state(self) -> dict:
        return {**host_state(), **self.own_state()}

    def own_state(self) -> dict:
        """Without the global ones, which a TrainingState has anyway."""
        return {
            "own": [get() for get, _ in self._own.values()],
            "epochs": [sampler.epoch for sampler in self._with_epoch],
        }

    def put(self, state: dict) -> None:
        put_host_state(state)
        for (_, put), own in zip(self._own.values(), state["own"], strict=True):
            put(own)
        for sampler, epoch in zip(self._with_epoch, state["epochs"], strict=True):
            sampler.set_epoch(epoch)

    def counts(self, state: dict) -> list:
        """(what, how many in a state, how many here)"""
        return [
            ("generators in the loader and its samplers", len(state["own"]), len(self._own)),
            ("samplers with set_epoch()", len(state["epochs"]), len(self._with_epoch)),
        ]


def _samplers(loader) -> list:
    """Those of a loader, and those in them."""
    found, ahead = [], [loader.batch_sampler, loader.sampler]
    while ahead:
        sampler = ahead.pop(0)
        if not hasattr(sampler, "__dict__") or any(sampler is known for known in found):
            continue
        found.append(sampler)
        ahead += [x for name, x in vars(sampler).items() if name == "sampler" or isinstance(x, Sampler)]
    return found


class EpochOrder:
    """Stands for the sampler, or batch sampler, that a DataLoader takes its indices from."""

    def __init__(self, sampler, generators: Generators, in_batches: bool, seed_samples: bool):
        self.sampler = sampler
        self.generators = generators
        self.in_batches = in_batches
        self.seed_samples = seed_samples
        self.start = None  # the generators as they were when the order of the last epoch was drawn
        self._next = (0, None)

    def resume(self, skip: int, start: dict) -> None:
        """The next epoch is drawn from `start`, and begins behind its first `skip` items."""
        self._next = (skip, start)

    def begin(self) -> None:
        """Draws the order now, where the DataLoader has not asked for any of it yet."""
        self._last.begin()

    def take_next(self):
        """What resume() has said, once."""
        taken, self._next = self._next, (0, None)
        return taken

    def __iter__(self):  # may be called twice for one epoch: torch's iterator over workers does
        self._last = _Indices(self)
        return self._last

    def __len__(self):
        return len(self.sampler)


class _Indices:
    """One epoch. Nothing is drawn before the first item is asked for, as with the samplers of torch."""

    def __init__(self, order: EpochOrder):
        self._order = order
        self._items = None
        self._position = 0  # samples handed out, or skipped

    def begin(self):
        if self._items is not None:
            return
        order = self._order
        skip, start = order.take_next()
        if start is not None:
            order.generators.put(start)
        order.start = start or order.generators.state()
        self._seed = int(torch.empty((), dtype=torch.int64).random_()) if order.seed_samples else 0
        self._items = iter(order.sampler)
        for _ in range(skip):
            self._position += self._size(next(self._items, ()))
        self._ahead = next(self._items, _END)  # samplers draw at their first item, not before

    def __iter__(self):
        return self

    def __next__(self):
        self.begin()
        item, self._ahead = self._ahead, _END
        if item is _END:
            item = next(self._items)
        first = self._position
        self._position += self._size(item)
        if not self._order.seed_samples:
            return item
        if not self._order.in_batches:
            return Seeded(item, self._seed + first)
        return [Seeded(index, self._seed + first + i) for i, index in enumerate(item)]

    def _size(self, item):
        return len(item) if self._order.in_batches else 1


class Seeded(NamedTuple):
    """An index with the seed that its sample is loaded with."""

    index: Any
    seed: int


class SeededDataset:
    """Loads the samples of a dataset, each with the global generators seeded for it."""

    def __init__(self, dataset):
        self.dataset = dataset

    def __len__(self):
        return len(self.dataset)

    def __getitem__(self, item: Seeded):
        before = host_state() if get_worker_info() is None else None  # a worker's are nobody else's
        seed_host(item.seed)
        try:
            return self.dataset[item.index]
        finally:
            if before is not None:
                put_host_state(before)
