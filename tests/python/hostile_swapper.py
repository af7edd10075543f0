"""Puts links to a place outside in the way of whoever works in a run directory, in a tight loop, until SIGTERM; then all is
in its place again.

    python hostile_swapper.py RUN OUTSIDE SEED [--run-too]

Each time, something in RUN (a checkpoint, the engine's own files, a temporary file; RUN itself, if so asked) is moved
aside, a link stands in its place for a moment, and then it is put back. Hard links stand only for what is no checkpoint:
of one, a hard link is just another name. A line is printed for every hundred swaps.
"""

import os
import random
import signal
import sys
import time


def names_in(run) -> list[str]:
    own = [".trash", ".lock", "history.jsonl"]
    return own + [name for name in os.listdir(run) if name.endswith((".pt", ".tmp", ".pin", ".damaged"))]


def decoy(name, outside) -> str:
    if name == ".trash":
        return os.path.join(outside, "trash")
    return os.path.join(outside, "decoy.pt" if name.endswith((".pt", ".tmp")) else "precious")


def swap(path, target, pause, hard) -> None:
    """Whatever goes wrong, the other side was quicker."""
    aside = f"{path}.aside"
    moved = False
    try:
        os.rename(path, aside)
        moved = True
    except OSError:
        pass
    try:
        os.link(target, path) if hard else os.symlink(target, path)
        time.sleep(pause)
        os.unlink(path)
    except OSError:
        pass
    if moved:
        put_back(aside, path)


def put_back(aside, path) -> None:
    try:
        if os.path.isdir(aside) or not os.path.lexists(path):
            os.rename(aside, path)
        else:
            os.unlink(aside)
    except OSError:
        pass


def main():
    run, outside, seed = sys.argv[1], sys.argv[2], int(sys.argv[3])
    run_too = "--run-too" in sys.argv
    chosen = random.Random(seed)
    count = 0
    ended = []
    signal.signal(signal.SIGTERM, lambda *_: ended.append(True))
    while not ended:
        name = chosen.choice(names_in(run))
        hard = name in (".lock", "history.jsonl") and chosen.random() < 0.5
        swap(os.path.join(run, name), decoy(name, outside), chosen.choice([0, 0, 0.0005, 0.002]), hard)
        if run_too and chosen.random() < 0.2:
            swap(run, os.path.join(outside, "run"), 0.0005, False)
        count += 1
        if count % 100 == 0:
            print(count, flush=True)


if __name__ == "__main__":
    main()
