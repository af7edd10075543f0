"""perdure's own contenders among those that save."""

import dataclasses

import perdure

from savers import (
    Dcp,
    DcpProcess,
    DcpThread,
    Safetensors,
    Saver,
    TorchCheckpointing,
    TorchSave,
    TorchSaveRight,
)

MIB = 1 << 20


class PerdureFile(Saver):
    title = "perdure.save, one file"

    def save(self, number):
        perdure.save(self.training.as_dict(), self.path(number))


class PerdureManager(Saver):
    """With a staging area that holds the whole state."""

    title = "perdure, eager"
    capture = "eager"
    keep_last = 2

    @staticmethod
    def staging_bytes(state_bytes: int) -> int:
        """The state, and room for what a file has beside its tensors."""
        return -(-state_bytes // MIB) * MIB + 16 * MIB

    def __init__(self, training, folder):
        super().__init__(training, folder)
        self.state = perdure.TrainingState(model=training.model, optimizer=training.optimizer, epoch=0)
        self.checkpoints = perdure.CheckpointManager(
            folder,
            keep_last=self.keep_last,
            capture=self.capture,
            staging_bytes=self.staging_bytes(training.nbytes),
        )

    def prepare(self):
        self.checkpoints.prepare(self.state)
        self.checkpoints.wait()

    def save(self, number):
        self.state.step = number
        self.handle = self.checkpoints.save(self.state)

    def fence(self):
        if self.capture == "overlapped":
            self.checkpoints.fence()

    def finish(self):
        self.handle.wait()

    def remove(self, number):
        pass

    def stats(self):
        return dataclasses.asdict(self.handle.stats)

    def close(self):
        self.checkpoints.close()


class PerdureStreaming(PerdureManager):
    """With a staging area that most states do not fit in: they stream through it."""

    title = "perdure, eager, 256 MiB staged"

    @staticmethod
    def staging_bytes(state_bytes):
        return 256 * MIB


class PerdureOverlapped(PerdureManager):
    title = "perdure, overlapped"
    capture = "overlapped"


SAVERS: dict[str, type[Saver]] = {
    "torch": TorchSave,
    "torch-right": TorchSaveRight,
    "dcp": Dcp,
    "dcp-thread": DcpThread,
    "dcp-process": DcpProcess,
    "torch-checkpointing": TorchCheckpointing,
    "safetensors": Safetensors,
    "perdure-file": PerdureFile,
    "perdure": PerdureManager,
    "perdure-256": PerdureStreaming,
    "perdure-overlapped": PerdureOverlapped,
}
