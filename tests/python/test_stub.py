"""The stub of perdure._core is what nanobind makes of the module."""

import pathlib
import subprocess
import sys

import pytest

import perdure

STUB = pathlib.Path(perdure.__file__).with_name("_core.pyi")


def test_stub_is_current(tmp_path):
    pytest.importorskip("nanobind")
    made = tmp_path / "_core.pyi"
    subprocess.run(
        [sys.executable, "-m", "nanobind.stubgen", "-q", "-m", "perdure._core", "-o", str(made)], check=True
    )
    assert made.read_text() == STUB.read_text(), (
        "make it anew: python -m nanobind.stubgen -m perdure._core -o python/perdure/_core.pyi"
    )


def test_package_is_typed():
    assert STUB.with_name("py.typed").exists()
