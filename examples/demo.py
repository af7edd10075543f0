"""Kill it, resume it, prove it identical: the driver of `make demo`.

For each language: a reference run that nothing happens to; then the same run, killed with SIGKILL again and again, at
random moments and in the middle of saves, and started again each time; then a comparison of the two final
checkpoints, bit for bit. At the end each language prints text from the other one's model.

    python examples/demo.py --cpp build/examples/cpp/train_gpt --cpp-sample build/examples/cpp/sample_gpt
"""

import argparse
import os
import pathlib
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time

import torch

import perdure

EXAMPLES = pathlib.Path(__file__).resolve().parent
TIMEOUT = 240  # seconds after which a run that does not end is an error


class Language:
    """How to train and to sample in one language."""

    def __init__(self, name, train, sample):
        self.name, self.train, self.sample = name, train, sample


class Trainer:
    """One start of a training program."""

    def __init__(self, command):
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, env=environment, text=True)

    def wait_until_training(self):
        """Until it says where it starts from; that step."""
        line = self._process.stdout.readline()
        if not line.startswith("starting at step "):
            self._process.kill()
            raise SystemExit(f"the training program did not start: {line!r}")
        threading.Thread(target=self._process.stdout.read, daemon=True).start()  # or it would fill up
        return int(line.split()[-1])

    def running(self):
        return self._process.poll() is None

    def kill(self):
        """Whether it was still there to be killed."""
        self._process.send_signal(signal.SIGKILL)
        return self._process.wait() == -signal.SIGKILL

    def finish(self):
        self._process.wait(timeout=TIMEOUT)
        if self._process.returncode:
            raise SystemExit(f"the training program failed with exit code {self._process.returncode}")


class Demo:
    def __init__(self, args, work):
        self._args = args
        self._work = work
        self._random = random.Random(args.seed)

    def command(self, language, run):
        a = self._args
        return [*language.train, "--run", str(run), "--text", *map(str, a.text),
                "--steps", str(a.steps), "--save-every", str(a.save_every)]  # fmt: skip

    def reference(self, language, run):
        """Trains undisturbed; the seconds that it took without its start."""
        trainer = Trainer(self.command(language, run))
        trainer.wait_until_training()
        begin = time.monotonic()
        trainer.finish()
        return time.monotonic() - begin

    def killed(self, language, run, seconds):
        """Trains with kills, until it gets through; how many there were, and how many of them within a save."""
        kills = within = 0
        while True:
            trainer = Trainer(self.command(language, run))
            step = trainer.wait_until_training()
            print(f"    starts at step {step:3}", end="", flush=True)
            if kills >= self._args.kills and within >= self._args.save_kills:
                trainer.finish()
                print(f": runs to its end, step {self._args.steps}")
                return kills, within
            in_save = self._kill(trainer, run, seconds, wait_for_save=kills % 2 == 1)
            kills, within = kills + 1, within + in_save
            print(f": SIGKILL{' in the middle of a save' if in_save else ''}")

    def _kill(self, trainer, run, seconds, wait_for_save):
        """Kills at a random moment, or as soon as a save has begun after one. Whether a save was cut off."""
        moment = time.monotonic() + self._random.random() * seconds * 0.12
        debris = _temporary_files(run)
        while trainer.running() and time.monotonic() < moment:
            time.sleep(0.001)
        while trainer.running() and wait_for_save and _temporary_files(run) <= debris:
            pass  # a save lasts milliseconds: no time to sleep
        if not trainer.kill():
            raise SystemExit("the run ended before it was killed often enough: ask for more --steps")
        return not _temporary_files(run) <= debris

    def sample(self, language, run):
        command = [*language.sample, "--from", str(run), "--text-length", "160"]
        return subprocess.run(command, check=True, capture_output=True, text=True, timeout=TIMEOUT).stdout

    def prove(self, language):
        """The whole story of one language; what differs at its end (nothing, or it is broken)."""
        reference, run = self._work / f"{language.name}-reference", self._work / f"{language.name}-killed"
        print(f"\n{language.name}")
        print(f"  A run of {self._args.steps} steps that nothing happens to, saving every {self._args.save_every} ...")
        seconds = self.reference(language, reference)
        print(f"    takes {seconds:.1f} s.\n  The same run, killed and started again:")
        kills, within = self.killed(language, run, seconds)
        print(
            f"  {kills} kills, {within} of them in the middle of a save. The final checkpoints, bit for bit:"
        )
        return compare_runs(reference, run)

    def cross(self, writer, reader):
        print(f"\nA model trained in {writer.name}, sampled from in {reader.name}:")
        text = self.sample(reader, self._work / f"{writer.name}-killed")
        print("\n".join("    | " + line for line in text.splitlines()))


def _temporary_files(run):
    try:
        return {name for name in os.listdir(run) if name.endswith(".tmp")}
    except FileNotFoundError:
        return set()


def compare_runs(reference, run):
    """Prints how the last checkpoints of two runs compare; the places that differ."""
    a, b = (perdure.load(perdure.list_checkpoints(r)[0].path) for r in (reference, run))
    differences = []
    for key in dict.fromkeys([*a, *b]):
        found = list(compare(a.get(key), b.get(key), key))
        print(f"    {key:<10} {'DIFFERENT' if found else 'identical'}  {summary(a.get(key))}")
        differences += found
    return differences


def compare(a, b, place):
    """The places where two states differ in type or in any bit."""
    if type(a) is not type(b):
        yield place
    elif isinstance(a, torch.Tensor):
        if a.dtype != b.dtype or a.shape != b.shape or raw(a) != raw(b):
            yield place
    elif isinstance(a, dict):
        if list(a) != list(b):
            yield place
        for key in a.keys() & b.keys():
            yield from compare(a[key], b[key], f"{place}.{key}")
    elif isinstance(a, (list, tuple)):
        if len(a) != len(b):
            yield place
        for i, (x, y) in enumerate(zip(a, b)):
            yield from compare(x, y, f"{place}[{i}]")
    elif hasattr(a, "tobytes"):
        if a.dtype != b.dtype or a.tobytes() != b.tobytes():
            yield place
    elif isinstance(a, float):
        if a.hex() != b.hex():
            yield place
    elif a != b:
        yield place


def raw(tensor):
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def summary(x):
    tensors = list(tensors_in(x))
    if tensors:
        return f"{len(tensors)} tensors, {sum(t.numel() for t in tensors)} numbers"
    if isinstance(x, list) and x:
        return f"{len(x)} numbers, the last one {x[-1]!r}"
    return repr(x) if not isinstance(x, dict) else f"{len(x)} entries"


def tensors_in(x):
    if isinstance(x, torch.Tensor):
        yield x
    elif isinstance(x, dict):
        for value in x.values():
            yield from tensors_in(value)
    elif isinstance(x, (list, tuple)):
        for value in x:
            yield from tensors_in(value)


def parse_arguments():
    text = [EXAMPLES.parent / "docs" / "design.md", EXAMPLES.parent / "docs" / "format.md"]
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--cpp", help="the C++ train_gpt; without it Python alone is shown")
    parser.add_argument("--cpp-sample", help="the C++ sample_gpt; by default beside train_gpt")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--save-every", type=int, default=5)
    parser.add_argument("--kills", type=int, default=6, help="at least so many in each language (default 6)")
    parser.add_argument(
        "--save-kills", type=int, default=2, help="so many of them in the middle of a save (default 2)"
    )
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    parser.add_argument("--text", nargs="+", type=pathlib.Path, default=text)
    return parser.parse_args()


def languages(args):
    found = []
    if args.cpp:
        sample = args.cpp_sample or str(pathlib.Path(args.cpp).with_name("sample_gpt"))
        found.append(Language("C++", [args.cpp], [sample]))
    scripts = EXAMPLES / "python"
    found.append(
        Language(
            "Python",
            [sys.executable, str(scripts / "train_gpt.py")],
            [sys.executable, str(scripts / "sample_gpt.py")],
        )
    )
    return found


def main():
    args = parse_arguments()
    print(
        f"Killing training runs at moments from seed {args.seed} (say --seed {args.seed} to choose them again)."
    )
    with tempfile.TemporaryDirectory(prefix="perdure-demo-") as work:
        demo = Demo(args, pathlib.Path(work))
        known = languages(args)
        differences = [place for language in known for place in demo.prove(language)]
        for writer, reader in dict.fromkeys([(known[0], known[-1]), (known[-1], known[0])]):
            demo.cross(writer, reader)
    if differences:
        print("\nDIFFERENT:", ", ".join(differences[:20]))
        return 1
    print("\nEvery resumed run ended with exactly the bits of the undisturbed one.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
