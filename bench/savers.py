"""The engines that save, behind one interface, each called as its documentation says.

A saver's `save` is what the training loop waits for. `fence` is what it waits for before it may change a
parameter, and `finish` what it takes until the checkpoint survives a power cut. Engines that do not see to
that themselves get their files and directories synced in `finish`, so that "durable" means the same for all.
"""

import contextlib
import os
import shutil
from pathlib import Path

import torch

from process import sync_path, sync_tree


class Saver:
    """modules: what it imports, before memory is measured. children: whether it starts processes."""

    modules: tuple[str, ...] = ()
    children = False
    title = ""

    def __init__(self, training, folder: Path):
        self.training = training
        self.folder = folder

    def prepare(self) -> None:
        """What the engine offers to make its first save as quick as the others."""

    def save(self, number: int) -> None:
        raise NotImplementedError

    def fence(self) -> None:
        pass

    def finish(self) -> None:
        pass

    def guard(self):
        """Wraps the optimizer's step, for engines that want that."""
        return contextlib.nullcontext()

    def remove(self, number: int) -> None:
        """Deletes an old checkpoint; perdure prunes by itself."""
        path = self.path(number)
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)

    def stats(self) -> dict:
        """What the engine says of the last save."""
        return {}

    def close(self) -> None:
        pass

    def path(self, number: int) -> Path:
        return self.folder / f"step-{number}"


class TorchSave(Saver):
    title = "torch.save, fsync after"

    def save(self, number):
        torch.save(self.training.as_dict(), self.path(number))
        self.last = self.path(number)

    def finish(self):
        sync_tree(self.last)


class TorchSaveRight(Saver):
    """What perdure promises, by hand: the new file takes its name when it is durable."""

    title = "torch.save, the right protocol"

    def save(self, number):
        temporary = self.folder / f"step-{number}.tmp"
        torch.save(self.training.as_dict(), temporary)
        sync_path(temporary)
        os.replace(temporary, self.path(number))
        sync_path(self.folder)


class Dcp(Saver):
    """Given the plain state dicts, which costs DCP less than its own get_state_dict."""

    title = "DCP save"
    modules = ("torch.distributed.checkpoint",)

    def save(self, number):
        self.last = self.path(number)
        torch.distributed.checkpoint.save(self.training.as_dict(), checkpoint_id=self.last, no_dist=True)

    def finish(self):
        sync_tree(self.last)


class DcpThread(Saver):
    title = "DCP async_save, thread"
    modules = ("torch.distributed.checkpoint",)
    kind = "thread"

    def __init__(self, training, folder):
        super().__init__(training, folder)
        self.future = None

    def prepare(self):
        """Its executors want a process group, also where there is one process."""
        torch.distributed.init_process_group(
            "gloo", store=torch.distributed.HashStore(), rank=0, world_size=1
        )

    def save(self, number):
        if self.future is not None:  # a second save in flight is the caller's to prevent
            self.future.result()
        self.last = self.path(number)
        self.future = torch.distributed.checkpoint.async_save(
            self.training.as_dict(),
            checkpoint_id=self.last,
            async_checkpointer_type=torch.distributed.checkpoint.state_dict_saver.AsyncCheckpointerType(
                self.kind
            ),
        )

    def finish(self):
        self.future.result()
        sync_tree(self.last)

    def close(self):
        torch.distributed.destroy_process_group()


class DcpProcess(DcpThread):
    title = "DCP async_save, process"
    children = True
    kind = "process"


class TorchCheckpointing(Saver):
    """Direct I/O is off where it fails, which is on ext4 and XFS: its writes are not aligned."""

    title = "torch_checkpointing, async"
    modules = ("torch_checkpointing",)
    children = True

    def prepare(self):
        from torch_checkpointing import CheckpointManager
        from torch_checkpointing.storage.filesystem import LocalFileSystemStorageConfig

        config = CheckpointManager.Config.with_async_save()
        config.storage_config = LocalFileSystemStorageConfig(use_direct_io=False)
        self.manager = CheckpointManager(config)
        self.manager.prewarm_staging(self.training.as_dict())

    def save(self, number):
        self.last = self.path(number)
        self.future = self.manager.save(str(self.last), self.training.as_dict())

    def fence(self):
        with self.manager.lock():
            pass

    def guard(self):
        return self.manager.lock()

    def finish(self):
        self.future.result()
        sync_tree(self.last)

    def close(self):
        self.manager.close()


class Safetensors(Saver):
    title = "safetensors, tensors only, fsync after"
    modules = ("safetensors.torch",)

    def save(self, number):
        from safetensors.torch import save_file

        from states import tensors_of

        self.last = self.path(number)
        save_file(tensors_of(self.training.as_dict()), self.last)

    def finish(self):
        sync_tree(self.last)
