"""A run directory in which others have put things: hostile histories and pins, pipes, links, sockets, devices and folders
under the names of checkpoints and of the engine's own files. None is followed, waited for, or taken for a checkpoint, and
nothing outside of the directory is written."""

import json
import logging
import os
import socket
import stat
from pathlib import Path

import pytest
import torch

import perdure
from test_hostile import PERDURE, check, command_complaint, commands, memory_room  # noqa: F401

NEWEST = "step-0000000009-g00000009.pt"
COMMANDS = (("ls",), ("ls", "--json"), ("verify",), ("show",), ("prune", "--keep-last", "1", "--dry-run"))


@pytest.fixture
def run(tmp_path) -> Path:
    """A run of one checkpoint, of step 1."""
    directory = tmp_path / "run"
    with perdure.CheckpointManager(directory) as checkpoints:
        checkpoints.save(a_state(1))
    return directory


def a_state(step=0):
    state = perdure.TrainingState(w=torch.full((3,), float(step)), epoch=step)
    state.step = step
    return state


def goes_on(directory) -> list[str]:
    """Restores step 1, saves, prunes, pins, lists; what was told."""
    state, told = a_state(), Listener()
    logging.getLogger("perdure").addHandler(told)
    try:
        with perdure.CheckpointManager(directory, keep_last=2) as checkpoints:
            assert checkpoints.restore(state).step == 1
            assert state.w.tolist() == [1, 1, 1]
            for _ in range(3):
                state.step += 1
                checkpoints.save(state)
                checkpoints.wait()
            assert checkpoints.latest_step() == 4
        perdure.list_checkpoints(directory)
    finally:
        logging.getLogger("perdure").removeHandler(told)
    return told.texts


class Listener(logging.Handler):
    """What perdure warns of."""

    def __init__(self):
        super().__init__()
        self.texts = []

    def emit(self, record):
        self.texts.append(record.getMessage())


def check_commands(directory, room, size=0, codes=(0,)):
    lines = [[PERDURE, *command[:1], directory, *command[1:]] for command in COMMANDS]
    answers = commands(lines)
    check([command_complaint(line, answer, room, size) for line, answer in zip(lines, answers)])
    for line, answer in zip(lines, answers):
        assert answer["code"] in codes, f"{line}: {answer}"
    if answers[1]["out_bytes"] < 1 << 20:
        json.loads(answers[1]["out"])
    return answers


# ---- histories


def sparse(path, size):
    with open(path, "wb") as file:
        file.truncate(size)


HISTORIES = {
    "binary": bytes(range(256)) * 100,
    "deep": b"[" * 1_000_000 + b"\n" + b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
    "long-line": b'{"event": "' + b"x" * 20_000_000 + b'"}\n',
    "many-keys": b"{" + b",".join(b'"k%d":1' % i for i in range(200_000)) + b"}\n",
    "many-lines": b'{"event": "restore", "time": 1, "step": 1, "generation": 1}\n' * 100_000,
    "wrong-types": b'{"event": 1}\n{"event": "restore", "time": "now", "step": [], "generation": {}}\n{"event": "restore"}\n'
    b'{"event": "restore", "time": 1e999, "step": 99999999999999999999999, "generation": -1}\n',
    "escapes": b'{"event": "\\u001b[2J"}\n{"event": "restore", "time": -1e308, "step": 1, "generation": 1}\n',
    "not-utf8": b'{"event": "\xff\xfe"}\n',
    "nul": b"\0" * 100_000,
    "digits": b'{"event": ' + b"9" * 5_000_000 + b"}\n",
}


@pytest.mark.parametrize("name", HISTORIES)
def test_history(run, name, memory_room):  # noqa: F811
    (run / "history.jsonl").write_bytes(HISTORIES[name])
    assert goes_on(run) == []
    check_commands(run, memory_room, len(HISTORIES[name]))
    assert perdure.read_history(run)[-1]["event"] == "prune"


def test_history_of_a_terabyte(run, memory_room):  # noqa: F811
    sparse(run / "history.jsonl", 1 << 40)
    assert goes_on(run) == []
    check_commands(run, memory_room)
    assert perdure.read_history(run)[-1]["event"] == "prune"


# ---- pins


PINS = {
    "binary": bytes(range(256)) * 10,
    "escape": b"\x1b[2J\x1b]0;pwned\x07",
    "not-utf8": b"\xff\xfe",
    "nul": b"a\0b",
    "long": b"x" * 10_000_000,
    "empty": b"",
    "lines": b"a\nb\n" * 100,
}


@pytest.mark.parametrize("name", PINS)
def test_pin(run, name, memory_room):  # noqa: F811
    (run / "step-0000000001-g00000001.pt.pin").write_bytes(PINS[name])
    (run / (NEWEST + ".pin")).write_bytes(PINS[name])  # of a checkpoint that is not there
    assert goes_on(run) == []
    check_commands(run, memory_room)
    assert any(c.step == 1 for c in perdure.list_checkpoints(run)), "a pinned checkpoint was removed"


def test_pin_of_a_terabyte(run, memory_room):  # noqa: F811
    sparse(run / "step-0000000001-g00000001.pt.pin", 1 << 40)
    goes_on(run)
    check_commands(run, memory_room)


# ---- what is no regular file


@pytest.fixture
def outside(tmp_path) -> Path:
    """A folder that must stay as it is: with a checkpoint, and with a file that somebody needs."""
    folder = tmp_path / "outside"
    with perdure.CheckpointManager(folder / "other") as checkpoints:
        checkpoints.save(a_state(666), metrics={"decoy": 1.0})
    (folder / "precious").write_text("precious\n")
    return folder


def contents(folder) -> dict:
    return {str(p): (p.stat().st_ino, p.read_bytes() if p.is_file() else None) for p in sorted(folder.rglob("*"))}


def make_fifo(path, outside):
    os.mkfifo(path)


def make_link(path, outside):
    path.symlink_to(next((outside / "other").glob("step-*.pt")))


def make_dangling_link(path, outside):
    path.symlink_to(outside / "made-by-following")


def make_link_to_precious(path, outside):
    path.symlink_to(outside / "precious")


def make_link_to_folder(path, outside):
    path.symlink_to(outside / "other")


def make_link_to_itself(path, outside):
    path.symlink_to(path.name)


def make_folder(path, outside):
    path.mkdir()
    (path / "inside").write_text("x")


def make_socket(path, outside):
    with socket.socket(socket.AF_UNIX) as made:
        here = os.getcwd()
        os.chdir(path.parent)  # a socket's address is at most 107 bytes
        try:
            made.bind(path.name)
        finally:
            os.chdir(here)


def make_device(path, outside):
    try:
        os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, 5))  # /dev/zero
    except PermissionError:
        pytest.skip("only root makes devices")


def make_hard_link(path, outside):
    os.link(outside / "precious", path)


ODD = [make_fifo, make_link, make_dangling_link, make_link_to_precious, make_link_to_folder, make_link_to_itself,
       make_folder, make_socket, make_device]  # fmt: skip


@pytest.mark.parametrize("make", ODD)
def test_a_checkpoint_that_is_no_file(run, outside, make, memory_room):  # noqa: F811
    before = contents(outside)
    make(run / NEWEST, outside)
    make(run / (NEWEST + ".pin"), outside)
    make(run / "step-0000000001-g00000001.pt.pin", outside)
    make(run / (NEWEST + ".damaged"), outside)
    goes_on(run)
    for answer in check_commands(run, memory_room):
        assert "decoy" not in answer["out"]
    assert contents(outside) == before


@pytest.mark.parametrize("make", ODD)
def test_where_a_save_would_come_to_lie(run, outside, make):
    """That save fails and says so; the next one has another generation. That of a folder is known to be used up."""
    before = contents(outside)
    make(run / "step-0000000002-g00000002.pt", outside)
    state = a_state(2)
    with perdure.CheckpointManager(run) as checkpoints:
        if make is not make_folder:
            with pytest.raises(perdure.Error, match="step-0000000002-g00000002"):
                checkpoints.save(state).wait()
        checkpoints.save(state).wait()
        assert [c.generation for c in checkpoints.checkpoints()] == [3, 1]
    assert contents(outside) == before


OWN_NAMES = ["history.jsonl", ".trash", ".lock", ".step-0000000001-g00000001.pt.123-0123456789abcdef.tmp"]


@pytest.mark.parametrize("make", [*ODD, make_hard_link])
@pytest.mark.parametrize("name", OWN_NAMES)
def test_an_own_file_that_is_something_else(run, outside, name, make, memory_room):  # noqa: F811
    before = contents(outside)
    if (run / name).is_dir():
        (run / name).rmdir()
    (run / name).unlink(missing_ok=True)
    make(run / name, outside)
    try:
        goes_on(run)
    except (perdure.Error, AssertionError) as error:
        # Without a lock nobody may write here, and without a trash nothing may be removed: both are said.
        assert name in str(error) and name in (".lock", ".trash"), str(error)
    check_commands(run, memory_room)
    assert contents(outside) == before


def test_a_hard_link_to_a_checkpoint_is_one(run, outside):
    """As backups make them; removing it leaves the other name alone."""
    other = outside / "backup.pt"
    os.link(run / "step-0000000001-g00000001.pt", other)
    before = contents(outside)
    assert goes_on(run) == []
    with perdure.CheckpointManager(run, keep_last=1) as checkpoints:
        checkpoints.prune()
    assert not (run / "step-0000000001-g00000001.pt").exists()
    assert contents(outside) == before
