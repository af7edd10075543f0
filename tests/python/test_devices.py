"""Tensors on a device: a simulated one on every machine, and a real GPU where there is one."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

LIBRARY = os.environ.get("PERDURE_FAKE_DEVICE")


def run_cases(**environment):
    cases = Path(__file__).with_name("device_cases.py")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-x", str(cases)]
    own = {name: value for name, value in os.environ.items() if name != "PERDURE_FAKE_DEVICE"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=own | environment)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.skipif(not LIBRARY, reason="needs the simulated device: PERDURE_FAKE_DEVICE=.../libfake_device.so")
def test_on_a_simulated_device():
    run_cases(PERDURE_FAKE_DEVICE=LIBRARY)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_on_cuda():
    run_cases()
