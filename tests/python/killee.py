"""A training run that does nothing but save, for test_kills_python.py to kill.

    python killee.py RUN

For each line on its standard input, which names a capture mode, it forks a child that restores and then saves until it is killed (a fork is quick,
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


class Numbers(torch.nn.Module):
    def __init__(self):
        super().__init__()
        for n in (0, 5, 10, 15, 18):
            numbers = torch.nn.Parameter(torch.zeros(2**n, dtype=torch.int32), requires_grad=False)
            self.register_parameter(f"n{n}", numbers)


def train(run, capture):
    """What the save before has left to do goes on while the next numbers are made, as behind a training step."""
    model = Numbers()
    tensors = list(model.parameters())
    state = perdure.TrainingState(model=model, optimizer=torch.optim.SGD(tensors, lr=0.1))
    with perdure.CheckpointManager(run, keep_last=2, on_error="raise", capture=capture) as checkpoints:
        if checkpoints.restore(state):
            check(tensors, state.step)
        tell("restored", state.step)
        handle = None
        while True:
            state.step += 1
            checkpoints.fence()
            fill(tensors, state.step)
            if handle:
                handle.wait()
                tell("saved", state.step - 1)
            handle = checkpoints.save(state)


def main():
    torch.set_num_threads(1)
    tell("ready")
    while line := sys.stdin.readline():
        child = os.fork()
        if not child:
            try:
                train(sys.argv[1], line.strip())
            except BaseException as error:
                tell("wrong", repr(error).replace("\n", " "))
            os._exit(1)
        tell("pid", child)
        os.waitpid(child, 0)
        tell("ended")


if __name__ == "__main__":
    main()
