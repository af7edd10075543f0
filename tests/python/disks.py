"""Real file systems for the tests, in image files mounted over loop devices; and disks that fail. As root, on Linux."""

import contextlib
import ctypes
import fcntl
import functools
import os
import platform
import shutil
import signal
import struct
import subprocess
import tempfile
import time
import traceback
from pathlib import Path
from typing import NamedTuple

import pytest


class FileSystem(NamedTuple):
    type: str
    make: tuple[str, ...]  # the command, without the image
    options: str = "defaults"


_EXT4 = ("mkfs.ext4", "-q", "-F", "-m", "0", "-E", "nodiscard,lazy_itable_init=0,lazy_journal_init=0")
FILE_SYSTEMS = {
    "ext4": FileSystem("ext4", _EXT4),
    # Without what ext4 does for programs that do not sync, and without the order of data before metadata.
    "ext4-writeback": FileSystem("ext4", _EXT4, "data=writeback,noauto_da_alloc"),
    "ext4-without-fallocate": FileSystem("ext4", (*_EXT4, "-O", "^extents,^64bit")),
    "ext4-without-journal": FileSystem("ext4", (*_EXT4, "-O", "^has_journal")),
    "ext4-few-inodes": FileSystem("ext4", (*_EXT4, "-N", "32")),
    # Smaller than its makers support, as in their own tests.
    "xfs": FileSystem("xfs", ("mkfs.xfs", "-q", "-f", "-K", "--unsupported")),
    "btrfs": FileSystem("btrfs", ("mkfs.btrfs", "-q", "-f", "-K")),
}


def command(*words, check: bool = True) -> subprocess.CompletedProcess:
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 or not check, f"{words}: {done.stdout}{done.stderr}"
    return done


@functools.cache
def _can_mount() -> bool:
    """Root in a container often may not."""
    if os.geteuid() != 0 or not os.access("/dev/loop-control", os.W_OK):
        return False
    with tempfile.TemporaryDirectory() as where:
        if command("mount", "-t", "tmpfs", "tmpfs", where, check=False).returncode:
            return False
        command("umount", where)
    return True


def needs(*programs: str):
    """Skips where file systems cannot be mounted, or one of these programs is not there."""
    missing = [name for name in programs if shutil.which(name) is None]
    if missing:
        return pytest.mark.skipif(True, reason=f"needs {', '.join(missing)}")
    return pytest.mark.skipif(not _can_mount(), reason="needs root, and leave to mount file systems")


# mounting


def unmount(where) -> None:
    """What was killed a moment ago may be on its way out yet. What never lets go is a leaked descriptor."""
    for _ in range(100):
        done = command("umount", where, check=False)
        if done.returncode == 0:
            return
        time.sleep(0.05)
    command("umount", "--lazy", where, check=False)
    raise AssertionError(f"somebody has files open on what was mounted: {done.stderr}")


@contextlib.contextmanager
def mounted(kind: str, image, where, options: str = ""):
    """The file system in `image`, which was made by make_image(); its journal is replayed first."""
    system = FILE_SYSTEMS[kind]
    where = Path(where)
    where.mkdir(exist_ok=True)
    command("mount", "-t", system.type, "-o", f"loop,{system.options}{',' if options else ''}{options}", image, where)
    try:
        yield where
    finally:
        unmount(where)


@contextlib.contextmanager
def memory_folder(where, mib: int = 2048):
    """A tmpfs: what is in it costs no disk, and has the size that is wanted."""
    where = Path(where)
    where.mkdir(exist_ok=True)
    command("mount", "-t", "tmpfs", "-o", f"size={mib}m", "tmpfs", where)
    try:
        yield where
    finally:
        unmount(where)


def make_image(kind: str, image, mib: int) -> Path:
    with open(image, "wb") as file:
        file.truncate(mib << 20)
    command(*FILE_SYSTEMS[kind].make, image)
    return Path(image)


@contextlib.contextmanager
def small_disk(kind: str, folder, mib: int, options: str = ""):
    """A new file system in memory."""
    with memory_folder(Path(folder) / "memory") as memory:
        image = make_image(kind, memory / "disk.img", mib)
        with mounted(kind, image, Path(folder) / "disk", options) as where:
            yield where


# faults


def cut_power(where) -> None:
    """The instant shutdown of ext4 and xfs: nothing more reaches the disk, the journal's memory neither."""
    goingdown, without_flushing_the_log = 0x8004587D, 2
    fd = os.open(where, os.O_RDONLY)
    try:
        fcntl.ioctl(fd, goingdown, struct.pack("I", without_flushing_the_log))
    finally:
        os.close(fd)


def free_bytes(where) -> int:
    status = os.statvfs(where)
    return status.f_bavail * status.f_frsize


@contextlib.contextmanager
def filled_up(where, room: int):
    """A disk on which so many bytes are free."""
    ballast = Path(where) / "ballast"
    with open(ballast, "wb", buffering=0) as file:
        while (excess := free_bytes(where) - room) > 0:
            try:
                file.write(bytes(excess))
                os.fsync(file.fileno())
            except OSError:
                break
    try:
        yield
    finally:
        ballast.unlink()


@contextlib.contextmanager
def thin_disk(kind: str, folder, mib: int, pool_mib: int):
    """A disk with less space than it says. Gives a function: within the context that it makes, the disk is mounted.

    A loop device takes a write for done of which its image had room for a part (Linux 6.18), and so would lie to fsync:
    it is given single pages, of which there are no parts.
    """
    with memory_folder(Path(folder) / "pool", pool_mib) as pool:
        image = make_image(kind, pool / "thin.img", mib)

        @contextlib.contextmanager
        def mount():
            with mounted(kind, image, Path(folder) / "disk") as where:
                source = next(line.split()[0] for line in open("/proc/self/mounts") if line.split()[1] == str(where))
                limit = Path("/sys/block") / Path(source).name / "queue/max_sectors_kb"
                before = limit.read_text()
                limit.write_text(str(os.sysconf("SC_PAGESIZE") // 1024))
                try:
                    yield where
                finally:
                    limit.write_text(before)

        def enlarge():
            command("mount", "-o", f"remount,size={2 * mib}m", pool)
            command("fsck.ext4", "-fy", image, check=False)  # what was not synced may be anything

        yield mount, enlarge


class FailingDisk:
    """A disk that gives EIO for reads or writes, while the file `bad_reads` or `bad_writes` is there."""

    def __init__(self, folder, image):
        self.bad_reads, self.bad_writes = Path(folder) / "bad-reads", Path(folder) / "bad-writes"
        self._point = Path(folder) / "failing"
        self._point.mkdir()
        self.image = self._point / "disk"
        nbdkit = ["nbdkit", "--filter=error", "file", str(image), "error=EIO"]
        for call, switch in (("pread", self.bad_reads), ("pwrite", self.bad_writes)):
            nbdkit += [f"error-{call}-rate=100%", f"error-{call}-file={switch}"]
        self._process = subprocess.Popen(["nbdfuse", str(self.image), "[", *nbdkit, "]"])

    def __enter__(self):
        wait_for(self.image.exists)
        return self

    def __exit__(self, *_):
        self.bad_reads.unlink(missing_ok=True)
        self.bad_writes.unlink(missing_ok=True)
        unmount(self._point)
        self._process.wait(timeout=30)


def wait_for(condition, seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never came to be so"
        time.sleep(0.005)


# children, and what they may not do


def in_child(work, seconds: float = 120.0) -> int:
    """Calls work() in a forked process; its exit status: 0, or 1 after an exception, or minus the signal."""
    pid = os.fork()
    if not pid:
        try:
            work()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
        os._exit(1)
    end = time.monotonic() + seconds
    while (ended := os.waitpid(pid, os.WNOHANG))[0] == 0:
        if time.monotonic() > end:
            os.kill(pid, signal.SIGKILL)
        time.sleep(0.002)
    return os.waitstatus_to_exitcode(ended[1])


_NUMBERS = {
    "x86_64": {"fcntl": 72, "fsync": 74, "fdatasync": 75},
    "aarch64": {"fcntl": 25, "fsync": 82, "fdatasync": 83},
}
_LOAD, _EQUAL, _HAS_BITS, _RETURN = 0x20, 0x15, 0x45, 0x06
_CALL, _SECOND_ARGUMENT, _THIRD_ARGUMENT = 0, 24, 32  # offsets in struct seccomp_data, little endian
_ALLOW, _ERROR = 0x7FFF0000, 0x00050000


def _filter_calls(*program) -> None:
    """A seccomp filter for this thread and those that it starts: (code, if true, if false, operand) each."""
    code = b"".join(struct.pack("HBBI", *instruction) for instruction in program)
    buffer = ctypes.create_string_buffer(code, len(code))
    filter_program = struct.pack("HxxxxxxP", len(program), ctypes.addressof(buffer))
    libc = ctypes.CDLL(None, use_errno=True)
    no_new_privileges, set_seccomp, filter_mode = 38, 22, 2
    for call in ((no_new_privileges, 1, 0, 0, 0), (set_seccomp, filter_mode, filter_program, 0, 0)):
        if libc.prctl(*call) != 0:
            raise OSError(ctypes.get_errno(), "prctl")


def forget_syncs() -> None:
    """From now on fsync does nothing in this process, and says that it went well."""
    number = _NUMBERS[platform.machine()]
    _filter_calls(
        (_LOAD, 0, 0, _CALL),
        (_EQUAL, 1, 0, number["fsync"]),
        (_EQUAL, 0, 1, number["fdatasync"]),
        (_RETURN, 0, 0, _ERROR | 0),
        (_RETURN, 0, 0, _ALLOW),
    )


def refuse_direct_io() -> None:
    """From now on no descriptor of this process can be switched to O_DIRECT."""
    _filter_calls(
        (_LOAD, 0, 0, _CALL),
        (_EQUAL, 0, 5, _NUMBERS[platform.machine()]["fcntl"]),
        (_LOAD, 0, 0, _SECOND_ARGUMENT),
        (_EQUAL, 0, 3, fcntl.F_SETFL),
        (_LOAD, 0, 0, _THIRD_ARGUMENT),
        (_HAS_BITS, 0, 1, os.O_DIRECT),
        (_RETURN, 0, 0, _ERROR | 22),
        (_RETURN, 0, 0, _ALLOW),
    )
