"""ResumableLoader: a DataLoader whose place in the epoch is part of a TrainingState."""

from torch.utils.data import DataLoader, IterableDataset

from .epoch_order import EpochOrder, Generators, SeededDataset
from .errors import InvalidError, InvalidTypeError
from .rng import host_state, put_host_state
from .stateful_loader import is_stateful_loader
from .workers import outliving

_KEYS = {"received", "start", "workers_kept", "samples", "batches"}
_KEYS_IN_CPP = {"received", "start"}


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
    batch, then save. (What stands between the two and holds batches back, a prefetcher to the GPU, is a loop.) Batches
    that were received before are not loaded again; only their indices are drawn. Leaving the loop early ends the
    epoch, as it does with a DataLoader: save first, then break. The file remembers how long an epoch is, and a place in
    one does not fit a loader with other data, another batch size or sampler.

    The order comes back for every sampler that draws it when its first index is asked for: from torch's, numpy's or
    Python's global generator, from generators that the loader and its samplers have as attributes (which then are for
    nothing else), or from set_epoch(). Those of torch do.

    An IterableDataset cannot skip: what was received is loaded again and dropped. That is exact where all that it gives
    depends on is the global generators (in workers: the worker's) at its beginning; not where, in the main process, its
    draws alternate with the training's, or where it keeps state from one epoch to the next. (torchdata's
    StatefulDataLoader can skip; a TrainingState takes it as it is.)

    Random transforms: in the main process (num_workers=0) they draw from the global generators, which a restore
    gives back. Workers draw from generators of their own, which begin anew whenever workers do, so those numbers do not
    come back. With `seed_samples=True` each sample is loaded with torch's, numpy's and Python's global generators seeded
    by its place in the epoch, so that it is the same wherever and whenever it is loaded. Generators that a transform or
    a dataset keeps for itself are not seeded.

    Workers, forked and spawned ones, live on at the signals that a manager watches (save_on_signal), unless those
    come from their parent. Those of a fork server (multiprocessing_context="forkserver", Python 3.14's default) end
    with it when a scheduler signals every process of a job.

    Everything else (len, of a whole epoch, dataset, sampler, ...) is the DataLoader's. One loop at a time: where an
    older one goes on after another has begun, InvalidError says so.
    """

    def __init__(self, loader: DataLoader, seed_samples: bool = False):
        _require_suitable(loader, seed_samples)
        self._loader = loader
        self._generators = Generators(loader)
        self._received = 0  # batches of this epoch
        self._start = None  # of an IterableDataset: the generators at the beginning of the epoch
        self._resume = None  # what the order of the next epoch is drawn from, where it is the rest of one
        self._workers_kept = False  # this epoch began with persistent workers of an earlier one
        self._running = None  # the iteration that counts
        self._order, self._dataset = None, loader.dataset
        in_batches = loader.batch_sampler is not None
        self._name = "batch_sampler" if in_batches else "sampler"
        if isinstance(loader.dataset, IterableDataset):
            return
        self._order = EpochOrder(getattr(loader, self._name), self._generators, in_batches, seed_samples)
        if seed_samples:
            self._dataset = SeededDataset(loader.dataset)

    def __iter__(self):
        resume, self._resume = self._resume, None
        if resume is None:
            self._received = 0
        if self._running:
            self._running.superseded = True
        self._running = _Iteration()
        before = host_state()
        try:
            batches = self._replayed(resume) if self._order is None else self._ordered(resume)
        except BaseException:
            self._resume = resume  # no workers to be had, say: the next attempt finds the place, too
            raise
        finally:
            if resume is not None:
                put_host_state(before)  # drawing the order again must not be seen
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
        """How many batches of the epoch were received, what its order was drawn from, and how long it is."""
        start = self._resume or (self._start if self._order is None else self._order.start)
        return {
            "received": self._received,
            "start": start if self._received else self._generators.own_state(),
            "workers_kept": self._workers_kept,
            **self._lengths(),
        }

    def _next_epoch(self) -> dict:
        """What state_dict() says between two epochs, for a loop that ends one with its last batch."""
        return {**self.state_dict(), "received": 0, "start": self._generators.own_state()}

    def load_state_dict(self, state_dict: dict) -> None:
        """The next iteration is the rest of that epoch. One that is under way goes on as it was, and counts no more.

        Raises InvalidError where it is a place in an epoch of other data, of another length, or drawn in C++.
        """
        if problems := self._misfits(state_dict):
            raise InvalidError("; ".join(problems))
        self._received = int(state_dict["received"])
        self._resume = state_dict["start"] if self._received else None
        if not self._received and state_dict["start"] is not None:
            self._generators.put(state_dict["start"])
        self._workers_kept = state_dict.get("workers_kept", False)
        self._running = None
        vars(self._loader)["_iterator"] = None  # persistent workers begin anew, as they do in a new process

    def _for_ranks(self, state, saved: int, now: int):
        """The place of one of `saved` ranks as one of `now`. All together are as far as they were, or less than one
        batch of each behind: some samples may be seen twice in that epoch, and none is left out."""
        if saved == now or not isinstance(state, dict) or not state.keys() >= _KEYS:
            return state
        own = self._lengths()
        received = state["received"] * saved // now
        if own["batches"] is not None:
            received = min(received, own["batches"])
        return {**state, "received": received, "batches": own["batches"]}

    def _misfits(self, state) -> list[str]:
        """Why this cannot be loaded."""
        if isinstance(state, dict) and state.keys() == _KEYS_IN_CPP:
            if not state["received"]:
                return []
            return [
                "the order of this epoch was drawn in C++, and Python cannot draw it: a run can go on in the other "
                "language at the end of an epoch"
            ]
        if not isinstance(state, dict) or not state.keys() >= _KEYS:
            return ["what the file has there is no state_dict of a ResumableLoader"]
        counts = self._generators.counts(state["start"])
        if state["received"]:
            counts += [(f"{key} in an epoch", state[key], own) for key, own in self._lengths().items()]
        return [
            f"{there} {what} in the file, {here} in this program: there is no going on in the middle of an epoch with "
            "other data, another batch size or another sampler"
            for what, there, here in counts
            if there != here
        ]

    def _lengths(self) -> dict:
        if self._order is None:
            return {"samples": None, "batches": None}
        return {"samples": _length(self._loader.dataset), "batches": _length(self._order.sampler)}

    def _counted(self, batches, running):
        try:
            running.require_latest()
            for batch in batches:
                if self._running is running:
                    self._received += 1
                yield batch
                running.require_latest()
        finally:
            if self._running is running:
                self._received = 0
                self._workers_kept = self._loader._iterator is not None

    def _ordered(self, resume):
        """An iterator over our order, which stands in for its sampler while it is made."""
        unseen = self._makes_workers_again()
        if resume is not None:
            self._order.resume(self._received, resume)
        else:
            self._order.resume(0, self._generators.state() if unseen else None)
        batches = self._iterator({self._name: self._order, "dataset": self._dataset})
        if resume is not None or unseen:
            self._order.begin()
        return batches

    def _replayed(self, resume):
        unseen = self._makes_workers_again()
        if resume is not None:
            self._generators.put(resume)
        self._start = resume or self._generators.state()
        batches = self._iterator({})
        if unseen:
            self._generators.put(self._start)
        if resume is not None:
            for _ in range(self._received):
                next(batches, None)
        return batches

    def _makes_workers_again(self) -> bool:
        """Whether this iteration makes workers that the saved run had already: what it draws must not be seen."""
        place = vars(self._loader)
        there = place["_iterator"]  # that of persistent workers
        if self._order is not None and there is not None and there._index_sampler is not self._order:
            there = place["_iterator"] = None  # somebody has iterated over the DataLoader itself
        again = self._workers_kept and there is None
        self._workers_kept = again or there is not None
        return again

    def _iterator(self, stand_ins):
        """An iterator of the DataLoader, to which `stand_ins` are its attributes while that is made."""
        with outliving(self._loader, self._dataset is not self._loader.dataset) as worker_init_fn:
            stand_ins["worker_init_fn"] = worker_init_fn
            place = vars(self._loader)  # setting these attributes is forbidden
            own = {name: place[name] for name in stand_ins}
            place.update(stand_ins)
            try:
                return iter(self._loader)
            finally:
                place.update(own)


class _Iteration:
    superseded = False  # another one has begun

    def require_latest(self):
        if self.superseded:
            raise InvalidError(
                "this loop over a ResumableLoader goes on after another one over the same has begun: it keeps one "
                "place only. Give each loop a DataLoader and a ResumableLoader of its own"
            )


def _require_suitable(loader, seed_samples):
    if is_stateful_loader(loader):
        raise InvalidTypeError("a StatefulDataLoader keeps its own place: it goes into a TrainingState as it is")
    if not isinstance(loader, DataLoader):
        raise InvalidTypeError(
            f"a torch.utils.data.DataLoader is wanted, not a {type(loader).__qualname__}; whatever has state_dict() "
            "and load_state_dict() goes into a TrainingState as it is"
        )
    if loader.num_workers and not getattr(loader, "in_order", True):
        raise InvalidError(
            "a DataLoader with in_order=False gives batches in whatever order its workers have them ready, so the "
            "first ones received are not the first ones of the epoch: leave it out"
        )
    if seed_samples and isinstance(loader.dataset, IterableDataset):
        raise InvalidTypeError("seed_samples=True needs a dataset with indices; this one is an IterableDataset")


def _length(sized) -> int | None:
    try:
        return len(sized)
    except (TypeError, NotImplementedError):
        return None
