"""perdure: checkpoints for PyTorch training that last.

    state = perdure.TrainingState(model=model, optimizer=optimizer, scheduler=scheduler, epoch=0)
    with perdure.CheckpointManager("runs/gpt", keep_last=3) as checkpoints:
        checkpoints.restore(state)                  # newest whole checkpoint, or None where there is none yet
        while state.epoch < epochs:
            ...                                     # state.step += 1 at every optimizer step
            state.epoch += 1
            checkpoints.save(state, metrics={"val_loss": loss})

A save that was acknowledged survives kill -9 and a power cut; a reader sees a whole checkpoint or none; what is
loaded had its checksums compared; and the steps after a resume have the same bits as if nothing had happened.

perdure.ResumableLoader(loader) goes on in the middle of an epoch; perdure.testing.check_exact_resume proves that a
training does go on exactly.

One file: perdure.save(state, path), perdure.load(path), perdure.inspect(path), perdure.verify(path),
perdure.stats(path), perdure.diff(a, b), perdure.convert(path, out), perdure.repair(path, out). The files are PyTorch's
own: torch.load(path) opens what perdure writes, perdure.load(path) opens what torch.save writes.

Warnings (a failed save, a damaged checkpoint set aside) go to logging.getLogger("perdure"), which prints them on
standard error where logging is not configured.
"""

try:
    import torch as _torch  # noqa: F401  (perdure works with any PyTorch, so pip is not asked to install one)
except ImportError as error:
    raise ImportError(
        "perdure needs PyTorch, and none is installed here: https://pytorch.org/get-started"
    ) from error

from ._core import __version__
from .conversion import ConvertReport, convert
from .errors import (
    CancelledError,
    CorruptionError,
    Error,
    FullError,
    InvalidError,
    IoError,
    LockedError,
    NotFoundError,
    UnsupportedError,
)
from .figures import (
    Difference,
    DiffReport,
    Distance,
    Figures,
    GroupStats,
    MomentumStats,
    StatsReport,
    TensorStats,
    diff,
    stats,
)
from .files import Finding, Lost, RepairReport, VerifyReport, load, repair, save, verify
from .handles import Checkpoint, PlannedCheckpoint, SaveHandle, SaveStats
from .inspection import Entry, Inspection, inspect
from .loader import ResumableLoader
from .manager import CheckpointManager, list_checkpoints, read_history, retention_plan
from .policies import Best, Every
from .saver import AsyncSaver
from .state import TrainingState

__all__ = [
    "AsyncSaver",
    "Best",
    "CancelledError",
    "Checkpoint",
    "CheckpointManager",
    "ConvertReport",
    "CorruptionError",
    "DiffReport",
    "Difference",
    "Distance",
    "Entry",
    "Error",
    "Every",
    "Figures",
    "Finding",
    "FullError",
    "GroupStats",
    "Inspection",
    "InvalidError",
    "IoError",
    "LockedError",
    "Lost",
    "MomentumStats",
    "NotFoundError",
    "PlannedCheckpoint",
    "RepairReport",
    "ResumableLoader",
    "SaveHandle",
    "SaveStats",
    "StatsReport",
    "TensorStats",
    "TrainingState",
    "UnsupportedError",
    "VerifyReport",
    "__version__",
    "convert",
    "diff",
    "inspect",
    "list_checkpoints",
    "load",
    "read_history",
    "repair",
    "retention_plan",
    "save",
    "stats",
    "verify",
]
