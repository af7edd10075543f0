"""Small files that PyTorch 1.13, 2.13 and 2.14 wrote (tests/golden/make.py), through the library and every subcommand.

What is in them stands in expected.json beside them, as the version that wrote them saw it.
"""

import hashlib
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy
import pytest
import torch

import perdure

PERDURE = os.environ.get("PERDURE_CLI", "perdure")
GOLDEN = Path(__file__).parents[1] / "golden"
sys.path.insert(0, str(GOLDEN))
import make  # noqa: E402

EXPECTED = {folder.name: json.loads((folder / "expected.json").read_text()) for folder in sorted(GOLDEN.glob("torch-*"))}
FILES = [(version, name) for version, files in EXPECTED.items() for name in files if name != "torch"]
# Plain tensors under plain keys.
SIMPLE = [(version, name) for version, name in FILES if name in ("state.pt", "tensors.pt", "legacy.pt", "dcp")]


def run(*words, status=0):
    done = subprocess.run([PERDURE, *map(str, words)], capture_output=True, timeout=60)
    assert done.returncode == status, (words, done.returncode, done.stdout, done.stderr)
    return done.stdout


def expected_of(version, name):
    return EXPECTED[version][name]


def dotted(place):
    return ".".join(map(str, place))


def under_any_names(found):
    """TorchScript's attributes and constants, and names that were flattened, have other places."""
    return sorted(json.dumps(what, sort_keys=True) for _, _, what in found)


def test_there_are_files_of_every_version():
    assert [EXPECTED[v]["torch"][:4] for v in EXPECTED] == ["1.13", "2.13", "2.14"]
    assert len(FILES) == 6 + 8 + 8


@pytest.mark.parametrize("version, name", FILES)
def test_load(version, name):
    found, expected = make.describe(perdure.load(GOLDEN / version / name)), expected_of(version, name)
    if name == "script.pt":
        assert set(under_any_names(expected)) <= set(under_any_names(found))
    else:
        assert found == expected


@pytest.mark.parametrize("version, name", FILES)
def test_show(version, name):
    shown = json.loads(run("show", "--json", GOLDEN / version / name))
    text = json.dumps(shown)
    for place, part, what in expected_of(version, name):
        assert f'"{dotted(place) if name != "script.pt" else place[-1]}' in text, place
        assert what["dtype"] in text or name == "quantized.pt", what
    assert run("show", GOLDEN / version / name)


@pytest.mark.parametrize("version, name", FILES)
def test_verify(version, name):
    unchecked = name == "legacy.pt"  # its format has no checksums
    words = ("verify", GOLDEN / version / name)
    assert run(*words, status=2 if unchecked else 0)
    (report,) = json.loads(run(*words, "--json", status=2 if unchecked else 0))["files"]
    assert report["state"] == ("unchecked" if unchecked else "good") and not report["findings"]
    expected = {(tuple(place), part) for place, part, _ in expected_of(version, name)}
    assert report["tensors"] >= len(expected)


@pytest.mark.parametrize("version, name", FILES)
def test_stats(version, name):
    path = GOLDEN / version / name
    assert json.loads(run("stats", "--json", path)) and run("stats", path)


@pytest.mark.parametrize("version, name", FILES)
def test_diff(version, name):
    """With itself, and with the same of another version, of which expected.json says whether it is the same."""
    path = GOLDEN / version / name
    assert run("diff", path, path) is not None
    for other in EXPECTED:
        if name not in EXPECTED[other] or other == version:
            continue
        words = ("diff", "--json", path, GOLDEN / other / name)
        if name in ("script.pt", "state.pt", "legacy.pt", "dcp"):
            continue  # not only tensors differ between versions
        run(*words, status=0 if expected_of(version, name) == expected_of(other, name) else 1)
    if name == "legacy.pt":
        run("diff", path, GOLDEN / version / "state.pt")


@pytest.mark.parametrize("version, name", SIMPLE)
def test_cat(version, name):
    for place, _, what in expected_of(version, name):
        words = ["cat", GOLDEN / version / name, dotted(place)]
        if what["dtype"] in ("bfloat16", "complex32") or what["dtype"].startswith("float8"):
            widened = numpy.load(io.BytesIO(run(*words, "--dtype", "complex64" if what["dtype"] == "complex32" else "float32")))
            assert list(widened.shape) == what["shape"]
            continue
        array = numpy.load(io.BytesIO(run(*words)))
        assert list(array.shape) == what["shape"]
        assert hashlib.sha256(array.tobytes()).hexdigest() == what["sha256"], place


@pytest.mark.parametrize("version, name", FILES)
def test_convert_to_a_file_of_torch(tmp_path, version, name):
    run("convert", GOLDEN / version / name, tmp_path / "out.pt")
    loaded = torch.load(tmp_path / "out.pt", weights_only=True)
    assert set(under_any_names(expected_of(version, name))) <= set(under_any_names(make.describe(loaded)))


@pytest.mark.parametrize("version, name", SIMPLE)
def test_convert_to_dcp(tmp_path, version, name):
    run("convert", GOLDEN / version / name, tmp_path / "out", "--to", "dcp")
    assert set(under_any_names(expected_of(version, name))) <= set(under_any_names(make.describe(perdure.load(tmp_path / "out"))))


@pytest.mark.parametrize("version, name", FILES)
def test_repair(tmp_path, version, name):
    """Of a whole file, all of it; of what is no zip file, an error."""
    if name in ("legacy.pt", "dcp", "script.pt"):
        run("repair", GOLDEN / version / name, tmp_path / "out.pt", status=2)
    else:
        run("repair", GOLDEN / version / name, tmp_path / "out.pt")


@pytest.mark.parametrize("version", EXPECTED)
def test_ls_and_prune_of_what_is_no_run(version):
    assert run("ls", GOLDEN / version) is not None
    assert run("prune", "--dry-run", "--keep-last", "1", GOLDEN / version) is not None
    assert sorted(p.name for p in (GOLDEN / version).iterdir()) == sorted(
        {"expected.json", *(name for name in EXPECTED[version] if name != "torch")}
    )
