"""What is lost: the same faults against perdure.save, torch.save and DCP, each overwriting one checkpoint.

  kill       SIGKILL at a random moment
  power cut  at a random moment, on ext4: its own instant shutdown
  full disk  the next checkpoint, three times as large, finds from no room at all to nearly enough
  thin disk  a device with less space than it says: writes are taken, and fail when they are to become durable
  bit flip   one bit of the tensors' data in the file, after the save

For each try, what a load gives afterwards: the newest that was acknowledged (or a newer one) is "fine"; an older one
is "older", an error where something was acknowledged is "all lost", and values that nobody saved are "wrong". After a
bit flip there is nothing right to be given: an error is "refused", and what is loaded as if nothing were is "wrong".

    sudo .venv/bin/python bench/losses.py [--tries 30] [--seed 1]

DCP keeps to its default, which is to overwrite, too; with a directory for each save, a kill would cost it less.

Needs root on Linux (it mounts small file systems in memory), and mkfs.ext4. Takes a few minutes.
"""

import argparse
import collections
import itertools
import logging
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import warnings
from pathlib import Path

import torch
import torch.distributed.checkpoint as dcp

import perdure

sys.path.append(str(Path(__file__).parents[1] / "tests" / "python"))
import disks  # noqa: E402

NUMBERS = 1 << 20  # of four bytes
OUTCOMES = ("fine", "older", "all lost", "wrong", "refused")


def state_of(step: int, parts: int = 1) -> dict:
    """A function of the step, so that one can tell what came back. Three parts: with an optimizer's state, first."""
    numbers = {str(i): torch.arange(NUMBERS, dtype=torch.int32) + step + i for i in reversed(range(parts))}
    return {"step": step, "numbers": numbers}


class OneFile:
    def __init__(self, name, save, load):
        self.name, self._save, self._load = name, save, load

    def save(self, folder, state):
        self._save(state, folder / "checkpoint.pt")

    def load(self, folder, parts):
        return self._load(folder / "checkpoint.pt")

    def data_file(self, folder):
        return folder / "checkpoint.pt"


class Dcp:
    name = "DCP"

    def save(self, folder, state):
        dcp.save(state, checkpoint_id=folder / "checkpoint")

    def load(self, folder, parts):
        state = state_of(0, parts)
        dcp.load(state, checkpoint_id=folder / "checkpoint")
        return state

    def data_file(self, folder):
        return max((folder / "checkpoint").glob("*.distcp"), key=lambda path: path.stat().st_size)


ENGINES = (OneFile("perdure.save", perdure.save, perdure.load), OneFile("torch.save", torch.save, torch.load), Dcp())


def outcome(engine, folder, acknowledged: int, parts: int = 1) -> str:
    try:
        state = engine.load(folder, parts)
    except (Exception, dcp.api.CheckpointException):  # which is no Exception
        return "all lost" if acknowledged else "fine"
    expected = state_of(state["step"], len(state["numbers"]))["numbers"]
    if not all(torch.equal(state["numbers"][name], numbers) for name, numbers in expected.items()):
        return "wrong"
    return "older" if state["step"] < acknowledged else "fine"


class Training:
    """A child that does nothing but save, one step after the other over one checkpoint, until it fails or is killed.

    It may end in std::terminate: torch.save does when a disk is full. Its first step has been saved when this returns.
    """

    def __init__(self, engine, folder, steps=None, parts: int = 1):
        read, write = os.pipe()
        self._output = os.fdopen(read)
        self._pid = os.fork()
        if not self._pid:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
            signal.alarm(120)
            try:
                for step in steps or itertools.count(1):
                    engine.save(folder, state_of(step, parts))
                    os.write(write, b"%d\n" % step)
            finally:
                os._exit(1)
        os.close(write)
        self._acknowledged = int(self._output.readline() or 0)

    def kill(self) -> None:
        os.kill(self._pid, signal.SIGKILL)

    def acknowledged(self) -> int:
        """The last step whose save returned, once the training is over."""
        lines = [line for line in self._output if line.endswith("\n")]
        self._output.close()
        os.waitpid(self._pid, 0)
        return int(lines[-1]) if lines else self._acknowledged


def kill(engine, folder, choose):
    training = Training(engine, folder)
    time.sleep(choose.uniform(0, 0.1))
    training.kill()
    return outcome(engine, folder, training.acknowledged())


def power_cut(engine, folder, choose):
    image = disks.make_image("ext4", folder / "disk.img", 64)
    with disks.mounted("ext4", image, folder / "disk") as where:
        training = Training(engine, where)
        time.sleep(choose.uniform(0, 0.1))
        disks.cut_power(where)
        training.kill()
        acknowledged = training.acknowledged()
    with disks.mounted("ext4", image, folder / "disk") as where:
        return outcome(engine, where, acknowledged)


def full_disk(engine, folder, choose):
    with disks.small_disk("ext4", folder, 64) as where:
        Training(engine, where, [1]).acknowledged()
        with disks.filled_up(where, choose.randrange(3 * 4 * NUMBERS)):
            saved = Training(engine, where, [2], parts=3).acknowledged()
            return outcome(engine, where, saved or 1, parts=3 if saved else 1)


def thin_disk(engine, folder, choose):
    with disks.thin_disk("ext4", folder, mib=64, pool_mib=choose.randrange(12, 36)) as (mount, enlarge):
        with mount() as where:
            acknowledged = Training(engine, where, range(1, 11)).acknowledged()
        enlarge()
        with mount() as where:
            return outcome(engine, where, acknowledged)


def bit_flip(engine, folder, choose):
    Training(engine, folder, [1]).acknowledged()
    path = engine.data_file(folder)
    data = bytearray(path.read_bytes())
    begin = data.find(torch.arange(1, 9, dtype=torch.int32).numpy().tobytes())
    data[begin + choose.randrange(4 * NUMBERS)] ^= 1 << choose.randrange(8)
    path.write_bytes(data)
    found = outcome(engine, folder, 1)
    return "refused" if found == "all lost" else found


FAULTS = {"kill": kill, "power cut": power_cut, "full disk": full_disk, "thin disk": thin_disk, "bit flip": bit_flip}


def measure(fault, engine, tries: int, seed: int) -> collections.Counter:
    choose, counts = random.Random(seed), collections.Counter()
    for _ in range(tries):
        with tempfile.TemporaryDirectory() as folder:
            counts[FAULTS[fault](engine, Path(folder), choose)] += 1
    return counts


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tries", type=int, default=30, help="of each fault with each engine (default: 30)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--faults", default=",".join(FAULTS), help="some of: %(default)s")
    options = parser.parse_args()
    if os.geteuid() != 0 or not shutil.which("mkfs.ext4"):
        sys.exit("bench/losses.py mounts small file systems: run it as root, with e2fsprogs installed")
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}, perdure {perdure.__version__}, seed {options.seed}\n")
    print(f"{'fault':<12}{'engine':<14}{'tries':>8}" + "".join(f"{name:>10}" for name in OUTCOMES))
    for fault in options.faults.split(","):
        for engine in ENGINES:
            counts = measure(fault, engine, options.tries, options.seed)
            numbers = "".join(f"{counts[name] or '-':>10}" for name in OUTCOMES)
            print(f"{fault:<12}{engine.name:<14}{options.tries:>8}{numbers}", flush=True)


if __name__ == "__main__":
    main()
