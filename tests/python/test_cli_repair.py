"""perdure repair and perdure.repair: what they save of files that were cut or damaged, and what they say.

The random part: PERDURE_REPAIRS says how many damaged files there are, PERDURE_SEED makes the same ones again.
"""

import collections
import json
import os
import pathlib
import random
import re
import subprocess
import zipfile

import numpy
import pytest
import torch

import perdure
from states import elements, tensor_facts

PERDURE = os.environ.get("PERDURE_CLI", "perdure")
REPAIRS = int(os.environ.get("PERDURE_REPAIRS", "200"))
SEED = int(os.environ.get("PERDURE_SEED") or random.SystemRandom().randrange(2**32))
KEPT, LOST, COULD_NOT = 0, 1, 2


def run(*arguments):
    return subprocess.run([PERDURE, *map(str, arguments)], capture_output=True, text=True, timeout=60)


def training(seed: int = 0) -> dict:
    """As people save it: a model with tied weights, an optimizer with state, lists, numbers, and arrays."""
    torch.manual_seed(seed)
    model = torch.nn.Sequential(
        torch.nn.Embedding(40, 16), torch.nn.Linear(16, 16), torch.nn.BatchNorm1d(16), torch.nn.Linear(16, 40, bias=False)
    )
    model[3].weight = model[0].weight
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.arange(8)).sum().backward()
    optimizer.step()
    buffer = torch.randn(100)
    return {
        "epoch": 3 + seed,
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "half": [torch.randn(33).to(dtype) for dtype in (torch.bfloat16, torch.float16, torch.int8, torch.bool)],
        "views": (buffer, buffer[10:20], buffer.view(10, 10).t()),
        "empty": torch.empty(0, 3),
        "rng": {"torch": torch.get_rng_state(), "numpy": numpy.random.RandomState(seed).get_state()[1]},
        "order": collections.OrderedDict(a=torch.ones(3), b="text"),
        "history": [{"loss": torch.tensor(1.0 + seed)}, None, 0.5],
    }


def torch_save(state, path):
    torch.save({**state, "rng": {"torch": state["rng"]["torch"]}}, path)  # an array is no plain data for torch.load


SAVERS = {"torch.save": torch_save, "perdure.save": perdure.save}


@pytest.fixture(params=SAVERS)
def saver(request):
    return SAVERS[request.param]


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out.pt"


def record_at(path, record: str) -> tuple[int, int]:
    """Where the bytes of a record begin and end."""
    with zipfile.ZipFile(path) as archive:
        info = next(i for i in archive.infolist() if i.filename.endswith("/" + record))
    content = path.read_bytes()
    name, extra = (int.from_bytes(content[info.header_offset + i :][:2], "little") for i in (26, 28))
    begin = info.header_offset + 30 + name + extra
    return begin, begin + info.file_size


def flip(path, record: str):
    begin, end = record_at(path, record)
    content = bytearray(path.read_bytes())
    content[(begin + end) // 2] ^= 0x10
    path.write_bytes(content)


def cut(path, size: int):
    path.write_bytes(path.read_bytes()[:size])


class Check:
    """What was saved is bit-equal to what was there, and what is missing is in the list."""

    def __init__(self, whole, saved, report):
        self.lost = {lost.path for lost in report.lost}
        self.by_index = "state" in self.lost  # the names come from the index: all containers are dicts
        self.kept = []
        self.compare(whole, saved, "state")

    def missing(self, place):
        while place not in self.lost:
            assert "[" in place, f"{place} is missing and in no list"
            place = place[: place.rindex("[")]

    def compare(self, whole, saved, place):
        if isinstance(whole, torch.Tensor):
            assert tensor_facts(whole) == tensor_facts(saved), place
            assert place not in self.lost
            self.kept.append((place, whole, saved))
        elif isinstance(whole, dict):
            assert self.by_index or type(saved) is type(whole), place
            assert list(saved) == [key for key in whole if key in saved], place
            for key, value in whole.items():
                at = f"{place}[{key!r}]"
                self.compare(value, saved[key], at) if key in saved else self.missing(at)
        elif isinstance(whole, (list, tuple)):
            for i, value in enumerate(whole):
                at = f"{place}[{i}]"
                found = saved.get(i) if isinstance(saved, dict) else saved[i]
                self.missing(at) if found is None and value is not None else self.compare(value, found, at)
        elif isinstance(whole, numpy.ndarray):
            assert self.by_index or numpy.array_equal(whole, saved), place
        else:
            assert whole == saved, place

    def sharing(self):
        def pairs(which):
            addresses = [tensors[which].untyped_storage().data_ptr() for tensors in self.kept]
            return [[a == b and a != 0 for a in addresses] for b in addresses]

        assert pairs(1) == pairs(2)


def checked(whole, report, out):
    check = Check(whole, perdure.load(out), report)
    check.sharing()
    assert perdure.verify(out).state == "good"
    assert torch.load(out, weights_only=True) is not None
    return check


# --- what is kept -----------------------------------------------------------------------------------------------


def test_nothing_is_lost_of_a_whole_file(path, out, saver):
    saver(training(), path)
    done = run("repair", path, out)
    assert done.returncode == KEPT and done.stderr == ""
    assert done.stdout.splitlines()[-1] == "nothing is lost"
    report = perdure.repair(path, out, force=True)
    assert report.lost == () and report.notes == () and report.path == str(path)
    check = checked(perdure.load(path), report, out)
    assert report.saved.tensors == len(check.kept) + ("numpy" in perdure.load(path)["rng"])


def test_a_damaged_tensor_is_left_out_and_named(path, out, saver):
    saver(training(), path)
    whole = perdure.load(path)
    flip(path, "data/0")
    done = run("repair", "--json", path, out)
    assert done.returncode == LOST and done.stderr == ""
    said = json.loads(done.stdout)
    assert said["path"] == str(path) and said["out"] == str(out)
    assert [lost["path"] for lost in said["lost"]] == ["state['model']['0.weight']", "state['model']['3.weight']"]
    assert said["lost"][0]["dtype"] == "float32" and said["lost"][0]["shape"] == [40, 16]
    assert "do not have the checksum" in said["lost"][0]["why"]
    assert said["saved"]["tensors"] > 20 and said["saved"]["bytes"] > 1000
    loaded = torch.load(out, weights_only=True)
    assert list(loaded["model"]) == [key for key in whole["model"] if key not in ("0.weight", "3.weight")]
    assert loaded["epoch"] == 3
    text = run("repair", "--force", path, out).stdout
    assert "state['model']['0.weight']  float32 [40, 16]: 2560 bytes at offset" in text


def test_half_a_file_of_torch_save_gives_what_was_before_the_cut(path, out):
    torch_save(training(), path)
    whole, content = perdure.load(path), path.read_bytes()
    counts = []
    for part in range(1, 20):
        path.write_bytes(content[: len(content) * part // 20])
        with pytest.raises((RuntimeError, OSError)):
            torch.load(path, weights_only=True)
        try:
            report = perdure.repair(path, out, force=True)
        except perdure.CorruptionError as error:
            assert "data.pkl" in str(error) and counts == []
            continue
        counts.append(len(checked(whole, report, out).kept))
    assert counts == sorted(counts) and counts[-1] > 15 and counts[0] < 10


def test_half_a_file_of_perdures_takes_its_names_from_another(path, out, tmp_path):
    perdure.save(training(), path)
    perdure.save(training(1), tmp_path / "like.pt")
    whole = perdure.load(path)
    before = record_at(path, "data.pkl")[0]
    cut(path, before)
    alone = run("repair", path, out)
    assert alone.returncode == COULD_NOT and not out.exists()
    assert "--like" in alone.stderr and "data.pkl" in alone.stderr
    done = run("repair", "--json", "--like", tmp_path / "like.pt", path, out)
    assert done.returncode == LOST
    paths = [lost["path"] for lost in json.loads(done.stdout)["lost"]]
    assert "state['epoch']" in paths and "state['optimizer']['param_groups']" in paths
    report = perdure.repair(path, out, like=tmp_path / "like.pt", force=True)
    check = checked(whole, report, out)
    assert len(check.kept) > 20
    saved = perdure.load(out)
    assert "epoch" not in saved and saved["history"][0]["loss"] == 1.0 and saved["history"][2] is None
    assert numpy.array_equal(saved["rng"]["numpy"], whole["rng"]["numpy"])


def test_the_checkpoint_beside_a_cut_one_is_suggested(tmp_path, out):
    model = torch.nn.Linear(30, 20)
    state = perdure.TrainingState(model=model, optimizer=torch.optim.SGD(model.parameters(), lr=0.1))
    with perdure.CheckpointManager(tmp_path / "run", keep_last=9) as checkpoints:
        for step in (10, 20, 30):
            state.step = step
            checkpoints.save(state).wait()
    newest = sorted((tmp_path / "run").glob("step-*.pt"))
    cut(newest[2], record_at(newest[2], "data.pkl")[0])
    done = run("repair", newest[2], out)
    assert done.returncode == COULD_NOT and str(newest[1]) in done.stderr
    assert run("repair", "--like", newest[1], newest[2], out).returncode == LOST
    model.load_state_dict(perdure.load(out)["model"])  # all of it


def test_a_run_goes_on_from_a_repaired_checkpoint(tmp_path, path, out):
    model = torch.nn.Linear(3, 2)
    state = perdure.TrainingState(model=model, optimizer=torch.optim.SGD(model.parameters(), lr=0.1), epoch=5)
    with perdure.CheckpointManager(tmp_path / "run") as checkpoints:
        state.step = 40
        checkpoints.save(state, metrics={"loss": 0.5})
    (saved,) = (tmp_path / "run").glob("step-*.pt")
    weight = model.weight.detach().clone()
    flip(saved, "data/1")  # the bias
    assert run("repair", saved, out).returncode == LOST
    with torch.no_grad():
        model.weight.zero_()
    with perdure.CheckpointManager(tmp_path / "other") as checkpoints:
        restored = checkpoints.restore(state, path=out, strict=False)
    assert restored.step == 40 and restored.metrics == {"loss": 0.5} and state.epoch == 5
    assert torch.equal(model.weight, weight)


def test_other_damage_costs_no_tensor(path, out, tmp_path):
    perdure.save(training(), path)
    whole, content = perdure.load(path), path.read_bytes()
    tensors = perdure.repair(path, out).saved.tensors
    directory = content.rindex(b"PK\x06\x06")

    def zeroed(begin, size):
        return content[:begin] + bytes(size) + content[begin + size :]

    begin, end = record_at(path, ".perdure/index")
    harmless = {
        "directory": zeroed(directory - 500, 500),
        "end record": zeroed(len(content) - 22, 22),
        "no directory": content[: directory - 10],
        "index": zeroed(begin + 20, end - begin - 40),
        "something appended": content + os.urandom(1000),
        "two copies": content + content,
        "first header": zeroed(0, 64),
    }
    for what, damaged in harmless.items():
        path.write_bytes(damaged)
        report = perdure.repair(path, out, force=True)
        assert report.lost == () and report.notes != () or what == "index", (what, report)
        assert report.saved.tensors == tensors, what
        checked(whole, report, out)
    for record, lost in [(".perdure/checkpoint.json", ".perdure/checkpoint.json"), ("data.pkl", "state")]:
        path.write_bytes(content)
        flip(path, record)
        report = perdure.repair(path, out, force=True)
        assert [item.path for item in report.lost] == [lost] and report.saved.tensors == tensors
        checked(whole, report, out)


# --- every kind of damage, at random ----------------------------------------------------------------------------


def damaged(content: bytes, choose: random.Random) -> bytes:
    kind = choose.choice(["flip", "cut", "zero", "swap", "copy", "cut and flip", "noise"])
    page = choose.choice([512, 4096])
    at, other = (choose.randrange(len(content) // page) * page for _ in range(2))
    mutable = bytearray(content)
    if kind in ("flip", "cut and flip"):
        mutable[choose.randrange(len(mutable))] ^= 1 << choose.randrange(8)
    if kind in ("cut", "cut and flip"):
        del mutable[choose.randrange(len(mutable)) :]
    elif kind == "zero":
        mutable[at : at + page] = bytes(page)
    elif kind == "noise":
        mutable[at : at + page] = choose.randbytes(page)
    elif kind == "copy":
        mutable[at : at + page] = content[other : other + page]
    elif kind == "swap":
        mutable[at : at + page], mutable[other : other + page] = content[other : other + page], content[at : at + page]
    return bytes(mutable)


@pytest.mark.parametrize("name", SAVERS)
def test_of_a_file_with_any_damage_what_is_kept_is_right(name, path, out, tmp_path):
    print(f"PERDURE_SEED={SEED}")
    choose = random.Random(SEED)
    like = tmp_path / "like.pt"
    SAVERS[name](training(), path)
    SAVERS[name](training(1), like)
    whole, content = perdure.load(path), path.read_bytes()
    kept = refused = 0
    for number in range(REPAIRS // 2):
        path.write_bytes(damaged(content, choose))
        try:
            report = perdure.repair(path, out, like=choose.choice([None, like]), force=True)
        except perdure.CorruptionError:
            refused += 1
            continue
        try:
            kept += len(checked(whole, report, out).kept)
        except AssertionError:
            print(f"repair {number} of {name}, PERDURE_SEED={SEED}")
            raise
    assert refused < REPAIRS // 2 and kept > 0


def test_the_check_sees_a_wrong_bit_and_a_silent_loss():
    whole = {"a": torch.zeros(3), "b": [torch.ones(2)]}
    nothing_lost = perdure.RepairReport("x", None, (), ())
    Check(whole, whole, nothing_lost)
    for saved in ({**whole, "a": torch.tensor([0.0, 0.0, -0.0])}, {"b": whole["b"]}, {**whole, "b": [None]}):
        with pytest.raises(AssertionError):
            Check(whole, saved, nothing_lost)


# --- what it refuses --------------------------------------------------------------------------------------------


def test_it_never_writes_over_what_it_reads(path, tmp_path):
    perdure.save(training(), path)
    before = path.read_bytes()
    (tmp_path / "symbolic.pt").symlink_to(path)
    (tmp_path / "hard.pt").hardlink_to(path)
    for name in ("cp.pt", "symbolic.pt", "hard.pt"):
        done = run("repair", "--force", path, tmp_path / name)
        assert done.returncode == COULD_NOT and "are one file" in done.stderr
    with pytest.raises(perdure.InvalidError, match="are one file"):
        perdure.repair(path, path, force=True)
    assert path.read_bytes() == before


def test_it_replaces_only_when_told(path, out):
    perdure.save(training(), path)
    out.write_text("mine")
    done = run("repair", path, out)
    assert done.returncode == COULD_NOT and "exists already" in done.stderr and out.read_text() == "mine"
    assert run("repair", "--force", path, out).returncode == KEPT
    assert run("verify", out).returncode == 0


@pytest.mark.parametrize(
    "content, what",
    [(b"", "empty"), (b"x" * 1000, "does not begin as a PyTorch file"), (b"PK\3\4" + bytes(100), "")],
)
def test_what_holds_nothing_gives_nothing(path, out, content, what):
    path.write_bytes(content)
    done = run("repair", "--json", path, out)
    assert done.returncode == COULD_NOT and what in done.stderr and str(path) in done.stderr
    assert json.loads(done.stdout)["error"]["code"] == "corrupt"
    assert not out.exists()


def test_it_says_what_is_not_there(tmp_path, out):
    done = run("repair", tmp_path / "none.pt", out)
    assert done.returncode == COULD_NOT and "none.pt" in done.stderr
    assert run("repair", tmp_path / "none.pt").returncode == COULD_NOT


def test_another_structure_is_refused(path, out, tmp_path):
    perdure.save(training(), path)
    perdure.save({"a": torch.ones(5)}, tmp_path / "like.pt")
    cut(path, record_at(path, "data.pkl")[0])
    done = run("repair", "--like", tmp_path / "like.pt", path, out)
    assert done.returncode == COULD_NOT and "another structure" in done.stderr and not out.exists()


def test_a_file_without_checksums_is_refused(path, out):
    torch.serialization.set_crc32_options(False)
    try:
        torch.save({"a": torch.ones(3)}, path)
    finally:
        torch.serialization.set_crc32_options(True)
    done = run("repair", path, out)
    assert done.returncode == COULD_NOT and "without checksums" in done.stderr


def test_objects_are_lost_and_tensors_beside_them_are_not(path, out):
    torch.save({"config": random.Random(1), "w": torch.ones(3)}, path)
    report = perdure.repair(path, out)
    assert [lost.path for lost in report.lost] == ["state['config']"]
    assert "not plain data" in report.lost[0].why
    assert torch.load(out, weights_only=True)["w"].tolist() == [1, 1, 1]


def test_names_cannot_draw_on_the_terminal(path, out):
    torch.save({"a\x1b[2J": torch.ones(3), "b": 1}, path)
    flip(path, "data/0")
    done = run("repair", path, out)
    assert done.returncode == LOST and "\x1b" not in done.stdout


def test_the_page_says_what_happens(tmp_path, monkeypatch, capsys):
    page = (pathlib.Path(__file__).resolve().parents[2] / "docs" / "repair.md").read_text()
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "cut.pt"
    model = {"fc1": torch.tensor([1.0, 2, 3]), "fc2": torch.tensor([4.0, 1])}
    perdure.save({"model": model, "history": [torch.tensor([5.0]), 6], "epoch": 3}, path)
    flip(path, "data/1")
    shown = run("repair", "cut.pt", "whole.pt").stdout
    assert f"```\n$ perdure repair cut.pt whole.pt\n{shown}```" in page
    (tmp_path / "whole.pt").unlink()
    exec(re.search("```python\n(.*?)```", page, re.DOTALL)[1], {"perdure": perdure})
    assert capsys.readouterr().out.startswith("state['model']['fc2'] float32 (2,) 8 bytes at offset")


def test_help_tells_the_exit_codes():
    done = run("repair", "--help")
    assert done.returncode == 0 and "--like" in done.stdout and "Exit code" in done.stdout
    assert "repair" in run("--help").stdout
