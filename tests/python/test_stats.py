"""perdure.stats and perdure stats, against torch in float64.

PERDURE_SEED and PERDURE_CASES choose the random states: the first seed, and how many.
"""

import json
import math
import os
import subprocess

import pytest
import torch

import perdure
from perdure.tensors import DTYPES

PERDURE = os.environ.get("PERDURE_CLI", "perdure")
SEED, CASES = int(os.environ.get("PERDURE_SEED", "0")), int(os.environ.get("PERDURE_CASES", "40"))
BITS = {n for n in DTYPES if n.startswith("bits")}
FLOAT4 = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], dtype=torch.float64)


def random_tensor(name, random, special=True):
    """A tensor of the dtype with random bits or numbers, seen through random strides."""
    dtype = DTYPES[name]
    size = torch.empty(0, dtype=dtype).element_size()
    count = int(torch.randint(1, 5000, (), generator=random))
    raw = torch.randint(0, 256, (count * size,), dtype=torch.uint8, generator=random)
    if name == "bool":
        raw &= 1
    flat = raw.view(dtype)
    if dtype.is_floating_point and name not in ("float8_e8m0fnu", "float4_e2m1fn_x2") and not special:
        flat = torch.randn(count, generator=random, dtype=torch.float64).to(dtype)
    if dtype.is_complex:
        parts = torch.randn(count, 2, generator=random, dtype=torch.float64)
        parts[0] = 0
        flat = torch.view_as_complex(parts).to(dtype)
    return strided(flat, random)


def strided(flat, random):
    count = flat.numel()
    pick = int(torch.randint(0, 5, (), generator=random))
    if pick == 0 or count < 12:
        return flat
    if pick == 1:
        return flat[: count // 6 * 6].view(-1, 6).t()
    if pick == 2:
        return flat[3::2]
    if pick == 3:
        return flat[:8].view(8, 1).expand(8, 5)
    return flat.as_strided((count // 4, 3), (2, 1), 1)  # overlapping


def in_double(t):
    """The numbers of a tensor, for torch to compute with."""
    if t.dtype == getattr(torch, "float4_e2m1fn_x2", None):
        raw = t.view(torch.uint8).long()
        return torch.stack([FLOAT4[raw & 15], FLOAT4[raw >> 4]])
    if t.dtype.is_complex:
        return t.to(torch.complex128)
    if t.dtype in (torch.uint16, torch.uint32, torch.uint64):
        return torch.tensor(t.tolist(), dtype=torch.float64)
    return t.to(torch.float64)


def close(a, b, scale=0.0):
    return abs(a - b) <= 1e-12 * max(abs(b), scale) + 1e-300


def check(figures, t):
    x = in_double(t).flatten()
    bad = torch.isnan(x) | torch.isinf(x)
    assert figures.elements == x.numel()
    assert figures.nan == int(torch.isnan(x).sum())
    if t.dtype.is_complex:
        assert (figures.pos_inf, figures.neg_inf) == (int(torch.isinf(x).sum()), 0)
    else:
        assert (figures.pos_inf, figures.neg_inf) == (int((x == math.inf).sum()), int((x == -math.inf).sum()))
    assert figures.zeros == int((x == 0).sum())
    x = x[~bad]
    if not x.numel():
        assert figures.min is figures.max is figures.mean is figures.rms is figures.norm is None
        return
    size = x.abs()
    assert close(figures.min, (size if t.dtype.is_complex else x).min().item())
    assert close(figures.max, (size if t.dtype.is_complex else x).max().item())
    if not t.dtype.is_floating_point and not t.dtype.is_complex:
        values = t.flatten().tolist()
        assert (figures.min, figures.max) == (min(values), max(values)) and type(figures.min) is int
        assert close(figures.mean, sum(map(int, values)) / len(values))
    largest = size.max().item()
    if largest > 1e150 or largest < 1e-150:
        return  # whose squares torch's float64 does not hold; the C++ tests do
    mean = x.mean().item()
    assert close(figures.mean, mean, size.mean().item())
    assert close(figures.rms, size.square().mean().sqrt().item())
    assert close(figures.norm, torch.linalg.vector_norm(x).item())


@pytest.mark.parametrize("name", sorted(DTYPES.keys() - BITS))
@pytest.mark.parametrize("saver", ["torch", "perdure"])
def test_every_dtype_and_stride_as_torch_says(name, saver, path):
    for seed in range(SEED, SEED + max(1, CASES // 10)):
        random = torch.Generator().manual_seed(seed)
        state = {f"{i}": random_tensor(name, random, special=i % 2) for i in range(8)}
        (torch.save if saver == "torch" else perdure.save)(*((state, path)))
        report = perdure.stats(path)
        assert list(report.tensors) == list(state)
        for key, tensor in state.items():
            try:
                check(report.tensors[key].figures, tensor)
            except AssertionError as error:
                raise AssertionError(f"PERDURE_SEED={seed} {name} {key} {tensor.shape} {tensor.stride()}") from error


def test_bits_have_zeros_and_no_more(path):
    perdure.save({"x": torch.tensor([0, 1, 2, 0], dtype=torch.uint8).view(torch.bits8)}, path)
    figures = perdure.stats(path).tensors["x"].figures
    assert (figures.elements, figures.zeros, figures.min, figures.mean, figures.norm) == (4, 2, None, None, None)


def test_large_tensors_over_several_blocks(path):
    x = torch.randn(3_000_017, generator=torch.Generator().manual_seed(1))
    x[1_500_000] = math.nan
    state = {"x": x, "t": x[:3_000_000].view(1000, 3000).t(), "half": x[5:2_000_000].bfloat16(), "every third": x[::3]}
    torch.save(state, path)
    report = perdure.stats(path)
    for key, tensor in state.items():
        check(report.tensors[key].figures, tensor)
    assert report.bytes == x.nbytes + state["half"].nbytes


def test_conjugates_and_negatives(path):
    z = torch.randn(50, dtype=torch.complex64)
    state = {"z": z, "conj": z.conj(), "imag": z.conj().imag}
    assert state["conj"].is_conj() and state["imag"].is_neg()
    perdure.save(state, path)
    report = perdure.stats(path)
    check(report.tensors["conj"].figures, z.conj().resolve_conj())
    check(report.tensors["imag"].figures, z.conj().imag.resolve_neg().clone())


def test_the_same_from_run_to_run(path):
    perdure.save({"x": torch.randn(5_000_000), "y": torch.randn(2_000_000).bfloat16()}, path)
    first = perdure.stats(path)
    assert all(perdure.stats(path) == first for _ in range(5))


def test_groups_count_tied_weights_once(path):
    w = torch.ones(10)
    perdure.save({"model": {"a.w": w, "a.b": torch.zeros(5), "head.w": w}, "ema": {"a.w": w * 2}, "epoch": 3}, path)
    report = perdure.stats(path)
    assert report.tensors["model.head.w"].same_as == "model.a.w"
    assert list(report.groups) == ["model", "model.a"]
    assert (report.groups["model"].tensors, report.groups["model"].figures.elements) == (2, 15)
    assert report.groups["model"].figures.mean == 10 / 15 and report.groups["model"].figures.zeros == 5


def trained(names):
    model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Linear(3, 2))
    parameters = model.named_parameters() if names else model.parameters()
    optimizer = torch.optim.AdamW(parameters)
    model(torch.randn(5, 4)).sum().backward()
    optimizer.step()
    return model, optimizer


def check_momentum(report, model, optimizer, prefix):
    assert [m.parameter for m in report.momentum] == [prefix + name for name, _ in model.named_parameters()]
    for found, (name, parameter) in zip(report.momentum, model.named_parameters(), strict=True):
        assert found.weight.name == prefix + name
        assert close(found.weight.figures.norm, parameter.detach().double().norm().item())
        state = optimizer.state[parameter]
        assert [m.name.rpartition(".")[2] for m in found.momentum] == ["exp_avg", "exp_avg_sq"]
        for tensor in found.momentum:
            assert tensor.parameter == prefix + name
            assert close(tensor.figures.norm, state[tensor.name.rpartition(".")[2]].double().norm().item())


def test_momentum_beside_its_weight_by_the_record(tmp_path):
    model, optimizer = trained(names=False)
    with perdure.CheckpointManager(tmp_path / "run") as checkpoints:
        checkpoints.save(perdure.TrainingState(model=model, optimizer=optimizer))
        checkpoints.wait()
        path = checkpoints.latest().path
    check_momentum(perdure.stats(path), model, optimizer, "model.")


def test_momentum_beside_its_weight_by_names_in_the_groups(path):
    model, optimizer = trained(names=True)
    torch.save({"net": model.state_dict(), "opt": optimizer.state_dict()}, path)
    check_momentum(perdure.stats(path), model, optimizer, "net.")


def test_momentum_without_names_is_of_nobody(path):
    model, optimizer = trained(names=False)
    torch.save({"net": model.state_dict(), "opt": optimizer.state_dict()}, path)
    assert perdure.stats(path).momentum == ()


def test_patterns(path):
    perdure.save({"model": {"fc.weight": torch.ones(2), "fc.bias": torch.ones(2)}, "modeling": torch.ones(1)}, path)
    names = lambda pattern: list(perdure.stats(path, pattern).tensors)  # noqa: E731
    assert names("model") == ["model.fc.weight", "model.fc.bias"]
    assert names("*.bias") == ["model.fc.bias"] and names("model.fc.w??ght") == ["model.fc.weight"]
    with pytest.raises(perdure.NotFoundError, match="no tensor's name matches 'x'"):
        perdure.stats(path, "x")


def test_damage_is_an_error(path):
    for save in (perdure.save, torch.save):
        save({"x": torch.randn(100_000)}, path)
        data = bytearray(path.read_bytes())
        data[200_000] ^= 1
        path.write_bytes(data)
        with pytest.raises(perdure.CorruptionError, match=r"\['x'\]"):
            perdure.stats(path)
        assert run("stats", path).returncode == 1


def test_a_view_that_repeats_without_end_is_counted_or_refused(path):
    one = torch.ones(1)
    torch.save({"x": one.expand(2**20, 2**20)}, path)
    assert perdure.stats(path).tensors["x"].figures.elements == 2**40
    many = torch.ones(3 * 2**16).as_strided((2**16, 2**16, 2**16), (1, 1, 1))
    torch.save({"x": many}, path)
    with pytest.raises(perdure.UnsupportedError, match="overlap"):
        perdure.stats(path)


def run(*arguments):
    return subprocess.run([PERDURE, *map(str, arguments)], capture_output=True, text=True, timeout=60)


def test_the_command(path):
    x = torch.tensor([1.0, -2.0, 0.0, math.nan, math.inf])
    perdure.save({"model": {"x": x, "y": torch.ones(3, dtype=torch.int32)}, "u": torch.tensor([2**64 - 1], dtype=torch.uint64)}, path)
    text = run("stats", path)
    assert text.returncode == 0 and text.stderr == ""
    assert text.stdout.splitlines()[0].split() == "TENSOR DTYPE SHAPE ELEMENTS NAN +INF ZEROS MIN MAX MEAN RMS NORM".split()
    assert "18446744073709551615" in text.stdout and "\x1b" not in text.stdout
    found = json.loads(run("stats", "--json", path).stdout)
    assert [t["name"] for t in found["tensors"]] == ["model.x", "model.y", "u"]
    assert found["tensors"][0]["nan"] == found["tensors"][0]["pos_inf"] == 1 and found["tensors"][0]["min"] == -2
    assert found["tensors"][2]["max"] == 2**64 - 1 and found["groups"][0]["tensors"] == 2
    only = run("stats", "--nan", path).stdout.splitlines()
    assert len(only) == 2 and only[1].startswith("model.x")
    assert run("stats", "--nan", path, "u").stdout == "no NaN and no infinities\n"
    assert run("stats", path, "nothing").returncode == 2
