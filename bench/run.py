"""The benchmarks of perdure, beside other ways to save and load a training run and the machine's limits.

  save    a GPT-2 of 124M parameters with AdamW, 1.49 GB: stall, time to durable, CPU time, memory
  load    the same state: cold and warm, memory, verified or not
  train   a training loop with a save of 363 MB every few steps: what the steps cost
  small   12,000 small tensors, 300 MB
  ranks   1 and 2 ranks with the state of "save", replicated and sharded, beside stock DCP
  command verify, stats and diff of 1.5 GB beside plain reads; start, and show of one of 100,000 tensors

How it is measured, and why so, stands in bench/README.md.

    make bench                                                  everything; leave the machine alone meanwhile
    make bench BENCH_FLAGS="--quick"                            small sizes, one round: does it all work?
    make bench BENCH_FLAGS="--only save,load --rounds 5 --contenders 'perdure*,torch*'"
"""

import argparse
import fnmatch
import json
import os
import platform
import shutil
import sys
import tempfile
import time
from pathlib import Path

import perdure
import torch

import command
import ranks
import table
import targets
from driver import Driver

BENCHES = ("save", "load", "train", "small", "command", "ranks")
RESULTS = Path(__file__).with_name("results")


class Options(argparse.Namespace):
    def chosen(self, names) -> list[str]:
        """Those of `names` that --contenders asks for."""
        return [n for n in names if any(fnmatch.fnmatch(n, pattern) for pattern in self.contenders)]


def words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def parse(arguments) -> Options:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--only", type=words, default=list(BENCHES), help=f"some of {','.join(BENCHES)}")
    add("--contenders", type=words, default=["*"], help="names or patterns (they are shown while it runs)")
    add("--rounds", type=int, help="fresh processes for each contender (default: 3)")
    add("--saves", type=int, default=3, help="saves in each of them; the first is shown apart (default: 3)")
    add("--pairs", type=int, help="pairs of training runs, with perdure and without saves (default: 10)")
    add("--steps", type=int, help="measured steps of a training run (default: 60)")
    add("--every", type=int, default=5, help="steps between two saves of a training run (default: 5)")
    add("--tokens", type=int, help="tokens of a training step: sets how long it takes (default: 150)")
    add(
        "--drift",
        type=int,
        help="saves of 363 MB in a row, to see memory grow; 0 leaves it out (default: 100)",
    )
    add(
        "--threads",
        type=int,
        default=max(1, min(4, os.cpu_count() // 2)),
        help="threads of the memcpy limit (default: as many as perdure copies with, one for two cores, at most 4)",
    )
    add("--scale", choices=("full", "small"), help="size of the states (default: full)")
    add("--quick", action="store_true", help="small states, one round, few steps: the figures mean nothing")
    add("--directory", type=Path, default=Path("build/bench"), help="where to write (default: build/bench)")
    add("--report", type=Path, metavar="JSON", help="measure nothing: print the tables of an earlier run")
    options = parser.parse_args(arguments, Options())
    quick = {"rounds": 1, "pairs": 1, "steps": 10, "tokens": 64, "drift": 0, "scale": "small"}
    full = {"rounds": 3, "pairs": 10, "steps": 60, "tokens": 150, "drift": 100, "scale": "full"}
    for name, value in (quick if options.quick else full).items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    if wrong := set(options.only) - set(BENCHES):
        parser.error(f"--only takes {','.join(BENCHES)}, not {','.join(sorted(wrong))}")
    for name in ("rounds", "saves", "pairs", "steps", "every", "tokens", "threads"):
        if getattr(options, name) < 1:
            parser.error(f"--{name} must be at least 1")
    return options


def machine() -> dict:
    model = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return {
        "perdure": perdure.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "linux": platform.release(),
        "cpu": model[0].partition(":")[2].strip() if model else platform.machine(),
        "cores": os.cpu_count(),
        "memory": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "date": time.strftime("%Y-%m-%d %H:%M"),
    }


def measure(options: Options, folder: Path) -> dict:
    driver = Driver(options, folder)
    benches = {
        "save": lambda: driver.saves("gpt"),
        "load": driver.loads,
        "train": driver.training,
        "small": lambda: driver.saves("small"),
        "command": lambda: command.measure(folder, 1500 if options.scale == "full" else 80, options.rounds),
    }
    benches["ranks"] = lambda: ranks.measure(
        folder, options.scale, options.rounds, options.saves, driver.limits
    )
    results = {name: benches[name]() for name in BENCHES if name in options.only}
    if options.drift and "save" in options.only:
        results["drift"] = driver.drift()
    return results


def report(results: dict) -> str:
    parts = []
    if "save" in results:
        parts.append(table.save_table(_title("Save: GPT-2 with AdamW", results["save"]), results["save"]))
    if "drift" in results:
        parts.append(table.drift_table("Memory over many saves", results["drift"]))
    if "load" in results:
        parts.append(table.load_table(_title("Load: GPT-2 with AdamW", results["load"]), results["load"]))
    if "train" in results:
        every = results["train"]["every"]
        parts.append(table.train_table(f"Training, with a save every {every} steps", results["train"]))
    if "small" in results:
        parts.append(table.save_table(_title("Save: many small tensors", results["small"]), results["small"]))
    if "command" in results:
        parts.append(command.report(results["command"]))
    if "ranks" in results:
        parts.append(ranks.report(results["ranks"]))
    return "\n".join([*parts, targets.check(results)])


def _title(text: str, bench: dict) -> str:
    return f"{text}, {bench['bytes'] / 1e6:,.0f} MB"


def main() -> int:
    options = parse(sys.argv[1:])
    if options.report:
        print(report(json.loads(options.report.read_text())["results"]))
        return 0
    if shutil.which("fio") is None:
        print("bench: fio is not installed, so its limits are left out. To have them: apt-get install fio")
    about = machine()
    print(", ".join(f"{key} {value}" for key, value in about.items()), flush=True)
    options.directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=options.directory.resolve()) as folder:
        results = measure(options, Path(folder))
    RESULTS.mkdir(exist_ok=True)
    file = RESULTS / time.strftime("%Y-%m-%d-%H%M%S.json")
    asked = {key: str(value) if isinstance(value, Path) else value for key, value in vars(options).items()}
    file.write_text(json.dumps({"machine": about, "options": asked, "results": results}, indent=1) + "\n")
    print(report(results))
    print(f"\nAll figures: {os.path.relpath(file)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
