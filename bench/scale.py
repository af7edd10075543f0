"""What a checkpoint of many ranks costs beside its bytes: metadata, messages, opening. `python bench/scale.py`.

The ranks are threads of one process, with managers of their own and a store in memory; each has a tiny part of every
tensor. So what is measured is everything but the data: what rank 0 does with what all ranks tell it, how large
.metadata is, and what opening and restoring such a directory takes. docs/scale.md extrapolates from it.
"""

import argparse
import functools
import shutil
import statistics
import tempfile
import threading
import time
from pathlib import Path

import torch
import torch.distributed as dist

import table
from perdure import _core
from perdure.tensors import allocate
from perdure.values import encode

WIDTH = 16  # numbers of each part


def training_state(rank, ranks, tensors):
    """A TrainingState whose one module has a part of each of so many tensors, sharded by rows."""
    state = _core.TrainingState()
    own = {f"layers.{n}.weight": torch.full((WIDTH,), float(rank * tensors + n)) for n in range(tensors)}
    shards = _core.Shards()
    for name in own:
        shards.add([name], [WIDTH * ranks], [WIDTH * rank], [WIDTH], 0, 1)
    value = encode(own)
    back = {}
    put = functools.partial(back.__setitem__, "v")
    state.add_entry("model", _core.Role.module, lambda: value, put, None, None, None, None, shards=lambda: shards)
    state.add_none("optimizer")
    state.step = 1
    return state


def options(store, rank, ranks):
    return {
        "keep_last": 1, "keep_best": [], "keep_every_steps": 0, "keep_every_seconds": 0.0, "save_every_steps": 0,
        "save_every_seconds": 0.0, "overhead": 0.0, "save_on_signal": [], "grace": 30.0, "on_error": _core.OnError.warn,
        "when_busy": _core.WhenBusy.wait, "stuck_after": 0.0, "capture": _core.Capture.eager, "staging_bytes": 16 << 20,
        "allocate_staging": lambda size: None, "warning": print, "note": print,
        "ranks": _core.ranks_from(store, rank, ranks), "rank_timeout": 600.0,
    }  # fmt: skip


def on_all(ranks, do):
    """do(rank) on all of them at once; seconds until the last one is done."""
    errors = []

    def run(rank):
        try:
            do(rank)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(ranks)]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return time.perf_counter() - began


def measure(folder, ranks, tensors, saves=3) -> dict:
    store = dist.HashStore()
    states = [training_state(rank, ranks, tensors) for rank in range(ranks)]
    managers = [None] * ranks

    def make(rank):
        managers[rank] = _core.CheckpointManager(str(folder), options(store, rank, ranks))

    def save(rank):
        handle = managers[rank].save(states[rank], {})
        while not handle.wait(600.0):
            pass
        if handle.error() is not None:
            raise handle.error()

    on_all(ranks, make)
    seconds = [on_all(ranks, save) for _ in range(saves)]
    managers[0].wait()  # for the older ones to be removed
    (path,) = folder.glob("step-*.dcp")
    began = time.perf_counter()
    file = _core.CheckpointFile.open(str(path))
    opened = time.perf_counter() - began
    del file

    def restore_one(rank):
        matching = _core.MatchOptions(True, [], [], False)
        managers[rank].restore(None, None, lambda file: states[rank].restore(file, matching, allocate))

    together = on_all(ranks, restore_one)
    on_all(ranks, lambda rank: managers[rank].close())
    return {
        "ranks": ranks,
        "tensors": tensors,
        "pieces": ranks * tensors,
        "metadata": (path / ".metadata").stat().st_size,
        "files": sum(1 for _ in path.iterdir()),
        "first": seconds[0],
        "again": statistics.median(seconds[1:]),
        "opened": opened,
        "restored": together,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, nargs="+", default=[8, 32, 128])
    parser.add_argument("--tensors", type=int, nargs="+", default=[100, 400, 1600])
    arguments = parser.parse_args()
    rows = []
    for ranks in arguments.ranks:
        for tensors in arguments.tensors:
            with tempfile.TemporaryDirectory() as folder:
                found = measure(Path(folder), ranks, tensors)
                shutil.rmtree(folder, ignore_errors=True)
                Path(folder).mkdir()
            pieces = found["pieces"]
            rows.append(
                {
                    "ranks": f"{ranks}",
                    "tensors": f"{tensors}",
                    "pieces": f"{pieces:,}",
                    "files": f"{found['files']}",
                    ".metadata": f"{found['metadata'] / 1e6:.2f} MB",
                    "B a piece": f"{found['metadata'] / pieces:.0f}",
                    "first save": f"{found['first']:.2f} s",
                    "next saves": f"{found['again']:.2f} s",
                    "opening": f"{found['opened']:.3f} s",
                    "us a piece": f"{found['opened'] / pieces * 1e6:.1f}",
                    "all restore": f"{found['restored']:.2f} s",
                }
            )
            print(table.render("Many ranks as threads of one process", rows[-1:]).splitlines()[-1], flush=True)
    print(table.render("Many ranks as threads of one process", rows))


if __name__ == "__main__":
    main()
