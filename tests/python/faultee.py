"""Training runs in which system calls may fail, for test_syscalls.py.

    python faultee.py

For each line on its standard input it forks a child (a fork is quick, and importing torch is not), which says
"ready PID" and waits for a line; what was imported and done once in the parent makes no system calls there any more.
Then the parent says "ended STATUS". The lines are:

    save RUN CAPTURE SAVES     as killee.cpp with SAVES: "restored STEP", then "saved STEP" or "failed STEP" and why,
                               and at the end "closed", with a wait for a line
    careless RUN CAPTURE SAVES the same, by a program that is not to be imitated
    run PROGRAM ARGUMENT...    a Python program, whose output is not shown

An exception is "error", and its type and text.
"""

import ctypes
import logging
import os
import runpy
import sys
import tempfile

import torch
from killee import Numbers, check, fill, tell

import perdure

PR_SET_PTRACER, PR_SET_PTRACER_ANY = 0x59616D61, -1


def wait_for_line():
    while os.read(0, 1) not in (b"\n", b""):
        pass


def save(run, capture, saves):
    model = Numbers()
    tensors = list(model.parameters())
    state = perdure.TrainingState(model=model, optimizer=torch.optim.SGD(tensors, lr=0.1))
    left = saves
    with perdure.CheckpointManager(run, keep_last=2, capture=capture) as checkpoints:
        if checkpoints.restore(state):
            check(tensors, state.step)
        tell("restored", state.step)
        for _ in range(3 * saves):
            state.step += 1
            checkpoints.fence()
            fill(tensors, state.step)
            try:
                checkpoints.save(state).wait()
                tell("saved", state.step)
                left -= 1
            except perdure.Error as error:
                tell("failed", state.step, type(error).__name__, error)
            if not left:
                break


def careless(run, capture, saves):
    """Writes in place, and does not sync."""
    os.makedirs(run, exist_ok=True)
    path = os.path.join(run, "checkpoint.pt")
    step = torch.load(path)["step"] if os.path.exists(path) else 0
    for step in range(step + 1, step + 1 + saves):
        torch.save({"step": step, "numbers": torch.ones(10_000)}, path)
        tell("saved", step)


def save_and_be_looked_at(how, run, capture, saves):
    how(run, capture, int(saves))
    tell("closed")
    wait_for_line()


def run_program(program, *arguments):
    null = os.open(os.devnull, os.O_WRONLY)
    told = os.dup(1)
    os.dup2(null, 1)
    sys.argv = [program, *arguments]
    try:
        runpy.run_path(program, run_name="__main__")
    finally:
        sys.stdout.flush()
        os.dup2(told, 1)


def be_child(what, arguments):
    ctypes.CDLL(None).prctl(PR_SET_PTRACER, PR_SET_PTRACER_ANY)  # whoever looks need not be the parent
    tell("ready", os.getpid())
    wait_for_line()
    try:
        if what == "run":
            run_program(*arguments)
        else:
            save_and_be_looked_at({"save": save, "careless": careless}[what], *arguments)
    except BaseException as error:
        tell("error", type(error).__name__, str(error).replace("\n", " "))
        os._exit(1)
    os._exit(0)


def main():
    torch.set_num_threads(1)
    logging.getLogger("perdure").addHandler(logging.NullHandler())
    with tempfile.TemporaryDirectory() as warm:
        for _ in range(2):
            save(warm, "overlapped", 2)
    tell("begin")
    while line := sys.stdin.readline():
        if not line.strip():
            continue  # was for a child that was killed before it could read it
        what, *arguments = line.split()
        if not (child := os.fork()):
            be_child(what, arguments)
        tell("ended", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))


if __name__ == "__main__":
    main()
