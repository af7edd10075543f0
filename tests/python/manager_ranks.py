"""What the ranks of tests/python/test_manager_ranks.py do; see ranks.py."""

import json
import os
import random
import signal

import torch
import torch.distributed as dist
from ranks import Training, differences

import perdure

WRAPPINGS = ["fsdp", "tp", "ddp", "fsdp+tp"]


def state_of(training, **more):
    return perdure.TrainingState(model=training.model, optimizer=training.optimizer, epoch=0, **more)


def manager(folder, **options):
    return perdure.CheckpointManager(folder, process_group=dist.group.WORLD, rank_timeout=60, **options)


def possible(wrapping) -> bool:
    size = dist.get_world_size()
    return not (wrapping == "fsdp+tp" and size % 2) and (size > 1 or wrapping == "plain")


def save_all(capture, folder):
    """A checkpoint of each wrapping, and beside it what is in it, whole."""
    for wrapping in WRAPPINGS:
        training = Training(wrapping, seed=3)
        state = state_of(training)
        with manager(folder / wrapping, capture=capture) as checkpoints:
            for _ in range(3):
                training.step()
                state.step += 1
            state.epoch = 5
            handle = checkpoints.save(state)
            if capture == "overlapped":
                training.optimizer.step()  # waits for what is copied before it
            handle.wait()
            assert handle.checkpoint.path.is_dir()
        if capture != "overlapped":
            whole = training.whole()
            if dist.get_rank() == 0:
                torch.save(whole, folder / f"{wrapping}.pt")
    return "saved"


def load_all(_, folder):
    """Each of them into each wrapping that there can be here, before and after the optimizer has state."""
    found, count = [], 0
    for saved in WRAPPINGS:
        wanted = torch.load(folder / f"{saved}.pt", weights_only=False)
        for wrapping in [*WRAPPINGS, "plain"]:
            if not possible(wrapping) or (wrapping == "plain" and dist.get_world_size() > 1):
                continue
            for stepped in (False, True):
                training = Training(wrapping, seed=8)
                state = state_of(training)
                if stepped:
                    training.step()
                with manager(folder / saved) as checkpoints:
                    restored = checkpoints.restore(state)
                training.steps = 3
                where = f"{saved} into {wrapping}, stepped {stepped}"
                if (restored.step, state.step, state.epoch) != (3, 3, 5):
                    found.append(f"{where}: {restored}, {state}")
                whole = training.whole() if wrapping != "plain" else plain_whole(training)
                if dist.get_rank() == 0:
                    found += [f"{where}: {d}" for d in differences(wanted, whole)]
                count += 1
    return f"equal: {count}" if not found else "different: " + "; ".join(found[:5])


def plain_whole(training):
    return training.whole()


def train(wrapping, folder):
    """Twelve steps with dropout, a checkpoint every third; PERDURE_END: dies after so many. Says the losses."""
    training = Training(wrapping, seed=3)
    torch.manual_seed(100 + dist.get_rank())
    random.seed(dist.get_rank())
    state = state_of(training)
    losses = {}
    with manager(folder / "run", save_every=3) as checkpoints:
        checkpoints.restore(state)
        training.steps = state.step
        while state.step < 12:
            noise = torch.rand(()).item() + random.random()  # each rank draws numbers of its own
            losses[state.step] = [training.step(), noise]
            state.step += 1
            if checkpoints.should_save(state.step):
                checkpoints.save(state).wait()
            if state.step == int(os.environ.get("PERDURE_END", 0)):
                os.kill(os.getpid(), signal.SIGKILL)
    return json.dumps(losses)


def run_the_sample(_, folder):
    """docs/distributed.md's."""
    from test_docs import blocks, words_of_the_reader

    os.chdir(folder)
    names = words_of_the_reader() | {"torch": torch}
    exec(blocks("python", "docs/distributed.md")[0], names)
    return f"{names['state'].epoch} epochs"


def change_before_the_step(_, folder):
    """A parameter is changed on one rank between save and step: the save fails on all, unless it was copied before."""
    training = Training("fsdp", seed=3)
    state = state_of(training)
    checkpoints = manager(folder / "changed", capture="overlapped")
    for state.step in range(1, 31):
        training.step()
        handle = checkpoints.save(state)
        if dist.get_rank() == 1:
            with torch.no_grad():
                next(training.model.parameters()).add_(1)
        training.optimizer.step()
        try:
            handle.wait()
        except perdure.Error as error:
            return str(error)
    return "not seen in 30 saves"
