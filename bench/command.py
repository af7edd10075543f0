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
import table
from limits import fio_seconds, memcpy_seconds

PERDURE = os.environ.get("PERDURE_CLI") or Path(sys.executable).with_name("perdure")  # where the wheel puts it
MANY = 100_000  # tensors
DTYPES = ["float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "uint8", "float8_e4m3fn", "bool", "complex64"]


def drop(*paths):
    for path in paths:
        with open(path, "rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def warm(*paths):
    for path in paths:
        subprocess.run(["cat", path], stdout=subprocess.DEVNULL, check=True)


def run(*command) -> tuple[float, float]:
    """Seconds, and MB at most in memory."""
    start = time.perf_counter()
    process = subprocess.Popen([PERDURE, *map(str, command)], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode not in (0, 1):
        sys.exit(f"perdure {' '.join(map(str, command))} failed")
    return time.perf_counter() - start, usage.ru_maxrss / 1024  # torch's own 250 MB, where it is less


def seconds(command, rounds: int) -> float:
    return statistics.median(run(*command)[0] for _ in range(rounds))


def plain_read(path) -> float:
    """As limit: a read of the whole file past the page cache."""
    if shutil.which("fio"):
        return fio_seconds(path, path.stat().st_size, "read")
    start = time.perf_counter()
    subprocess.run(["dd", f"if={path}", "of=/dev/null", "bs=4M", "iflag=direct"], stderr=subprocess.DEVNULL, check=True)
    return time.perf_counter() - start


def save_model(megabytes, seed, path):
    generator = torch.Generator().manual_seed(seed)
    count = max(1, megabytes // 40)
    perdure.save({f"layer{i}": torch.randn(10_000_000, generator=generator) for i in range(count)}, path)


def save_many(path):
    perdure.save({"model": {f"layers.{i}.weight": torch.full((4,), float(i)) for i in range(MANY)}}, path)


def elsewhere(function, *arguments):
    """In another process: the memory of this one is counted as a command's."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        pool.apply(function, arguments)


def cold(folder, megabytes, rounds) -> dict:
    a, b = folder / "command-a.pt", folder / "command-b.pt"
    for seed, path in enumerate((a, b)):
        elsewhere(save_model, megabytes, seed, path)
    size = a.stat().st_size
    commands = {  # and the files that it reads
        "verify": (["verify", a], 1), "stats": (["stats", a], 1), "diff of two": (["diff", a, b], 2), "diff of equal": (["diff", a, a], 0),
    }  # fmt: skip
    times = {name: [] for name in ("plain read", *commands)}
    memory = dict.fromkeys(commands, 0.0)
    for _ in range(rounds):
        drop(a, b)
        times["plain read"].append(plain_read(a))
        for name, (command, _) in commands.items():
            drop(a, b)
            taken, peak = run(*command)
            times[name].append(taken)
            memory[name] = max(memory[name], peak)
    a.unlink(), b.unlink()
    limit = statistics.median(times["plain read"])
    rows = {"plain read": {"seconds": limit, "bytes": size, "ratio": 1.0}}
    for name, (_, files) in commands.items():
        taken = statistics.median(times[name])
        ratio = taken / limit / files if files else None
        rows[name] = {"seconds": taken, "bytes": files * size, "ratio": ratio, "memory": memory[name] * 1e6}
    return rows


def by_dtype(folder, megabytes, rounds) -> dict:
    size = megabytes * 1_000_000
    rows = {"memcpy, 2 threads": {"copy": size / memcpy_seconds(size, 2)}}
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
        rows[name] = {
            "verify": size / seconds(["verify", a], rounds),
            "stats": size / seconds(["stats", a], rounds),
            "diff": 2 * size / seconds(["diff", a, b], rounds),
        }
    a.unlink(), b.unlink()
    return rows


def quick(folder) -> dict:
    path = folder / "command-many.pt"
    elsewhere(save_many, path)
    found = {
        "start": seconds(["--version"], 11),
        "show one": seconds(["show", path, f"model.layers.{MANY * 7 // 9}.weight"], 11),
        "show all": seconds(["show", path], 3),
    }
    path.unlink()
    return found


def measure(folder: Path, megabytes: int, rounds: int) -> dict:
    folder.mkdir(parents=True, exist_ok=True)
    return {
        "cold": cold(folder, megabytes, rounds),
        "dtypes": by_dtype(folder, max(1, megabytes // 3), rounds),
        "quick": quick(folder),
    }


def report(results: dict) -> str:
    return "\n".join(
        [
            table.render(
                f"The command, cold, {results['cold']['plain read']['bytes'] / 1e6:,.0f} MB a file",
                [
                    {
                        "": name, "seconds": table.seconds(row["seconds"]), "GB/s": f"{row['bytes'] / row['seconds'] / 1e9:.2f}",
                        "/ plain read": table.times(row["ratio"]), "memory": table.megabytes(row.get("memory")),
                    }
                    for name, row in results["cold"].items()
                ],
            ),  # fmt: skip
            table.render(
                "The command, from the cache, GB/s by dtype",
                [
                    {"": name, **{what: f"{row[what] / 1e9:.1f}" if what in row else "-" for what in ("copy", "verify", "stats", "diff")}}
                    for name, row in results["dtypes"].items()
                ],
            ),
            table.render(
                f"The command, from the cache, a file of {MANY:,} tensors",
                [{"": name, "ms": f"{1000 * taken:.1f}"} for name, taken in results["quick"].items()],
            ),
        ]
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=1500)
    parser.add_argument("--folder", type=Path, default=Path("build/bench"))
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    print(report(measure(options.folder, options.megabytes, options.rounds)))


if __name__ == "__main__":
    main()
