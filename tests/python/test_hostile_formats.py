"""Hostile files of all formats (hostile.format_files), and those of test_hostile.py, through every function and every
subcommand: refused with the right error, or harmless, and then what comes out is what went in. Never a crash, nothing
executed, nothing read outside of the directory, nothing left behind, in bounded time and memory.

What is a large product goes through in a part that PERDURE_SEED chooses; all of it where PERDURE_HOSTILE_SEEDS is more than
1, which says with how many seeds the cuts, mutations and lies are made.
"""

import json
import os
import random
import signal
from pathlib import Path

import pytest
import torch

import hostile
import hostile_worker
import perdure
from test_hostile import (
    MEMORY_OF_A_BYTE, MOST_MEMORY, PERDURE, SEED, SEEDS, Worker, check, command_complaint, commands, complaint, memory_room,  # noqa: F401
)  # fmt: skip

REFUSED = ("corrupt", "unsupported", "invalid", "not_found", "io")


@pytest.fixture(scope="module")
def others(tmp_path_factory) -> dict[str, Path]:
    """Files of other formats than PyTorch's zip."""
    folder = tmp_path_factory.mktemp("hostile-formats")
    paths = hostile.format_files(folder, SEED)
    for more in range(1, SEEDS):
        for name, path in hostile.format_files(tmp_path_factory.mktemp(f"formats-{more}"), SEED + more).items():
            if name not in paths or "mutated" in name:
                paths[f"{name} of seed {SEED + more}"] = path
    yield paths
    assert not hostile.canary(folder).exists(), "something in a file was executed"


@pytest.fixture(scope="module")
def files(others, tmp_path_factory) -> dict[str, Path]:
    """All of them, with the zips."""
    folder = tmp_path_factory.mktemp("hostile-zips")
    yield others | {f"zip-{name}": path for name, path in hostile.hostile_files(folder, SEED).items()}
    assert not hostile.canary(folder).exists(), "something in a file was executed"


def some(files, salt, share) -> dict[str, Path]:
    """One in `share` of them; others for each seed."""
    chosen = random.Random(f"{SEED} {salt}")
    return {name: path for name, path in files.items() if SEEDS > 1 or chosen.randrange(share) == 0}


@pytest.fixture(scope="module")
def good(tmp_path_factory) -> Path:
    return hostile.good_files(tmp_path_factory.mktemp("good"))["torch"]


@pytest.fixture(scope="module")
def sealed(good):
    worker = Worker("--sealed", PERDURE_GOOD=str(good))
    yield worker
    assert worker.close() == 0


@pytest.fixture(scope="module")
def worker(good):
    worker = Worker(PERDURE_GOOD=str(good))
    yield worker
    assert worker.close() == 0


@pytest.fixture(scope="module")
def loaded(files, sealed) -> dict[str, dict]:
    return {name: sealed.ask("load", path) for name, path in files.items()}


def wanted(name) -> str:
    return hostile.expected(name.partition(" ")[0])


def shown(name, answer) -> str:
    return f"{name}: {answer['outcome']}: {answer['text'][:300]}"


def test_load(others, loaded):
    found = []
    for name, path in others.items():
        answer, want = loaded[name], wanted(name)
        right = {"refused": REFUSED, "refused-or-loads": (*REFUSED, "loads")}.get(want, (want,))
        found.append(complaint(name, path, answer))
        if answer["outcome"] not in right:
            found.append(f"{want} expected, {shown(name, answer)}")
        if hostile.SECRET in answer["text"]:
            found.append(f"what is outside was read: {shown(name, answer)}")
    check(found)


def test_what_is_outside_would_be_seen(others, sealed):
    """It is whole, so that nothing but the refusal to leave a directory is between a reader and it."""
    for path in (others["st-json-empty"].parent / "secret").glob("secret.[sp]*"):
        assert sealed.ask("load", path)["outcome"] == "loads"


def test_verify(files, sealed, loaded):
    """It reports damage, and raises what it cannot judge."""
    found = []
    for name, path in some(files, "verify", 4).items():
        answer, load = sealed.ask("verify", path), loaded[name]["outcome"]
        found.append(complaint(name, path, answer))
        if load == "corrupt":
            right = (
                answer["outcome"] == "loads"
                and answer["text"] == "damaged"
                or answer["outcome"] == "unsupported"
                or shows(name)
            )
        elif load == "loads":  # of TorchScript, it reads the code too
            right = (
                "script-code" in name
                or answer["outcome"] == "loads"
                and (answer["text"] != "damaged" or "mutated" in name)
            )
        else:
            right = answer["outcome"] in (load, "loads", "unsupported")
        found.append("" if right else f"load: {load}; verify: {shown(name, answer)}")
    check(found)


@pytest.mark.parametrize("what", ["inspect", "stats", "diff"])
def test_reading(files, sealed, loaded, what):
    """Both look at opaque values, too."""
    found = []
    for name, path in some(files, what, 4).items():
        answer, load = sealed.ask(what, path), loaded[name]["outcome"]
        found.append(complaint(name, path, answer))
        unread = ("loads",) if what == "inspect" else ()  # which reads no tensor
        right = answer["outcome"] in {"loads": ("loads", "unsupported"), "corrupt": ("corrupt", *unread, *shows(name))}.get(
            load, ("loads", *REFUSED)
        )
        found.append("" if right else f"load: {load}; {shown(name, answer)}")
    check(found)


def test_nothing_is_read_differently_by_others(others, worker, loaded):
    found, same = [], 0
    for name, path in some(others, "others", 2).items():
        # TorchScript, torch.load does not read, and of a view it makes a storage of its own.
        if loaded[name]["outcome"] != "loads" or name.startswith(("script-", "legacy-view")):
            continue
        answer = worker.ask("torch", path)
        same += answer["text"] == "the same"
        if answer["outcome"] != "loads":
            found.append(shown(name, answer))
    check(found)
    assert same > 15, "the other libraries refuse nearly all that perdure loads: nothing was compared"


def test_convert(files, worker, loaded):
    """To each format."""
    found = []
    for name, path in some(files, "convert", 12).items():
        if "call-metadata" in name:  # an empty dict with an attribute, which safetensors do not keep and diff does see
            continue
        answer, load = worker.ask("convert", path), loaded[name]["outcome"]
        if not any(word in name for word in ("bomb", "many", "wide")):  # in DCP, each value is a file
            found.append(complaint(name, path, answer))
        outcomes = answer["text"].split(" ")
        is_right = load == "loads" or "" not in outcomes or is_of_torch(name, load)
        found.append("" if answer["outcome"] == "loads" and is_right else f"load: {load}; {shown(name, answer)}")
    check(found)


def is_of_torch(name, load) -> bool:
    """Refused for what this torch does not know or have, or for an attribute or remark that no other format has."""
    return load in ("unsupported", "invalid") and any(
        word in name for word in ("layout", "device", "metadata", "machine", "mutated", "requires-grad", "nested")
    )


def shows(name) -> tuple[str, ...]:
    """Sets and dicts whose members or keys are no plain data are shown as opaque."""
    return ("loads",) if "dict-key" in name or "set-" in name or "mutated" in name else ()


# ---- the command


def to(name, *options):
    """A command that writes, into a folder of its own."""
    return lambda path, out, good: [PERDURE, *options[:1], path, out / name, *options[1:]]


def of(*words):
    return lambda path, out, good: [PERDURE, *words, path]


COMMANDS = {
    "show": of("show"), "show --json": of("show", "--json"), "show --values": of("show", "--values"), "verify": of("verify"),
    "verify --json": of("verify", "--json"), "stats": of("stats"), "stats --json": of("stats", "--json"), "ls": of("ls"),
    "diff": lambda path, out, good: [PERDURE, "diff", "--full", path, path],
    "diff a good one": lambda path, out, good: [PERDURE, "diff", "--json", good, path],
    "diff to a good one": lambda path, out, good: [PERDURE, "diff", "--rtol", "0.1", path, good],
    "cat": lambda path, out, good: [PERDURE, "cat", path, "w"],
    "convert to torch": to("out.pt", "convert"), "convert to safetensors": to("out.safetensors", "convert", "--rest"),
    "convert to shards": to("out", "convert", "--to", "safetensors", "--max-shard-size", "10"),
    "convert to dcp": to("out", "convert"), "convert to bfloat16": to("out.pt", "convert", "--dtype", "bfloat16"), "repair": to("out.pt", "repair", "--json"),
}  # fmt: skip


def right_codes(command: str, load: str) -> tuple[int, ...]:
    """By what load says; it refuses what the others show as opaque."""
    word = command.partition(" ")[0]
    if word in ("cat", "ls", "repair"):
        return (0, 1, 2)
    if word == "diff":  # which reads what both have
        return {
            "loads": (0,) if command == "diff" else (0, 1, 2),
            "corrupt": (2,) if command == "diff" else (1, 2),
        }.get(load, (0, 1, 2))
    if word == "show":  # which reads no more than it shows
        return {"loads": (0, 2) if "--values" in command else (0,), "corrupt": (0, 1)}.get(load, (0, 1, 2))
    if load == "loads":
        return {"verify": (0, 1, 2), "convert": (0, 2)}.get(word, (0,))
    if command == "convert to shards" and load == "corrupt":
        return (1, 2)  # what is no tensor is refused before a tensor is read
    # What load refuses may be damaged as well.
    return (1,) if load == "corrupt" else (0, 1, 2) if word in ("stats", "verify") else (1, 2)


def size_of(path: Path) -> int:
    inside = path.rglob("*") if path.is_dir() else [path]
    return sum(p.stat().st_blocks * 512 for p in inside if p.is_file())


@pytest.mark.parametrize("command", COMMANDS)
def test_command(files, loaded, good, memory_room, tmp_path, command):  # noqa: F811
    chosen = some(files, command, 24)
    outs = [tmp_path / str(number) for number in range(len(chosen))]
    for out in outs:
        out.mkdir()
    lines = [COMMANDS[command](path, out, good) for path, out in zip(chosen.values(), outs)]
    answers, found = commands(lines), []
    for (name, path), line, answer, out in zip(chosen.items(), lines, answers, outs):
        if command == "cat":  # .npy is no text
            answer["out"] = ""
        found += [
            command_complaint(line, answer, memory_room, size_of(path)),
            answer_complaint(command, name, answer, loaded[name]["outcome"], out),
        ]
    check(found)
    check(written_complaints(command, lines, answers))


def answer_complaint(command, name, answer, load, out) -> str:
    said = f"{command} {name} (load: {load}): exit code {answer['code']}: {answer['err'][:300]}"
    right = right_codes(command, load) + (
        (0, 2) if load == "corrupt" and shows(name) else (0,) if is_of_torch(name, load) else ()
    )
    if answer["code"] not in right:
        return said
    if hostile.SECRET in answer["out"] + answer["err"]:
        return f"{said}; what is outside was read"
    if "--json" in command and answer["out_bytes"] <= 1 << 20 and answer["out"]:
        json.loads(answer["out"])
    wrote = sorted(os.listdir(out))
    if wrote and (answer["code"] == 2 or command.startswith("convert") and answer["code"] == 1):
        return f"{said}; {wrote} is left behind"
    return f"{said}; {wrote} is hidden" if any(name.startswith(".") for name in wrote) else ""


def written_complaints(command, lines, answers) -> list[str]:
    """What was written means what was read."""
    if not command.startswith(("convert", "repair")):
        return []
    wrote = [line for line, answer in zip(lines, answers) if answer["code"] == 0]
    compared = [[PERDURE, "show", line[3]] for line in wrote]
    if command in ("convert to torch", "convert to shards", "convert to dcp"):  # the others leave out, round, or mend
        compared += [[PERDURE, "diff", line[2], line[3]] for line in wrote]
    return [f"{line}: {answer}" for line, answer in zip(compared, commands(compared)) if answer["code"] != 0]


def test_a_bad_conversion_would_be_seen(good, tmp_path, monkeypatch):
    def changes(path, out, to):
        perdure.save({"w": torch.zeros(3), "epoch": 3}, out)

    def leaves(path, out, to):
        Path(out).write_text("half")
        raise perdure.InvalidError("cannot")

    for bad, said in ((changes, "not what went in"), (leaves, "left behind")):
        monkeypatch.setattr(perdure, "convert", bad)
        with pytest.raises(AssertionError, match=said):
            hostile_worker.convert(str(good))


def test_crashes_would_be_seen(memory_room):  # noqa: F811
    crashing, silent = ["sh", "-c", "kill -SEGV $$"], ["sh", "-c", "echo '\x1b[2J'"]
    answers = commands([crashing, silent])
    assert answers[0]["code"] == -signal.SIGSEGV
    assert all(command_complaint(line, answer, memory_room, 0) for line, answer in zip((crashing, silent), answers))
