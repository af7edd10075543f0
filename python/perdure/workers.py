"""Workers of a DataLoader that live on when a scheduler signals every process of a job."""

import contextlib
import multiprocessing
import signal
from multiprocessing import resource_tracker

from torch.utils.data import get_worker_info

from . import _core
from .epoch_order import SeededDataset


@contextlib.contextmanager
def outliving(loader, seeded: bool):
    """While `loader` starts workers in this block, none of those that begin with the worker_init_fn given here ends at
    a signal that a manager watches. `seeded` says that a SeededDataset stands in for their dataset."""
    signals = _core.watched_signals() if loader.num_workers else []
    if not signals and not seeded:
        yield loader.worker_init_fn
        return
    blocked = _block(signals, _start_method(loader))
    try:
        yield WorkerInit(loader.worker_init_fn, signals, blocked)
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, blocked)


class WorkerInit:
    """A worker_init_fn that puts back what torch, or a new interpreter, has taken, and then calls the user's own."""

    def __init__(self, own, signals, blocked):
        self.own, self.signals, self.blocked = own, signals, blocked

    def __call__(self, worker_id):
        _core.watch_signals_in_child(self.signals, multiprocessing.parent_process().pid)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, self.blocked)
        info = get_worker_info()
        if info is not None and isinstance(info.dataset, SeededDataset):
            object.__setattr__(info, "dataset", info.dataset.dataset)  # which its user knows; it is a frozen dataclass
        if self.own is not None:
            self.own(worker_id)


def _block(signals, start_method) -> list:
    """Blocks them for this thread and what it starts, until the worker_init_fn. Gives those that were not before."""
    if start_method == "forkserver":  # the server may begin now, and all of its children would have them blocked
        return []
    if start_method == "spawn":
        resource_tracker.ensure_running()  # it unblocks SIGTERM in this thread where it has to begin
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    return [number for number in signals if number not in before]


def _start_method(loader) -> str:
    return (loader.multiprocessing_context or multiprocessing).get_start_method()
