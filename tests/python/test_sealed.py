"""Nothing in a file is executed, as the kernel sees it: reading goes on in a process that it ends (SIGSYS) at any
attempt to run a program, to start a process, to open a socket, to open a file for writing, to change a name, or to make
memory executable (tests/cpp/sealed.cpp)."""

import os
import pathlib
import pickle
import signal
import subprocess
import sys

import pytest
import torch
from sealed_reader import ATTEMPTS, SEALED_OUT
from states import alone, one_storage, parameters, plain_values

import perdure

KILLEE = os.environ.get("PERDURE_KILLEE")
SEALED = pathlib.Path(KILLEE).with_name("libsealed.so") if KILLEE else None
PERDURE = os.environ.get("PERDURE_CLI", "perdure")
READER = pathlib.Path(__file__).with_name("sealed_reader.py")
HARMLESS = ("nothing", "a thread")

def why_not():
    if SEALED is None:
        return "PERDURE_KILLEE does not say where libsealed.so is"
    sealed = subprocess.run(["true"], env=os.environ | {"LD_PRELOAD": str(SEALED), "PERDURE_SEAL": "1"})
    return "this kernel has no seccomp filters" if sealed.returncode == SEALED_OUT else ""


pytestmark = pytest.mark.skipif(bool(why_not()), reason=why_not())


class Call:
    """Calls a function where it is unpickled."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def some_hostile_files(folder):
    """The usual ways of running something from a file."""
    proof = folder / "EXECUTED"
    calls = {
        "system": Call(os.system, f"touch {proof}"),
        "popen": Call(subprocess.Popen, ["touch", str(proof)]),
        "exec": Call(exec, f"open({str(proof)!r}, 'w')"),
        "eval": Call(eval, f"open({str(proof)!r}, 'w')"),
        "open": Call(open, str(proof), "w"),
        "import": Call(__import__, "antigravity"),
        "getattr": Call(getattr, "text", "__class__"),
    }
    paths = {}
    for name, call in calls.items():
        for kind, there in {"value": {"a": call}, "key": {"a": [call]}, "whole": call}.items():
            paths[f"{name}-{kind}"] = folder / f"{name}-{kind}.pt"
            torch.save(there, paths[f"{name}-{kind}"])
        paths[f"{name}-legacy"] = folder / f"{name}-legacy.pt"
        torch.save({"a": call}, paths[f"{name}-legacy"], _use_new_zipfile_serialization=False)
        paths[f"{name}-plain"] = folder / f"{name}-plain.pt"
        paths[f"{name}-plain"].write_bytes(pickle.dumps(call))
    return paths


try:  # the whole collection
    from hostile import hostile_files
except ImportError:
    hostile_files = some_hostile_files


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Good and hostile ones; the names of the good ones begin so."""
    folder = tmp_path_factory.mktemp("files")
    paths = list(hostile_files(folder).values())
    if hostile_files is not some_hostile_files:
        (folder / "some").mkdir()
        paths += some_hostile_files(folder / "some").values()
    kinds = [alone(torch.float32), one_storage(torch.bfloat16), parameters(torch.float64), plain_values()]
    for i, state in enumerate(kinds):
        perdure.save(state, folder / f"good-{i}.pt")
        paths.append(folder / f"good-{i}.pt")
    torch.save({"x": torch.ones(300_000), "epoch": 5}, folder / "good-torch.pt")
    run = folder / "run"
    state = perdure.TrainingState(x=torch.zeros(500_000), epoch=0)
    with perdure.CheckpointManager(run) as checkpoints:
        checkpoints.save(state, metrics={"loss": 1}).wait()
    return [*paths, folder / "good-torch.pt", *run.glob("step-*.pt")]


def is_good(path):
    return path.name.startswith(("good-", "step-"))


def executed(files):
    return [p for folder in {f.parent for f in files} for p in folder.glob("EXECUTED*")]


def start(*arguments, **options):
    return subprocess.run(
        [sys.executable, READER, SEALED, *arguments], capture_output=True, text=True, timeout=120, **options
    )


def test_the_seal_holds(tmp_path):
    for name in ATTEMPTS:
        torch.save({"a": Call(os.system, "true") if name == "torch.load" else 1}, tmp_path / f"{name}.pt")
    (tmp_path / "unpickle.pt").write_bytes(pickle.dumps(Call(os.system, f"touch {tmp_path / 'EXECUTED'}")))
    done = start("attempts", tmp_path)
    assert done.returncode == 0, done.stderr
    found = dict(line.split(": ") for line in done.stdout.splitlines())
    assert {name: int(status) for name, status in found.items()} == {
        name: 0 if name in HARMLESS else -signal.SIGSYS for name in ATTEMPTS
    }
    assert {path.name for path in tmp_path.iterdir()} == {f"{name}.pt" for name in ATTEMPTS}


def test_the_package(files):
    done = start("read", input="".join(f"{path}\n" for path in files))
    lines = done.stdout.splitlines()
    assert done.returncode == 0, f"{done.returncode} at {lines[-1:]}: {done.stderr}"
    assert lines[::2] == [str(path) for path in files]
    for path, outcome in zip(files, lines[1::2]):
        assert not is_good(path) or outcome.split()[:3] == ["load:good", "mapped:good", "verify:good"], (path, outcome)
    assert not executed(files)


def sealed_command(*words):
    environment = os.environ | {"LD_PRELOAD": str(SEALED), "PERDURE_SEAL": "1"}
    return subprocess.run([PERDURE, *words], env=environment, capture_output=True, text=True, timeout=120, errors="replace")


@pytest.mark.parametrize("words", [["verify"], ["verify", "--json"], ["show"], ["show", "--json"]], ids=" ".join)
def test_the_command(files, words):
    together = words[0] == "verify"
    for some in [files] if together else [[path] for path in files]:
        done = sealed_command(*words, *some)
        allowed = (0,) if all(map(is_good, some)) else (0, 1, 2)
        assert done.returncode in allowed, f"{done.returncode} of {some[:3]}: {done.stderr}"
    assert not executed(files)


def test_ls_of_a_run(files):
    done = sealed_command("ls", files[-1].parent)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("program", [["sh", "-c", "true & wait"], ["touch", "new"], ["env", "true"]], ids=" ".join)
def test_the_seal_holds_for_commands(tmp_path, program):
    environment = os.environ | {"LD_PRELOAD": str(SEALED), "PERDURE_SEAL": "1"}
    done = subprocess.run(program, cwd=tmp_path, env=environment, capture_output=True, timeout=60)
    assert done.returncode == -signal.SIGSYS
    assert not list(tmp_path.iterdir())
