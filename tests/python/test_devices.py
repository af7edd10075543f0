"""Tensors on a device, on machines without one."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

LIBRARY = os.environ.get("PERDURE_FAKE_DEVICE")


@pytest.mark.skipif(not LIBRARY, reason="needs the simulated device: PERDURE_FAKE_DEVICE=.../libfake_device.so")
def test_on_a_simulated_device():
    cases = Path(__file__).with_name("device_cases.py")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-x", str(cases)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
