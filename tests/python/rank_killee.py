"""Ranks that do nothing but save, for test_rank_kills.py to kill. Each writes into a log what it was told."""

import os
import pathlib

import ranks
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import perdure

SIZES = [3, 5_000, 300_000]  # which nobody shares out, some do, and all do by rows


class Numbers(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.n = torch.nn.ParameterList(torch.nn.Parameter(torch.zeros(n)) for n in SIZES)


def local(p):
    return p.to_local() if hasattr(p, "to_local") else p


def fill(parameters, step):
    """What is saved is a function of the step alone."""
    with torch.no_grad():
        for number, p in enumerate(parameters):
            local(p).fill_(10 * step + number)


class Log:
    """Lines that are on the disk when they are said."""

    def __init__(self, path):
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def say(self, *words):
        os.write(self._file, (" ".join(map(str, words)) + "\n").encode())
        os.fsync(self._file)


def rank_of(rank, size, port, meeting, wrapping, capture, patience, folder):
    log = Log(pathlib.Path(folder) / f"{meeting}-{rank}.log")
    try:
        ranks.meet(rank, size, port, meeting)
        model = wrapped(Numbers(), wrapping)
        log.say("began")
        train(log, model, capture, patience, pathlib.Path(folder) / "run")
    except perdure.IoError as error:
        log.say("lost", str(error).replace("\n", " "))
    except BaseException as error:  # noqa: BLE001
        log.say("wrong", repr(error).replace("\n", " "))
    os._exit(1)  # what torch would clean up, its dead companions had half of


def wrapped(model, wrapping):
    if wrapping == "ddp":
        return DistributedDataParallel(model)
    return fully_shard(model, mesh=init_device_mesh("cpu", (dist.get_world_size(),)))


def train(log, model, capture, patience, run):
    parameters = list(model.parameters())
    optimizer = torch.optim.SGD(parameters, lr=0.1)
    state = perdure.TrainingState(model=model, optimizer=optimizer, own=-1)
    options = {"keep_last": 2, "on_error": "raise", "capture": capture, "rank_timeout": patience}
    with perdure.CheckpointManager(run, process_group=dist.group.WORLD, **options) as checkpoints:
        if checkpoints.restore(state):
            check(log, parameters, state)
        log.say("restored", state.step)
        handle = None
        while True:
            state.step += 1
            state.own = 1000 * state.step + dist.get_rank()
            checkpoints.fence()
            fill(parameters, state.step)
            if handle:
                handle.wait()
                log.say("saved", state.step - 1)
            handle = checkpoints.save(state)


def check(log, parameters, state):
    for number, p in enumerate(parameters):
        if not (local(p) == 10 * state.step + number).all():
            log.say("wrong", f"n.{number} of step {state.step}: {local(p).unique()[:5].tolist()}")
    if state.own != 1000 * state.step + dist.get_rank():
        log.say("wrong", f"own value of step {state.step}: {state.own}")
