"""SIGKILL at random moments to one of three ranks that save, or to all: they agree afterwards, and nothing is lost.

PERDURE_RANK_KILLS says how many there are, PERDURE_SEED makes the same moments again.
"""

import multiprocessing
import os
import random
import signal
import subprocess
import time

import rank_killee
import torch.distributed as dist

RANKS = 3
KILLS = int(os.environ.get("PERDURE_RANK_KILLS", "6"))
SEED = int(os.environ.get("PERDURE_SEED") or random.SystemRandom().randrange(2**32))
PERDURE = os.environ.get("PERDURE_CLI", "perdure")
PATIENCE = 2  # seconds without a sign of life of another rank


class Round:
    """Three ranks, from their start to their end."""

    def __init__(self, folder, port, number, wrapping, capture):
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["rank_killee"])
        shared = (RANKS, port, str(number), wrapping, capture, PATIENCE, str(folder))
        self._logs = [folder / f"{number}-{rank}.log" for rank in range(RANKS)]
        self._ranks = [
            context.Process(target=rank_killee.rank_of, args=(rank, *shared), daemon=True) for rank in range(RANKS)
        ]
        for process in self._ranks:
            process.start()

    def said(self, rank) -> list[list[str]]:
        """The words of each whole line of its log."""
        if not self._logs[rank].exists():
            return []
        lines = self._logs[rank].read_text().splitlines(keepends=True)
        return [line.split() for line in lines if line.endswith("\n")]

    def steps(self, rank, word) -> list[int]:
        return [int(words[1]) for words in self.said(rank) if words[0] == word]

    def wait_for(self, word):
        """Until each of them has said it, or has ended without."""
        for rank, process in enumerate(self._ranks):
            while process.is_alive() and not [words for words in self.said(rank) if words[0] == word]:
                time.sleep(0.002)

    def kill(self, rank):
        os.kill(self._ranks[rank].pid, signal.SIGKILL)

    def wait_ended(self) -> list[int]:
        for process in self._ranks:
            process.join(60)
            assert process.exitcode is not None, "hangs"
        return [process.exitcode for process in self._ranks]


def verify(run):
    said = subprocess.run([PERDURE, "verify", str(run)], capture_output=True, text=True, timeout=60)
    assert said.returncode == 0 and "good " in said.stdout, said.stdout + said.stderr
    assert not list(run.glob("*.damaged"))


def test_killed_at_random_moments_the_ranks_agree(tmp_path):
    print(f"PERDURE_SEED={SEED}")
    choose = random.Random(SEED)
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    newest = acknowledged = 0  # `newest`: of all that anybody was told
    for kill in range(KILLS):
        wrapping = ["fsdp", "ddp"][kill // 3 % 2]  # what one has saved, the other restores
        capture = ["eager", "overlapped", "checked"][kill % 3]
        killed = choose.choice([[0], [1], [2], list(range(RANKS))])
        where = f"kill {kill} of {killed}, PERDURE_SEED={SEED}"
        round = Round(tmp_path, store.port, kill, wrapping, capture)
        round.wait_for("began" if choose.random() < 0.2 else "restored")  # then it opens the run and restores, or saves
        time.sleep(choose.uniform(0, 0.3))
        for rank in choose.sample(killed, len(killed)):
            round.kill(rank)
        codes = round.wait_ended()
        said = [round.said(rank) for rank in range(RANKS)]
        where += f": {said}"
        assert [codes[rank] for rank in killed] == [-signal.SIGKILL] * len(killed), where
        for rank in set(range(RANKS)) - set(killed):
            last = " ".join(said[rank][-1])
            assert last.startswith("lost") and f"rank {killed[0]} " in last, where
        assert not [words for one in said for words in one if words[0] == "wrong"], where
        began = {step for rank in range(RANKS) for step in round.steps(rank, "restored")}
        assert len(began) <= 1, where
        if began:
            # One more than anybody was told of: durable, and killed before it could be said.
            assert newest <= min(began) <= newest + 1, where
            newest = min(began)
        for rank in range(RANKS):
            saved = round.steps(rank, "saved")
            assert not saved or saved == list(range(min(began) + 1, min(began) + 1 + len(saved))), where
            newest = max([newest, *saved])
            acknowledged += len(saved)
        if newest:
            verify(tmp_path / "run")
    assert acknowledged > KILLS, "too few saves to have tested anything"
    print(f"{KILLS} kills, {acknowledged} saves acknowledged, the newest step is {newest}")
