"""How fast the perdure command reads: verify, stats and diff, beside plain reads of the same files; how long it takes to
start, and to show one of 100,000 tensors.

    .venv/bin/python bench/command.py [--megabytes 1500] [--folder build/bench] [--rounds 3]

Cold: the files are dropped from the page cache before each command, and the limit is fio (or dd) with direct I/O. Warm:
they are in it, and the limit is memcpy. In turn, round after round; the figures are medians.
"""

import argparse
import multiprocessing
import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch

import perdure
from limits import fio_seconds, memcpy_seconds

PERDURE = os.environ.get("PERDURE_CLI") or shutil.which("perdure") or "perdure"
DTYPES = ["float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "uint8", "float8_e4m3fn", "bool", "complex64"]


def drop(*paths):
    for path in paths:
        with open(path, "rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def warm(*paths):
    for path in paths:
        subprocess.run(["cat", path], stdout=subprocess.DEVNULL, check=True)


def seconds(*command) -> tuple[float, float]:
    """Wall time, and MB at most in memory."""
    start = time.perf_counter()
    process = subprocess.Popen([PERDURE, *map(str, command)], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode not in (0, 1):
        sys.exit(f"perdure {' '.join(map(str, command))} failed")
    return time.perf_counter() - start, usage.ru_maxrss / 1024  # torch's own 250 MB, where it is less


def plain_read(path) -> float:
    """As limit: a read of the whole file past the page cache."""
    if shutil.which("fio"):
        return fio_seconds(path, path.stat().st_size, "read")
    start = time.perf_counter()
    subprocess.run(["dd", f"if={path}", "of=/dev/null", "bs=4M", "iflag=direct"], stderr=subprocess.DEVNULL, check=True)
    return time.perf_counter() - start


def model(megabytes, seed) -> dict:
    generator = torch.Generator().manual_seed(seed)
    count = max(1, megabytes // 40)
    return {f"layer{i}": torch.randn(10_000_000, generator=generator) for i in range(count)}


def save_model(megabytes, seed, path):
    perdure.save(model(megabytes, seed), path)


def cold(a, b, rounds):
    size = a.stat().st_size
    commands = {
        "verify": (["verify", a], 1), "stats": (["stats", a], 1), "diff of two": (["diff", a, b], 2), "diff of equal": (["diff", a, a], 0),
    }  # fmt: skip
    times = {name: [] for name in ("plain read", *commands)}
    memory = dict.fromkeys(commands, 0.0)
    for _ in range(rounds):
        drop(a, b)
        times["plain read"].append(plain_read(a))
        for name, (command, _) in commands.items():
            drop(a, b)
            taken, peak = seconds(*command)
            times[name].append(taken)
            memory[name] = max(memory[name], peak)
    limit = statistics.median(times["plain read"])
    print(f"cold, {size / 1e6:.0f} MB a file\n  {'plain read':14} {limit:7.2f} s  {size / limit / 1e9:5.2f} GB/s")
    for name, (_, files) in commands.items():
        taken = statistics.median(times[name])
        ratio = f"{taken / limit / files:5.2f} of plain reads" if files else ""
        print(f"  {name:14} {taken:7.2f} s  {files * size / taken / 1e9:5.2f} GB/s  {memory[name]:4.0f} MB  {ratio}")


def by_dtype(folder, megabytes, rounds):
    size = megabytes * 1_000_000
    print(f"warm, by dtype, {megabytes} MB a file; memcpy with two threads {size / memcpy_seconds(size, 2) / 1e9:.1f} GB/s")
    a, b = folder / "dtype-a.pt", folder / "dtype-b.pt"
    for name in DTYPES:
        dtype = getattr(torch, name)
        count = size // torch.empty(0, dtype=dtype).element_size()
        values = torch.randn(1_000_000) if not dtype.is_complex else torch.randn(1_000_000, dtype=dtype)
        x = values.to(dtype).repeat(count // 1_000_000 + 1)[:count].clone()
        perdure.save({"x": x}, a)
        x[::10] = 1
        perdure.save({"x": x}, b)
        del x
        warm(a, b)
        found = {command[0]: statistics.median(seconds(*command)[0] for _ in range(rounds))
                 for command in (["verify", a], ["stats", a], ["diff", a, b])}  # fmt: skip
        rates = [size * (2 if c == "diff" else 1) / found[c] / 1e9 for c in ("verify", "stats", "diff")]
        print(f"  {name:14} verify {rates[0]:5.1f}  stats {rates[1]:5.1f}  diff {rates[2]:5.1f} GB/s")
    a.unlink(), b.unlink()


def save_many(path):
    perdure.save({"model": {f"layers.{i}.weight": torch.full((4,), float(i)) for i in range(100_000)}}, path)


def quick(folder):
    path = folder / "command-many.pt"
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        pool.apply(save_many, (path,))
    print("\nwarm, milliseconds")
    for what, command in {"start": ["--version"], "show one of 100,000": ["show", path, "model.layers.77777.weight"]}.items():
        print(f"  {what:20} {1000 * statistics.median(seconds(*command)[0] for _ in range(11)):8.1f}")
    path.unlink()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=1500)
    parser.add_argument("--folder", type=Path, default=Path("build/bench"))
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    a, b = options.folder / "command-a.pt", options.folder / "command-b.pt"
    for seed, path in enumerate((a, b)):  # by another process: the memory of this one is counted as a command's
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            pool.apply(save_model, (options.megabytes, seed, path))
    cold(a, b, options.rounds)
    a.unlink(), b.unlink()
    by_dtype(options.folder, options.megabytes // 3, options.rounds)
    quick(options.folder)


if __name__ == "__main__":
    main()
