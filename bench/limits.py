"""What the machine can do at best with the same bytes: memcpy into warm memory, and fio on the same disk."""

import ctypes
import json
import mmap
import shutil
import statistics
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from process import drop_caches, timed

MIB = 1 << 20
REPEATS = 5


def memcpy_seconds(size: int, threads: int) -> float:
    """The median time to copy `size` bytes between warm areas of huge pages, in one part for each thread."""
    source, target = _warm_area(size), _warm_area(size)
    begins = [size * i // threads for i in range(threads + 1)]
    addresses = [ctypes.addressof(ctypes.c_char.from_buffer(area)) for area in (target, source)]

    def copy(i):  # ctypes lets go of the GIL meanwhile
        begin, end = begins[i], begins[i + 1]
        ctypes.memmove(addresses[0] + begin, addresses[1] + begin, end - begin)

    with ThreadPoolExecutor(threads) as pool:
        times = [timed(lambda: list(pool.map(copy, range(threads)))) for _ in range(REPEATS + 1)]
    return statistics.median(times[1:])


def _warm_area(size: int) -> mmap.mmap:
    area = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    area.madvise(mmap.MADV_HUGEPAGE)
    for begin in range(0, size, 64 * MIB):
        area[begin : begin + 64 * MIB] = b"\1" * min(64 * MIB, size - begin)
    return area


def fio_seconds(file: Path, size: int, mode: str) -> float | None:
    """The time that fio takes to write ("write", with an fsync at the end) or read ("read") `size` bytes at
    `file`, with direct I/O, 16 requests of 1 MiB in flight. None where there is no fio.
    """
    if shutil.which("fio") is None:
        return None
    rounded = -(-size // MIB)
    for engine in ("io_uring", "libaio"):
        command = [
            "fio", "--name=limit", f"--filename={file}", f"--rw={mode}", f"--size={rounded}m", "--bs=1m",
            f"--ioengine={engine}", "--iodepth=16", "--direct=1", "--end_fsync=1", "--output-format=json",
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode == 0:
            report = json.loads(done.stdout[done.stdout.index("{") :])["jobs"][0][mode]
            return report["runtime"] / 1e3 * size / (rounded * MIB)
    raise RuntimeError(f"fio fails: {done.stderr or done.stdout}")


def measure(job: dict) -> dict:
    """job: "bytes", "folder", "threads"."""
    folder, size = Path(job["folder"]), job["bytes"]
    file = folder / "fio"
    drop_caches(folder)
    write = fio_seconds(file, size, "write")
    drop_caches(folder)
    read = fio_seconds(file, size, "read")
    return {"fio write": write, "fio read": read, "memcpy": memcpy_seconds(size, job["threads"])}
