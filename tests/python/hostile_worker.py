"""A process that opens hostile files, one after the other, for test_hostile.py: what becomes of it is what is tested.

    python hostile_worker.py [--sealed]

For each line on its standard input, a list of [what, path], it answers with one line: what happened, how long it took,
and by how much memory grew. `what` is load, verify, stats, diff (with itself, and with the good file PERDURE_GOOD),
restore (the path is a run directory), torch (is what perdure loads what torch and safetensors load?), convert (to each
format, one after the other), or execute: to see that the seal holds. Sealed, the kernel ends it (SIGSYS) at any attempt
to start a program, open a socket, or open a file for writing.
"""

import ctypes
import json
import logging
import os
import platform
import resource
import struct
import sys
import tempfile
import time
from pathlib import Path

import torch

import perdure
from hostile_reference import pair

ROOM = 2 << 30  # of address space; whoever asks for more gets a MemoryError

EXECUTE, SOCKET, OPEN = "execute", "socket", "open"
CALLS = {
    "x86_64": (0xC000003E, {59: EXECUTE, 322: EXECUTE, 41: SOCKET, 42: SOCKET, 85: OPEN, 437: OPEN}, {2: 1, 257: 2}),
    "aarch64": (0xC00000B7, {221: EXECUTE, 281: EXECUTE, 198: SOCKET, 203: SOCKET, 437: OPEN}, {56: 2}),
}
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC


def seal() -> None:
    """A seccomp filter in the kernel's own machine code: a list of (code, jump if true, jump if false, number)."""
    architecture, refused, opening = CALLS[platform.machine()]
    kill, allow = (0x06, 0, 0, 0x80000000), (0x06, 0, 0, 0x7FFF0000)
    program = [(0x20, 0, 0, 4), (0x15, 1, 0, architecture), kill]
    for number in refused:
        program += [(0x20, 0, 0, 0), (0x15, 0, 1, number), kill]
    for number, argument in opening.items():
        program += [(0x20, 0, 0, 0), (0x15, 0, 3, number), (0x20, 0, 0, 16 + 8 * argument), (0x45, 0, 1, WRITING), kill]
    program.append(allow)
    code = b"".join(struct.pack("HBBI", *line) for line in program)
    buffer = ctypes.create_string_buffer(code)
    header = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(program), ctypes.addressof(buffer)))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(38, 1, 0, 0, 0) or libc.prctl(22, 2, header, 0, 0):
        raise OSError(ctypes.get_errno(), "no seccomp here")


TOLD = []  # what perdure has warned of


class Listener(logging.Handler):
    def emit(self, record):
        TOLD.append(record.getMessage())


class Peak:
    """By how much memory grew at most."""

    def __init__(self):
        self._reset = os.open("/proc/self/clear_refs", os.O_WRONLY)

    def start(self):
        os.pwrite(self._reset, b"5", 0)
        self._before = self._read("VmRSS")

    def bytes(self) -> int:
        return max(self._read("VmHWM") - self._before, 0)

    def _read(self, name):
        with open("/proc/self/status") as status:
            return next(int(line.split()[1]) << 10 for line in status if line.startswith(name + ":"))


def difference(a, b, place="state") -> str:
    """The first place where two loaded states are not the same, to the bit."""
    if type(a).__module__ == "numpy":  # what torch leaves in its plain form
        return ""
    if type(a) is not type(b):
        return f"{place}: {type(a).__name__} and {type(b).__name__}"
    if isinstance(a, torch.Tensor):
        return tensor_difference(a, b, place)
    if isinstance(a, dict):
        if list(map(repr, a)) != list(map(repr, b)):
            return f"{place}: other keys"
        pairs = zip(a.values(), b.values())
    elif isinstance(a, (list, tuple)):
        if len(a) != len(b):
            return f"{place}: {len(a)} and {len(b)} items"
        pairs = zip(a, b)
    else:
        return "" if a == b or repr(a) == repr(b) else f"{place}: {a!r:.100} and {b!r:.100}"
    return next((found for i, pair in enumerate(pairs) if (found := difference(*pair, f"{place}[{i}]"))), "")


def tensor_difference(a, b, place) -> str:
    facts = [
        (t.dtype, t.shape, t.stride(), t.storage_offset(), t.requires_grad, t.device, t.is_conj(), t.is_neg())
        for t in (a, b)
    ]
    if facts[0] != facts[1]:
        return f"{place}: {facts[0]} and {facts[1]}"
    if a.device.type == "meta" or a.numel() > 10_000_000:
        return ""
    same = [bytes(t.detach().untyped_storage()) for t in (a, b)]
    return "" if same[0] == same[1] else f"{place}: other bytes"


def compare_with_torch(path) -> str:
    """What torch reads differently from perdure, or nothing. That torch refuses more is no difference."""
    perdure.load(path)
    try:
        ours, theirs = pair(Path(path))
    except BaseException as error:  # noqa: BLE001: DCP's is no Exception
        return f"torch refuses: {type(error).__name__}"
    sys.setrecursionlimit(10_000)
    if found := difference(ours, theirs):
        raise AssertionError(f"torch reads it differently: {found}")
    return "the same"


def restore(path) -> str:
    """As a training would: the older checkpoint is good."""
    state = perdure.TrainingState(w=torch.zeros(3), epoch=0)
    TOLD.clear()
    with perdure.CheckpointManager(path) as checkpoints:
        restored = checkpoints.restore(state, strict=False)
    return json.dumps({"step": restored.step, "w": state.w.tolist(), "warnings": [text[:500] for text in TOLD]})


def verify(path) -> str:
    return perdure.verify(path).state


def load(path) -> str:
    perdure.load(path)
    return ""


def inspect(path) -> str:
    """Nothing in it is too strange to be told of; of an int of millions of digits it is Python that does not tell."""
    try:
        return f"{len(repr(perdure.inspect(path)))} letters"
    except ValueError as error:
        if "digits" not in str(error):
            raise
        return "an int"


def stats(path) -> str:
    return f"{len(perdure.stats(path).tensors)} tensors"


def diff(path) -> str:
    """With itself it is equal."""
    if not perdure.diff(path, path, full=True).equal:
        raise AssertionError("it differs from itself")
    for pair in ((path, os.environ["PERDURE_GOOD"]), (os.environ["PERDURE_GOOD"], path)):
        perdure.diff(*pair)
    return ""


def convert(path) -> str:
    """What comes out means the same, and where nothing does, nothing is left."""
    outcomes = []
    for to in ("torch", "safetensors", "dcp"):
        with tempfile.TemporaryDirectory() as folder:
            out = os.path.join(folder, "out")
            try:
                perdure.convert(path, out, to=to)
            except perdure.Error as error:
                outcomes.append(error.code)
                if left := os.listdir(folder):
                    raise AssertionError(f"{to}: {left} is left behind: {error}") from None
                continue
            outcomes.append("")
            if os.listdir(folder) != ["out"] or not perdure.diff(path, out).equal:
                raise AssertionError(f"{to}: what came out is not what went in")
    return " ".join(outcomes)


def execute(path) -> str:
    os.execv("/bin/true", ["true"])


WORK = {
    "load": load, "verify": verify, "inspect": inspect, "stats": stats, "diff": diff, "restore": restore,
    "torch": compare_with_torch, "convert": convert, "execute": execute,
}  # fmt: skip


def answer(what, path, peak) -> dict:
    peak.start()
    start = time.monotonic()
    try:
        outcome, text = "loads", WORK[what](path)
    except perdure.Error as error:
        outcome, text = error.code, str(error)
    except BaseException as error:  # noqa: BLE001: whatever else it is, it is what the test wants to see
        outcome, text = type(error).__name__, str(error)
    seconds, grown = time.monotonic() - start, peak.bytes()
    return {"outcome": outcome, "text": text[:4000], "length": len(text), "seconds": seconds, "peak": grown}


def main():
    torch.set_num_threads(1)
    logging.getLogger("perdure").addHandler(Listener())
    peak = Peak()
    with open("/proc/self/status") as status:
        size = next(int(line.split()[1]) << 10 for line in status if line.startswith("VmSize:"))
    resource.setrlimit(resource.RLIMIT_AS, (size + ROOM, size + ROOM))
    if "--sealed" in sys.argv:
        seal()
    for line in sys.stdin:
        print(json.dumps(answer(*json.loads(line), peak)), flush=True)


if __name__ == "__main__":
    main()
