"""AsyncSaver: files of names of one's own, saved behind the training."""

import os

from . import _core
from .closing import Closing
from .devices import pinned
from .handles import SaveHandle
from .logger import warn
from .values import encode


class AsyncSaver(Closing):
    """perdure.save() behind the training, for loops that name their files themselves:

        with perdure.AsyncSaver() as saver:
            handle = saver.save({"epoch": 3, "model": model.state_dict()}, "epoch-3.pt")
            saver.remove("epoch-2.pt")

    A run of its own is better off with a CheckpointManager, which also knows the newest whole checkpoint.

    staging_bytes: as for CheckpointManager.

    What is saved must not change before save() returns. A forked child cannot use it and gets InvalidError. As a
    context manager it is closed at the end of the block; one that is never closed is closed when the interpreter exits.
    """

    def __init__(self, staging_bytes: int | None = None):
        super().__init__(_core.AsyncSaver(staging_bytes or 0, pinned, warn), "an AsyncSaver")

    def save(self, state, path) -> SaveHandle:
        """As perdure.save(state, path), but returns once `state` is copied.

        The file is at `path` when it is durable, and until then what was there before. One save is in flight at a time:
        a further one waits for it. Raises InvalidError at once for a value that cannot be saved. What goes wrong with
        the writing is on the handle; wait() and close() raise it where nobody has seen it there.
        """
        value = encode(state)
        self._wait_idle()
        return SaveHandle(self._core.save(os.fsdecode(path), value))

    def remove(self, path) -> None:
        """Removes the file at `path`, or the directory with all that is in it, once the last save is durable.

        Where that save fails, it stays, which is logged. Nothing happens where it is not there.
        """
        self._core.remove(os.fsdecode(path))

    def __repr__(self):
        return "<AsyncSaver: closed>" if self._closed else "<AsyncSaver>"
