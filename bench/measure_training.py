"""One process, one training run with a save every few steps: how long each step of the loop took."""

import contextlib
import importlib
import os
import time
from pathlib import Path

import torch
from torch.nn import functional

import states
from perdure_savers import SAVERS
from process import cpu_seconds, drop_caches, wait_until_idle

WARM_UP = 5


def measure(job: dict) -> dict:
    """job: "scale", "contender" (None: no saves), "folder", "steps", "every", "tokens".

    The steps before the measured ones make the optimizer's state and the first save, so that what is measured
    is the steady state of each engine.
    """
    training = states.build("trained", job["scale"], moments=False)
    loop = Loop(training, job["tokens"])
    for _ in range(WARM_UP):
        loop.step()
    saver = None
    if job["contender"] is not None:
        kind = SAVERS[job["contender"]]
        for module in kind.modules:
            importlib.import_module(module)
        saver = kind(training, Path(job["folder"]))
        saver.prepare()
        wait_until_idle()
        loop.guard = saver.guard
        saver.save(1)
        loop.step()
        saver.finish()
    drop_caches(Path(job["folder"]))
    cpu = cpu_seconds()
    steps, stalls, stats = run(loop, saver, job["steps"], job["every"])
    cpu = cpu_seconds() - cpu
    if saver is not None:
        saver.finish()
        saver.close()
    os.sync()
    return {"steps": steps, "stalls": stalls, "stats": stats, "cpu": cpu, "bytes": training.nbytes}


def run(loop, saver, count: int, every: int) -> tuple[list[float], list[float], list[dict]]:
    """The loop of a user: a save behind each `every`-th step, the two newest kept. It ends some steps behind
    the last save, so that what an engine does behind the training's back falls into steps that are measured.
    """
    steps, stalls, stats, number = [], [], [], 1
    for i in range(count):
        began = time.perf_counter()
        loop.step()
        if saver is not None and i % every == 0:
            number += 1
            stats.append(saver.stats())  # of the save before, which should be done by now
            saving = time.perf_counter()
            saver.save(number)
            stalls.append(time.perf_counter() - saving)
            saver.remove(number - 2)
        steps.append(time.perf_counter() - began)
    return steps, stalls, stats


class Loop:
    """Forward, backward, step, on random tokens; as many rows as they fill."""

    def __init__(self, training: states.Training, tokens: int):
        self.training = training
        vocabulary, context = training.model.wte.num_embeddings, training.model.wpe.num_embeddings
        length = min(tokens, context)
        self.tokens = torch.randint(vocabulary, (tokens // length, length + 1))
        self.guard = contextlib.nullcontext

    def step(self) -> None:
        inputs, targets = self.tokens[:, :-1], self.tokens[:, 1:]
        loss = functional.cross_entropy(self.training.model(inputs).flatten(0, 1), targets.flatten())
        self.training.optimizer.zero_grad()
        loss.backward()
        with self.guard():
            self.training.optimizer.step()
