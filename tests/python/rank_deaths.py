"""A rank that ends at a certain message of a save: what test_rank_deaths.py starts. See DEATHS."""

import os
import signal
import types

import rank_cases
import torch.distributed as dist
from rank_cases import Small

import perdure
from perdure import process_group

PATIENCE = 3  # seconds without a sign of life of another rank
# Who dies, when in its second save, and what step is the newest afterwards. A message is about to be sent ("set") or
# heard ("get"), or has been.
DEATHS = {
    "before": (1, "before the save", 1),
    "at-folder": (1, "get save/2/folder, before", 1),
    "written": (1, "set save/2/1, before", 1),
    "told": (1, "set save/2/1, after", 2),  # and so rank 0 has what it needs, and the checkpoint is whole
    "after": (1, "after the save", 2),
    "leader-before": (0, "before the save", 1),
    "leader-made": (0, "set save/2/folder, before", 1),
    "leader-made-told": (0, "set save/2/folder, after", 1),
    "leader-heard": (0, "get save/2/1, after", 1),
    "leader-committed": (0, "set save/2/end, before", 2),  # durable, and nobody was told
    "leader-told": (0, "set save/2/end, after", 2),
}


class Mortal:
    """A store whose user dies at a message."""

    def __init__(self, store, moment):
        self._store, self._moment = store, moment

    def __getattr__(self, name):
        def call(*arguments):
            key = str(arguments[0])
            self._die_at(f"{name} {key}, before")
            result = getattr(self._store, name)(*arguments)
            self._die_at(f"{name} {key}, after")
            return result

        return call

    def _die_at(self, here):
        word, _, key = self._moment.partition(" ")
        if here.startswith(word) and here.endswith(key):
            os.kill(os.getpid(), signal.SIGKILL)


def save_and_die(death, folder):
    who, moment, _ = DEATHS[death]
    dies = dist.get_rank() == who
    if dies:
        core = process_group._core
        mortal = lambda store, *rest: core.ranks_from(Mortal(store, moment), *rest)  # noqa: E731
        process_group._core = types.SimpleNamespace(Ranks=core.Ranks, ranks_from=mortal)
    small = Small("plain", mine=dist.get_rank())  # nothing but the saves waits for others
    checkpoints = rank_cases.manager(folder / "run", rank_timeout=PATIENCE, on_error="raise")
    told = "nothing"
    try:
        for _ in range(3):
            small.step()
            if dies and small.state.step == 2 and moment == "before the save":
                os._exit(1)
            checkpoints.save(small.state).wait()
            told = f"step {small.state.step}"
            if dies and small.state.step == 2 and moment == "after the save":
                os._exit(1)
    except perdure.IoError as error:
        told += f", then {error}"
    # Also what was not saved because of it: there is no end of waiting for the dead.
    try:
        checkpoints.close()
    except perdure.IoError as error:
        told += f", and {error}"
    return told


def outlive_the_store(rank, port, folder):
    """Rank 0 has the store of torch.distributed in its own process, as without torchrun, and dies in a save."""
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    small = Small("plain", mine=rank)
    checkpoints = rank_cases.manager(folder / "run", rank_timeout=PATIENCE, on_error="raise")
    try:
        for _ in range(4):
            small.step()
            handle = checkpoints.save(small.state)
            if rank == 0 and small.state.step == 3:
                os.kill(os.getpid(), signal.SIGKILL)
            handle.wait()
            told = f"step {small.state.step}"
    except perdure.IoError as error:
        (folder / "told").write_text(f"{told}, then {error}")
    os._exit(0)  # the group cannot be left in order any more
