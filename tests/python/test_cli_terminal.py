"""What the command does on a terminal: colour, progress, Ctrl-C. And how much memory it takes, wherever it writes."""

import os
import pty
import re
import signal
import subprocess
import sys
import time

import pytest
import torch

import perdure

PERDURE = os.environ.get("PERDURE_CLI", "perdure")
MIB = 1 << 20


class Terminal:
    """A program whose standard output or error (or both) is a terminal."""

    def __init__(self, *arguments, out=True, err=True, **environment):
        self._main, worker = pty.openpty()
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
    assert re.search(r"\x1b\[33m~  a .*\x1b\[0m\r\n", text) and "\x1b[31m-  b" in text and "\x1b[32m+  c" in text
    plain = subprocess.run([PERDURE, "diff", *two], capture_output=True, text=True).stdout
    assert "\x1b" not in plain and re.sub(r"\x1b\[\d+m", "", text).replace("\r\n", "\n") == plain
    for environment in ({"NO_COLOR": "1"}, {"TERM": "dumb"}):
        assert "\x1b" not in Terminal("diff", *two, **environment).read()
    assert "\x1b[31m" in Terminal("diff", *two, NO_COLOR="").read()  # https://no-color.org: not where it is empty


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
    line = rf"\r{command[0]}[^\r]*: \d+ %, [\d.]+ [kMG]?B of [\d.]+ [MG]B, [\d.]+ [kMG]?B/s(, \d+ s left)?\x1b\[K"
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
