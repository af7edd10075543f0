"""What `overhead=0.02` costs a training in the end, on the disk as it is and on one that is slowed down.

    python bench/overhead.py                       # as root, for the slow disk: the kernel's block I/O throttling
    python bench/overhead.py --pairs 10 --seconds 60 --slow 40

Pairs of training runs in fresh processes, with perdure and without saves, in turn. The share is how much longer the mean
step is with saves, when the interval has settled: the median over the pairs, and the lowest and the highest.
"""

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

import perdure
import states
from measure_training import Loop

SETTLED = 0.4  # the part of a run after which it is measured


def train(job: dict) -> dict:
    """One run: the mean step when it has settled, and what was saved."""
    training = states.build("trained", job["scale"], moments=False)
    loop = Loop(training, job["tokens"])
    state = perdure.TrainingState(model=training.model, optimizer=training.optimizer)
    with contextlib.ExitStack() as stack:
        checkpoints = None
        if job["overhead"]:
            manager = perdure.CheckpointManager(job["folder"], overhead=job["overhead"], capture=job["capture"])
            checkpoints = stack.enter_context(manager)
            checkpoints.prepare(state)
        began = time.perf_counter()
        settled, first, saves = None, 0, []
        while (now := time.perf_counter()) - began < job["seconds"]:
            if settled is None and now - began > SETTLED * job["seconds"]:
                settled, first = now, state.step
            loop.step()
            state.step += 1
            if checkpoints is not None and checkpoints.should_save(state.step):
                saves.append(checkpoints.save(state))
        mean = (now - settled) / (state.step - first)
        interval = checkpoints.interval if checkpoints is not None else None
    durable = [save.stats.durable for save in saves]
    return {"mean": mean, "interval": interval if interval is not None else float("nan"), "saves": len(saves), "durable": durable, "bytes": training.nbytes}


class Throttle:
    """Writes of the processes in it are slowed down to `rate` MB/s. Either version of the control groups."""

    def __init__(self, folder: Path, rate: float):
        self._folder = None
        disk = os.stat(folder).st_dev
        node = Path(f"/sys/dev/block/{os.major(disk)}:{os.minor(disk)}").resolve()
        if (node / "partition").exists():
            node = node.parent
        number = (node / "dev").read_text().strip()
        for root, file, line in (
            ("/sys/fs/cgroup/blkio", "blkio.throttle.write_bps_device", f"{number} {rate * 1e6:.0f}"),
            ("/sys/fs/cgroup", "io.max", f"{number} wbps={rate * 1e6:.0f}"),
        ):
            group = Path(root) / f"perdure-bench-{os.getpid()}"
            try:
                group.mkdir()
                self._folder = group
                (group / file).write_text(line)
                return
            except OSError:
                self.close()
        raise OSError("the disk cannot be slowed down here: that takes root, and the blkio or io controller")

    def enter(self):
        (self._folder / "cgroup.procs").write_text(str(os.getpid()))

    def close(self):
        if self._folder is not None:
            self._folder.rmdir()
        self._folder = None


def run(options, folder: Path, overhead: float, throttle: Throttle | None) -> dict:
    job = {"scale": options.scale, "tokens": options.tokens, "seconds": options.seconds, "capture": options.capture,
           "overhead": overhead, "folder": str(folder)}  # fmt: skip
    command = [sys.executable, __file__, "--job", json.dumps(job)]
    enter = throttle.enter if throttle else None
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, preexec_fn=enter)
    return json.loads(done.stdout.splitlines()[-1])


def measure(options, folder: Path, disk: str, throttle: Throttle | None) -> None:
    shares, last = [], {}
    for pair in range(options.pairs):
        with tempfile.TemporaryDirectory(dir=folder) as place:
            runs = {o: run(options, Path(place), o, throttle) for o in sorted([0, options.overhead], reverse=pair % 2)}
        last = runs[options.overhead]
        shares.append(last["mean"] / runs[0]["mean"] - 1)
        print(f"  pair {pair + 1}: {runs[0]['mean'] * 1e3:.1f} ms a step, {last['mean'] * 1e3:.1f} with {last['saves']} saves, "
              f"every {last['interval']:.1f} s in the end: {shares[-1]:+.2%}", flush=True)  # fmt: skip
    rate = last["bytes"] / 1e6 / statistics.median(last["durable"])
    print(f"{disk}: {last['bytes'] / 1e6:.0f} MB at {rate:.0f} MB/s, share {statistics.median(shares):+.2%} "
          f"({min(shares):+.2%} to {max(shares):+.2%})", flush=True)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--overhead", type=float, default=0.02, help="what is asked for (default: 0.02)")
    add("--pairs", type=int, default=5, help="of runs, on each disk (default: 5)")
    add("--seconds", type=float, default=120, help="of each run (default: 120)")
    add("--slow", type=float, default=50, help="MB/s of the slow disk (default: 50)")
    add("--tokens", type=int, default=150, help="of a training step: sets how long it takes (default: 150)")
    add("--scale", choices=("full", "small"), default="full", help="size of the state (default: full, 363 MB)")
    add("--capture", choices=("eager", "overlapped"), default="eager")
    add("--directory", type=Path, default=Path("build/bench"), help="where to write (default: build/bench)")
    add("--job", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.job:
        print(json.dumps(train(json.loads(options.job))))
        return
    options.directory.mkdir(parents=True, exist_ok=True)
    print(f"perdure {perdure.__version__}, torch {torch.__version__}, overhead={options.overhead}, {options.capture}")
    measure(options, options.directory, "the disk as it is", None)
    try:
        throttle = Throttle(options.directory, options.slow)
    except OSError as error:
        sys.exit(f"no slow disk: {error}")
    with contextlib.closing(throttle):
        measure(options, options.directory, f"slowed down to {options.slow:.0f} MB/s", throttle)


if __name__ == "__main__":
    main()
