"""What cannot be saved is refused, and the message names the place and what to write instead."""

import argparse
import collections
import dataclasses
import enum
import errno
import io
import os
import pathlib
import types

import numpy as np
import pytest
import torch
from conftest import damage

import perdure


class Colour(enum.Enum):
    RED = 1


class Level(enum.IntEnum):
    LOW = 1


@dataclasses.dataclass
class Config:
    lr: float = 0.1


class MyInt(int): ...


class MyStr(str): ...


class MyDict(dict): ...


class MyList(list): ...


class MyFloat(float): ...


class MyTensor(torch.Tensor): ...


class Holder:
    def __init__(self):
        self.a = 1


Point = collections.namedtuple("Point", "x y")


def with_attribute():
    t = torch.ones(2)
    t.note = frozenset("mine")
    return t


def four_bits():
    return torch.quantize_per_channel(torch.ones(2, 4), torch.ones(2), torch.zeros(2), 0, torch.quint4x2)


MODULE = torch.nn.Linear(2, 2)
OPTIMIZER = torch.optim.SGD(MODULE.parameters(), lr=0.1)

# value, what the message must say to write instead
REFUSED = {
    "module": (MODULE, "state_dict()"),
    "optimizer": (OPTIMIZER, "optimizer.state_dict()"),
    "scheduler": (torch.optim.lr_scheduler.StepLR(OPTIMIZER, 1), "scheduler.state_dict()"),
    "scaler": (torch.amp.GradScaler("cpu"), "state_dict()"),
    "generator": (torch.Generator(), "get_state()"),
    "numpy generator": (np.random.default_rng(0), "bit_generator.state"),
    "frozenset": (frozenset([1]), "set(x)"),
    "defaultdict": (collections.defaultdict(list), "dict(x)"),
    "deque": (collections.deque([1]), "plain data"),
    "namedtuple": (Point(1, 2), "tuple(x)"),
    "enum": (Colour.RED, ".value"),
    "int enum": (Level.LOW, ".value"),
    "dataclass": (Config(), "dataclasses.asdict(x)"),
    "dataclass type": (Config, "code is not saved"),
    "path": (pathlib.Path("x"), "str(x)"),
    "namespace": (argparse.Namespace(a=1), "vars(x)"),
    "simple namespace": (types.SimpleNamespace(a=1), "vars(x)"),
    "object": (Holder(), "vars(x)"),
    "slice": (slice(1, 2), "x.start"),
    "range": (range(3), "x.start"),
    "lambda": (lambda x: x, "code is not saved"),
    "builtin": (print, "code is not saved"),
    "iterator": (iter([1]), "plain data"),
    "generator expression": ((i for i in "a"), "list(x)"),
    "memoryview": (memoryview(b"x"), "bytes(x)"),
    "int subclass": (MyInt(3), "int(x)"),
    "float subclass": (MyFloat(3), "float(x)"),
    "str subclass": (MyStr("x"), "str(x)"),
    "dict subclass": (MyDict(), "dict(x)"),
    "list subclass": (MyList(), "list(x)"),
    "tensor subclass": (torch.ones(2).as_subclass(MyTensor), "as_subclass(torch.Tensor)"),
    "tensor with a frozenset": (with_attribute(), "set(x)"),
    "quantized to 4 bits": (four_bits(), "x.dequantize()"),
    "int4": (torch.empty(2, dtype=torch.int4), "torch.uint8"),
    "uint4": (torch.empty(2, dtype=torch.uint4), "torch.uint8"),
    "quantized dtype": (torch.qint8, "str(dtype)"),
    "memory format": (torch.channels_last, "str(x)"),
    "storage": (torch.ones(2).untyped_storage(), "tensor"),
    "loader": (torch.utils.data.DataLoader([1]), "StatefulDataLoader"),
    "object array": (np.array([None]), "tolist()"),
    "str array": (np.array(["a"]), "tolist()"),
    "bytes array": (np.array([b"a"]), "tolist()"),
    "datetime array": (np.array(["2020"], "M8[s]"), "int64"),
    "timedelta": (np.timedelta64(1, "s"), "int64"),
    "structured array": (np.zeros(2, "i4,f4"), "dict of arrays"),
    "float128": (np.longdouble(1), "float64"),
    "complex256": (np.clongdouble(1), "complex128"),
    "masked array": (np.ma.masked_array([1]), "vars(x)"),
    "our key": ({"__perdure__": 1}, "rename"),
    "tensor as a key": ({torch.ones(1): 1}, ".item()"),
    "numpy key": ({np.int64(1): 1}, ".item()"),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", REFUSED)
def test_refused(path, name):
    value, remedy = REFUSED[name]
    path.write_bytes(b"what was there before")
    with pytest.raises(perdure.InvalidError) as caught:
        perdure.save({"optimizer": {"state": [0, value]}}, path)
    text = str(caught.value)
    assert text.startswith("state['optimizer']['state'][1]")
    assert remedy in text
    assert caught.value.code == "invalid" and isinstance(caught.value, ValueError)
    assert path.read_bytes() == b"what was there before"


def test_type_errors_are_type_errors(path):
    with pytest.raises(TypeError):
        perdure.save({"x": frozenset()}, path)


def test_module_or_optimizer_itself(path):
    with pytest.raises(perdure.InvalidError, match=r"^state has the type .*Linear.*model\.state_dict\(\)"):
        perdure.save(MODULE, path)
    with pytest.raises(perdure.InvalidError, match=r"state\['optimizer'\].*optimizer\.state_dict\(\)"):
        perdure.save({"model": MODULE.state_dict(), "optimizer": OPTIMIZER}, path)


def test_refused_key_attribute_and_set_item(path):
    ordered = collections.OrderedDict()
    ordered.note = frozenset()
    with pytest.raises(perdure.InvalidError, match=r"^state\['x'\]\.note has"):
        perdure.save({"x": ordered}, path)
    with pytest.raises(perdure.InvalidError, match="Colour"):
        perdure.save({"x": {Colour.RED: 1}}, path)
    with pytest.raises(perdure.InvalidError, match="Colour"):
        perdure.save({"x": {Colour.RED}}, path)


def test_counter_with_attributes(path):
    counter = collections.Counter()
    counter.note = 1
    with pytest.raises(perdure.InvalidError, match="note"):
        perdure.save(counter, path)


@pytest.mark.parametrize("make", [lambda x: x.append(x), lambda x: x.append({"a": (x,)})])
def test_cycles(path, make):
    cyclic = []
    make(cyclic)
    with pytest.raises(perdure.InvalidError, match="contains itself"):
        perdure.save({"x": cyclic}, path)


def test_too_deep(path):
    deep = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(perdure.InvalidError, match="deep"):
        perdure.save(deep, path)


def test_keys_one_cannot_tell_apart(path):
    with pytest.raises(perdure.InvalidError, match="NaN"):
        perdure.save({float("nan"): 1, float("nan"): 2}, path)


def test_freed_storage(path):
    x = torch.ones(4)
    x.untyped_storage().resize_(0)
    with pytest.raises(perdure.InvalidError):
        perdure.save({"x": x}, path)


def test_arguments_swapped(path):
    with pytest.raises(perdure.InvalidError, match=r"perdure\.save\(state, path\)"):
        perdure.save(str(path), {"x": 1})


def test_text_file_object(path):
    path.write_text("x")
    with open(path) as file, pytest.raises(perdure.InvalidError, match="rb"):
        perdure.load(file)
    with pytest.raises(TypeError):
        perdure.save({}, io.StringIO())


# what comes from the core


def test_not_found(tmp_path):
    with pytest.raises(perdure.NotFoundError, match="absent.pt") as caught:
        perdure.load(tmp_path / "absent.pt")
    assert isinstance(caught.value, (FileNotFoundError, OSError)) and caught.value.errno == errno.ENOENT
    assert caught.value.code == "not_found"
    with pytest.raises(FileNotFoundError):
        perdure.verify(tmp_path / "absent.pt")


def test_io_error(tmp_path):
    with pytest.raises(OSError, match="no-folder") as caught:
        perdure.save({}, tmp_path / "no-folder" / "cp.pt")
    assert isinstance(caught.value, perdure.Error) and caught.value.errno == errno.ENOENT


def test_full_disk():
    """A file size limit stands for a full disk: both are Error(full)."""
    code = """
import errno, resource, signal, sys, torch, perdure
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    perdure.save({"x": torch.ones(10**6)}, sys.argv[1])
except perdure.FullError as error:
    assert isinstance(error, OSError) and error.errno in (errno.EFBIG, errno.ENOSPC), error.errno
    sys.exit(42)
"""
    import subprocess
    import sys
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [sys.executable, "-c", code, os.path.join(folder, "cp.pt")], capture_output=True, text=True
        )
        assert done.returncode == 42, done.stderr
        assert os.listdir(folder) == []


def test_damage_names_file_and_tensor(path):
    perdure.save({"model": {"w": torch.ones(100_000)}}, path)
    damage(path)
    with pytest.raises(perdure.CorruptionError, match=r"cp\.pt.*w") as caught:
        perdure.load(path)
    assert caught.value.code == "corrupt"
    report = perdure.verify(path)
    assert report.state == "damaged" and not report.good
    assert any("w" in f.tensor and f.offset > 0 for f in report.findings)


@pytest.mark.parametrize("content", [b"", b"\0" * 5000, b"PK\x03\x04" + b"x" * 100, os.urandom(3000)])
def test_not_a_checkpoint(path, content):
    path.write_bytes(content)
    with pytest.raises(perdure.Error, match=r"cp\.pt"):
        perdure.load(path)


def test_no_code_is_run(path):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(path) + ".evil",)

    torch.save({"fine": 1, "bad": Evil()}, path)
    with pytest.raises(perdure.UnsupportedError, match=r"mkdir") as caught:
        perdure.load(path)
    assert "state['bad']" in str(caught.value)
    assert not os.path.exists(str(path) + ".evil")


def test_unchecked_file(path):
    torch.serialization.set_crc32_options(False)
    try:
        torch.save({"x": torch.ones(5)}, path)
    finally:
        torch.serialization.set_crc32_options(True)
    assert perdure.load(path)["x"].tolist() == [1] * 5
    assert perdure.verify(path).state == "unchecked"


def test_hierarchy():
    for name in (
        "CorruptionError",
        "NotFoundError",
        "InvalidError",
        "UnsupportedError",
        "LockedError",
        "FullError",
        "IoError",
    ):
        cls = getattr(perdure, name)
        assert issubclass(cls, perdure.Error) and issubclass(cls, RuntimeError)
    assert issubclass(perdure.FullError, OSError)
