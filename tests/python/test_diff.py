"""perdure.diff and perdure diff, against torch in float64; and perdure cat, against numpy."""

import io
import itertools
import json
import math
import os
import subprocess

import numpy
import pytest
import torch

import perdure
from perdure.tensors import DTYPES
from test_stats import BITS, in_double, random_tensor

PERDURE = os.environ.get("PERDURE_CLI", "perdure")
SEED, CASES = int(os.environ.get("PERDURE_SEED", "0")), int(os.environ.get("PERDURE_CASES", "40"))
INTS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
FLOATS = ["float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz"]


@pytest.fixture
def compare(tmp_path):
    """Saves two states, and says what differs. By turns with torch and with perdure."""
    savers = itertools.cycle([(torch.save, perdure.save), (perdure.save, torch.save), (torch.save, torch.save)])

    def compare(a, b, **options):
        save_a, save_b = next(savers)
        save_a(a, tmp_path / "a.pt")
        save_b(b, tmp_path / "b.pt")
        return perdure.diff(tmp_path / "a.pt", tmp_path / "b.pt", **options)

    compare.paths = tmp_path / "a.pt", tmp_path / "b.pt"
    return compare


def changes(report):
    return {d.name: (d.what, d.before, d.after) for d in report.differences}


def bits(t):
    return t.contiguous().view(INTS[t.element_size()]).long()


def places(t):
    """Floats numbered in their order, the zeros alike."""
    width = 8 * t.element_size()
    raw = bits(t)
    if t.element_size() == 1:
        return torch.where(raw >= 128, -(raw - 128), raw)
    return torch.where(raw < 0, -(raw + 2 ** (width - 1)), raw)


def expected(a, b):
    x, y = in_double(a).flatten(), in_double(b).flatten()
    nan = torch.isnan(x) | torch.isnan(y)
    same = (x == y) | (torch.isnan(x) & torch.isnan(y))
    apart = torch.where(same, 0.0, (x - y).abs())
    largest = torch.maximum(x.abs(), y.abs())
    relative = torch.where(apart == 0, 0.0, torch.where(torch.isinf(largest), math.inf, apart / largest))
    finite = torch.isfinite(x) & torch.isfinite(y)
    x, y = x[finite], y[finite]
    norms = (x.square().sum() * y.square().sum()).sqrt()
    return {
        "max_absolute": apart[~nan].max().item() if (~nan).any() else 0.0,
        "max_relative": relative[~nan].max().item() if (~nan).any() else 0.0,
        "cosine": ((x * y).sum() / norms).item() if norms > 0 else None,
    }


@pytest.mark.parametrize("name", FLOATS)
def test_floats_as_torch_says(name, compare):
    for seed in range(SEED, SEED + max(1, CASES // 10)):
        random = torch.Generator().manual_seed(seed)
        a = (torch.randn(3000, generator=random, dtype=torch.float64)).to(DTYPES[name])
        b = torch.where(torch.rand(3000, generator=random) < 0.5, a.double(), a.double() * 1.5 + 0.01).to(DTYPES[name])
        (found,) = compare({"x": a}, {"x": b}).differences
        assert found.distance.elements == 3000
        assert found.distance.changed == found.distance.beyond == int((bits(a) != bits(b)).sum())
        assert found.distance.max_ulp == int((places(a) - places(b)).abs().max())
        wanted = expected(a, b)
        for figure in ("max_absolute", "max_relative", "cosine"):
            assert getattr(found.distance, figure) == pytest.approx(wanted[figure], rel=1e-12), (figure, seed)


def relaid(t):
    """The same elements, laid out in another way."""
    if t.dtype == torch.float4_e2m1fn_x2:  # which torch does not copy
        return relaid(t.view(torch.uint8)).view(t.dtype) if t.is_contiguous() else t
    copy = t.clone(memory_format=torch.contiguous_format)
    return copy.t().contiguous().t() if t.dim() == 2 else copy


@pytest.mark.parametrize("name", sorted(DTYPES.keys() - BITS))
def test_any_bits_and_strides(name, compare):
    """The same elements through other strides are equal; one changed bit is found."""
    for seed in range(SEED, SEED + max(1, CASES // 10)):
        random = torch.Generator().manual_seed(seed)
        tensors = {str(i): random_tensor(name, random) for i in range(6)}
        tensors["3"] = tensors["3"].flatten() if name != "float4_e2m1fn_x2" else torch.randint(0, 256, (900,), dtype=torch.uint8, generator=random).view(DTYPES[name])
        other = {key: relaid(t) for key, t in tensors.items()}
        report = compare(tensors, other, full=True)
        assert report.equal and report.tensors == 6 and report.by_checksum == 0, f"PERDURE_SEED={seed}"
        raw = other["3"].untyped_storage()
        raw[raw.nbytes() // 2] = raw[raw.nbytes() // 2] ^ 1  # of a mantissa, or of an integer
        report = compare(tensors, other)
        assert [d.name for d in report.differences] == ["3"] and report.differences[0].distance.changed == 1


def test_special_values(compare):
    nan, inf = math.nan, math.inf
    a = torch.tensor([nan, inf, -inf, 1.0, 0.0, inf, 2.0, nan])
    same = compare({"x": a}, {"x": a.clone()}, full=True)
    assert same.equal
    cases = {
        "nan came": ([1.0, 2.0], [1.0, nan], (1, 0.0, 1.0)),
        "nan went": ([nan, 2.0], [3.0, 2.0], (1, 0.0, 1.0)),
        "inf came": ([1.0, 2.0], [inf, 2.0], (1, inf, 1.0)),
        "sign of inf": ([inf, 2.0], [-inf, 2.0], (1, inf, 1.0)),
        "sign of zero": ([0.0, 2.0], [-0.0, 2.0], (1, 0.0, 1.0)),
        "all zeros": ([0.0, 0.0], [0.0, 1.0], (1, 1.0, None)),
    }
    for name, (x, y, (changed, absolute, cosine)) in cases.items():
        (found,) = compare({"x": torch.tensor(x)}, {"x": torch.tensor(y)}).differences
        d = found.distance
        assert (d.changed, d.max_absolute, d.cosine) == (changed, absolute, cosine), name
    assert compare({"x": torch.tensor([0.0])}, {"x": torch.tensor([-0.0])}, atol=1e-9).within_tolerance == 1


def test_tolerance_is_that_of_allclose(compare):
    random = torch.Generator().manual_seed(SEED)
    for atol, rtol in [(1e-3, 0), (0, 1e-2), (1e-2, 1e-2), (1.0, 0)]:
        a = torch.randn(2000, generator=random)
        b = a + 0.01 * torch.randn(2000, generator=random)
        report = compare({"x": a}, {"x": b}, atol=atol, rtol=rtol)
        x, y = a.double(), b.double()
        beyond = int(((x - y).abs() > atol + rtol * y.abs()).sum())
        assert report.equal == (beyond == 0) == torch.allclose(x, y, rtol, atol)
        assert report.equal or report.differences[0].distance.beyond == beyond


def test_across_dtypes(compare):
    a = torch.randn(3_000_001, generator=torch.Generator().manual_seed(2))
    for dtype in (torch.bfloat16, torch.float16, torch.float64, torch.float8_e5m2):
        b = a.to(dtype)
        for one, two in ((a, b), (b, a)):
            (found,) = compare({"x": one}, {"x": two}).differences
            assert found.distance.max_ulp is None
            assert found.distance.max_absolute == expected(one, two)["max_absolute"]
            assert found.distance.changed == int((one.double() != two.double()).sum())
    (found,) = compare({"x": torch.ones(3)}, {"x": torch.ones(3, dtype=torch.complex64)}).differences
    assert found.distance is None


def test_large_tensors_laid_out_differently(compare):
    """More than is gathered at one go; and one storage in the one file that is many in the other."""
    x = torch.arange(12_000_000, dtype=torch.float32).view(3000, 4000)
    parts = {f"p{i}": x[i * 500 : (i + 1) * 500] for i in range(6)}
    a = {"x": x, "t": x, **parts}
    b = {"x": x.t().contiguous().t(), "t": x.clone(), **{k: p.clone() for k, p in parts.items()}}
    assert compare(a, b, full=True).equal
    b["x"][1234, 567] += 1
    b["p3"][0, 0] = -7
    report = compare(a, b)
    assert {d.name: d.distance.max_absolute for d in report.differences} == {"x": 1.0, "p3": 6_000_007.0}


def test_wide_integers_are_exact(compare):
    a, b = torch.tensor([2**60, 5]), torch.tensor([2**60 + 1, 5])
    (found,) = compare({"x": a}, {"x": b}).differences
    assert found.distance.changed == 1 and found.distance.max_absolute == 1.0


def test_keys_and_values(compare):
    a = {"epoch": 3, "lr": 0.5, "gone": {"x": 1}, "list": [1, 2, 3], "kind": 1, "nan": math.nan, "s": "a", "m": {0: torch.ones(2)}}
    b = {"epoch": 4, "lr": 0.5, "list": [1, 2, 4], "kind": 1.0, "nan": math.nan, "s": "b", "m": {0: torch.ones(3)}, "new": None}
    report = compare(a, b)
    assert changes(report) == {
        "epoch": ("value", "3", "4"), "gone.x": ("removed", "1", ""), "list": ("value", "[1, 2, 3]", "[1, 2, 4]"),
        "kind": ("value", "1", "1.0"), "s": ("value", "'a'", "'b'"), "m.0": ("tensor", "float32 [2]", "float32 [3]"),
        "new": ("added", "", "None"),
    }  # fmt: skip
    assert compare({"a": {"b": 1, 0: 2}, "t": (1, [2])}, {"a.b": 1, "a": {"0": 2}, "t": [1, (2,)]}).equal


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod."])
def test_a_prefix_that_explains_everything_is_said(compare, prefix):
    plain = {f"fc{i}.weight": torch.randn(3) for i in range(3)}
    wrapped = {prefix + key: t for key, t in plain.items()}
    report = compare({"model": plain, "epoch": 1}, {"model": wrapped, "epoch": 1})
    assert (report.prefix, report.prefix_in_second, report.differences) == (prefix, True, ()) and not report.equal
    report = compare({"model": wrapped}, {"model": plain})
    assert (report.prefix, report.prefix_in_second) == (prefix, False)
    assert run("diff", *compare.paths).stdout.startswith(f"the keys of {compare.paths[0]} have '{prefix}' in them")
    wrapped[prefix + "fc1.weight"] = wrapped[prefix + "fc1.weight"] + 1
    assert [d.what for d in compare({"model": plain}, {"model": wrapped}).differences] == ["tensor"]
    assert compare({"model": plain}, {"model": wrapped | {"more": 1}}).prefix == ""


def test_equal_checksums_are_not_read(compare):
    """Which is seen by damage: it is only found by --full."""
    x = torch.randn(100_000)
    a, b = compare.paths
    assert compare({"x": x}, {"x": x}).by_checksum == 1
    data = bytearray(b.read_bytes())
    data[200_000] ^= 1
    b.write_bytes(data)
    assert perdure.diff(a, b).equal
    with pytest.raises(perdure.CorruptionError, match=r"\['x'\]"):
        perdure.diff(a, b, full=True)
    assert run("diff", "--full", a, b).returncode == 2


def test_patterns(compare):
    a, b = {"m": {"x": 1, "y": 2}, "n": 3}, {"m": {"x": 2, "y": 3}, "n": 4}
    assert list(changes(compare(a, b, pattern="m"))) == ["m.x", "m.y"]
    assert list(changes(compare(a, b, pattern="*y"))) == ["m.y"]
    with pytest.raises(perdure.NotFoundError, match="'zzz'"):
        compare(a, b, pattern="zzz")


def run(*arguments, text=True):
    return subprocess.run([PERDURE, *map(str, arguments)], capture_output=True, text=text, timeout=60)


def test_the_command(compare):
    x = torch.randn(10, 3)
    assert compare({"x": x, "n": 1}, {"x": x, "n": 1}).equal
    a, b = compare.paths
    same = run("diff", a, b)
    assert (same.returncode, same.stderr) == (0, "")
    assert same.stdout == "equal: 1 tensor and 1 value; 1 equal by checksum, not read\n"
    compare({"x": x, "n": 1, "old": 2}, {"x": x + 1, "n": 2, "new": torch.ones(2)})
    done = run("diff", a, b)
    assert done.returncode == 1 and "\x1b" not in done.stdout
    assert [line.split()[:2] for line in done.stdout.splitlines()[1:5]] == [["~", "x"], ["~", "n"], ["-", "old"], ["+", "new"]]
    assert done.stdout.splitlines()[5] == "1 of 1 tensor and 1 of 1 value changed, 1 added, 1 removed"
    found = json.loads(run("diff", "--json", a, b).stdout)
    assert not found["equal"] and [d["what"] for d in found["differences"]] == ["tensor", "value", "removed", "added"]
    assert found["differences"][0]["distance"]["max_absolute"] == pytest.approx(1)
    assert run("diff", "--atol", 1.1, a, b, "x").returncode == 0
    assert run("diff", "--atol", -1, a, b).returncode == 2
    assert run("diff", a, "nowhere").returncode == 2


# ---- cat


def array(*arguments):
    done = run("cat", *arguments, text=False)
    assert done.returncode == 0, done.stderr
    return numpy.load(io.BytesIO(done.stdout))


NUMPY = ["float64", "float32", "float16", "complex128", "complex64", "int64", "int32", "int16", "int8", "uint64", "uint32", "uint16",
         "uint8", "bool"]  # fmt: skip


@pytest.mark.parametrize("name", NUMPY)
def test_cat_is_what_numpy_saves(name, path):
    random = torch.Generator().manual_seed(SEED)
    state = {str(i): random_tensor(name, random) for i in range(8)}
    state |= {"0-d": state["0"].flatten()[0].clone(), "empty": state["0"][:0], "cube": state["0"].flatten()[:24].clone()[:8].view(2, 2, 2).permute(2, 0, 1)}
    torch.save(state, path)
    for key, tensor in state.items():
        found = array(path, key)
        assert found.dtype == tensor.numpy().dtype and found.shape == tuple(tensor.shape)
        assert found.tobytes() == tensor.numpy().tobytes(), (key, tensor.shape, tensor.stride())


@pytest.mark.parametrize("name", sorted(DTYPES.keys() - set(NUMPY)))
def test_cat_of_what_numpy_lacks(name, path):
    t = random_tensor(name, torch.Generator().manual_seed(SEED + 1))
    perdure.save({"x": t}, path)
    refused = run("cat", path, "x")
    assert refused.returncode == 2 and refused.stdout == ""
    advised = refused.stderr.split()[-1]
    found = array(path, "x", "--dtype", advised)
    if advised in ("float32", "complex64"):
        wanted = t.to(DTYPES[advised])
        assert numpy.array_equal(found, wanted.numpy(), equal_nan=True)
    else:
        assert found.dtype == advised and found.nbytes == t.numel() * t.element_size()


def test_cat_streams_large_tensors(path):
    x = torch.arange(12_000_000, dtype=torch.int32).view(3000, 4000)
    torch.save({"x": x, "t": x.t(), "s": x[:, ::2]}, path)
    for key, wanted in {"x": x, "t": x.t(), "s": x[:, ::2]}.items():
        assert numpy.array_equal(array(path, key), wanted.numpy())


def test_cat_of_lazy_conjugates(path):
    z = torch.randn(6, dtype=torch.complex64)
    perdure.save({"c": z.conj(), "n": z.conj().imag}, path)
    assert numpy.array_equal(array(path, "c"), z.conj().resolve_conj().numpy())
    assert numpy.array_equal(array(path, "n"), z.conj().imag.resolve_neg().numpy())


def test_cat_says_what_it_cannot_do(path):
    perdure.save({"weight": torch.randn(3), "n": 1, "big": torch.tensor([2**60])}, path)
    assert "did you mean 'weight'" in run("cat", path, "wieght").stderr
    assert "'n' is no tensor" in run("cat", path, "n").stderr
    assert "float64 does not hold every value of int64" in run("cat", path, "big", "--dtype", "float64").stderr
    assert "no dtype is called 'float33'" in run("cat", path, "weight", "--dtype", "float33").stderr
    main, worker = os.openpty()
    done = subprocess.run([PERDURE, "cat", path, "weight"], stdout=worker, stderr=subprocess.PIPE, text=True, timeout=60)
    os.close(main), os.close(worker)
    assert done.returncode == 2 and "is a terminal" in done.stderr
