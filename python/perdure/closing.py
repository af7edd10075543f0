"""What has to be closed: at the end of a block, by whoever made it, or when the interpreter exits."""

import atexit
import os
import weakref

from .logger import warn
from .progress import shown

_POLL = 0.2  # seconds between looks for Ctrl-C while waiting


class Closing:
    """What saves with a thread of its own: what is in flight is finished before the process ends.

    `core`: has idle(timeout), wait(), close() and progress(). `title`: what it is, for messages.
    """

    def __init__(self, core, title: str):
        self._core, self._title = core, title
        self._pid = os.getpid()
        self._closed = False
        _open.add(self)

    def wait(self) -> None:
        """Waits until no save is in flight. Raises the error of one that nobody has seen."""
        self._wait_idle()
        self._core.wait()

    def close(self) -> None:
        """wait(), then gives the memory back. Afterwards nothing but close() can be called."""
        self._closed = True
        with shown("perdure: saving", self._core.progress):
            self._core.close()

    def _wait_idle(self):
        """As the core does, but Ctrl-C is heard."""
        with shown("perdure: saving", self._core.progress):
            while not self._core.idle(_POLL):
                pass

    def _close_quietly(self):
        if self._closed or self._pid != os.getpid():
            return
        try:
            self.close()
        except Exception as error:  # nobody is left to raise it to
            warn(f"closing {self._title}: {error}")

    def __enter__(self):
        return self

    def __exit__(self, exception_type, exception, traceback):
        if exception_type is None:
            self.close()
        else:
            self._close_quietly()

    def __del__(self):
        if hasattr(self, "_closed"):
            self._close_quietly()


_open: "weakref.WeakSet[Closing]" = weakref.WeakSet()


@atexit.register
def _close_all():
    for one in list(_open):
        one._close_quietly()
