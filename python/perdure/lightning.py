"""Lightning's checkpoints, durable, verified, behind the training, and resumed exactly.

    import lightning as L
    from lightning.pytorch.callbacks import ModelCheckpoint
    from perdure.lightning import AsyncCheckpointIO, ExactResume

    trainer = L.Trainer(
        plugins=[AsyncCheckpointIO()],
        callbacks=[ModelCheckpoint("runs/x", save_last=True, every_n_train_steps=1000), ExactResume()],
    )
    trainer.fit(model, train_dataloaders=perdure.ResumableLoader(loader), ckpt_path=newest_whole("runs/x"))

The files are Lightning's own: its ModelCheckpoint names, ranks and prunes them, and a Trainer without perdure loads them.
Made for Lightning 2.5 and newer, as `lightning` or as `pytorch_lightning`.
"""

import logging
import os
import sys

import torch

from . import rng
from .errors import CorruptionError, InvalidError, NotFoundError
from .files import load, save, verify
from .loader import ResumableLoader
from .saver import AsyncSaver

if "lightning" not in sys.modules and "pytorch_lightning" in sys.modules:
    from lightning_fabric.plugins.io.checkpoint_io import CheckpointIO as _CheckpointIO
    from pytorch_lightning.callbacks import Callback
else:
    try:
        from lightning.fabric.plugins.io.checkpoint_io import CheckpointIO as _CheckpointIO
        from lightning.pytorch.callbacks import Callback
    except ImportError:
        from lightning_fabric.plugins.io.checkpoint_io import CheckpointIO as _CheckpointIO
        from pytorch_lightning.callbacks import Callback

_logger = logging.getLogger("perdure")
_KEY = "perdure"  # in Lightning's checkpoint


class CheckpointIO(_CheckpointIO):
    """How Fabric and the Trainer save and load: a file is on the disk when the save returns, and survives a power cut.

    Give it to `plugins=`. What ends a save in the middle leaves what was at its path before. Every byte that is loaded has
    its checksum compared, and nothing in a file is executed. So what is saved must be plain data, tensors and numpy arrays,
    as torch.load takes it with its defaults: other objects among the hyperparameters are an InvalidError that names them
    (`save_hyperparameters(ignore=...)`).
    """

    def save_checkpoint(self, checkpoint, path, storage_options=None) -> None:
        path = _prepared(path, storage_options)
        save(_plain(checkpoint), path)

    def load_checkpoint(self, path, map_location=None, weights_only=None) -> dict:
        """`weights_only` makes no difference: everything is loaded that is plain data, and nothing else ever."""
        path = _local(path)
        if not os.path.exists(path):
            raise NotFoundError(f"Checkpoint file not found: {path}")
        return load(path, map_location=map_location)

    def remove_checkpoint(self, path) -> None:
        with AsyncSaver() as saver:
            saver.remove(_local(path))


class AsyncCheckpointIO(CheckpointIO):
    """The same behind the training: a save returns when the state is copied, and is written while the training goes on.

    What ModelCheckpoint removes because of a newer checkpoint goes when that one is durable, and stays where it failed.

    staging_bytes: as for perdure.CheckpointManager.
    on_error: what becomes of a save that failed. "warn": the training goes on, logging.getLogger("perdure") is told, and the
        third failure in a row is raised all the same; the error is also raised when the Trainer is torn down, where it was
        the last save's. "raise": the next save raises it.
    """

    def __init__(self, staging_bytes: int | None = None, on_error: str = "warn"):
        if on_error not in ("warn", "raise"):
            raise InvalidError(f'on_error is "warn" or "raise", not {on_error!r}')
        self._staging_bytes, self._on_error = staging_bytes, on_error
        self._saver = self._handle = None
        self._failed = 0

    def save_checkpoint(self, checkpoint, path, storage_options=None) -> None:
        path = _prepared(path, storage_options)
        self._settle(_raised_after=1 if self._on_error == "raise" else 3)
        if self._saver is None:
            self._saver = AsyncSaver(self._staging_bytes)
        self._handle = self._saver.save(_plain(checkpoint), path)

    def load_checkpoint(self, path, map_location=None, weights_only=None) -> dict:
        self.wait()  # it may be the one in flight
        return super().load_checkpoint(path, map_location, weights_only)

    def remove_checkpoint(self, path) -> None:
        if self._saver is None:
            super().remove_checkpoint(path)
        else:
            self._saver.remove(_local(path))

    def wait(self) -> None:
        """Waits until no save is in flight; raises what the last one had to say."""
        self._settle(_raised_after=1)

    def teardown(self) -> None:
        """The Trainer calls it at the end: waits for the save in flight, and raises what that one had to say."""
        try:
            self._settle(_raised_after=1)
        finally:
            if self._saver is not None:
                saver, self._saver = self._saver, None
                saver.close()

    def _settle(self, _raised_after):
        handle, self._handle = self._handle, None
        if handle is None:
            return
        try:
            handle.wait()
            self._saver.wait()  # for what it removes
            self._failed = 0
        except Exception as error:
            self._failed += 1
            if self._failed >= _raised_after:
                raise
            _logger.warning("a checkpoint was not saved (failed saves in a row: %d): %s", self._failed, error)


class ExactResume(Callback):
    """Brings a Trainer's random numbers back, so that the steps after a resume have the bits that they would have had.

    In the checkpoint are the global generators of Python, numpy, torch and CUDA, of each rank its own. The place in the
    data comes back where the loader knows it: perdure.ResumableLoader(loader), or torchdata's StatefulDataLoader. With
    another number of ranks than there were, the generators go on as seeded, which is logged.

    Put it anywhere among the callbacks.
    """

    def __init__(self):
        self._pending = None
        self._epoch_over = self._warned = False

    def on_save_checkpoint(self, trainer, pl_module, checkpoint) -> None:
        own = rng.host_state()
        if torch.cuda.is_initialized():
            own["cuda"] = torch.cuda.get_rng_state_all()
        over = bool(trainer.fit_loop.epoch_loop.batch_progress.is_last_batch)
        checkpoint[_KEY] = {"rng": _of_all_ranks(own), "epoch_over": over}
        if over:
            _begin_next_epoch(trainer.fit_loop, checkpoint)
            self._warn_before_validation(trainer)

    def _warn_before_validation(self, trainer):
        progress = trainer.fit_loop.epoch_loop.batch_progress.current
        if trainer.enable_validation and progress.completed < progress.processed and not self._warned:
            self._warned = True
            _logger.warning(
                "a checkpoint at the last batch of an epoch is resumed without the validation that comes next: Lightning "
                "leaves it out, and what it would draw from the random generators is missing then. Save after it (a "
                "ModelCheckpoint without every_n_train_steps), or at steps that no epoch ends with"
            )

    def on_load_checkpoint(self, trainer, pl_module, checkpoint) -> None:
        if trainer.state.fn != "fit" or _KEY not in checkpoint:
            return
        saved = checkpoint[_KEY]
        rank, size = _rank_and_size()
        if len(saved["rng"]) != size:
            was = len(saved["rng"])
            _logger.warning("the checkpoint has the random state of %d ranks, and %d are here: none is put back", was, size)
            return
        self._pending, self._epoch_over = saved["rng"][rank], saved["epoch_over"]
        self._put()  # for strategies that load late

    def on_fit_start(self, trainer, pl_module) -> None:
        self._put()  # what prepares the training may have drawn numbers

    def on_train_start(self, trainer, pl_module) -> None:
        # What the Trainer has drawn to begin an iteration must not be seen, for it begins more of them than without a
        # resume. Where the epoch goes on that is all; the next epoch draws its order here, unless it does so anyway.
        self._put()
        loop = trainer.fit_loop
        resuming = getattr(loop, "is_resuming", False)  # Lightning 2.5.0 has it not yet
        once_more = trainer.current_epoch > 0 and not resuming and not loop.epoch_loop.restarting
        if self._pending is not None and self._epoch_over and not once_more:
            iter(loop._data_fetcher)
        self._pending = None

    def _put(self):
        if self._pending is None:
            return
        rng.put_host_state(self._pending)
        cuda = self._pending.get("cuda")
        if cuda is not None and torch.cuda.is_available() and torch.cuda.device_count() == len(cuda):
            torch.cuda.set_rng_state_all(cuda)


def _begin_next_epoch(fit_loop, checkpoint):
    """The Trainer goes on from the end of an epoch with the first iteration it makes. To a loader that was asked for its
    place there, that would be what is left of the epoch: nothing."""
    loops = checkpoint["loops"]["fit_loop"]["state_dict"]
    loaders = [x for x in fit_loop._combined_loader.flattened if hasattr(x, "state_dict")]
    for place, loader in zip(loops.get("combined_loader", []), loaders):
        if isinstance(loader, ResumableLoader):
            place.update(loader._next_epoch())


def newest_whole(directory) -> str | None:
    """The newest checkpoint in a directory whose every checksum is right, for trainer.fit(ckpt_path=...); None where
    there is none yet. Newer ones that are damaged are logged, and stay.

    By the training's own count of steps, and among equals by the time of the file. Raises CorruptionError where there are
    checkpoints, and all of them are damaged.
    """
    found, damaged = [], 0
    for entry in os.scandir(directory) if os.path.isdir(directory) else ():
        if entry.name.endswith(".ckpt") and entry.is_file():
            step = _step_of(entry.path)
            damaged += step is None
            if step is not None:
                found.append((step, entry.stat().st_mtime_ns, entry.path))
    for _, _, path in sorted(found, reverse=True):
        report = verify(path)
        if report.state != "damaged":
            return path
        _logger.warning("%s is damaged, and passed over: %s", path, "; ".join(f.what for f in report.findings))
        damaged += 1
    if damaged:
        raise CorruptionError(f"all {damaged} checkpoints in {str(directory)!r} are damaged")
    return None


def _step_of(path) -> int | None:
    try:
        return int(load(path, keys=["global_step"])["global_step"])
    except CorruptionError as error:
        _logger.warning("%s is damaged, and passed over: %s", path, error)
        return None


def _prepared(path, storage_options) -> str:
    if storage_options is not None:
        raise TypeError("perdure's CheckpointIO takes no storage_options")
    path = _local(path)
    os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
    return path


def _local(path) -> str:
    """Lightning gives paths for fsspec; what is durable is on a file system that this machine has mounted."""
    path = os.fspath(path)
    if path.startswith("file://"):
        return path.removeprefix("file://")
    if "://" in path:
        raise InvalidError(f"{path!r} is not on a file system of this machine: perdure saves to paths")
    return path


def _plain(x):
    """The dicts of Lightning's own kinds as plain ones."""
    theirs = type(x).__module__.partition(".")[0] in ("lightning", "lightning_fabric", "pytorch_lightning")
    if type(x) is dict or isinstance(x, dict) and theirs:
        return {key: _plain(value) for key, value in x.items()}
    return x


def _rank_and_size():
    group = torch.distributed
    if not group.is_available() or not group.is_initialized():
        return 0, 1
    return group.get_rank(), group.get_world_size()


def _of_all_ranks(own):
    size = _rank_and_size()[1]
    if size == 1:
        return [own]
    found = [None] * size
    torch.distributed.all_gather_object(found, own)
    return found
