"""Hostile files (hostile.py has them): refused with the right error, or harmless, in bounded time and memory, and never
executed. Through Python, in a process that may start no program and open nothing for writing; through restore; and
through the command, which PERDURE_CLI may say is one with sanitizers.

PERDURE_HOSTILE_SEEDS says with how many seeds the cuts, mutations and lies are made; PERDURE_SEED is the first one.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch

import hostile
import perdure

PERDURE = os.environ.get("PERDURE_CLI", "perdure")
SEED = int(os.environ.get("PERDURE_SEED", "0"))
SEEDS = int(os.environ.get("PERDURE_HOSTILE_SEEDS", "1"))
HERE = Path(__file__).parent

# Generous: the machines that run this are slow and have other things to do.
MOST_SECONDS = 20
MOST_MEMORY = 200 << 20
MEMORY_OF_A_BYTE = 40  # of a file; a list of empty lists is the worst: each is a byte, and 136 in memory
LONGEST_TEXT = 5000


class Worker:
    """A hostile_worker.py. `ask` fails where the process does not live through the question."""

    def __init__(self, *options, **environment):
        command = [sys.executable, HERE / "hostile_worker.py", *options]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ | environment
        )

    def ask(self, what, path) -> dict:
        self._process.stdin.write(json.dumps([what, str(path)]) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        assert line, f"{what} of {path} ended the process: {self._process.wait(timeout=10)}"
        return json.loads(line)

    def close(self) -> int:
        self._process.stdin.close()
        return self._process.wait(timeout=60)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hostile")
    paths = hostile.hostile_files(folder, SEED)
    for more in range(1, SEEDS):
        for name, path in hostile.hostile_files(tmp_path_factory.mktemp(f"hostile-{more}"), SEED + more).items():
            if name not in paths or name.startswith("mutated-"):
                paths[f"{name} of seed {SEED + more}"] = path
    yield paths
    assert not hostile.canary(folder).exists(), "something in a file was executed"


@pytest.fixture(scope="module")
def sealed():
    worker = Worker("--sealed")
    yield worker
    assert worker.close() == 0


@pytest.fixture(scope="module")
def loaded(files, sealed) -> dict[str, dict]:
    """What became of loading each."""
    return {name: sealed.ask("load", path) for name, path in files.items()}


@pytest.fixture(scope="module")
def worker():
    worker = Worker()
    yield worker
    assert worker.close() == 0


def is_as_expected(name, answer) -> bool:
    wanted, outcome = hostile.expected(name.partition(" ")[0]), answer["outcome"]
    # A mutation may make another word of "cpu", and a device that is not there is the caller's to replace.
    elsewhere = name.startswith("mutated-") and outcome == "invalid" and "tensors of this file belong on" in answer["text"]
    refused = outcome in ("corrupt", "unsupported") or elsewhere
    return outcome == wanted or (wanted == "refused" and refused) or (wanted == "refused-or-loads" and (refused or outcome == "loads"))


def complaint(name, path, answer) -> str:
    """What is wrong with an answer, but for its outcome."""
    if answer["seconds"] > MOST_SECONDS:
        return f"{name}: took {answer['seconds']:.1f} s"
    if answer["peak"] > MOST_MEMORY + MEMORY_OF_A_BYTE * path.stat().st_size:
        return f"{name}: took {answer['peak'] >> 20} MiB"
    if answer["outcome"] != "loads" and answer["length"] > LONGEST_TEXT:
        return f"{name}: its error has {answer['length']} characters: {answer['text'][:200]}"
    return ""


def check(found: list[str]) -> None:
    found = [text for text in found if text]
    assert not found, f"{len(found)} complaints (PERDURE_SEED={SEED}):\n" + "\n".join(found)


def test_the_seal_holds():
    worker = Worker("--sealed")
    with pytest.raises(AssertionError, match=str(-signal.SIGSYS)):
        worker.ask("execute", "")


def test_load(files, loaded):
    found = []
    for name, answer in loaded.items():
        found.append(complaint(name, files[name], answer))
        if not is_as_expected(name, answer):
            found.append(f"{name}: {hostile.expected(name.partition(' ')[0])} expected, {answer['outcome']}: {answer['text'][:300]}")
    check(found)


def test_verify(files, sealed, loaded):
    """It reports damage, and raises for what it cannot judge; it sees all damage that load sees."""
    found = []
    for name, path in files.items():
        answer = sealed.ask("verify", path)
        found.append(complaint(name, path, answer))
        load = loaded[name]["outcome"]
        if answer["outcome"] not in ("loads", "unsupported"):
            found.append(f"{name}: verify raises {answer['outcome']}: {answer['text'][:300]}")
        elif load == "corrupt" and answer["text"] != "damaged" and answer["outcome"] == "loads":
            found.append(f"{name}: load finds damage, verify says {answer['text']}")
        elif load == "loads" and answer["text"] == "damaged" and not name.startswith("mutated"):
            found.append(f"{name}: loads, and verify says damaged")
    check(found)


def test_nothing_is_read_differently_by_torch(files, loaded, worker):
    found, same = [], 0
    for name, path in files.items():
        if loaded[name]["outcome"] != "loads":
            continue
        answer = worker.ask("torch", path)
        same += answer["text"] == "the same"
        if answer["outcome"] != "loads":
            found.append(f"{name}: {answer['outcome']}: {answer['text'][:300]}")
    check(found)
    assert same > 30, "torch refuses nearly all that perdure loads: nothing was compared"


# ---- a run directory whose newest file is hostile


@pytest.fixture(scope="module")
def good_run(tmp_path_factory):
    directory = tmp_path_factory.mktemp("good") / "run"
    state = perdure.TrainingState(w=torch.tensor([1.0, 2.0, 3.0]), epoch=1)
    with perdure.CheckpointManager(directory) as checkpoints:
        checkpoints.save(state)
    return directory


def with_newest(good_run, folder, path):
    """A copy of the run with `path` as its newest checkpoint, a hard link."""
    run = folder / "run"
    shutil.rmtree(run, ignore_errors=True)
    shutil.copytree(good_run, run)
    os.link(path, run / "step-0000000009-g00000009.pt")
    return run


def restore_complaint(name, answer, run) -> str:
    """Falls back on proven damage alone, says so, and keeps the file for those who want to look at it."""
    newest = run / "step-0000000009-g00000009.pt"
    aside = run / "step-0000000009-g00000009.pt.damaged"
    if answer["outcome"] == "loads":
        told = json.loads(answer["text"])
        if told["step"] == 9:  # it did load
            return "" if newest.exists() and hostile.expected(name) not in ("corrupt", "unsupported") else f"{name}: was restored"
        fell_back = told["step"] == 0 and told["w"] == [1, 2, 3] and aside.exists() and not newest.exists()
        said_so = any("damaged" in text and "step-0000000009" in text for text in told["warnings"])
        right = hostile.expected(name) not in ("unsupported", "loads")
        return "" if fell_back and said_so and right else f"{name}: {told}"
    if answer["outcome"] in ("unsupported", "invalid"):
        right = newest.exists() and hostile.expected(name) != "corrupt"
        return "" if right else f"{name}: {answer['outcome']}, {answer['text'][:300]}"
    return f"{name}: {answer['outcome']}: {answer['text'][:300]}"


def test_restore(files, worker, good_run, tmp_path):
    found = []
    for name, path in files.items():
        if " of seed " in name:
            continue
        run = with_newest(good_run, tmp_path, path)
        answer = worker.ask("restore", run)
        found += [complaint(name, path, answer), restore_complaint(name, answer, run)]
    check(found)


# ---- the command


def commands(lines, seconds=MOST_SECONDS) -> list[dict]:
    """What becomes of each command; see hostile_commands.py."""
    processes = str(os.cpu_count() or 1)
    with tempfile.NamedTemporaryFile() as out:
        arguments = [sys.executable, "-S", HERE / "hostile_commands.py", str(seconds * 2), processes, out.name]
        texts = json.dumps([[str(word) for word in line] for line in lines])
        subprocess.run(arguments, input=texts, text=True, check=True)
        return json.load(out)


@pytest.fixture(scope="module")
def memory_room():
    """What the command may have: what it needs to say its version, and the same as Python. Sanitizers take more."""
    path = shutil.which(PERDURE)
    sanitized = b"__asan_init" in Path(path).read_bytes()
    return commands([[PERDURE, "--version"]])[0]["peak"] + MOST_MEMORY * (5 if sanitized else 1)


def command_complaint(line, answer, room, size, seconds=MOST_SECONDS) -> str:
    shown = " ".join(map(str, line[1:]))
    if answer["code"] not in (0, 1, 2):
        return f"{shown}: ended with {answer['code']}: {answer['err'][-3000:]}"
    if answer["peak"] > room + MEMORY_OF_A_BYTE * size:
        return f"{shown}: took {answer['peak'] >> 20} MiB"
    if answer["seconds"] > seconds:
        return f"{shown}: took {answer['seconds']:.1f} s"
    if any(ord(c) < 32 and c != "\n" or 0x7F <= ord(c) < 0xA0 or 0xD800 <= ord(c) < 0xE000 for c in answer["out"] + answer["err"]):
        return f"{shown}: printed what a terminal would obey"
    if answer["out_bytes"] > 1 << 20 and answer["out_bytes"] > 300 * size:
        return f"{shown}: printed {answer['out_bytes']} bytes"
    if answer["err_bytes"] > LONGEST_TEXT * 4:
        return f"{shown}: complained in {answer['err_bytes']} bytes"
    return ""


def expected_codes(name, command) -> tuple[int, ...]:
    wanted = hostile.expected(name.partition(" ")[0])
    if wanted == "corrupt" and command == "verify":
        return (1,)
    if command == "diff":  # which has no answer where a file is damaged
        return {"loads": (0, 2), "corrupt": (2, 0), "unsupported": (2, 0)}.get(wanted, (0, 1, 2))
    if command in ("stats", "show --values"):
        return {"loads": (0, 2), "corrupt": (1, 2, 0), "unsupported": (2, 0)}.get(wanted, (0, 1, 2))
    if wanted == "corrupt":
        return (1, 0)  # show reads no tensors, and shows what load refuses
    return {"unsupported": (2, 0), "loads": (0, 2) if "crc-all-zero" in name else (0,)}.get(wanted, (0, 1, 2))


COMMANDS = [("show",), ("show", "--json"), ("show", "--values"), ("verify",), ("stats",), ("stats", "--json"), ("diff", "--full"), ("cat",)]


def line_of(command, path):
    """A file is compared with itself, and "w" is what most of them call their tensor."""
    return [PERDURE, *command, *{"diff": [path, path], "cat": [path, "w"]}.get(command[0], [path])]


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_command(files, command, memory_room):
    lines = [line_of(command, path) for path in files.values()]
    found = []
    for (name, path), line, answer in zip(files.items(), lines, commands(lines)):
        if command == ("cat",):  # .npy is no text
            answer["out"] = ""
        found.append(command_complaint(line, answer, memory_room, path.stat().st_size))
        if command != ("cat",) and answer["code"] not in expected_codes(name, "show --values" if "--values" in command else command[0]) and not found[-1]:
            found.append(f"{command[0]} {name}: exit code {answer['code']}: {answer['err'][:300]}{answer['out'][-300:]}")
        if command[-1] == "--json" and answer["code"] == 0 and answer["out_bytes"] <= 1 << 20:
            json.loads(answer["out"])
    check(found)


def test_ls_of_them_all(files, memory_room, tmp_path):
    for number, path in enumerate(files.values(), 1):
        os.link(path, tmp_path / f"step-{number:010}-g{number:08}.pt")
    lines = [[PERDURE, "ls", tmp_path], [PERDURE, "ls", "--json", tmp_path]]
    seconds = MOST_SECONDS + len(files) / 10
    answers = commands(lines, seconds)
    size = sum(path.stat().st_size for path in files.values())
    check([command_complaint(line, answer, memory_room, size, seconds) for line, answer in zip(lines, answers)])
    assert [answer["code"] for answer in answers] == [1, 1]
