"""A training run that does nothing but save, for test_kills_python.py to kill.

    python killee.py RUN

For each line on its standard input it forks a child that restores and then saves until it is killed (a fork is quick,
and importing torch is not), and prints "pid PID". The child prints "restored STEP" and "saved STEP" for every save that
was acknowledged, and "wrong ..." where what it got back is not what was saved; the parent prints "ended" at its end.
"""

import os
import sys

import torch

import perdure


def tell(*words):
    os.write(1, (" ".join(map(str, words)) + "\n").encode())


def fill(tensors, step):
    """What is saved is a function of the step alone."""
    generator = torch.Generator().manual_seed(step)
    for tensor in tensors:
        tensor.random_(generator=generator)


def check(tensors, step):
    expected = [torch.empty_like(t) for t in tensors]
    fill(expected, step)
    if not all(torch.equal(a, b) for a, b in zip(tensors, expected)):
        tell("wrong", step)


def train(run):
    tensors = [torch.zeros(2**n, dtype=torch.int32) for n in (0, 5, 10, 15, 18)]
    state = perdure.TrainingState(tensors=tensors)
    with perdure.CheckpointManager(run, keep_last=2, on_error="raise") as checkpoints:
        if checkpoints.restore(state):
            check(state.tensors, state.step)
        tell("restored", state.step)
        while True:
            state.step += 1
            fill(state.tensors, state.step)
            checkpoints.save(state).wait()
            tell("saved", state.step)


def main():
    torch.set_num_threads(1)
    tell("ready")
    while sys.stdin.readline():
        child = os.fork()
        if not child:
            try:
                train(sys.argv[1])
            except BaseException as error:
                tell("wrong", repr(error).replace("\n", " "))
            os._exit(1)
        tell("pid", child)
        os.waitpid(child, 0)
        tell("ended")


if __name__ == "__main__":
    main()
