"""One of several processes that train a model together: torchrun ... ranks.py WRAPPING COMMAND FOLDER.

WRAPPING: "fsdp" (fully_shard), "tp" (tensor parallel), "fsdp+tp" (a mesh of two by two), "ddp", or "plain" (one process).
Every process prints what it has to say in one line, which begins with its rank. `run` starts them without torchrun, from a
process that has imported torch already, which takes a tenth of the time.
"""

import datetime
import importlib
import multiprocessing
import os
import pathlib
import sys

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions, get_model_state_dict, get_optimizer_state_dict, get_state_dict, set_state_dict,
)  # fmt: skip
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.nn.parallel import DistributedDataParallel

import perdure.dcp

WIDTH, HIDDEN, HEADS = 24, 48, 2  # which two, three and four ranks can share


class Attention(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv = torch.nn.Linear(WIDTH, 3 * WIDTH)
        self.out = torch.nn.Linear(WIDTH, WIDTH)

    def forward(self, x):
        q, k, v = (t.unflatten(-1, (HEADS, -1)).transpose(1, 2) for t in self.qkv(x).chunk(3, -1))
        x = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(x.transpose(1, 2).flatten(2))


class Block(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = Attention()
        self.norm = torch.nn.LayerNorm(WIDTH)
        self.up = torch.nn.Linear(WIDTH, HIDDEN)
        self.down = torch.nn.Linear(HIDDEN, WIDTH)
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))

    def forward(self, x):
        self.seen += 1
        x = x + self.attention(x)
        return x + self.down(torch.nn.functional.gelu(self.up(self.norm(x))))


class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = torch.nn.Embedding(50, WIDTH)
        self.blocks = torch.nn.ModuleList(Block() for _ in range(2))
        self.head = torch.nn.Linear(WIDTH, 50, bias=False)

    def forward(self, tokens):
        x = self.embedding(tokens)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


def wrapped(model, wrapping):
    size = dist.get_world_size()
    if wrapping == "plain":
        return model
    if wrapping == "ddp":
        return DistributedDataParallel(model)
    mesh = init_device_mesh("cpu", (2, size // 2), mesh_dim_names=("fsdp", "tp")) if wrapping == "fsdp+tp" else None
    if "tp" in wrapping:
        tp = mesh["tp"] if mesh else init_device_mesh("cpu", (size,))
        for block in model.blocks:
            parallelize_module(block, tp, {"up": ColwiseParallel(), "down": RowwiseParallel()})
    if "fsdp" in wrapping:
        options = {"mesh": mesh["fsdp"]} if mesh else {"mesh": init_device_mesh("cpu", (size,))}
        for block in model.blocks:
            fully_shard(block, **options)
        fully_shard(model, **options)
    return model


class Training:
    def __init__(self, wrapping, seed):
        torch.manual_seed(seed)
        self.model = wrapped(Model(), wrapping)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-2)
        self.steps = 0

    def step(self):
        """The same tokens for all, so that what comes out is the same, however many there are."""
        tokens = torch.randint(50, (4, 8), generator=torch.Generator().manual_seed(self.steps))
        loss = torch.nn.functional.cross_entropy(self.model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.steps += 1
        return loss.item()

    def state(self):
        model, optimizer = get_state_dict(self.model, self.optimizer)
        return {"model": model, "optimizer": optimizer, "steps": self.steps, "names": ["a", "b"]}

    def take(self, state):
        set_state_dict(self.model, self.optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"])
        self.steps = state["steps"]

    def whole(self):
        """All of it, on the CPU of the first rank; nothing for the others."""
        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        model = get_model_state_dict(self.model, options=options)
        optimizer = get_optimizer_state_dict(self.model, self.optimizer, options=options)
        return {"model": model, "optimizer": optimizer.get("state"), "steps": self.steps}


def differences(a, b, place=""):
    if isinstance(a, dict):
        if a.keys() != b.keys():
            return [f"{place}: {sorted(a)} and {sorted(b)}"]
        return [found for key in a for found in differences(a[key], b[key], f"{place}.{key}")]
    if isinstance(a, torch.Tensor):
        same = a.dtype == b.dtype and torch.equal(a, b)
        return [] if same else [f"{place}: {a.flatten()[:3]} and {b.flatten()[:3]}"]
    return [] if a == b else [f"{place}: {a!r} and {b!r}"]


def writer_for(path):
    return dcp.FileSystemWriter(path) if os.environ.get("STOCK_WRITER") else perdure.dcp.StorageWriter(path)


def reader_for(path):
    return dcp.FileSystemReader(path) if os.environ.get("STOCK_READER") else perdure.dcp.StorageReader(path)


def save(training, folder):
    for _ in range(3):
        training.step()
    dcp.save(training.state(), storage_writer=writer_for(folder / "cp"))
    whole = training.whole()
    if dist.get_rank() == 0:
        torch.save(whole, folder / "whole.pt")
    return "saved"


def save_async(training, folder):
    for _ in range(3):
        training.step()
    whole = training.whole()
    handle = dcp.async_save(training.state(), storage_writer=writer_for(folder / "cp"))
    handle.result()
    if dist.get_rank() == 0:
        torch.save(whole, folder / "whole.pt")
    return "saved"


def load(training, folder):
    training.step()  # so that the optimizer has its state
    state = training.state()
    state["names"] = []
    dcp.load(state, storage_reader=reader_for(folder / "cp"))
    training.take(state)
    whole = training.whole()
    wanted = torch.load(folder / "whole.pt", weights_only=False)
    found = differences(wanted, whole) if dist.get_rank() == 0 else []
    found += [] if state["names"] == ["a", "b"] else [f"names: {state['names']}"]
    return "equal" if not found else "different: " + "; ".join(found[:3])


def fail_one(training, folder):
    """A rank whose data cannot be had."""
    training.step()
    state = training.state()
    if dist.get_rank() == dist.get_world_size() - 1:
        state["bad"] = lambda: None  # cannot be pickled
    try:
        dcp.save(state, storage_writer=writer_for(folder / "cp"))
    except BaseException as error:  # noqa: BLE001: CheckpointException is no Exception
        return f"failed: {type(error).__name__}"
    return "saved"


def do(wrapping, command, folder) -> str:
    if "." in command:  # a function of a module of its own
        module, _, name = command.rpartition(".")
        said = getattr(importlib.import_module(module), name)(wrapping, pathlib.Path(folder))
        dist.destroy_process_group()
        return said
    training = Training(wrapping, seed=len(command))
    said = globals()[command](training, pathlib.Path(folder))
    dist.destroy_process_group()
    return said


def meet(rank, size, port, meeting=""):
    """At a TCPStore that is not one of theirs, so that any of them may be killed."""
    torch.set_num_threads(1)
    store = dist.PrefixStore(meeting, dist.TCPStore("127.0.0.1", port, is_master=False))
    patience = datetime.timedelta(minutes=1)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=size, timeout=patience)


def child(rank, size, port, environment, wrapping, command, folder, said):
    os.environ.update(environment)
    meet(rank, size, port)
    said.put((rank, do(wrapping, command, folder)))


def run(size, wrapping, command, folder, dies=None, **environment) -> list[str]:
    """What each rank said. RuntimeError where one has died that should not."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    said = context.Queue()
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    shared = (size, store.port, environment, wrapping, command, str(folder), said)
    ranks = [context.Process(target=child, args=(rank, *shared), daemon=True) for rank in range(size)]
    for process in ranks:
        process.start()
    for rank, process in enumerate(ranks):
        process.join(300)
        if (process.exitcode != 0) != (rank == dies):
            raise RuntimeError(f"rank {rank} of {size}, {wrapping} {command}: {process.exitcode}")
    heard = dict(said.get() for rank in range(size) if rank != dies)
    return [heard.get(rank, "") for rank in range(size)]


def main():
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    said = do(*sys.argv[1:])
    os.write(1, f"{rank} {said}\n".encode())  # as one: the others write, too
    # A thread of gloo's (torch 2.13) may still let go of a tensor that is Python's: that aborts a process whose interpreter
    # ends meanwhile, with the stock writer too.
    os._exit(0)


if __name__ == "__main__":
    main()
