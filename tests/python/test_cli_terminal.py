"""What the command does on a terminal: colour, progress, Ctrl-C. And how much memory it takes, wherever it writes."""

import fcntl
import html
import os
import pathlib
import pty
import re
import runpy
import signal
import struct
import subprocess
import sys
import termios
import time

import pytest
import torch

import perdure

PERDURE = os.environ.get("PERDURE_CLI", "perdure")
ROOT = pathlib.Path(__file__).resolve().parents[2]
MIB = 1 << 20


class Terminal:
    """A program whose standard output or error (or both) is a terminal."""

    def __init__(self, *arguments, out=True, err=True, columns=100, **environment):
        self._main, worker = pty.openpty()
        fcntl.ioctl(worker, termios.TIOCSWINSZ, struct.pack("HHHH", 50, columns, 0, 0))
        pipe = subprocess.PIPE
        env = {k: v for k, v in os.environ.items() if k != "NO_COLOR"} | {"TERM": "xterm"} | environment
        self.process = subprocess.Popen(
            [PERDURE, *map(str, arguments)], stdout=worker if out else pipe, stderr=worker if err else pipe, env=env
        )
        os.close(worker)

    def read(self) -> str:
        """All that comes until the program ends."""
        text = b""
        while True:
            try:
                piece = os.read(self._main, 1 << 16)
            except OSError:  # the program has closed the other end
                break
            text += piece
            if not piece:
                break
        os.close(self._main)
        self.out, self.err = self.process.communicate(timeout=60)
        return text.decode()


@pytest.fixture
def two(tmp_path):
    perdure.save({"a": 1, "b": 2, "x": torch.ones(3)}, tmp_path / "a.pt")
    perdure.save({"a": 2, "c": 2, "x": torch.zeros(3)}, tmp_path / "b.pt")
    return tmp_path / "a.pt", tmp_path / "b.pt"


def test_colour_on_a_terminal_only(two):
    text = Terminal("diff", *two).read()
    for colour, sign, key in ((33, "~", "a"), (31, "-", "b"), (32, "+", "c")):
        assert f"\x1b[{colour}m{sign}\x1b[0m  \x1b[{colour}m{key}\x1b[0m" in text
    plain = subprocess.run([PERDURE, "diff", *two], capture_output=True, text=True).stdout
    assert "\x1b" not in plain and re.sub(r"\x1b\[\d+m", "", text).replace("\r\n", "\n") == plain
    for environment in ({"NO_COLOR": "1"}, {"TERM": "dumb"}):
        assert "\x1b" not in Terminal("diff", *two, **environment).read()
    assert "\x1b[31m" in Terminal("diff", *two, NO_COLOR="").read()  # https://no-color.org: not where it is empty


def plain(text):
    return re.sub(r"\x1b\[[\d;]+m", "", text).replace("\r\n", "\n")


def test_each_says_good_and_bad_in_colour(tmp_path):
    run = tmp_path / "run"
    with perdure.CheckpointManager(run) as checkpoints:
        state = perdure.TrainingState(x=1)
        for state.step in (1, 2, 3):
            checkpoints.save(state)
    newest = max(run.glob("*.pt"))
    newest.write_bytes(newest.read_bytes()[:-30])
    perdure.save({"x": torch.tensor([1, float("nan")])}, tmp_path / "nan.pt")
    for arguments, pieces in (
        (["ls", run], ["1mSTEP", "31mdamaged", "32mwhole"]),
        (["verify", run], ["31mdamaged", "32mgood"]),
        (["stats", tmp_path / "nan.pt"], ["1mTENSOR", "31m1"]),
        (["show", tmp_path / "nan.pt", "x"], ["1mKEY", "2mfloat32"]),
        (["prune", "--keep-last", 1, "--dry-run", run], ["32mkept", "31mremoved"]),
        (["convert", tmp_path / "nan.pt", tmp_path / "n.safetensors"], ["32mwrote"]),
        (["repair", tmp_path / "nan.pt", tmp_path / "r.pt"], ["32msaved"]),
        (["show", tmp_path / "none.pt"], ["1;31mperdure:"]),
    ):
        text = Terminal(*arguments).read()
        assert all(f"\x1b[{piece}\x1b[0m" in text for piece in pieces), text
        dull = Terminal(*arguments, *(["--force"] if arguments[0] in ("convert", "repair") else []), NO_COLOR="1").read()
        assert "\x1b" not in dull and (arguments[0] == "prune" or plain(text) == plain(dull))


def test_what_is_too_wide_for_a_terminal_loses_nothing(tmp_path):
    key = ".".join(f"a_long_name_{i}" for i in range(4))
    perdure.save({key: torch.zeros(2, 3), "short": torch.ones(3)}, tmp_path / "x.pt")
    text = plain(Terminal("show", tmp_path / "x.pt", key, columns=60).read())
    assert f"\n{key}\n" in text and re.search(r"\n +float32  \[2, 3\] +24 B\n", text)
    for columns in (80, 100, 140):
        for line in plain(Terminal("stats", tmp_path / "x.pt", columns=columns).read()).splitlines():
            assert len(line) <= columns
    assert plain(Terminal("stats", tmp_path / "x.pt", columns=200).read()) == subprocess.run(
        [PERDURE, "stats", tmp_path / "x.pt"], capture_output=True, text=True).stdout  # fmt: skip


def test_the_picture_in_the_readme_is_what_is_printed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make = runpy.run_path(str(ROOT / "docs" / "pictures" / "make.py"))
    make["make_files"]()
    drawn = make["svg"](make["session"]())

    def words(svg):  # without places and sizes: the records of versions and times differ in length
        return re.sub(r"[\d.]+ kB|offset \d+", "N", html.unescape("\n".join(re.findall(r"<tspan[^>]*>(.*?)</tspan>", svg))))

    assert words(make["PICTURE"].read_text()) == words(drawn)
    assert words(drawn) != words(drawn.replace("whole", "hole"))
    assert "docs/pictures/command-line.svg" in (ROOT / "README.md").read_text()


@pytest.fixture(scope="module")
def slow(tmp_path_factory):
    """A file that takes a moment, long enough to be stopped within it."""
    path = tmp_path_factory.mktemp("slow") / "big.pt"
    perdure.save({"x": torch.zeros(300 * MIB, dtype=torch.uint8)}, path)
    return path


def stopped_for(process, seconds):
    """As if the disk had nothing to give for that long."""
    process.send_signal(signal.SIGSTOP)
    time.sleep(seconds)
    process.send_signal(signal.SIGCONT)


@pytest.mark.parametrize("command", [["verify"], ["stats"], ["diff", "--full"]], ids=" ".join)
def test_progress_after_a_second_and_gone_at_the_end(slow, command):
    paths = [slow, slow] if command[0] == "diff" else [slow] * 3 if command[0] == "verify" else [slow]
    for _ in range(10):  # it may be over before it is stopped
        terminal = Terminal(*command, *paths, out=False)
        time.sleep(0.05)
        stopped_for(terminal.process, 1.2)
        text = terminal.read()
        assert terminal.process.returncode == 0 and b"\x1b" not in terminal.out
        if text:
            break
    line = rf"\r{command[0]}[^\r]*: \d+ %, [\d.]+ [kMG]?B of [\d.]+ [MG]B, [\d.]+ [kMG]?B/s(, \d+(:\d\d min| s) left)?\x1b\[K"
    assert re.match(line, text), repr(text)
    assert text.endswith("\r\x1b[K")  # nothing is left of it


def test_no_progress_in_a_pipe_and_of_what_is_quick(slow, two):
    assert Terminal("verify", *two, out=False).read() == ""
    terminal = Terminal("stats", slow, err=False)
    time.sleep(0.05)
    stopped_for(terminal.process, 1.1)
    terminal.read()
    assert terminal.err == b""


@pytest.mark.parametrize("command", ["verify", "stats", "cat"])
def test_ctrl_c_ends_it_with_130_and_no_trace(slow, command):
    for _ in range(20):
        arguments = [command, slow, "x"] if command == "cat" else [command, *([slow] * 4 if command == "verify" else [slow])]
        process = subprocess.Popen([PERDURE, *map(str, arguments)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
        if process.returncode == 130:
            break
        assert process.returncode in (0, -signal.SIGINT)  # it was over, or had not begun
    assert process.returncode == 130 and err == b""


def test_a_parent_that_ignores_ctrl_c_is_heard(slow):
    command = f"trap '' INT; exec {PERDURE} stats {slow} > /dev/null"
    process = subprocess.Popen(["sh", "-c", command])
    time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=60) == 0


# ---- memory

SIZE = int(os.environ.get("PERDURE_BIG_MB", "700")) * MIB
MOST_MEMORY = 200 * MIB


def peak(*arguments) -> int:
    """The most memory that a command had."""
    code = (
        "import resource, subprocess, sys; code = subprocess.call(sys.argv[1:], stdout=subprocess.DEVNULL); "
        "print(code, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
    )
    done = subprocess.run([sys.executable, "-S", "-c", code, PERDURE, *map(str, arguments)], capture_output=True, text=True, check=True)
    code, kib = map(int, done.stdout.split())
    assert code in (0, 1), done.stderr
    return kib << 10


def test_memory_is_bounded_whatever_the_size(tmp_path):
    x = torch.zeros(SIZE // 4)
    perdure.save({"x": x, "t": torch.zeros(4000, 4000)[:, ::2]}, tmp_path / "a.pt")
    x[::1000] = 1
    torch.save({"x": x}, tmp_path / "b.pt")
    del x
    a, b = tmp_path / "a.pt", tmp_path / "b.pt"
    for command in (["verify", a], ["stats", a], ["stats", b], ["diff", a, b], ["diff", "--full", a, a], ["cat", a, "x"],
                    ["cat", a, "t", "--dtype", "float64"], ["show", "--values", a, "x"]):  # fmt: skip
        found = peak(*command)
        assert found < MOST_MEMORY, f"{command[0]}: {found // MIB} MiB"
