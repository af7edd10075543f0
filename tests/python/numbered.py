"""States that are a function of their step alone, so that whoever gets one back can tell whether it is exactly that."""

import os
import subprocess
import time

import torch
from killee import Numbers, fill

import perdure

PERDURE = os.environ.get("PERDURE_CLI", "perdure")


class NumberedState:
    def __init__(self):
        self._model = Numbers()
        self.state = perdure.TrainingState(model=self._model, optimizer=None)

    def go_to(self, step: int) -> None:
        self.state.step = step
        fill(list(self._model.parameters()), step)

    def save(self, checkpoints, step: int, **metrics) -> perdure.SaveHandle:
        """Saves this step, and waits for it and for the pruning. An error stays on the handle."""
        self.go_to(step)
        handle = checkpoints.save(self.state, metrics=metrics)
        while not handle.done():
            time.sleep(0.0005)
        checkpoints._wait_idle()
        return handle

    def restore(self, checkpoints) -> int:
        """The step of what was restored, 0 where there is nothing. It is exactly what was saved as that step."""
        self.go_to(0)
        if checkpoints.restore(self.state) is None:
            return 0
        assert equals_step([p.detach() for p in self._model.parameters()], self.state.step), (
            f"step {self.state.step} came back with other numbers"
        )
        return self.state.step


def numbers_of(step: int) -> list[torch.Tensor]:
    numbers = [torch.empty(p.shape, dtype=p.dtype) for p in Numbers().parameters()]
    fill(numbers, step)
    return numbers


def equals_step(tensors, step: int) -> bool:
    return all(torch.equal(a, b) for a, b in zip(tensors, numbers_of(step), strict=True))


def debris_in(run) -> list[str]:
    """What a save or a prune that did not end leaves behind."""
    trash = run / ".trash"
    return sorted(p.name for p in run.glob(".*.tmp")) + sorted(p.name for p in trash.glob("*") if trash.exists())


def check_verifies(run) -> None:
    done = subprocess.run([PERDURE, "verify", str(run)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
