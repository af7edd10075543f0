"""Models on a device that is not the CPU: the simulated one of tests/cpp/torch/fake_device.hpp, or a real GPU.

test_devices.py runs this file in a process of its own, because a process that has a simulated device has it for good.
"""

import ctypes
import io
import os
import types

import pytest
import torch

import perdure
from perdure.bits import same_bits

LIBRARY = os.environ.get("PERDURE_FAKE_DEVICE")  # without it, a real GPU


class Simulated:
    def __init__(self):
        torch.ops.load_library(LIBRARY)
        self.device = torch.device("fake:0")
        self._library = ctypes.CDLL(LIBRARY)
        self._library.fake_device_pinned_bytes.restype = ctypes.c_ulonglong
        torch._register_device_module("fake", self._module())

    def _module(self):
        """What torch asks of the Python module of a backend."""
        module = types.ModuleType("torch.fake")
        module.is_available = lambda: True
        module.device_count = lambda: 2
        module.current_device = torch._C._accelerator_getDeviceIndex
        module.device = lambda device: torch.accelerator.device_index(torch.device(device).index)
        module._is_in_bad_fork = lambda: False
        module.manual_seed_all = lambda seed: None
        return module

    def delay(self):
        """What is set going from now on begins some 100 ms later."""
        self._library.fake_device_delay(100)

    def pinned_bytes(self):
        return self._library.fake_device_pinned_bytes()


class Cuda:
    device = torch.device("cuda:0")

    def delay(self):
        torch.cuda._sleep(200_000_000)  # cycles, of about 2 GHz

    def pinned_bytes(self):
        """Freed ones included: torch keeps them for the next one who asks."""
        return torch.cuda.host_memory_stats()["active_bytes.allocated"]


gpu = Simulated() if LIBRARY else Cuda()
GPU = gpu.device


class Run:
    def __init__(self, device):
        torch.manual_seed(1)
        self.model = torch.nn.Sequential(torch.nn.Linear(40, 30), torch.nn.BatchNorm1d(30)).to(device)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.1, foreach=False)
        self.state = perdure.TrainingState(model=self.model, optimizer=self.optimizer)

    def train(self):
        self.optimizer.zero_grad()
        device = self.model[0].weight.device
        self.model(torch.ones(3, 40).to(device)).square().sum().backward()
        self.optimizer.step()
        self.state.step += 1

    def tensors(self):
        state = {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()["state"]}
        return perdure.load(saved(state), map_location="cpu")


def saved(state):
    file = io.BytesIO()
    perdure.save(state, file)
    file.seek(0)
    return file


def same(a, b):
    if isinstance(a, torch.Tensor):
        return same_bits(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    return a == b


@pytest.mark.parametrize("capture", ["eager", "overlapped", "checked"])
def test_a_run_goes_on_exactly(tmp_path, capture):
    run = Run(GPU)
    with perdure.CheckpointManager(tmp_path, capture=capture, on_error="raise") as checkpoints:
        for _ in range(3):
            run.train()
            checkpoints.save(run.state)
        before = run.tensors()
        run.train()
    for device in (GPU, torch.device("cpu")):
        back = Run(device)
        with perdure.CheckpointManager(tmp_path) as checkpoints:
            assert checkpoints.restore(back.state).step == 3
        assert back.model[0].weight.device == device
        assert same(back.tensors(), before)
        if device == GPU:
            back.train()
            assert same(back.tensors(), run.tensors())


@pytest.mark.parametrize("capture", ["eager", "overlapped", "checked"])
def test_what_is_under_way_is_waited_for(tmp_path, capture):
    run = Run(GPU)
    run.train()
    with perdure.CheckpointManager(tmp_path, capture=capture) as checkpoints:
        checkpoints.prepare(run.state)
        gpu.delay()
        with torch.no_grad():
            run.model[0].weight.fill_(5)
        checkpoints.save(run.state)
        checkpoints.fence()
        with torch.no_grad():
            run.model[0].weight.fill_(6)
        checkpoints.wait()
        checkpoints.restore(run.state)
    assert run.model[0].weight.cpu().eq(5).all()


def test_overlapped_copies_no_parameter_at_save(tmp_path):
    run = Run(GPU)
    run.train()
    with perdure.CheckpointManager(tmp_path, capture="overlapped") as checkpoints:
        checkpoints.save(run.state)
        handle = checkpoints.save(run.state)
        run.train()  # the fence is in the step
        handle.wait()
        assert handle.stats.fence_waited > 0


def test_staging_is_pinned(tmp_path):
    run = Run(GPU)
    before = gpu.pinned_bytes()
    with perdure.CheckpointManager(tmp_path) as checkpoints:
        checkpoints.save(run.state).wait()
    assert gpu.pinned_bytes() > before


def test_pinned_tensors_are_the_cpus(tmp_path):
    x = torch.arange(12.0).pin_memory()
    perdure.save({"x": x, "view": x[4:]}, tmp_path / "x.pt")
    loaded = perdure.load(tmp_path / "x.pt")
    assert loaded["x"].device.type == "cpu" and torch.equal(loaded["x"], torch.arange(12.0))


def test_larger_than_the_staging(tmp_path):
    state = perdure.TrainingState(weights=torch.arange(12_000_000).to(GPU))
    with perdure.CheckpointManager(tmp_path, staging_bytes=16 << 20) as checkpoints:
        handle = checkpoints.save(state)
        handle.wait()
        loaded = torch.load(handle.checkpoint.path, map_location="cpu")
    assert torch.equal(loaded["weights"], torch.arange(12_000_000))


def test_one_file(tmp_path):
    x = torch.arange(12.0).to(GPU)
    perdure.save({"x": x, "view": x[4:], "empty": torch.empty(0, device=GPU)}, tmp_path / "x.pt")
    loaded = perdure.load(tmp_path / "x.pt")
    assert loaded["x"].device == GPU
    assert loaded["x"].untyped_storage().data_ptr() == loaded["view"].untyped_storage().data_ptr()
    assert torch.equal(loaded["view"].cpu(), torch.arange(4.0, 12.0))
    assert not perdure.load(tmp_path / "x.pt", map_location="cpu")["x"].device.type == GPU.type
    assert torch.load(tmp_path / "x.pt")["x"].device == GPU


class Mixed:
    """Dropout and an AMP scaler that has skipped steps: what only a real GPU has."""

    def __init__(self):
        torch.manual_seed(1)
        self.model = torch.nn.Sequential(torch.nn.Linear(40, 30), torch.nn.Dropout(0.5), torch.nn.Linear(30, 1)).to(GPU)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.1, fused=True)
        self.scaler = torch.amp.GradScaler("cuda", init_scale=2.0**40, growth_interval=5)
        self.state = perdure.TrainingState(model=self.model, optimizer=self.optimizer, scaler=self.scaler, losses=[])

    def train(self):
        with torch.autocast("cuda", dtype=torch.float16):
            loss = self.model(torch.randn(64, 40, device=GPU)).square().mean()
        self.optimizer.zero_grad()
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.state.losses.append(loss.item())
        self.state.step += 1


@pytest.mark.skipif(bool(LIBRARY), reason="needs CUDA")
@pytest.mark.parametrize("capture", ["eager", "overlapped"])
def test_random_numbers_and_the_scaler_go_on(tmp_path, capture):
    once = Mixed()
    with perdure.CheckpointManager(tmp_path, capture=capture, on_error="raise") as checkpoints:
        for _ in range(40):
            once.train()
            if once.state.step == 20:
                checkpoints.save(once.state)
    resumed = Mixed()
    with perdure.CheckpointManager(tmp_path) as checkpoints:
        assert checkpoints.restore(resumed.state).step == 20
        while resumed.state.step < 40:
            resumed.train()
    assert resumed.state.losses == once.state.losses and resumed.scaler.state_dict() == once.scaler.state_dict()
    assert same(resumed.model.state_dict(), once.model.state_dict())
