"""One process, one engine, some saves of one state: stall, fence, durable, CPU time, memory."""

import gc
import importlib
import os
import time
from pathlib import Path

import states
from perdure_savers import SAVERS
from process import MemoryWatch, cpu_seconds, drop_caches, rss, timed, wait_until_idle


def measure(job: dict) -> dict:
    """job: "state", "scale", "contender", "folder", "saves"."""
    kind = SAVERS[job["contender"]]
    training = states.build(job["state"], job["scale"])
    for module in kind.modules:
        importlib.import_module(module)
    gc.collect()
    drop_caches(Path(job["folder"]))
    with MemoryWatch(kind.children) as memory:
        saver = kind(training, Path(job["folder"]))
        prepared = timed(saver.prepare)
        wait_until_idle()
        saves, resident = [], []
        for number in range(1, job["saves"] + 1):
            training.advance()
            os.sync()  # what was left to the cache before is not this save's to pay
            saves.append(one_save(saver, number))
            saver.remove(number - 1)
            resident.append(rss())
        saver.close()
    return {
        "bytes": training.nbytes,
        "prepare": prepared,
        "saves": saves,
        "extra": memory.extra,
        "drift": resident[-1] - resident[min(1, len(resident) - 1)],
        "staging": saver.staging_bytes(training.nbytes) if hasattr(saver, "staging_bytes") else None,
    }


def one_save(saver, number: int) -> dict:
    """The training's next step is taken to come at once, so that the whole of the fence's wait is seen."""
    cpu = cpu_seconds()
    began = time.perf_counter()
    saver.save(number)
    stalled = time.perf_counter()
    saver.fence()
    fenced = time.perf_counter()
    saver.finish()
    durable = time.perf_counter()
    return {
        "stall": stalled - began,
        "fence": fenced - stalled,
        "durable": durable - began,
        "cpu": cpu_seconds() - cpu,
        "stats": saver.stats(),
    }


def write(job: dict) -> dict:
    """Writes what a load will read. job: "state", "scale", "contender", "folder". Returns where it is."""
    folder = Path(job["folder"])
    training = states.build(job["state"], job["scale"])
    kind = SAVERS[job["contender"]]
    for module in kind.modules:
        importlib.import_module(module)
    saver = kind(training, folder)
    saver.prepare()
    saver.save(1)
    saver.finish()
    saver.close()
    managed = job["contender"] == "perdure"
    return {"path": str(folder if managed else saver.path(1)), "marks": marks(training.tensors())}


def marks(tensors: dict) -> dict[str, float]:
    """What tells whether a load gave back what was saved: the sums of a few tensors."""
    names = sorted(n for n in tensors if not n.endswith(".step"))
    return {
        name: float(tensors[name].double().sum()) for name in (names[0], names[len(names) // 2], names[-1])
    }
