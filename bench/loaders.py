"""The engines that load, behind one interface.

`source` is the saver that wrote the file. `live` loaders fill a training run that is there already; the
others make new tensors. Where these are left mapped, nothing has been read yet, so one value of each page
is read within the measured time.
"""

import os
from pathlib import Path

import perdure
import torch

from perdure_savers import PerdureManager, PerdureStreaming
from states import Training, tensors_of

PAGE_FLOATS = os.sysconf("SC_PAGE_SIZE") // 4


class Loader:
    modules: tuple[str, ...] = ()
    title = ""
    source = ""
    verified = "no"
    live = False  #: whether it needs a training run to load into
    moments = True  #: whether the optimizer of that run has its state already, as after a first step
    mapped = False
    staging: int | None = None  #: bytes of the staging area, for engines that have one

    def prepare(self, training: Training | None, path: Path) -> None:
        """What comes before the measured time."""
        self.training = training
        self.path = path

    def load(self):
        """Returns the state by the names of Training.as_dict; None where it went into the training run."""
        raise NotImplementedError

    def tensors(self, loaded) -> dict[str, torch.Tensor]:
        """The loaded tensors by flat names."""
        return tensors_of(self.training.as_dict() if loaded is None else loaded)

    def close(self) -> None:
        pass


class TorchLoad(Loader):
    title = "torch.load"
    source = "torch-right"

    def load(self):
        return torch.load(self.path)


class TorchLoadMapped(TorchLoad):
    title = "torch.load, mmap, pages read"
    mapped = True

    def load(self):
        return torch.load(self.path, mmap=True)


class TorchResume(TorchLoad):
    title = "torch.load, then load_state_dict"
    live = True
    moments = False

    def load(self):
        self.training.load_dict(torch.load(self.path))


class DcpLoad(Loader):
    """It fills the tensors that it is given; the optimizer's are there already."""

    title = "DCP load, into live tensors"
    source = "dcp"
    modules = ("torch.distributed.checkpoint",)
    live = True

    def load(self):
        torch.distributed.checkpoint.load(self.training.as_dict(), checkpoint_id=self.path, no_dist=True)


class TorchCheckpointingLoad(Loader):
    title = "torch_checkpointing, into live tensors"
    source = "torch-checkpointing"
    modules = ("torch_checkpointing",)
    live = True

    def prepare(self, training, path):
        from torch_checkpointing import CheckpointManager

        super().prepare(training, path)
        self.manager = CheckpointManager(CheckpointManager.Config.with_sync_save())

    def load(self):
        return dict(self.manager.load(self.path, into=self.training.as_dict()))

    def close(self):
        self.manager.close()


class SafetensorsLoad(Loader):
    title = "safetensors, pages read"
    source = "safetensors"
    modules = ("safetensors.torch",)
    mapped = True

    def load(self):
        from safetensors.torch import load_file

        return load_file(self.path)

    def tensors(self, loaded):
        return loaded


class PerdureLoad(Loader):
    title = "perdure.load"
    source = "perdure-file"
    verified = "yes"

    def load(self):
        return perdure.load(self.path)


class PerdureLoadMapped(Loader):
    title = "perdure.load, mmap, pages read"
    source = "perdure-file"
    mapped = True

    def load(self):
        return perdure.load(self.path, mmap=True)


class PerdureRestore(Loader):
    """Into a run whose tensors are all there, by a manager that is too: what goes back after a bad step."""

    title = "perdure restore, into live tensors"
    source = "perdure"
    verified = "yes"
    live = True
    staged_by = PerdureManager

    def prepare(self, training, path):
        super().prepare(training, path)
        self.state = perdure.TrainingState(model=training.model, optimizer=training.optimizer, epoch=0)
        self.staging = self.staged_by.staging_bytes(training.nbytes)
        self.checkpoints = perdure.CheckpointManager(path, capture="eager", staging_bytes=self.staging)
        if self.moments:
            self.checkpoints.prepare(self.state)
            self.checkpoints.wait()

    def load(self):
        if self.checkpoints.restore(self.state) is None:
            raise RuntimeError(f"no checkpoint in {self.path}")

    def close(self):
        self.checkpoints.close()


class PerdureRestoreStreaming(PerdureRestore):
    title = "perdure restore, into live tensors, 256 MiB staged"
    staged_by = PerdureStreaming


class PerdureResume(PerdureRestoreStreaming):
    """Into a new run, whose optimizer has no state yet, by a new manager: what starts after a crash."""

    title = "perdure restore, into a new run, 256 MiB staged"
    moments = False


LOADERS: dict[str, type[Loader]] = {
    "torch": TorchLoad,
    "torch-mmap": TorchLoadMapped,
    "torch-resume": TorchResume,
    "dcp": DcpLoad,
    "torch-checkpointing": TorchCheckpointingLoad,
    "safetensors": SafetensorsLoad,
    "perdure-load": PerdureLoad,
    "perdure-mmap": PerdureLoadMapped,
    "perdure-restore": PerdureRestore,
    "perdure-restore-256": PerdureRestoreStreaming,
    "perdure-resume": PerdureResume,
}


def read_pages(tensors) -> float:
    """Reads one value of each page of every tensor."""
    return sum(float(t.reshape(-1)[::PAGE_FLOATS].sum()) for t in tensors)
