"""Tensors on a GPU, or any other accelerator that torch knows: how their bytes come to the disk.

They are copied on a stream of perdure's own, into the staging memory of the save, so behind what was set going on the
training's stream before save(), and beside what comes after it. Nothing here is CUDA's. Tested with a device that is
simulated on the CPU, and on a GPU where the tests find one.
"""

import torch

_copiers = []  # those that there are


class StreamCopier:
    """Copies from one device. Called by the core, from the thread that saves and from the one that writes."""

    def __init__(self, device: torch.device):
        self._device = device
        self._stream = torch.Stream(device)

    def catch_up(self):
        """What this thread has set going on the device comes before all that is copied from now on."""
        self._stream.wait_stream(torch.accelerator.current_stream(self._device))

    def copy(self, target, source):
        """Begins to copy: two uint8 tensors, one on the CPU, one on the device."""
        with self._stream:
            target.copy_(source, non_blocking=True)

    def finish(self):
        """Waits for what was begun."""
        self._stream.synchronize()


def make_copier(device: torch.device) -> StreamCopier | None:
    """None where torch has no streams for such a device: its tensors are copied as a whole, when the state is taken."""
    try:
        copier = StreamCopier(device)
        copier.catch_up()
    except (RuntimeError, NotImplementedError, AttributeError, TypeError, ValueError):
        return None
    _copiers.append(copier)
    return copier


def pinned(size: int) -> torch.Tensor | None:
    """Memory for staging that the copies of a GPU reach without a detour; torch rounds its size up to a power of two.
    None where no state was on a GPU so far, or nothing can be pinned: ordinary pages will do.
    """
    if not _copiers:
        return None
    try:
        return torch.empty(size, dtype=torch.uint8, pin_memory=True)
    except RuntimeError:
        return None
