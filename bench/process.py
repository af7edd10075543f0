"""What the kernel knows of this process and its children: memory, CPU time, the page cache of its files."""

import os
import resource
import threading
import time
from pathlib import Path

_DROP_CACHES = Path("/proc/sys/vm/drop_caches")


def _status(pid, key: str) -> int:
    """Bytes that /proc/<pid>/status says under `key`; 0 where the process is gone."""
    try:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith(key + ":"):
                return int(line.split()[1]) * 1024
    except (FileNotFoundError, ProcessLookupError):
        pass
    return 0


def rss() -> int:
    return _status("self", "VmRSS")


def reset_peak() -> None:
    """The peak begins anew at what is resident now."""
    Path("/proc/self/clear_refs").write_text("5")


def peak() -> int:
    """The most that was resident since reset_peak()."""
    return _status("self", "VmHWM")


def descendants() -> list[int]:
    """The processes that this one started, and theirs."""
    found, waiting = [], [os.getpid()]
    while waiting:
        for task in Path(f"/proc/{waiting.pop()}/task").glob("*/children"):
            try:
                children = [int(pid) for pid in task.read_text().split()]
            except (FileNotFoundError, ProcessLookupError):
                continue
            found += children
            waiting += children
    return found


def cpu_seconds() -> float:
    """User and system time of this process with all its threads, and of its descendants."""
    total = 0.0
    for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN):
        usage = resource.getrusage(who)
        total += usage.ru_utime + usage.ru_stime
    tick = os.sysconf("SC_CLK_TCK")
    for pid in descendants():
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        total += (int(fields[11]) + int(fields[12])) / tick
    return total


def wait_until_idle(limit: float = 60.0) -> None:
    """Gives what an engine began in the background (a process, pages being touched) the time it takes."""
    deadline = time.monotonic() + limit
    before = cpu_seconds()
    while time.monotonic() < deadline:
        time.sleep(0.3)
        now = cpu_seconds()
        if now - before < 0.03:
            return
        before = now


class MemoryWatch:
    """Memory on top of what was resident at the start: the kernel's own peak for this process, and for
    engines that start processes their private memory too, which is sampled. What they share is counted once.
    """

    def __init__(self, children: bool):
        self._children = children
        self._of_children = 0
        self._stop = threading.Event()
        self._sampler = threading.Thread(target=self._sample, daemon=True)

    def __enter__(self):
        self._before = rss()
        reset_peak()
        if self._children:
            self._sampler.start()
        return self

    def __exit__(self, *exception):
        self._stop.set()
        if self._children:
            self._sampler.join()
        self.extra = max(0, peak() - self._before) + self._of_children

    def _sample(self):
        while not self._stop.wait(0.02):
            now = sum(_status(pid, "RssAnon") for pid in descendants())
            self._of_children = max(self._of_children, now)


def files_under(path: Path) -> list[Path]:
    return [p for p in path.rglob("*") if p.is_file()] if path.is_dir() else [path]


def sync_path(path: Path) -> None:
    """fsync of one file or directory."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(path: Path) -> None:
    """fsync of a file, or of all files and directories under a directory, and of the one that it is in."""
    if path.is_dir():
        for inner in path.rglob("*"):
            sync_path(inner)
    sync_path(path)
    sync_path(path.parent)


def drop_caches(path: Path) -> None:
    """Afterwards the files under `path` are read from the disk. Only clean pages are dropped: hence sync."""
    os.sync()
    try:
        _DROP_CACHES.write_text("3")
    except OSError:  # not root: the pages of these files alone
        for file in files_under(path):
            descriptor = os.open(file, os.O_RDONLY)
            try:
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(descriptor)


def warm_caches(path: Path) -> None:
    """Afterwards the files under `path` are in the page cache."""
    for file in files_under(path):
        with file.open("rb", buffering=0) as stream:
            while stream.read(1 << 20):
                pass


def timed(function, *arguments) -> float:
    began = time.perf_counter()
    function(*arguments)
    return time.perf_counter() - began
