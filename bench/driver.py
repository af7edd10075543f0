"""Runs the measurements: each in a fresh process, the contenders in turn, round after round."""

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

from loaders import LOADERS
from measure_training import WARM_UP
from perdure_savers import SAVERS

WORKER = Path(__file__).with_name("worker.py")
TIMEOUT = 1800  # seconds; the slowest measurement takes a small part of it
TRAINED = ["perdure-overlapped", "perdure", "perdure-256", "torch-right", "dcp", "dcp-thread", "dcp-process",
           "torch-checkpointing"]  # fmt: skip
DRIFTING = ["perdure", "perdure-256", "perdure-overlapped"]


class Driver:
    def __init__(self, options, folder: Path):
        self.options = options
        self.folder = folder
        self.began = time.monotonic()

    def measure(self, what: str, title: str, folder: Path | None = None, **job) -> dict:
        """One measurement in a process of its own, in a folder that is gone afterwards unless it is given."""
        own = folder is None
        if own:
            folder = self.folder / "measured"
            folder.mkdir()
        print(f"  {time.monotonic() - self.began:6.0f} s  {what} {title}", file=sys.stderr, flush=True)
        job |= {"what": what, "folder": str(folder), "scale": self.options.scale}
        try:
            return self._result(job)
        finally:
            if own:
                shutil.rmtree(folder)

    def _result(self, job: dict) -> dict:
        command = [sys.executable, str(WORKER)]
        try:
            done = subprocess.run(
                command, input=json.dumps(job), capture_output=True, text=True, timeout=TIMEOUT
            )
        except subprocess.TimeoutExpired:
            return {"failed": f"not done after {TIMEOUT} s"}
        try:
            result = json.loads(done.stdout.rstrip().rpartition("\n")[2])
        except json.JSONDecodeError:
            result = {"failed": f"ended with {done.returncode}"}
        if "failed" in result:
            print(done.stderr, file=sys.stderr)
        return result

    def in_turn(self, names: list[str], round_number: int) -> list[str]:
        """Each round begins with another contender, so that no one always comes behind the same other."""
        start = round_number % max(1, len(names))
        return names[start:] + names[:start]

    def limits(self, size: int, threads: int = 0) -> dict:
        return self.measure("limits", f"{size / 1e6:.0f} MB", bytes=size, threads=threads or self.options.threads)

    def saves(self, state: str) -> dict:
        """The benches "save" and "small"."""
        names = self.options.chosen(SAVERS)
        found = {name: [] for name in names}
        limits = []
        for round_number in range(self.options.rounds):
            for name in self.in_turn(names, round_number):
                job = {"state": state, "contender": name, "saves": self.options.saves}
                found[name].append(self.measure("save", name, **job))
            limits.append(self.limits(size_in(found)))
        return {"bytes": size_in(found), "limits": limits, "contenders": found}

    def loads(self) -> dict:
        names = self.options.chosen(LOADERS)
        written = {}
        for source in dict.fromkeys(LOADERS[name].source for name in names):
            folder = self.folder / f"written-{source}"
            folder.mkdir()
            written[source] = self.measure("write", source, folder, state="gpt", contender=source)
        found = {name: {"cold": [], "warm": []} for name in names}
        limits = []
        for round_number in range(self.options.rounds):
            for name in self.in_turn(names, round_number):
                for cold in (True, False):
                    source = written[LOADERS[name].source]
                    found[name]["cold" if cold else "warm"].append(self._load(name, source, cold))
            limits.append(self.limits(size_in({n: r["cold"] for n, r in found.items()})))
        return {
            "bytes": size_in({n: r["cold"] for n, r in found.items()}),
            "limits": limits,
            "contenders": found,
        }

    def _load(self, name: str, source: dict, cold: bool) -> dict:
        if "path" not in source:
            return source
        job = {
            "state": "gpt",
            "contender": name,
            "cold": cold,
            "path": source["path"],
            "marks": source["marks"],
        }
        return self.measure("load", f"{name}, {'cold' if cold else 'warm'}", **job)

    def training(self) -> dict:
        """Pairs of a bare run and one of perdure overlapped, and fewer runs of the others among them."""
        names = self.options.chosen(TRAINED)
        found = {name: [] for name in ["bare", *names]}
        job = {"steps": self.options.steps, "every": self.options.every, "tokens": self.options.tokens}
        for pair in range(self.options.pairs):
            turn = ["bare", *(n for n in names if n == "perdure-overlapped")]
            turn = self.in_turn(turn, pair)
            if pair < self.options.rounds:
                turn += [n for n in names if n != "perdure-overlapped"]
            for name in turn:
                contender = None if name == "bare" else name
                found[name].append(self.measure("train", name, contender=contender, **job))
        return {"every": self.options.every, "warm_up": WARM_UP, "contenders": found}

    def drift(self) -> dict:
        """Many saves by one process: memory that is lost with each of them shows."""
        job = {"state": "trained", "saves": self.options.drift}
        return {
            name: self.measure("save", f"{name}, {self.options.drift} times", contender=name, **job)
            for name in self.options.chosen(DRIFTING)
        }


def size_in(found: dict) -> int:
    return next((r["bytes"] for results in found.values() for r in results if "bytes" in r), 0)
