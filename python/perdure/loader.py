"""ResumableLoader: a DataLoader whose place in the epoch is part of a TrainingState."""

from torch.utils.data import DataLoader, IterableDataset

from .epoch_order import EpochOrder, Generators, SeededDataset
from .errors import InvalidTypeError
from .rng import host_state, put_host_state
from .stateful_loader import is_stateful_loader
from .workers import outliving


class ResumableLoader:
    """A DataLoader that goes on in the middle of an epoch, with the batch that the loop would have got next:

        loader = perdure.ResumableLoader(DataLoader(data, batch_size=32, shuffle=True, num_workers=2))
        state = perdure.TrainingState(model=model, optimizer=optimizer, loader=loader, epoch=0)
        checkpoints.restore(state)
        while state.epoch < epochs:
            for batch in loader:  # after a restore: what is left of the epoch
                ...
                state.step += 1
                if state.step % 1000 == 0:
                    checkpoints.save(state)
            state.epoch += 1

    What counts are the batches that the loop has received, whatever workers have prepared beyond them: train on a
    batch, then save. Batches that were received before are not loaded again; only their indices are drawn. Leaving
    the loop early ends the epoch, as it does with a DataLoader.

    The order comes back for every sampler that draws it from torch's, numpy's or Python's global generator when its
    first index is asked for, from a torch.Generator in an attribute `generator`, or from set_epoch(): those of torch
    do. An IterableDataset cannot skip: what was received is loaded again and dropped. (torchdata's
    StatefulDataLoader can; a TrainingState takes it as it is.)

    Random transforms: in the main process (num_workers=0) they draw from the global generators, which a restore
    gives back. Workers draw from generators of their own, which begin anew whenever workers do. With
    `seed_samples=True` each sample is loaded with torch's, numpy's and Python's global generators seeded by its place
    in the epoch, so that it is the same wherever and whenever it is loaded. Generators that a transform keeps for
    itself are not seeded.

    Workers, forked and spawned ones, live on at the signals that a manager watches (save_on_signal), unless those
    come from their parent. Those of a fork server (multiprocessing_context="forkserver", Python 3.14's default) end
    with it when a scheduler signals every process of a job.

    Everything else (len, dataset, sampler, ...) is the DataLoader's. Not for two loops at once.
    """

    def __init__(self, loader: DataLoader, seed_samples: bool = False):
        if not isinstance(loader, DataLoader):
            raise InvalidTypeError(
                f"a torch.utils.data.DataLoader is wanted, not a {type(loader).__qualname__}; whatever has state_dict() "
                "and load_state_dict() goes into a TrainingState as it is"
            )
        if is_stateful_loader(loader):
            raise InvalidTypeError("a StatefulDataLoader keeps its own place: it goes into a TrainingState as it is")
        self._loader = loader
        self._received = 0  # batches of this epoch
        self._resume = None  # what the order of the next epoch is drawn from, where it is the rest of one
        self._running = None  # stands for the iteration that counts
        self._start = None  # of an IterableDataset: the generators at the beginning of the epoch
        self._order = self._dataset = None
        if isinstance(loader.dataset, IterableDataset):
            if seed_samples:
                raise InvalidTypeError("seed_samples=True needs a dataset with indices; this one is an IterableDataset")
            return
        self._name = "sampler" if loader.batch_sampler is None else "batch_sampler"
        self._order = EpochOrder(
            getattr(loader, self._name), Generators(loader), loader.batch_sampler is not None, seed_samples
        )
        if seed_samples:
            self._dataset = SeededDataset(loader.dataset)

    def __iter__(self):
        resume, self._resume = self._resume, None
        if resume is None:
            self._received = 0
        before = host_state()
        batches = self._ordered(resume) if self._order else self._replayed(resume)
        if resume is not None:
            put_host_state(before)  # drawing the order again must not be seen
        self._running = object()
        return self._counted(batches, self._running)

    def __len__(self):
        return len(self._loader)

    def __getattr__(self, name):
        if name.startswith("__") or "_loader" not in vars(self):
            raise AttributeError(name)
        return getattr(self._loader, name)

    def __repr__(self):
        return f"<ResumableLoader: {self._received} batches of this epoch received>"

    def state_dict(self) -> dict:
        """How many batches of the epoch were received, and what its order was drawn from."""
        start = self._resume or (self._order.start if self._order else self._start)
        return {"received": self._received, "start": start if self._received else None}

    def load_state_dict(self, state_dict: dict) -> None:
        """The next iteration is the rest of that epoch. One that is under way goes on as it was, and counts no more."""
        self._received = int(state_dict["received"])
        self._resume = state_dict["start"]
        self._running = None

    def _counted(self, batches, running):
        try:
            for batch in batches:
                if self._running is running:
                    self._received += 1
                yield batch
        finally:
            if self._running is running:
                self._received = 0

    def _ordered(self, resume):
        """An iterator over our order."""
        if resume is not None:
            self._order.resume(self._received, resume)
        stand_ins = {self._name: self._order}
        if self._dataset:
            stand_ins["dataset"] = self._dataset
        batches = self._iterator(stand_ins)
        if resume is not None:
            self._order.begin()
        return batches

    def _replayed(self, resume):
        if resume is not None:
            put_host_state(resume)
        self._start = resume or host_state()
        batches = self._iterator({})
        if resume is not None:
            for _ in range(self._received):
                next(batches, None)
        return batches

    def _iterator(self, stand_ins):
        """An iterator of the DataLoader, to which `stand_ins` are its attributes while that is made."""
        with outliving(self._loader) as worker_init_fn:
            stand_ins["worker_init_fn"] = worker_init_fn
            place = vars(self._loader)  # setting these attributes is forbidden
            own = {name: place[name] for name in stand_ins}
            place.update(stand_ins)
            try:
                return iter(self._loader)
            finally:
                place.update(own)
