"""A small training with Lightning, of which nothing is left to chance: every batch tells the bits of its loss."""

import logging
import os
import random
import signal
import warnings

import lightning
import numpy
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from torch.utils.data import DataLoader, Dataset, DistributedSampler

import perdure
import perdure.lightning
from perdure.lightning import AsyncCheckpointIO, ExactResume, newest_whole

warnings.filterwarnings("ignore")
logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)

SAVES = {
    "in the middle of epochs": {"every_n_train_steps": 3, "monitor": "step", "mode": "max"},
    "at the end of epochs": {"save_on_train_epoch_end": True, "monitor": "step", "mode": "max"},
    "after validations": {"monitor": "val"},
    "after validations in the middle": {"monitor": "val"},
}
EPOCHS, BATCHES = 4, 10


class Data(Dataset):
    """Each sample draws from each global generator."""

    def __len__(self):
        return 4 * BATCHES

    def __getitem__(self, i):
        x = torch.rand(8) + i + random.random() + float(numpy.random.rand())
        return x, x.sum().reshape(1)


class Net(lightning.LightningModule):
    def __init__(self, width=16, log=None, die=None):
        super().__init__()
        self.save_hyperparameters(ignore=["log", "die"])
        linear = torch.nn.Linear
        self.net = torch.nn.Sequential(linear(8, width), torch.nn.ReLU(), torch.nn.Dropout(0.3), linear(width, 1))
        self.write, self.die = log, die

    def loss(self, batch):
        x, y = batch
        return torch.nn.functional.mse_loss(self.net(x), y) / 1000

    def training_step(self, batch, number):
        loss = self.loss(batch)
        if self.write:
            self.write(f"{self.trainer.global_step} {loss.item().hex()}")
        if self.trainer.global_step == self.die:
            os.kill(os.getpid(), signal.SIGKILL)
        return loss

    def validation_step(self, batch, number):
        self.log("val", self.loss(batch))

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), lr=1e-2)
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 3, gamma=0.9)
        return [optimizer], [{"scheduler": scheduler, "interval": "step"}]


class LogStep(Callback):
    def on_train_batch_end(self, trainer, module, *_):
        module.log("step", float(trainer.global_step))


def trainer_for(folder, how, plugins, callbacks=(), **options):
    checkpoint = ModelCheckpoint(folder, save_last=True, save_top_k=2, **SAVES[how])
    if how == "after validations in the middle":
        options["val_check_interval"] = 4
    return lightning.Trainer(
        max_epochs=EPOCHS, accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        default_root_dir=folder, plugins=plugins, callbacks=[LogStep(), checkpoint, *callbacks], **options,
    )  # fmt: skip


def loaders(workers=0, ranks=1):
    sampler = DistributedSampler(Data()) if ranks > 1 else None
    loader = DataLoader(Data(), batch_size=4, shuffle=sampler is None, sampler=sampler, num_workers=workers)
    return perdure.ResumableLoader(loader, seed_samples=workers > 0), DataLoader(Data(), batch_size=20)


def train(folder, how, workers, die, log, ranks=1, rank=0, **options):
    """One process of a training, from the newest whole checkpoint on; killed in the batch after `die` steps."""
    torch.set_num_threads(1)

    def say(text):
        with open(log, "a") as file:
            file.write(text + "\n")

    lightning.seed_everything(1 + rank, verbose=False)
    trainer = trainer_for(folder, how, [AsyncCheckpointIO()], [ExactResume()], **options)
    module = Net(log=say, die=die)
    trainer.fit(module, *loaders(workers, ranks), ckpt_path=newest_whole(folder))
    bits = [p.detach().double().sum().item().hex() for p in module.parameters()]
    drawn = [torch.rand(1).item(), random.random(), float(numpy.random.rand())]
    say(f"end {bits} {trainer.optimizers[0].param_groups[0]['lr']} {drawn}")


def train_rank(rank, port, folder, how, workers, die, log):
    """The same as one of two ranks that torchrun would have started."""
    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "GROUP_RANK": "0", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TORCHELASTIC_RUN_ID": "test",
        "TORCHELASTIC_USE_AGENT_STORE": "True",
    }  # fmt: skip
    torch.distributed.init_process_group("gloo", rank=rank, world_size=2)
    train(folder, how, workers, die, f"{log}{rank}", ranks=2, rank=rank, strategy="ddp", devices=2)
