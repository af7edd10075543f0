"""The perdure command on checkpoints of several ranks, and joining them into one file and splitting it again."""

import io
import json
import random
import shutil
import subprocess
from collections import OrderedDict

import numpy
import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from ranks import run as run_ranks
from test_cli import COULD_NOT_RUN, DAMAGED, GOOD, PERDURE, run

import perdure

NAME = "step-0000000007-g00000001.dcp"


class Own:
    """What a rank has of its own."""

    def __init__(self):
        self.seen = {}

    def state_dict(self):
        return {"seen": self.seen}

    def load_state_dict(self, state):
        self.seen = state["seen"]


def training(seed=0):
    torch.manual_seed(seed)
    model = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.Linear(8, 8), torch.nn.Linear(8, 2))
    model[2].weight = torch.nn.Parameter(model[1].weight.detach()[:2].clone())
    optimizer = torch.optim.AdamW(model.parameters())
    own = Own()
    state = perdure.TrainingState(model=model, optimizer=optimizer, own=own, epoch=0)
    model(torch.ones(3, 6)).sum().backward()
    optimizer.step()
    return state, model, own


def save(_, folder):
    """Two checkpoints; each rank has random numbers and a dict of its own."""
    state, model, own = training()
    rank = dist.get_rank()
    torch.manual_seed(100 + rank)
    random.seed(rank)
    own.seen = {rank: torch.full((3,), float(rank)), (1, "a"): [rank, None, {2.5: b"x"}]}
    with perdure.CheckpointManager(folder / "run", process_group=dist.group.WORLD, keep_last=5) as checkpoints:
        for state.step, loss in ((7, 2.0), (9, 1.0)):
            checkpoints.save(state, metrics={"loss": loss}).wait()
            with torch.no_grad():
                model[0].weight += 1
    return json.dumps([torch.rand(()).item(), random.random()])


def restore(_, folder):
    """From the paths in `folder`, what of them this rank gets."""
    paths = (folder / "paths").read_text().split("\n")
    return json.dumps([restored(path, dist.group.WORLD, folder) for path in paths])


def restored(path, group, folder):
    state, model, own = training(seed=1)
    random.seed(99)
    torch.manual_seed(99)
    with perdure.CheckpointManager(folder / "empty", process_group=group) as checkpoints:
        found = checkpoints.restore(state, path=path)
    total = sum(x.double().sum().item() for x in model.state_dict().values())
    seen = repr({key: value.tolist() if isinstance(value, torch.Tensor) else value for key, value in own.seen.items()})
    return [found.step, state.step, found.metrics, total, seen, torch.rand(()).item(), random.random()]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    drawn = [json.loads(said) for said in run_ranks(2, "", "test_cli_ranks.save", folder)]
    (folder / "drawn").write_text(json.dumps(drawn))
    return folder


@pytest.fixture
def directory(saved, tmp_path):
    shutil.copytree(saved / "run", tmp_path / "run")
    return tmp_path / "run"


def bytes_in(directory):
    return sum(file.stat().st_size for file in directory.iterdir())


def same(a, b):
    """Kinds, keys and their order, and bits."""
    assert type(a) is type(b)
    if isinstance(a, dict):
        assert [(type(key), key) for key in a] == [(type(key), key) for key in b]
        assert vars(a) == vars(b) if isinstance(a, OrderedDict) else True
        for key in a:
            same(a[key], b[key])
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            same(x, y)
    elif isinstance(a, torch.Tensor):
        assert (a.dtype, a.device, a.requires_grad) == (b.dtype, b.device, b.requires_grad)
        assert torch.equal(a, b)
    elif isinstance(a, numpy.ndarray):
        assert a.dtype == b.dtype and (a == b).all()
    else:
        assert a == b


def test_a_run_is_listed(directory):
    listed = run("ls", "--json", directory)
    assert listed.code == GOOD
    found = listed.json["checkpoints"]
    assert [(c["step"], c["generation"], c["metrics"], c["whole"]) for c in found] == [
        (9, 2, {"loss": 1.0}, True), (7, 1, {"loss": 2.0}, True),
    ]  # fmt: skip
    assert [c["size"] for c in found] == [bytes_in(directory / c["path"].rsplit("/")[-1]) for c in found]
    assert NAME in run("ls", directory).out
    assert [(c.step, c.size) for c in perdure.list_checkpoints(directory)] == [(c["step"], c["size"]) for c in found]


def test_each_subcommand_takes_the_run_and_the_directory(directory):
    newest = directory / "step-0000000009-g00000002.dcp"
    for path in (directory, newest):
        shown = run("show", "--json", path, "model")
        assert shown.code == GOOD and "model.0.weight" in shown.out
        assert run("show", path, "step").out.split("\n")[1].split() == ["step", "int", "9"]
        assert run("stats", path, "model").code == GOOD
        assert run("verify", path).code == GOOD
        array = subprocess.run([PERDURE, "cat", path, "model.0.weight"], capture_output=True, check=True).stdout
        assert (numpy.load(io.BytesIO(array)) == perdure.load(newest)["model"]["0.weight"].numpy()).all()
        assert run("diff", path, newest).code == GOOD
    differs = run("diff", "--json", directory / NAME, directory, "model")
    assert differs.code == 1 and "model.0.weight" in differs.out and "model.1.weight" not in differs.out
    found = perdure.inspect(newest, "model.*")
    assert found.bytes == bytes_in(newest) and found.step == 9 and found.tensors["model.0.weight"].shape == (8, 6)
    assert "1" in perdure.load(newest)["ranks"]


def test_prune_removes_the_directories(directory):
    pruned = run("prune", "--json", "--keep-last", 1, directory)
    assert pruned.code == GOOD and [c["kept"] for c in pruned.json["checkpoints"]] == [True, False]
    assert [path.name for path in directory.glob("step-*")] == ["step-0000000009-g00000002.dcp"]


def test_a_link_in_a_run_is_no_checkpoint(directory, tmp_path):
    shutil.move(directory / NAME, tmp_path / "elsewhere")
    (directory / NAME).symlink_to(tmp_path / "elsewhere")
    assert [c.step for c in perdure.list_checkpoints(directory)] == [9]


@pytest.mark.parametrize("file", [".metadata", "perdure.json", "__0_0.distcp", "__1_0.distcp"])
def test_verify_finds_every_flip_that_a_reader_could_see(directory, file):
    """What nobody reads (padding between the records of a zip) may be as it likes."""
    path = directory / NAME / file
    whole = path.read_bytes()
    truth = perdure.load(directory / NAME)
    found, choice = 0, random.Random(file)
    for _ in range(60):
        data = bytearray(whole)
        data[choice.randrange(len(data))] ^= 1 << choice.randrange(8)
        path.write_bytes(data)
        if perdure.verify(directory / NAME).state == "damaged":
            found += 1
        else:
            assert file.endswith("distcp")
            same(truth, perdure.load(directory / NAME))
    assert found > 30


def test_verify_names_the_tensor_and_the_file(directory):
    bits = perdure.load(directory / NAME)["model"]["0.weight"].numpy().tobytes()[:64]
    holder = next(path for path in (directory / NAME).glob("*.distcp") if bits in path.read_bytes())
    data = bytearray(holder.read_bytes())
    data[bytes(data).index(bits) + 5] ^= 1
    holder.write_bytes(data)
    report = run("verify", "--json", directory)
    assert report.code == DAMAGED
    good, bad = report.json["files"]
    assert (good["state"], bad["state"]) == ("good", "damaged")
    (finding,) = bad["findings"]
    assert finding["record"] == "model.0.weight" and "0.weight" in finding["tensor"] and holder.name in finding["what"]
    assert run("verify", directory / NAME).code == DAMAGED


def test_joined_and_split_again(directory, tmp_path):
    assert run("convert", directory / NAME, tmp_path / "one.pt").code == GOOD
    source = perdure.load(directory / NAME)
    joined = perdure.load(tmp_path / "one.pt")
    same(source, joined)
    assert list(joined["ranks"]) == ["1"]
    same(source["model"], torch.load(tmp_path / "one.pt", weights_only=True)["model"])
    info = [run("show", "--json", path).json["info"] for path in (directory / NAME, tmp_path / "one.pt")]
    assert info[0] == info[1] and info[0]["step"] == 7 and info[0]["metrics"] == {"loss": 2.0}
    assert info[0]["generation"] == 1 and info[0]["ranks"] == 2
    assert "saved by 2 ranks" in run("show", tmp_path / "one.pt").out
    assert run("convert", tmp_path / "one.pt", tmp_path / "split").code == GOOD
    assert run("verify", tmp_path / "split").code == GOOD
    same(source, perdure.load(tmp_path / "split"))
    assert run("convert", tmp_path / "split", tmp_path / "again.pt").code == GOOD
    assert (tmp_path / "again.pt").read_bytes() == (tmp_path / "one.pt").read_bytes()


def test_restored_from_a_file_as_from_the_directory(saved, directory, tmp_path):
    one, split = tmp_path / "one.pt", tmp_path / "split"
    perdure.convert(directory / NAME, one)
    perdure.convert(one, split)
    (tmp_path / "paths").write_text("\n".join(map(str, (directory / NAME, one, split))))
    drawn = json.loads((saved / "drawn").read_text())
    others = []
    for size in (2, 3):
        for rank, said in enumerate(run_ranks(size, "", "test_cli_ranks.restore", tmp_path)):
            from_directory, from_file, from_split = json.loads(said)
            assert from_directory == from_file == from_split
            assert from_file[:3] == [7, 7, {"loss": 2.0}]
            if rank < 2:
                assert f"{rank}: [{rank}.0" in from_file[4] and from_file[5:] == drawn[rank]
            others.append(from_file[3])
    assert len(set(others)) == 1  # the model is the same everywhere
    random.seed(5)
    alone = restored(one, None, tmp_path)
    assert alone[:3] == [7, 7, {"loss": 2.0}] and alone[5:] == drawn[0] and alone[3] == others[0]


def test_parts_of_it_have_no_other_ranks(directory, tmp_path):
    perdure.convert(directory, tmp_path / "model.pt", only=["model"])
    perdure.convert(directory, tmp_path / "bare.pt", strip_optimizer=True)
    assert list(perdure.load(tmp_path / "model.pt")) == ["model"]
    assert "ranks" not in perdure.load(tmp_path / "bare.pt")
    perdure.convert(directory, tmp_path / "half.pt", dtype=torch.bfloat16)
    assert perdure.load(tmp_path / "half.pt")["model"]["0.weight"].dtype == torch.bfloat16
    assert "1" in perdure.load(tmp_path / "half.pt")["ranks"]


def anything():
    w = torch.randn(4, 6)
    return {
        "w": w, "tied": w, "view": w[1:3], "turned": w.t(), "empty": torch.empty(0, 3), "scalar": torch.tensor(2.5),
        "parameter": torch.nn.Parameter(torch.randn(3)), "lazy": torch.tensor([1 + 2j]).conj(),
        "ordered": OrderedDict([(3, torch.ones(1)), ("3b", {None: 1, (1, 2): 2})]),
        "list": [torch.zeros(2), {"a": torch.ones(2)}], "tuple": (torch.ones(2), [1, b"x"]), "numbers": [1, 2**70, 0.5],
        "sparse": torch.eye(3).to_sparse(), "array": numpy.arange(4, dtype="i2"), "nothing": {}, 5: True,
    }  # fmt: skip


def test_a_file_of_one_process_is_split_exactly(tmp_path):
    state = anything()
    perdure.save(state, tmp_path / "x.pt")
    perdure.convert(tmp_path / "x.pt", tmp_path / "dir")
    back = perdure.load(tmp_path / "dir")
    assert torch.equal(back.pop("sparse").to_dense(), state.pop("sparse").to_dense())
    same(state, back)
    assert isinstance(back["parameter"], torch.nn.Parameter)
    assert back["w"].data_ptr() == back["tied"].data_ptr()
    assert perdure.verify(tmp_path / "dir").state == "good"
    into = {"w": torch.zeros(4, 6), "view": torch.zeros(2, 6), "ordered": {"3": torch.zeros(1)}, "5": None}
    dcp.load(into, checkpoint_id=tmp_path / "dir")
    assert torch.equal(into["w"], state["w"]) and torch.equal(into["view"], state["view"])
    assert torch.equal(into["ordered"]["3"], torch.ones(1)) and into["5"] is True


def test_a_name_of_ones_own_is_left_alone(tmp_path):
    """A key "ranks" in the file of one process, of perdure's or not, is that process's."""
    state = perdure.TrainingState(ranks={"1": {"a": 1}}, w=torch.ones(2))
    with perdure.CheckpointManager(tmp_path / "run") as checkpoints:
        checkpoints.save(state).wait()
        state.ranks = {}
        checkpoints.restore(state)
    assert state.ranks == {"1": {"a": 1}}
    for writer in (perdure.save, torch.save):
        writer({"ranks": {"1": {"a": 1}}, "w": torch.ones(2)}, tmp_path / "x.pt")
        perdure.convert(tmp_path / "x.pt", tmp_path / "dir", force=True)
        assert perdure.load(tmp_path / "dir")["ranks"] == {"1": {"a": 1}}
        assert not (tmp_path / "dir" / "perdure.json").exists()
        state.ranks = {}
        with perdure.CheckpointManager(tmp_path / "other") as checkpoints:
            checkpoints.restore(state, path=tmp_path / "x.pt", strict=False)
        assert state.ranks == {"1": {"a": 1}}


def test_foreign_files_become_what_dcp_saves(tmp_path):
    torch.save({1: torch.ones(2), "n": 3}, tmp_path / "x.pt")
    perdure.convert(tmp_path / "x.pt", tmp_path / "dir")
    assert sorted(path.name for path in (tmp_path / "dir").iterdir()) == [".metadata", "__0_0.distcp"]
    assert list(perdure.load(tmp_path / "dir")) == ["1", "n"]


def test_a_run_without_checkpoints_is_told(tmp_path):
    (tmp_path / "run").mkdir()
    done = run("verify", tmp_path / "run")
    assert done.code == COULD_NOT_RUN and "step-*-g*.dcp" in done.err + done.out
