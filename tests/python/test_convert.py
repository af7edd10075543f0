"""convert: between all formats, and parts of checkpoints. PERDURE_CONVERT_GB=10 makes the large file that large."""

import collections
import itertools
import json
import os
import resource
import signal
import subprocess
import time

import pytest
import safetensors.torch
import torch
import torch.distributed.checkpoint as dcp
from test_cli import PERDURE
from test_dcp import assert_bits
from test_safetensors import DTYPES, tensor_of

import perdure

FORMATS = {"torch": "x.pt", "safetensors": "x.safetensors", "dcp": "x"}


def flat_state():
    torch.manual_seed(5)
    return {f"layer.{i}.{str(d)[6:]}": tensor_of(d, i + 1, 3) for i, d in enumerate(DTYPES)} | {"scalar": torch.tensor(2.0)}


def write_with_stock(state, path, kind):
    if kind == "torch":
        torch.save(state, path)
    elif kind == "safetensors":
        safetensors.torch.save_file(state, path)
    else:
        dcp.save(state, checkpoint_id=path)


def read_with_stock(path, kind, like):
    if kind == "torch":
        return torch.load(path)
    if kind == "safetensors":
        return safetensors.torch.load_file(path)
    into = {key: torch.zeros_like(value) for key, value in like.items()}
    dcp.load(into, checkpoint_id=path)
    return into


def in_order(state):
    return dict(sorted(state.items()))


@pytest.mark.parametrize(("first", "second"), list(itertools.product(FORMATS, FORMATS)))
def test_there_and_back(tmp_path, first, second):
    state = flat_state()
    if "dcp" in (first, second):
        state = {k: v for k, v in state.items() if "uint" not in k or "uint8" in k}
    write_with_stock(state, tmp_path / FORMATS[first], first)
    (tmp_path / "b").mkdir()
    (tmp_path / "c").mkdir()
    there, back = tmp_path / "b" / FORMATS[second], tmp_path / "c" / FORMATS[first]
    assert perdure.convert(tmp_path / FORMATS[first], there).format == second
    assert_bits(in_order(state), in_order(read_with_stock(there, second, state)))
    perdure.convert(there, back)
    assert_bits(in_order(state), in_order(read_with_stock(back, first, state)))
    assert len(os.listdir(tmp_path / "b")) == len(os.listdir(tmp_path / "c")) == 1


def test_a_copy_keeps_everything(tmp_path):
    base = torch.arange(12.0).reshape(3, 4)
    state = {
        "tied": [base, base], "view": base[1], "transposed": base.T, "order": collections.OrderedDict(a=1),
        "param": torch.nn.Parameter(torch.ones(2)), "plain": {1: None, "b": b"x", "t": (1, 2.5)}, "part": torch.arange(1000)[10:20],
    }  # fmt: skip
    torch.save(state, tmp_path / "a.pt")
    perdure.convert(tmp_path / "a.pt", tmp_path / "b.pt")
    loaded = torch.load(tmp_path / "b.pt")
    assert_bits({**state, "order": dict(state["order"])}, {**loaded, "order": dict(loaded["order"])})
    assert loaded["tied"][0].data_ptr() == loaded["tied"][1].data_ptr() == loaded["transposed"].data_ptr()
    assert isinstance(loaded["param"], torch.nn.Parameter)
    assert perdure.verify(tmp_path / "b.pt").good


@pytest.mark.parametrize("to", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_dtypes_change_as_torch_changes_them(tmp_path, to):
    torch.manual_seed(2)
    every = torch.arange(2**16, dtype=torch.int32).to(torch.uint16)
    state = {
        "f64": torch.randn(999, dtype=torch.float64) * 10.0 ** torch.randint(-12, 12, (999,)),
        "f32": torch.randint(-(2**31), 2**31, (50000,)).to(torch.int32).view(torch.float32),
        "edges": torch.tensor([0.0, -0.0, 65504, 65519.99, 65520, 5.96e-8, 2.98e-8, 2.99e-8, 6.1e-5, float("inf"), -float("inf")]),
        "f16": every.clone().view(torch.float16),
        "bf16": every.view(torch.bfloat16),
        "int": torch.arange(5),
        "complex": torch.ones(2, dtype=torch.complex64),
    }  # fmt: skip
    for name in ("float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz"):
        state[name] = torch.arange(256, dtype=torch.int32).to(torch.uint8).view(getattr(torch, name))
    torch.save(state, tmp_path / "a.pt")
    perdure.convert(tmp_path / "a.pt", tmp_path / "b.pt", dtype=to)
    loaded = torch.load(tmp_path / "b.pt")
    for name, value in state.items():
        wanted = value.to(to) if value.is_floating_point() else value
        assert loaded[name].dtype == wanted.dtype, name
        assert torch.equal(loaded[name].nan_to_num(7.5) if wanted.is_floating_point() else loaded[name],
                           wanted.nan_to_num(7.5) if wanted.is_floating_point() else wanted), name  # fmt: skip
        if wanted.is_floating_point():
            assert torch.equal(loaded[name].isnan(), wanted.isnan()), name


def training():
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2))
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    return {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "epoch": 3}


def test_parts_under_other_names(tmp_path):
    state = training()
    path, out = tmp_path / "a.pt", tmp_path / "b.pt"
    torch.save(state, path)
    report = perdure.convert(path, out, strip_optimizer=True)
    assert report.left_out == ("optimizer",) and list(torch.load(out)) == ["model", "epoch"]
    perdure.convert(path, out, only=["model"], rename={"model.*": "*"}, force=True)
    assert_bits(dict(state["model"]), dict(torch.load(out)))
    perdure.convert(path, out, only=["model.0", "epoch"], force=True)
    assert {k: list(v) if isinstance(v, dict) else v for k, v in torch.load(out).items()} == {
        "model": ["0.weight", "0.bias"], "epoch": 3,
    }  # fmt: skip
    perdure.convert(path, out, rename={"model.0.*": "model.head.*", "epoch": "steps"}, force=True)
    loaded = torch.load(out)
    assert set(loaded["model"]) == {"1.weight", "1.bias", "head.weight", "head.bias"} and loaded["steps"] == 3
    for options, what in [
        ({"only": ["modle"]}, 'did you mean "model".*"model", "model.0.weight", "model.0.bias"'),
        ({"rename": {"x.*": "y.*"}}, "nothing in the file"),
        ({"rename": {"x.*": "y"}}, r"as many \*"),
        ({"rename": {"epoch": "model"}}, "two values"),
        ({"dtype": torch.int8}, "int8 is none of"),
        ({"to": "onnx"}, "onnx"),
        ({"only": "model"}, "list of names"),
        ({"rest": True}, "for safetensors"),
        ({"force": False}, "exists already"),
    ]:
        before = out.read_bytes()
        with pytest.raises(perdure.InvalidError, match=what):
            perdure.convert(path, out, **{"force": True, **options})
        assert out.read_bytes() == before
    with pytest.raises(perdure.InvalidError, match="ending"):
        perdure.convert(path, tmp_path / "x.onnx")
    with pytest.raises(perdure.InvalidError, match="never changed"):
        perdure.convert(path, path, force=True)


def test_a_run_directory_stands_for_its_newest(tmp_path):
    with perdure.CheckpointManager(tmp_path / "run") as checkpoints:
        state = perdure.TrainingState(w=torch.ones(2))
        for state.step in (1, 2):
            checkpoints.save(state)
    perdure.convert(tmp_path / "run", tmp_path / "out.pt")
    assert torch.load(tmp_path / "out.pt")["step"] == 2


def test_damage_ends_a_conversion(tmp_path):
    path = tmp_path / "a.pt"
    torch.save({"first": torch.zeros(3 << 20), "w": torch.ones(5 << 20), "cut": torch.ones(5 << 20)[:9]}, path)
    whole = path.read_bytes()
    for at in (whole.index(b"\0\0\x80\x3f" * 9) + 4_000_000, len(whole) - 9_000_000):
        data = bytearray(whole)
        data[at] ^= 1
        path.write_bytes(data)
        for out in ("b.pt", "b.safetensors", "b"):
            with pytest.raises(perdure.CorruptionError, match="is damaged"):
                perdure.convert(path, tmp_path / out, only=["w", "cut"])
        assert os.listdir(tmp_path) == ["a.pt"]


def test_progress_is_told_and_may_end_it(tmp_path):
    torch.save({"w": torch.ones(9 << 20)}, tmp_path / "a.pt")
    told = []
    perdure.convert(tmp_path / "a.pt", tmp_path / "b.pt", progress=lambda *args: told.append(args))
    assert told == sorted(told) and told[-1] == (36 << 20, 36 << 20) and len(told) > 5

    def stop(done, total):
        if done:
            raise RuntimeError("enough")

    for out in ("c.pt", "c.safetensors", "c"):
        with pytest.raises(RuntimeError, match="enough"):
            perdure.convert(tmp_path / "a.pt", tmp_path / out, progress=stop)
    assert sorted(os.listdir(tmp_path)) == ["a.pt", "b.pt"]


def test_directories_are_replaced_as_a_whole(tmp_path):
    torch.save({"w": torch.ones(2)}, tmp_path / "a.pt")
    (tmp_path / "out" / "in").mkdir(parents=True)
    (tmp_path / "out" / "in" / "old").write_text("x")
    with pytest.raises(perdure.InvalidError, match="exists already"):
        perdure.convert(tmp_path / "a.pt", tmp_path / "out")
    with pytest.raises(perdure.InvalidError, match="other things"):
        perdure.convert(tmp_path / "a.pt", tmp_path / "out", force=True)
    (tmp_path / "out" / ".metadata").write_text("x")
    perdure.convert(tmp_path / "a.pt", tmp_path / "out", force=True)
    assert sorted(os.listdir(tmp_path)) == ["a.pt", "out"]
    assert sorted(os.listdir(tmp_path / "out")) == [".metadata", "__0_0.distcp"]


# ---- the command


def run(*arguments, **options):
    return subprocess.run([PERDURE, "convert", *map(str, arguments)], capture_output=True, text=True, timeout=600, **options)


def test_command(tmp_path):
    state = training()
    torch.save(state, tmp_path / "a.pt")
    done = run("--only", "model", "--rename", "model.*=*", "--dtype", "bf16", "--json", tmp_path / "a.pt", tmp_path / "m.safetensors")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) | {"path": ""} == {
        "path": "", "format": "safetensors", "tensors": 4, "bytes": 52, "left_out": [], "rest": None,
    }  # fmt: skip
    assert_bits(in_order({k: v.bfloat16() for k, v in state["model"].items()}), in_order(safetensors.torch.load_file(tmp_path / "m.safetensors")))
    failed = run(tmp_path / "a.pt", tmp_path / "m.safetensors")
    assert failed.returncode == 2 and "exists already" in failed.stderr
    failed = run("--force", tmp_path / "a.pt", tmp_path / "m.safetensors")
    assert failed.returncode == 2 and "state['optimizer']" in failed.stderr
    assert run("--strip-optimizer", "--to", "dcp", tmp_path / "a.pt", tmp_path / "dir.x").returncode == 0
    shown = subprocess.run([PERDURE, "show", tmp_path / "dir.x"], capture_output=True, text=True, check=True).stdout
    assert "torch.distributed.checkpoint" in shown and "0.weight" in shown
    verified = subprocess.run([PERDURE, "verify", tmp_path / "dir.x"], capture_output=True, text=True, check=True).stdout
    assert "good" in verified


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    gigabytes = float(os.environ.get("PERDURE_CONVERT_GB", "0.4"))
    path = tmp_path_factory.mktemp("large") / "large.pt"
    perdure.save({f"w{i}": torch.full((25_000_000,), float(i)) for i in range(max(round(gigabytes * 10), 2))}, path)
    return path


def with_memory(kilobytes):
    def limit():
        resource.setrlimit(resource.RLIMIT_DATA, (kilobytes << 10, kilobytes << 10))

    return limit


def test_large_files_take_little_memory(large, tmp_path):
    for kind in ("a.pt", "a.safetensors", "a"):
        done = run(large, tmp_path / kind, preexec_fn=with_memory(256 << 10))
        assert done.returncode == 0, done.stderr
    for kind in ("a.safetensors", "a"):
        done = run(tmp_path / kind, tmp_path / "b.pt", "--dtype", "bf16", "--force", preexec_fn=with_memory(256 << 10))
        assert done.returncode == 0, done.stderr
    assert float(perdure.load(tmp_path / "b.pt", keys=["w1"])["w1"][-1]) == 1


@pytest.mark.parametrize("kill", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("out", ["a.pt", "a.safetensors", "a"])
def test_an_interrupt_leaves_nothing(large, tmp_path, out, kill):
    process = subprocess.Popen([PERDURE, "convert", large, tmp_path / out], stderr=subprocess.PIPE, text=True)
    while process.poll() is None and not os.listdir(tmp_path):
        time.sleep(0.001)
    process.send_signal(kill)
    said = process.communicate(timeout=60)[1]
    if process.returncode == 0:
        assert os.listdir(tmp_path) == [out]
    else:
        assert process.returncode == 128 + kill and said == ""
        assert os.listdir(tmp_path) == []


def test_what_a_kill_leaves_is_removed_by_the_next(large, tmp_path):
    for out in ("a.pt", "a.safetensors", "a"):
        process = subprocess.Popen([PERDURE, "convert", large, tmp_path / out])
        while process.poll() is None and not any(name.startswith(".") for name in os.listdir(tmp_path)):
            time.sleep(0.001)
        process.kill()
        process.wait()
        small = tmp_path / "small.pt"
        torch.save({"w": torch.ones(1)}, small)
        # The kernel lets go of a dead process's files, and so of their locks, some time after its end.
        for _ in range(100):
            perdure.convert(small, tmp_path / out, force=True)
            left = [name for name in os.listdir(tmp_path) if name.startswith(".")]
            if not left:
                break
            time.sleep(0.1)
        assert left == []


def test_a_key_that_is_no_plain_data_is_not_written_as_its_text(tmp_path):
    torch.save({"model": {"w": torch.ones(2)}, "odd": {frozenset([1]): 2}}, tmp_path / "x.pt")
    for to in ("torch", "dcp"):
        with pytest.raises(perdure.Error, match="odd"):
            perdure.convert(tmp_path / "x.pt", tmp_path / "out", to=to)
    perdure.convert(tmp_path / "x.pt", tmp_path / "out.pt", only=["model"])
    assert torch.equal(torch.load(tmp_path / "out.pt")["model"]["w"], torch.ones(2))


def test_a_view_without_end_is_no_damage(tmp_path):
    torch.save({"w": torch.ones(1).expand(1 << 31, 1 << 30)}, tmp_path / "x.pt")
    for to in ("safetensors", "dcp"):
        with pytest.raises(perdure.InvalidError, match="repeats its elements"):
            perdure.convert(tmp_path / "x.pt", tmp_path / "out", to=to)
    assert [p.name for p in tmp_path.iterdir()] == ["x.pt"]
