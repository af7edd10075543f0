"""One process, one load: its time, its memory, and whether it gave back what was saved."""

import gc
import importlib
import time
from pathlib import Path

import states
from loaders import LOADERS, read_pages
from measure_save import marks
from process import MemoryWatch, drop_caches, warm_caches


def measure(job: dict) -> dict:
    """job: "state", "scale", "contender", "path", "cold", "marks"."""
    loader = LOADERS[job["contender"]]()
    path = Path(job["path"])
    training = None
    if loader.live:
        training = states.build(job["state"], job["scale"], moments=loader.moments)
        training.advance()  # so that what is there is not what is to come
    for module in loader.modules:
        importlib.import_module(module)
    gc.collect()
    with MemoryWatch(children=False) as memory:
        loader.prepare(training, path)
        (drop_caches if job["cold"] else warm_caches)(path)
        began = time.perf_counter()
        loaded = loader.load()
        if loader.mapped:
            read_pages(loader.tensors(loaded).values())
        seconds = time.perf_counter() - began
    tensors = loader.tensors(loaded)
    found = marks(tensors)
    if found != job["marks"]:
        raise RuntimeError(f"{loader.title} gave back other values: {found} for {job['marks']}")
    loader.close()
    size = sum(t.nbytes for t in tensors.values())
    return {"seconds": seconds, "extra": memory.extra, "bytes": size, "staging": loader.staging}
