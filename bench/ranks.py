"""Several ranks on this machine: perdure's manager and its storage for DCP beside stock DCP, in fresh processes each.

A state of every kind: "replicated" (plain tensors that all ranks have alike, as under DDP) and "sharded" (FSDP2).
A figure is that of the slowest rank; the removal of the checkpoint before is in none of them. What is read cold was
dropped from the page cache, what is read warm is in it; all ranks read at once.
"""

import multiprocessing
import os
import shutil
import statistics
import tempfile
import time
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

import perdure
import perdure.dcp
import states
import table
from process import drop_caches, warm_caches

KINDS = ("replicated", "sharded")
SIZES = (1, 2)


class Manager:
    title = "perdure, eager"
    capture = "eager"

    def __init__(self, training, folder):
        self.state = perdure.TrainingState(model=training.model, optimizer=training.optimizer, epoch=0)
        self.checkpoints = perdure.CheckpointManager(
            folder, keep_last=1, capture=self.capture, process_group=dist.group.WORLD
        )

    def prepare(self):
        self.checkpoints.prepare(self.state)
        self.checkpoints.wait()

    def save(self, number):
        self.state.step = number
        self.handle = self.checkpoints.save(self.state)

    def finish(self):
        self.handle.wait()

    def tidy(self):
        self.checkpoints.wait()

    def load(self):
        self.checkpoints.restore(self.state)

    def close(self):
        self.checkpoints.close()


class Overlapped(Manager):
    title = "perdure, overlapped"
    capture = "overlapped"


class Dcp:
    """The state dicts as they are: what DCP's helpers of the state_dict do on top would count against it."""

    title = "DCP"
    writer, reader = dcp.FileSystemWriter, dcp.FileSystemReader

    def __init__(self, training, folder):
        self.training, self.folder = training, Path(folder)

    def prepare(self):
        pass

    def state(self):
        return {"model": self.training.model.state_dict(), "optimizer": self.training.optimizer.state_dict()}

    def save(self, number):
        dcp.save(self.state(), storage_writer=self.writer(self.folder / f"cp-{number}"))
        self.number = number

    def finish(self):
        dist.barrier()

    def tidy(self):
        if dist.get_rank() == 0 and self.number > 1:
            shutil.rmtree(self.folder / f"cp-{self.number - 1}")

    def load(self):
        (path,) = self.folder.glob("cp-*")
        state = self.state()
        dcp.load(state, storage_reader=self.reader(path))
        self.training.model.load_state_dict(state["model"])
        self.training.optimizer.load_state_dict(state["optimizer"])

    def close(self):
        pass


class DcpAsync(Dcp):
    title = "DCP, async_save"

    def save(self, number):
        path = self.folder / f"cp-{number}"
        self.handle = dcp.async_save(self.state(), storage_writer=self.writer(path))
        self.number = number

    def finish(self):
        self.handle.result()
        super().finish()


class Storage(Dcp):
    title = "DCP with perdure.dcp"
    writer, reader = perdure.dcp.StorageWriter, perdure.dcp.StorageReader


CONTENDERS = {c.title: c for c in (Manager, Overlapped, Dcp, DcpAsync, Storage)}


def build(kind, scale):
    torch.manual_seed(1)
    if kind == "replicated":
        return states.build("gpt", scale)
    model = states.GPT2(states.GPT[scale])
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for block in model.h:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    training = states.Training(model, moments=True)
    return training


def slowest(seconds) -> float:
    found = [None] * dist.get_world_size()
    dist.all_gather_object(found, seconds)
    return max(found)


def measure_saves(contender, training, folder, saves) -> list[dict]:
    saver = CONTENDERS[contender](training, folder)
    saver.prepare()
    out = []
    for number in range(1, saves + 1):
        os.sync()
        dist.barrier()
        began = time.perf_counter()
        saver.save(number)
        stalled = time.perf_counter()
        saver.finish()
        durable = time.perf_counter()
        saver.tidy()
        out.append({"stall": slowest(stalled - began), "durable": slowest(durable - began)})
    saver.close()
    return out


def measure_load(contender, training, folder) -> float:
    saver = CONTENDERS[contender](training, folder)
    dist.barrier()
    began = time.perf_counter()
    saver.load()
    seconds = slowest(time.perf_counter() - began)
    saver.close()
    return seconds


def rank_main(rank, size, meeting, job, said):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=size)
    training = build(job["kind"], job["scale"])
    if job["do"] == "save":
        result = measure_saves(job["contender"], training, job["folder"], job["saves"])
    else:
        result = measure_load(job["contender"], training, job["folder"])
    if rank == 0:
        said.put(result)
    dist.destroy_process_group()


def run(size, **job):
    """What rank 0 says of one job, which all ranks do in processes of their own."""
    context = multiprocessing.get_context("spawn")
    said = context.Queue()
    with tempfile.TemporaryDirectory() as meeting:
        ranks = [
            context.Process(target=rank_main, args=(rank, size, f"{meeting}/store", job, said)) for rank in range(size)
        ]
        for process in ranks:
            process.start()
        result = said.get(timeout=1200)
        for process in ranks:
            process.join()
    return result


def bytes_in(folder) -> int:
    files = [file for file in Path(folder).rglob("*") if file.is_file() and file.name != "history.jsonl"]
    return sum(file.stat().st_size for file in files)


def measure(folder: Path, scale: str, rounds: int, saves: int, limits) -> dict:
    """`limits`: what the machine does at best with so many bytes."""
    results = {}
    for size in SIZES:
        for kind in KINDS:
            best = []
            found = {title: {"saves": [], "cold": [], "warm": [], "bytes": 0} for title in CONTENDERS}
            for number in range(rounds):
                for title in CONTENDERS:
                    place = folder / f"{size}-{kind}-{number}"
                    place.mkdir()
                    job = {"kind": kind, "scale": scale, "contender": title, "folder": str(place)}
                    found[title]["saves"].append(run(size, do="save", saves=saves, **job))
                    found[title]["bytes"] = bytes_in(place)
                    drop_caches(place)
                    found[title]["cold"].append(run(size, do="load", **job))
                    warm_caches(place)
                    found[title]["warm"].append(run(size, do="load", **job))
                    shutil.rmtree(place)
                best.append(limits(found[Manager.title]["bytes"], threads=size))
            results[f"{size} {kind}"] = {"limits": best, "contenders": found}
    return results


def medians(row: dict) -> dict:
    again = [{key: statistics.median(s[key] for s in saves[1:] or saves) for key in saves[0]} for saves in row["saves"]]
    return {
        "stall": statistics.median(x["stall"] for x in again),
        "durable": statistics.median(x["durable"] for x in again),
        "cold": statistics.median(row["cold"]),
        "warm": statistics.median(row["warm"]),
    }


def check(targets, results: dict) -> None:
    """As for one process; memcpy in one thread for each rank."""
    for name, result in results.items():
        found, limits = result["contenders"], table.limit_medians(result["limits"])
        eager, overlapped = medians(found[Manager.title]), medians(found[Overlapped.title])
        stall = table.ratio(eager["stall"], limits["memcpy"])
        targets.at_most(f"ranks, {name}: eager stall / memcpy", stall, 1.25)
        targets.at_most(f"ranks, {name}: overlapped stall", overlapped["stall"] * 1e3, 10, "ms")
        targets.at_most(f"ranks, {name}: durable / fio write", table.ratio(eager["durable"], limits["fio write"]), 1.10)
        targets.at_most(f"ranks, {name}: cold / fio read", table.ratio(eager["cold"], limits["fio read"]), 1.10)


def report(results: dict) -> str:
    parts = []
    for name, result in results.items():
        size, kind = name.split()
        found, limits = result["contenders"], table.limit_medians(result["limits"])
        stock = medians(found["DCP"])
        lines = []
        for title, row in found.items():
            own = medians(row)
            lines.append(
                {
                    "": title,
                    "stall": f"{own['stall']:.3f} s",
                    "durable": f"{own['durable']:.2f} s",
                    "/ DCP": f"{own['durable'] / stock['durable']:.2f}",
                    "load cold": f"{own['cold']:.2f} s",
                    "/ DCP ": f"{own['cold'] / stock['cold']:.2f}",
                    "load warm": f"{own['warm']:.2f} s",
                    "/ DCP  ": f"{own['warm'] / stock['warm']:.2f}",
                    "MB": f"{row['bytes'] / 1e6:,.0f}",
                }
            )
        best = {key: "-" if x is None else f"{x:.2f} s" for key, x in limits.items()}
        note = f"the same bytes: fio write {best['fio write']}, fio read {best['fio read']}, memcpy {best['memcpy']}"
        parts.append(table.render(f"{size} {'rank' if size == '1' else 'ranks'}, {kind}", lines, [note]))
    return "\n".join(parts)
