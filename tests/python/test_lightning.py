"""perdure.lightning, with the real Lightning."""

import functools
import logging
import multiprocessing
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("lightning")

import lightning  # noqa: E402
import lightning_training as training  # noqa: E402
import torch  # noqa: E402
from lightning.fabric.plugins.io import TorchCheckpointIO  # noqa: E402
from test_docs import blocks  # noqa: E402
from lightning_training import BATCHES, EPOCHS, SAVES, Data, Net, loaders, trainer_for  # noqa: E402

import perdure  # noqa: E402
from perdure.lightning import AsyncCheckpointIO, CheckpointIO, ExactResume, newest_whole  # noqa: E402

IN_THE_MIDDLE = "in the middle of epochs"
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["lightning_training"])


def run(*arguments) -> int:
    process = CONTEXT.Process(target=training.train, args=arguments)
    process.start()
    process.join(120)
    assert process.exitcode is not None, "hangs"
    return process.exitcode


def lines(log) -> list[str]:
    return log.read_text().splitlines()


@functools.cache
def undisturbed(folder, how, workers) -> dict:
    """{step: loss, "end": how it ends}"""
    log = folder / "log"
    assert run(folder / "run", how, workers, None, log) == 0
    told = dict(line.split(" ", 1) for line in lines(log))
    assert len(told) == EPOCHS * BATCHES + 1
    return told


@pytest.mark.parametrize("how, workers", [*((how, 0) for how in SAVES), ("after validations", 2)])
def test_killed_and_resumed_it_goes_on_with_the_same_bits(tmp_path_factory, tmp_path, how, workers):
    expected = undisturbed(tmp_path_factory.mktemp("undisturbed"), how, workers)
    log = tmp_path / "log"
    kills = [22] if workers else [5, 13, 22, 36]  # two workers for each iteration take long to start
    for die in kills:
        assert run(tmp_path / "run", how, workers, die, log) == -9
    assert run(tmp_path / "run", how, workers, None, log) == 0
    told = [line.split(" ", 1) for line in lines(log)]
    assert len(told) <= EPOCHS * BATCHES + 1 + len(kills) * (BATCHES + 1), "began anew"
    for what, bits in told:
        assert bits == expected[what], f"at step {what}"
    assert told[-1][0] == "end"


def run_ranks(folder, die, log):
    store = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    how = ("in the middle of epochs", 0, die, log)
    ranks = [CONTEXT.Process(target=training.train_rank, args=(rank, store.port, folder, *how)) for rank in range(2)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(120)
    return [process.exitcode for process in ranks]


def test_each_rank_gets_its_own_random_numbers_back(tmp_path):
    assert run_ranks(tmp_path / "undisturbed", None, tmp_path / "log") == [0, 0]
    for die in (7, 13):
        assert run_ranks(tmp_path / "run", die, tmp_path / "killed") == [-9, -9]
    assert run_ranks(tmp_path / "run", None, tmp_path / "killed") == [0, 0]
    ends = []
    for rank in range(2):
        expected = dict(line.split(" ", 1) for line in lines(tmp_path / f"log{rank}"))
        assert len(expected) == EPOCHS * BATCHES // 2 + 1
        told = [line.split(" ", 1) for line in lines(tmp_path / f"killed{rank}")]
        assert len(told) < 2 * len(expected)
        for what, bits in told:
            assert bits == expected[what], f"rank {rank} at step {what}"
        ends.append(expected["end"].rpartition("[")[2])
    assert ends[0] != ends[1], "the ranks draw the same numbers, so nothing was tested"


def fit(folder, plugins, epochs=1, how="after validations", **fit_options):
    lightning.seed_everything(1, verbose=False)
    trainer = trainer_for(folder, how, plugins)
    trainer.fit_loop.max_epochs = epochs
    module = Net()
    loader = torch.utils.data.DataLoader
    trainer.fit(module, loader(Data(), batch_size=4, shuffle=True), loader(Data(), batch_size=20), **fit_options)
    return trainer, module


def equal(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


@pytest.mark.parametrize("kind", [CheckpointIO, AsyncCheckpointIO])
def test_the_files_are_lightnings_own(tmp_path, kind):
    _, module = fit(tmp_path / "ours", [kind()], 2)
    _, stock = fit(tmp_path / "stock", [TorchCheckpointIO()], 2)
    assert equal(module, stock)
    names = {path.name for path in (tmp_path / "stock").iterdir()}
    assert {path.name for path in (tmp_path / "ours").iterdir()} == names and "last.ckpt" in names
    for name in names:
        ours, theirs = tmp_path / "ours" / name, tmp_path / "stock" / name
        assert perdure.verify(ours).state == "good"
        assert torch.load(ours).keys() == torch.load(theirs).keys()
    loaded = Net.load_from_checkpoint(tmp_path / "ours" / "last.ckpt")
    assert equal(loaded, module) and loaded.hparams.width == 16
    # Each goes on from what the other has saved.
    _, a = fit(tmp_path / "a", [TorchCheckpointIO()], 3, ckpt_path=tmp_path / "ours" / "last.ckpt")
    _, b = fit(tmp_path / "b", [kind()], 3, ckpt_path=tmp_path / "stock" / "last.ckpt")
    assert equal(a, b) and not equal(a, module)


def big():
    return {"state_dict": {"w": torch.ones(1 << 20)}, "global_step": 3}


class Full:
    """A disk on which there is no room for `big()`."""

    def __enter__(self):
        import resource

        self.before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, self.before[1]))

    def __exit__(self, *_):
        import resource

        resource.setrlimit(resource.RLIMIT_FSIZE, self.before)


def test_what_a_failed_save_was_to_replace_stays(tmp_path, caplog):
    io = AsyncCheckpointIO()
    io.save_checkpoint(big(), tmp_path / "a.ckpt")
    with Full():
        io.save_checkpoint(big(), tmp_path / "b.ckpt")
        io.remove_checkpoint(tmp_path / "a.ckpt")
        with pytest.raises(perdure.FullError, match="b.ckpt"):
            io.wait()
    io.save_checkpoint(big(), tmp_path / "c.ckpt")
    io.remove_checkpoint(tmp_path / "a.ckpt")
    io.teardown()
    assert [path.name for path in tmp_path.iterdir()] == ["c.ckpt"]
    assert io.load_checkpoint(tmp_path / "c.ckpt")["global_step"] == 3
    io.remove_checkpoint(tmp_path / "c.ckpt")
    assert not list(tmp_path.iterdir())


def test_a_save_that_fails_does_not_end_the_training(tmp_path, caplog):
    io = AsyncCheckpointIO()
    with Full():
        for number in range(3):
            io.save_checkpoint(big(), tmp_path / f"{number}.ckpt")
        assert [record.levelno for record in caplog.records] == [logging.WARNING] * 2
        assert "in a row: 2" in caplog.text and "1.ckpt" in caplog.text
        with pytest.raises(perdure.FullError, match="2.ckpt"):  # the third one
            io.save_checkpoint(big(), tmp_path / "4.ckpt")
        io.save_checkpoint(big(), tmp_path / "5.ckpt")
        with pytest.raises(perdure.FullError, match="5.ckpt"):
            io.teardown()
        io.teardown()
        io = AsyncCheckpointIO(on_error="raise")
        io.save_checkpoint(big(), tmp_path / "6.ckpt")
        with pytest.raises(perdure.FullError, match="6.ckpt"):
            io.save_checkpoint(big(), tmp_path / "7.ckpt")
    with pytest.raises(perdure.InvalidError, match="on_error"):
        AsyncCheckpointIO(on_error="ignore")


def test_the_newest_whole_checkpoint_is_taken(tmp_path, caplog):
    assert newest_whole(tmp_path / "none") is None and newest_whole(tmp_path) is None
    fit(tmp_path, [CheckpointIO()], 2, "in the middle of epochs")
    newest = newest_whole(tmp_path)
    steps = {path.name: torch.load(path)["global_step"] for path in tmp_path.iterdir()}
    assert steps[Path(newest).name] == 18 == max(steps.values())
    for name, step in steps.items():
        if step == 18:
            damaged = bytearray((tmp_path / name).read_bytes())
            damaged[len(damaged) // 2] ^= 1
            (tmp_path / name).write_bytes(damaged)
    older = newest_whole(tmp_path)
    assert steps[Path(older).name] == 15 and "is damaged" in caplog.text
    with pytest.raises(perdure.CorruptionError):
        CheckpointIO().load_checkpoint(newest)
    for path in tmp_path.iterdir():
        path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(perdure.CorruptionError, match="all [0-9]+ checkpoints"):
        newest_whole(tmp_path)


def test_what_cannot_be_saved_is_named(tmp_path):
    class Named(Net):
        def on_save_checkpoint(self, checkpoint):
            checkpoint["hyper_parameters"]["activation"] = torch.nn.ReLU()

    trainer = trainer_for(tmp_path, "after validations", [AsyncCheckpointIO()])
    with pytest.raises(perdure.InvalidError, match=r"\['hyper_parameters'\]\['activation'\]"):
        trainer.fit(Named(), *loaders())
    for path in ("s3://bucket/a.ckpt", "gs://bucket/a.ckpt"):
        with pytest.raises(perdure.InvalidError, match="file system"):
            CheckpointIO().save_checkpoint(big(), path)
    with pytest.raises(TypeError, match="storage_options"):
        CheckpointIO().save_checkpoint(big(), tmp_path / "a.ckpt", storage_options={})


def test_a_checkpoint_at_the_end_of_an_epoch_before_its_validation_is_told_of(tmp_path, caplog):
    trainer = trainer_for(tmp_path, IN_THE_MIDDLE, [CheckpointIO()], [ExactResume()])
    trainer.fit_loop.max_epochs = 3  # 30 steps: the last one is both
    trainer.fit(Net(), *loaders())
    assert caplog.text.count("leaves it out") == 1


def test_fabric_saves_and_loads(tmp_path):
    for kind in (CheckpointIO, AsyncCheckpointIO):
        io = kind()
        fabric = lightning.Fabric(accelerator="cpu", devices=1, plugins=[io])
        model = torch.nn.Linear(8, 1)
        model, optimizer = fabric.setup(model, torch.optim.AdamW(model.parameters(), lr=1e-2))
        fabric.backward(model(Data()[3][0]).sum())
        optimizer.step()
        fabric.save(tmp_path / "a.ckpt", {"model": model, "optimizer": optimizer, "step": 7})
        other = torch.nn.Linear(8, 1)
        other, other_optimizer = fabric.setup(other, torch.optim.AdamW(other.parameters()))
        rest = fabric.load(tmp_path / "a.ckpt", {"model": other, "optimizer": other_optimizer})
        assert rest == {"step": 7} and equal(model, other)
        assert other_optimizer.param_groups[0]["lr"] == 1e-2
        io.teardown()


def test_the_page_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (sample,) = blocks("python", "docs/lightning.md")
    names = {"model": Net(), "loader": torch.utils.data.DataLoader(Data(), batch_size=1)}
    exec(sample, names)
    assert names["trainer"].global_step == 120 and Path(newest_whole("runs/x")).name == "last.ckpt"
    exec(sample, names)  # there is nothing left to do
    assert names["trainer"].global_step == 120


def test_under_its_other_name(tmp_path):
    code = """
import sys, torch, pytorch_lightning as pl, perdure.lightning as own
assert "lightning" not in sys.modules

class Net(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(2, 1)

    def training_step(self, batch, number):
        return self.layer(batch[0]).sum()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)

loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.ones(8, 2)), batch_size=2)
options = {"accelerator": "cpu", "logger": False, "plugins": [own.AsyncCheckpointIO()]}
callbacks = [own.ExactResume(), pl.callbacks.ModelCheckpoint(sys.argv[1], save_last=True)]
for epochs in (1, 2):
    trainer = pl.Trainer(max_epochs=epochs, callbacks=callbacks, **options)
    trainer.fit(Net(), loader, ckpt_path=own.newest_whole(sys.argv[1]))
    assert trainer.global_step == 4 * epochs
"""
    subprocess.run([sys.executable, "-c", code, tmp_path], check=True)


def test_importing_perdure_imports_no_lightning():
    code = "import perdure, sys; assert not [m for m in sys.modules if 'lightning' in m and 'perdure' not in m]"
    subprocess.run([sys.executable, "-c", code], check=True)
