"""Saving and loading one file: perdure beside torch.save and torch.load.

Every contender gets the same state, in turn, round after round, so that what else the machine does hits all of
them; the table has medians. A save is measured until the call returns: what the file has survived by then is
in the column "durable". Before a cold load the file's pages are dropped from the cache.

    python bench/save_load.py --rounds 5 --layers 12 --width 768 --small 5000
"""

import argparse
import os
import platform
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch

import perdure


def gpt_state(layers: int, width: int, vocabulary: int = 50304, context: int = 1024) -> dict:
    """Weights and AdamW's state of a GPT-2: 12 layers of width 768 are the 124M one, 1.5 GB in all."""
    shapes = {"wte.weight": (vocabulary, width), "wpe.weight": (context, width)}
    for i in range(layers):
        for name, shape in {
            "ln_1.weight": (width,),
            "ln_1.bias": (width,),
            "attn.c_attn.weight": (3 * width, width),
            "attn.c_attn.bias": (3 * width,),
            "attn.c_proj.weight": (width, width),
            "attn.c_proj.bias": (width,),
            "ln_2.weight": (width,),
            "ln_2.bias": (width,),
            "mlp.c_fc.weight": (4 * width, width),
            "mlp.c_fc.bias": (4 * width,),
            "mlp.c_proj.weight": (width, 4 * width),
            "mlp.c_proj.bias": (width,),
        }.items():
            shapes[f"h.{i}.{name}"] = shape
    shapes |= {"ln_f.weight": (width,), "ln_f.bias": (width,)}
    return training_state(shapes)


def small_state(count: int) -> dict:
    """Thousands of small tensors: what costs here is everything but the bytes."""
    return training_state({f"block.{i}.scale": (64,) for i in range(count)})


def training_state(shapes: dict) -> dict:
    model = {name: torch.randn(shape) for name, shape in shapes.items()}
    slots = {
        i: {"step": torch.tensor(1.0), "exp_avg": torch.randn_like(p), "exp_avg_sq": torch.rand_like(p)}
        for i, p in enumerate(model.values())
    }
    groups = [{"lr": 1e-3, "betas": (0.9, 0.95), "weight_decay": 0.1, "params": list(range(len(model)))}]
    return {"step": 1, "model": model, "optimizer": {"state": slots, "param_groups": groups}}


def tensors_of(state: dict) -> list:
    slots = state["optimizer"]["state"].values()
    return [*state["model"].values(), *(t for slot in slots for t in slot.values())]


def sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def plain_save(state: dict, path: Path) -> None:
    torch.save(state, path)


def synced_save(state: dict, path: Path) -> None:
    torch.save(state, path)
    sync(path)


def protocol_save(state: dict, path: Path) -> None:
    """What perdure promises, by hand: the old file stays until the new one is durable under its name."""
    temporary = path.with_suffix(".tmp")
    torch.save(state, temporary)
    sync(temporary)
    os.replace(temporary, path)
    sync(path.parent)


def perdure_save(state: dict, path: Path) -> None:
    perdure.save(state, path)


SAVERS = {
    "torch.save": (plain_save, "no"),
    "torch.save + fsync": (synced_save, "not atomic"),
    "torch.save + fsync + rename": (protocol_save, "yes"),
    "perdure.save": (perdure_save, "yes, checksummed"),
}
LOADERS = {
    "torch.load": (torch.load, "not verified"),
    "perdure.load": (perdure.load, "verified"),
}


def drop_from_cache(path: Path) -> None:
    """Only clean pages can be dropped, so the file is synced first."""
    sync(path)
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)


def timed(function, *arguments) -> float:
    began = time.perf_counter()
    function(*arguments)
    return time.perf_counter() - began


def in_turn(names, round_number: int) -> list:
    """Each round begins with another contender."""
    names = list(names)
    start = round_number % len(names)
    return names[start:] + names[:start]


def measure_saves(state: dict, folder: Path, rounds: int) -> dict:
    times = {name: [] for name in SAVERS}
    for round_number in range(rounds + 1):
        for name in in_turn(SAVERS, round_number):
            seconds = timed(SAVERS[name][0], state, folder / f"{name}.pt")
            os.sync()  # what one contender left to the cache must not be paid by the next
            if round_number > 0:  # the first round warms up
                times[name].append(seconds)
    return times


def measure_loads(folder: Path, rounds: int, cold: bool) -> dict:
    times = {name: [] for name in LOADERS}
    paths = {"torch.load": folder / "torch.save.pt", "perdure.load": folder / "perdure.save.pt"}
    for round_number in range(rounds):
        for name in in_turn(LOADERS, round_number):
            if cold:
                drop_from_cache(paths[name])
            times[name].append(timed(LOADERS[name][0], paths[name]))
    return times


def print_table(title: str, times: dict, remarks: dict, size: int, baseline: str) -> None:
    base = statistics.median(times[baseline])
    print(f"\n{title}\n  {'':<28} {'median':>10} {'fastest':>10} {'slowest':>10} {'GB/s':>7} {'ratio':>6}  remark")
    for name, values in times.items():
        middle = statistics.median(values)
        print(
            f"  {name:<28} {middle * 1e3:>7.1f} ms {min(values) * 1e3:>7.1f} ms {max(values) * 1e3:>7.1f} ms "
            f"{size / middle / 1e9:>7.3g} {middle / base:>6.2f}  {remarks[name]}"
        )


def run(title: str, state: dict, folder: Path, rounds: int) -> None:
    tensors = tensors_of(state)
    size = sum(t.nbytes for t in tensors)
    print(f"\n== {title}: {len(tensors):,} tensors, {size / 1e9:.3f} GB, {rounds} rounds")
    remarks = {name: remark for name, (_, remark) in (SAVERS | LOADERS).items()}
    saves = measure_saves(state, folder, rounds)
    print_table("save (remark: durable when the call returns)", saves, remarks, size, "torch.save + fsync + rename")
    for cold in (False, True):
        loads = measure_loads(folder, rounds, cold)
        print_table(f"load, {'cold' if cold else 'warm'} cache", loads, remarks, size, "torch.load")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="measurements of each contender")
    parser.add_argument("--layers", type=int, default=12, help="layers of the GPT; 0 leaves it out")
    parser.add_argument("--width", type=int, default=768, help="width of the GPT")
    parser.add_argument("--small", type=int, default=5000, help="parameters of the small-tensor model; 0 leaves it out")
    parser.add_argument("--directory", default=None, help="where to write (default: a temporary folder)")
    options = parser.parse_args()
    if options.rounds < 1:
        parser.error("--rounds must be at least 1")
    print(f"perdure {perdure.__version__}, torch {torch.__version__}, {os.cpu_count()} cores, {platform.machine()}, ", end="")
    print(f"Linux {platform.release()}")
    with tempfile.TemporaryDirectory(dir=options.directory) as folder:
        if options.layers:
            run("GPT with AdamW", gpt_state(options.layers, options.width), Path(folder), options.rounds)
        if options.small:
            run("many small tensors", small_state(options.small), Path(folder), options.rounds)
    return 0


if __name__ == "__main__":
    sys.exit(main())
