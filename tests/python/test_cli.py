"""The perdure command: what it prints, what it exits with, and what it does about files that mean harm."""

import argparse
import json
import os
import signal
import subprocess
import time
import zipfile
from pathlib import Path

import pytest
import torch

import perdure

PERDURE = os.environ.get("PERDURE_CLI", "perdure")
GOOD, DAMAGED, COULD_NOT_RUN = 0, 1, 2


class Result:
    def __init__(self, code: int, out: str, err: str):
        self.code, self.out, self.err = code, out, err

    @property
    def json(self):
        return json.loads(self.out)


def run(*arguments, **options) -> Result:
    done = subprocess.run([PERDURE, *map(str, arguments)], capture_output=True, timeout=60, **options)
    return Result(done.returncode, done.stdout.decode(), done.stderr.decode())


def training_checkpoint() -> dict:
    """As people write it: a model, an optimizer with state, a schedule, numbers; nested four levels deep."""
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.BatchNorm1d(8), torch.nn.Linear(8, 2))
    optimizer = torch.optim.AdamW(model.parameters())
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 10)
    model(torch.randn(3, 4)).sum().backward()
    optimizer.step()
    return {
        "epoch": 3,
        "best_loss": 0.5,
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "scheduler": scheduler.state_dict(),
        "rng": {"torch": torch.get_rng_state()},
        "history": [{"loss": torch.tensor(1.0)}, (torch.zeros(2), [torch.ones(3)])],
    }


def tensor_names(value, prefix="") -> dict:
    """Dotted name -> tensor, found the plain way."""
    if isinstance(value, torch.Tensor):
        return {prefix: value}
    if isinstance(value, dict):
        items = value.items()
    else:
        items = enumerate(value) if isinstance(value, (list, tuple)) else ()
    found = {}
    for key, item in items:
        found |= tensor_names(item, f"{prefix}.{key}" if prefix else str(key))
    return found


@pytest.fixture(params=["torch.save", "perdure.save"])
def saver(request):
    def save(value, path):
        torch.save(value, path) if request.param == "torch.save" else perdure.save(value, path)

    return save


@pytest.fixture
def run_directory(tmp_path) -> Path:
    """Three checkpoints, of steps 10, 20 and 30."""
    directory = tmp_path / "run"
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    state = perdure.TrainingState(model=model, optimizer=optimizer, epoch=0)
    with perdure.CheckpointManager(directory, keep_last=10) as checkpoints:
        for epoch in (1, 2, 3):
            state.epoch, state.step = epoch, 10 * epoch
            checkpoints.save(state, metrics={"val_loss": 1 / epoch, "odd": float("nan")})
    return directory


def checkpoints_of(directory: Path) -> list[Path]:
    return sorted(directory.glob("step-*.pt"), reverse=True)


def damage(path: Path, record: str = "data/0"):
    """Flips one bit in the middle of a record's bytes."""
    with zipfile.ZipFile(path) as archive:
        info = next(i for i in archive.infolist() if i.filename.endswith("/" + record))
    content = bytearray(path.read_bytes())
    name, extra = (int.from_bytes(content[info.header_offset + i : info.header_offset + i + 2], "little") for i in (26, 28))
    content[info.header_offset + 30 + name + extra + info.file_size // 2] ^= 0x10
    path.write_bytes(content)


# --- show -----------------------------------------------------------------------------------------------------


def test_show_lists_every_tensor_of_a_nested_checkpoint(tmp_path, saver):
    checkpoint = training_checkpoint()
    saver(checkpoint, tmp_path / "x.pt")
    shown = run("show", "--json", tmp_path / "x.pt")
    assert shown.code == GOOD
    entries = {e["key"]: e for e in shown.json["entries"] if e["kind"] == "tensor"}
    expected = tensor_names(checkpoint)
    assert entries.keys() == expected.keys() and len(expected) > 25
    for name, tensor in expected.items():
        assert entries[name]["shape"] == list(tensor.shape)
        assert "torch." + entries[name]["dtype"] == str(tensor.dtype)
        assert entries[name]["bytes"] == tensor.nbytes
    totals = shown.json["totals"]
    assert sum(t["tensors"] for t in totals.values()) == len(expected)
    assert sum(t["bytes"] for t in totals.values()) == sum(t.nbytes for t in expected.values())


def test_show_prints_the_tree_with_values(tmp_path, saver):
    saver(training_checkpoint(), tmp_path / "x.pt")
    shown = run("show", tmp_path / "x.pt")
    lines = {line.split()[0]: line.split() for line in shown.out.splitlines() if line.strip()}
    assert shown.code == GOOD and shown.err == ""
    assert lines["epoch"][1:3] == ["int", "3"]
    assert lines["best_loss"][1:3] == ["float", "0.5"]
    assert lines["0.weight"][1:4] == ["float32", "[8,", "4]"]
    assert lines["exp_avg"][1] == "float32"
    assert lines["lr"][1:3] == ["float", "0.001"]


def test_show_says_what_shares_memory(tmp_path, saver):
    weight = torch.randn(6, 4)
    shared = [torch.ones(1)]
    saver({"emb": weight, "head": weight, "part": weight[:2], "one": shared, "two": shared}, tmp_path / "x.pt")
    by_key = {e["key"]: e for e in run("show", "--json", tmp_path / "x.pt").json["entries"]}
    assert by_key["emb"]["storage"]["tensors"] == 3
    assert by_key["part"]["storage"]["first"] == "emb" and by_key["part"]["storage"]["size"] == 96
    assert by_key["two"]["same_as"] == "one" and "two.0" not in by_key
    text = run("show", tmp_path / "x.pt").out
    assert "storage shared by 3" in text and "shares storage with emb" in text and "same object as one" in text
    # Tied weights count once.
    assert run("show", "--json", tmp_path / "x.pt", "emb").json["totals"]["float32"]["elements"] == 24
    assert run("show", "--json", tmp_path / "x.pt", "*e*").json["totals"]["float32"]["bytes"] == 4 * 25


@pytest.mark.parametrize(
    "pattern, expected",
    [
        ("model", {"model.0.weight", "model.0.bias", "model.2.weight"}),
        ("model.0", {"model.0.weight", "model.0.bias"}),
        ("model.*.weight", {"model.0.weight", "model.2.weight"}),
        ("*.bias", {"model.0.bias"}),
        ("model.?.bias", {"model.0.bias"}),
        ("mod", set()),
        ("", {"model.0.weight", "model.0.bias", "model.2.weight", "modelx"}),
    ],
)
def test_show_selects_by_key(tmp_path, pattern, expected):
    model = {"0.weight": torch.ones(2), "0.bias": torch.ones(1), "2.weight": torch.ones(3)}
    torch.save({"model": model, "modelx": torch.ones(1)}, tmp_path / "x.pt")
    shown = run("show", "--json", tmp_path / "x.pt", pattern)
    if not expected:
        assert shown.code == COULD_NOT_RUN
        assert "'mod'" in shown.err and "'model'" in shown.err
        return
    assert {e["key"] for e in shown.json["entries"] if e["kind"] == "tensor"} == expected


def test_show_of_one_tensor_says_the_same_by_the_index_as_by_the_structure(tmp_path):
    """A name with a `?` in it is looked for in data.pkl, one without in .perdure/index."""
    base = torch.arange(12, dtype=torch.float32)
    state = {
        "model": {"weight": torch.nn.Parameter(base.view(3, 4)), "frozen": torch.nn.Parameter(torch.zeros(2), False)},
        "view": base[2:5],
        "strided": torch.ones(4, 5, dtype=torch.bfloat16).t(),
        "grad": torch.zeros(3, requires_grad=True),
        "conj": torch.ones(2, dtype=torch.complex64).conj(),
        "empty": torch.empty(0, 3),
        "scalar": torch.tensor(3, dtype=torch.int8),
        "meta": torch.empty(7, 2, device="meta"),
        "state": {0: {"exp_avg": torch.ones(2)}, 10: {"exp_avg": torch.ones(3)}, (1, "x"): torch.ones(4)},
        "list": [torch.ones(1), [torch.ones(2)], {"": torch.ones(3)}],
        "dotted": {"a.b": torch.ones(5), "c": 1},
    }
    perdure.save(state, tmp_path / "all.pt")
    shown = run("show", "--json", tmp_path / "all.pt").json["entries"]
    keys = [entry["key"] for entry in shown if entry["kind"] == "tensor"]
    assert len(keys) == 16
    for key in keys:
        by_index = run("show", tmp_path / "all.pt", key)
        by_structure = run("show", tmp_path / "all.pt", "?" + key[1:])
        assert by_index.code == by_structure.code == 0, key
        assert by_index.out == by_structure.out, key
    # The difference: data.pkl damaged, one still tells.
    damage(tmp_path / "all.pt", "data.pkl")
    assert "[3, 4]" in run("show", tmp_path / "all.pt", "model.weight").out
    assert run("show", tmp_path / "all.pt", "model.weigh?").code == 1
    assert run("show", tmp_path / "all.pt", "model").code == 1


def test_show_says_what_a_checkpoint_is(run_directory):
    newest = checkpoints_of(run_directory)[0]
    for path in (newest, run_directory):
        info = run("show", "--json", path).json["info"]
        assert (info["step"], info["generation"], info["reason"]) == (30, 3, "regular")
        assert info["metrics"] == {"odd": "nan", "val_loss": 1 / 3}
        assert info["optimizers"]["optimizer"]["class"] == "SGD"
    text = run("show", newest).out
    assert "step 30, generation 3" in text and "val_loss = 0.333" in text and "SGD" in text
    assert "checksums of every block" in text


def test_show_takes_the_newest_that_can_be_read(run_directory):
    newest, older = checkpoints_of(run_directory)[:2]
    newest.write_bytes(newest.read_bytes()[:1000])
    shown = run("show", run_directory)
    assert shown.code == GOOD and older.name in shown.out
    assert newest.name in shown.err


class Payload:
    """What torch.load without weights_only would execute."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


def test_show_executes_nothing_and_marks_what_load_refuses(tmp_path):
    model = torch.nn.Linear(2, 2)
    torch.save({"evil": Payload(tmp_path / "executed"), "model": model, "args": argparse.Namespace(lr=0.1)}, tmp_path / "x.pt")
    shown = run("show", "--json", tmp_path / "x.pt")
    assert shown.code == GOOD and not (tmp_path / "executed").exists()
    by_key = {e["key"]: e for e in shown.json["entries"]}
    opaque = {key: (e["module"], e["class"]) for key, e in by_key.items() if e.get("refused_by_load")}
    assert opaque == {
        "evil": ("posix", "mkdir"),
        "model": ("torch.nn.modules.linear", "Linear"),
        "args": ("argparse", "Namespace"),
    }
    assert by_key["model.(state)._parameters.weight"]["shape"] == [2, 2]
    text = run("show", tmp_path / "x.pt").out
    assert "posix.mkdir" in text and "load refuses this file: 3 things" in text
    with pytest.raises(perdure.Error):
        perdure.load(tmp_path / "x.pt")


HOSTILE = "a\x1b[2J\x07\r\n\x9b31m\u202etxt\x00\x7f"


@pytest.mark.parametrize("arguments", [("show",), ("show", "--json"), ("verify",), ("verify", "--json")])
def test_no_control_characters_reach_the_terminal(tmp_path, arguments):
    value = {HOSTILE: torch.ones(1), "k": HOSTILE, "n": {HOSTILE: {HOSTILE: [HOSTILE]}}, "s\ud800": 1}
    torch.save(value, tmp_path / "x.pt")
    results = [run(*arguments, tmp_path / "x.pt")]
    damage(tmp_path / "x.pt")
    results.append(run(*arguments, tmp_path / "x.pt"))
    results.append(run(*arguments, tmp_path / "none\x1b[2J.pt"))
    if arguments[0] == "show":
        results.append(run(*arguments, tmp_path / "x.pt", "nothing"))
    for result in results:
        assert result.out or result.err
        for character in result.out + result.err:
            assert character == "\n" or character.isprintable(), repr(character)


def test_output_stays_small_for_a_file_that_shares_its_parts(tmp_path):
    """Lists of twice the list before: 2^20 tensors when written out, 21 lists in the file."""
    value = [torch.ones(1)]
    for _ in range(20):
        value = [value, value]
    torch.save({"x": value}, tmp_path / "x.pt")
    for arguments in (("show",), ("show", "--json"), ("verify",)):
        began = time.monotonic()
        done = run(*arguments, tmp_path / "x.pt")
        assert len(done.out) < 20_000 and time.monotonic() - began < 10
    assert run("show", tmp_path / "x.pt").out.count("\n") < 60


def test_output_stays_small_for_a_file_that_repeats_a_long_key(tmp_path):
    key = "k" * 1_000_000
    value = {"end": torch.ones(1)}
    for _ in range(100):
        value = {key: value, "n": 1}
    torch.save(value, tmp_path / "x.pt")
    assert (tmp_path / "x.pt").stat().st_size < 2_000_000
    for arguments in (("show",), ("show", "--json")):
        shown = run(*arguments, tmp_path / "x.pt")
        assert shown.code == GOOD and len(shown.out) < 2_000_000


def test_show_of_one_tensor_and_of_empty_things(tmp_path):
    for name, value in {"tensor": torch.ones(2), "dict": {}, "list": [], "int": 5, "none": None}.items():
        torch.save(value, tmp_path / name)
        assert run("show", tmp_path / name).code == GOOD
        run("show", "--json", tmp_path / name).json


# --- verify ---------------------------------------------------------------------------------------------------


def test_verify_of_good_files(tmp_path, saver):
    saver(training_checkpoint(), tmp_path / "x.pt")
    checked = run("verify", tmp_path / "x.pt")
    assert checked.code == GOOD and checked.out.startswith("good ")
    file = run("verify", "--json", tmp_path / "x.pt").json["files"][0]
    assert file["state"] == "good" and file["findings"] == [] and file["error"] is None
    assert file["tensors"] == len(tensor_names(training_checkpoint()))


def test_verify_fails_for_a_file_cut_anywhere(tmp_path, saver):
    saver({"epoch": 1, "weight": torch.arange(100.0)}, tmp_path / "x.pt")
    whole = (tmp_path / "x.pt").read_bytes()
    cut = tmp_path / "cut.pt"
    for length in [0, 1, 10, 63, 64, *range(100, len(whole), 97), len(whole) - 22, len(whole) - 1]:
        cut.write_bytes(whole[:length])
        checked = run("verify", cut)
        assert checked.code == DAMAGED, f"cut to {length} bytes of {len(whole)}: {checked.out}{checked.err}"
        assert "cut.pt" in checked.out


def test_verify_names_the_tensor_and_the_place(tmp_path, saver):
    saver({"model": {"fc.weight": torch.randn(1000), "fc.bias": torch.randn(10)}}, tmp_path / "x.pt")
    damage(tmp_path / "x.pt")
    checked = run("verify", "--json", tmp_path / "x.pt")
    assert checked.code == DAMAGED
    (file,) = checked.json["files"]
    assert file["state"] == "damaged"
    (finding,) = file["findings"]
    assert "fc.weight" in finding["tensor"] and finding["record"].endswith("data/0") and finding["offset"] > 0
    text = run("verify", tmp_path / "x.pt").out
    assert text.startswith("damaged ") and "fc.weight" in text and str(finding["offset"]) in text


def test_verify_says_unchecked_where_there_are_no_checksums(tmp_path):
    config = pytest.importorskip("torch.utils.serialization.config")
    before = config.save.compute_crc32
    try:
        config.save.compute_crc32 = False
        torch.save({"w": torch.ones(3)}, tmp_path / "x.pt")
    finally:
        config.save.compute_crc32 = before
    checked = run("verify", tmp_path / "x.pt")
    assert checked.code == COULD_NOT_RUN and checked.out.startswith("unchecked ")
    assert "no checksums" in checked.out and "no checksums" in run("show", tmp_path / "x.pt").out
    assert run("verify", "--json", tmp_path / "x.pt").json["files"][0]["state"] == "unchecked"


def test_verify_of_a_run_directory_checks_all_of_it(run_directory):
    assert run("verify", run_directory).code == GOOD
    checked = run("verify", "--json", run_directory)
    assert [f["state"] for f in checked.json["files"]] == ["good"] * 3
    newest, middle, oldest = checkpoints_of(run_directory)
    damage(middle)
    oldest.write_bytes(oldest.read_bytes()[:-1])
    checked = run("verify", "--json", run_directory)
    assert checked.code == DAMAGED
    states = {Path(f["path"]).name: f["state"] for f in checked.json["files"]}
    assert states == {newest.name: "good", middle.name: "damaged", oldest.name: "damaged"}


def test_verify_goes_on_past_what_it_cannot_read(tmp_path):
    torch.save({"w": torch.ones(3)}, tmp_path / "good.pt")
    torch.save({"w": torch.ones(3)}, tmp_path / "bad.pt")
    torch.save({"w": torch.ones(3)}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    (tmp_path / "tar.pt").write_bytes(bytes(257) + b"ustar" + bytes(800))
    damage(tmp_path / "bad.pt")
    paths = [tmp_path / n for n in ("none.pt", "tar.pt", "old.pt", "good.pt")]
    checked = run("verify", "--json", *paths)
    assert checked.code == COULD_NOT_RUN
    assert [f["state"] for f in checked.json["files"]] == ["failed", "failed", "unchecked", "good"]
    assert [f["error"] and f["error"]["code"] for f in checked.json["files"]] == ["not_found", "unsupported", None, None]
    assert run("verify", *paths, tmp_path / "bad.pt").code == DAMAGED  # the answer outweighs the missing one


# --- ls -------------------------------------------------------------------------------------------------------


def test_ls_lists_newest_first(run_directory):
    listed = run("ls", "--json", run_directory)
    assert listed.code == GOOD
    checkpoints = listed.json["checkpoints"]
    assert [(c["step"], c["generation"]) for c in checkpoints] == [(30, 3), (20, 2), (10, 1)]
    assert [Path(c["path"]) for c in checkpoints] == checkpoints_of(run_directory)
    for checkpoint in checkpoints:
        assert checkpoint["whole"] and checkpoint["problem"] is None
        assert checkpoint["size"] == os.path.getsize(checkpoint["path"])
        assert abs(checkpoint["created"] - time.time()) < 600
        assert checkpoint["metrics"]["odd"] == "nan"
    text = run("ls", run_directory).out.splitlines()
    assert text[0].split() == ["STEP", "GENERATION", "AGE", "SIZE", "STATE", "METRICS", "REASON", "FILE"]
    assert text[1].split()[:2] == ["30", "3"] and "val_loss=0.333" in text[1] and " whole " in text[1]


def test_ls_marks_the_best(run_directory):
    losses = [c["metrics"]["val_loss"] for c in run("ls", "--json", run_directory).json["checkpoints"]]

    def marks(*best):
        options = [word for text in best for word in ("--best", text)]
        return [c["best"] for c in run("ls", "--json", *options, run_directory).json["checkpoints"]]

    def expected(order):
        return [", ".join("val_loss" for x in order if x == loss) or None for loss in losses]

    assert marks() == [None] * 3
    assert marks("val_loss") == expected([min(losses)]) and marks("val_loss:max") == expected([max(losses)])
    assert marks("val_loss:min:2") == expected(sorted(losses)[:2])
    assert marks("absent") == [None] * 3 and marks("odd") == [None] * 3, "NaN is not the best"
    assert len(set(losses)) == 3 and marks("val_loss", "val_loss:max").count("val_loss") == 2
    head, *rows = run("ls", "--best", "val_loss", run_directory).out.splitlines()
    assert "BEST" in head and sum(row.count("val_loss  ") for row in rows) == 1


def test_ls_says_why_a_checkpoint_is_not_whole(run_directory):
    newest = checkpoints_of(run_directory)[0]
    newest.write_bytes(newest.read_bytes()[:-30])
    listed = run("ls", "--json", run_directory)
    assert listed.code == DAMAGED
    assert [c["whole"] for c in listed.json["checkpoints"]] == [False, True, True]
    problem = listed.json["checkpoints"][0]["problem"]
    assert newest.name in run("ls", run_directory).out and problem


def test_ls_leaves_out_what_is_no_checkpoint(run_directory):
    (run_directory / "notes.txt").write_text("x")
    torch.save({}, run_directory / "model.pt")
    assert len(run("ls", "--json", run_directory).json["checkpoints"]) == 3


def test_an_empty_directory(tmp_path):
    listed = run("ls", tmp_path)
    assert listed.code == GOOD and "no checkpoints" in listed.out
    assert run("ls", "--json", tmp_path).json["checkpoints"] == []
    for command in ("show", "verify"):  # there is nothing that they could have looked at
        done = run(command, tmp_path)
        assert done.code == COULD_NOT_RUN and "no checkpoints" in done.out + done.err


# --- all of them ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["ls", "show", "verify"])
def test_what_is_not_there(tmp_path, command):
    done = run(command, tmp_path / "nowhere")
    assert done.code == COULD_NOT_RUN and "nowhere" in done.out + done.err
    as_json = run(command, "--json", tmp_path / "nowhere").json
    error = as_json["error"] if command != "verify" else as_json["files"][0]["error"]
    assert error["code"] == "not_found"


@pytest.mark.parametrize("command", ["ls", "show", "verify"])
def test_help_has_an_example(command):
    helped = run(command, "--help")
    assert helped.code == GOOD and f"Example:\n  perdure {command} " in helped.out
    assert command in run("--help").out


@pytest.mark.parametrize("arguments", [(), ("show",), ("verify",), ("ls",), ("frobnicate",), ("ls", "--nope", "x")])
def test_wrong_usage(arguments):
    done = run(*arguments)
    assert done.code == COULD_NOT_RUN and "--help" in done.err


def test_version():
    assert run("--version").out == f"perdure {perdure.__version__}\n"


def test_files_that_are_something_else(tmp_path):
    (tmp_path / "text").write_text("hello\n" * 100)
    with zipfile.ZipFile(tmp_path / "zip", "w") as archive:
        archive.writestr("a/b.txt", "hello")
    (tmp_path / "empty").write_bytes(b"")
    for name in ("text", "zip", "empty"):
        shown = run("show", tmp_path / name)
        assert shown.code in (DAMAGED, COULD_NOT_RUN) and name in shown.err and shown.out == ""
        assert run("verify", tmp_path / name).code in (DAMAGED, COULD_NOT_RUN)


def test_a_closed_pipe_is_silent(tmp_path):
    torch.save({f"k{i}": i for i in range(50_000)}, tmp_path / "x.pt")
    for ignored in (False, True):  # also under a parent that ignores SIGPIPE
        ignore = (lambda: signal.signal(signal.SIGPIPE, signal.SIG_IGN)) if ignored else None
        with subprocess.Popen(
            [PERDURE, "show", str(tmp_path / "x.pt")],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            preexec_fn=ignore,
            restore_signals=False,
        ) as process:
            assert process.stdout.readline()
            process.stdout.close()
            assert process.stderr.read() == b""
        assert process.returncode == -signal.SIGPIPE


def test_output_that_cannot_be_written_is_an_error(tmp_path):
    torch.save({}, tmp_path / "x.pt")
    with open("/dev/full", "wb") as full:
        done = subprocess.run([PERDURE, "show", str(tmp_path / "x.pt")], stdout=full, stderr=subprocess.PIPE)
    assert done.returncode == COULD_NOT_RUN and b"standard output" in done.stderr


def test_it_links_neither_python_nor_libtorch():
    from shutil import which

    libraries = subprocess.run(["ldd", which(PERDURE)], capture_output=True, text=True, check=True).stdout
    assert "libc.so" in libraries and "torch" not in libraries and "python" not in libraries


def test_it_starts_quickly(tmp_path):
    torch.save({"w": torch.ones(3)}, tmp_path / "x.pt")
    times = []
    for _ in range(30):
        began = time.perf_counter()
        subprocess.run([PERDURE, "show", str(tmp_path / "x.pt")], stdout=subprocess.DEVNULL, check=True)
        times.append(time.perf_counter() - began)
    # The best of many, as this measures the command and not what else the machine does: under 10 ms.
    assert min(times) < 0.010
