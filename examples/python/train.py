"""A training that can be stopped at any moment, in any way, and goes on exactly: everything that a real loop has.

python train.py runs/waves          # stop it with Ctrl-C, kill it, preempt it; then the same again
"""

import argparse
import signal
import sys

import torch
from torch import nn
from torch.nn.functional import cross_entropy

import perdure


class Waves(torch.utils.data.Dataset):
    """Sines of four frequencies, with another phase and other noise every time they are loaded."""

    def __len__(self):
        return 2048

    def __getitem__(self, index):
        time = torch.linspace(0, 6.28, 64)
        wave = torch.sin(time * (1 + index % 4) + 6.28 * torch.rand(()))
        return wave + 2 * torch.randn(64), index % 4


args = argparse.ArgumentParser()
args.add_argument("run")
args.add_argument("--epochs", type=int, default=5)
args.add_argument("--save-every", type=int, help="steps, beside as often as costs at most 2 %%")
args = args.parse_args()

torch.manual_seed(1)
device = "cuda" if torch.cuda.is_available() else "cpu"
body = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Dropout(0.2), nn.Linear(128, 64), nn.ReLU()).to(device)
head = nn.Linear(64, 4).to(device)
adamw = torch.optim.AdamW(body.parameters(), lr=3e-3)
sgd = torch.optim.SGD(head.parameters(), lr=0.05, momentum=0.9, nesterov=True)
warmup = torch.optim.lr_scheduler.LambdaLR(sgd, lambda step: min(1.0, (step + 1) / 50))
plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(adamw, patience=1)
scaler = torch.amp.GradScaler(device)
batches = torch.utils.data.DataLoader(Waves(), batch_size=32, shuffle=True, num_workers=2)
batches = perdure.ResumableLoader(batches, seed_samples=True)  # the noise comes back, too
average = torch.optim.swa_utils.AveragedModel(head)

state = perdure.TrainingState(body=body, head=head, average=average, adamw=adamw, sgd=sgd, warmup=warmup, plateau=plateau,
                              scaler=scaler, batches=batches, epoch=0, best_loss=float("inf"), losses=[])  # fmt: skip
with perdure.CheckpointManager(
    args.run, overhead=0.02, save_every=args.save_every, save_on_signal=(signal.SIGTERM, signal.SIGUSR1),
    keep_last=2, keep_best=perdure.Best("loss", "min"), keep_every=perdure.Every(hours=6)
) as checkpoints:  # fmt: skip
    print("restored:", checkpoints.restore(state), flush=True)
    while state.epoch < args.epochs and not checkpoints.preempted:
        for waves, labels in batches:
            with torch.autocast(device, torch.bfloat16):
                loss = cross_entropy(head(body(waves.to(device))), labels.to(device))
            scaler.scale(loss).backward()
            for optimizer in (adamw, sgd):
                scaler.step(optimizer)
                optimizer.zero_grad()
            scaler.update(), warmup.step(), average.update_parameters(head)
            state.losses.append(loss.item())
            state.step += 1
            if checkpoints.should_save(state.step):
                checkpoints.save(state)
            if checkpoints.preempted:
                break
        else:  # the epoch is over
            mean = sum(state.losses[-len(batches) :]) / len(batches)
            plateau.step(mean)
            state.epoch += 1
            state.best_loss = min(state.best_loss, mean)
            checkpoints.save(state, metrics={"loss": mean})
            print(f"epoch {state.epoch}: loss {mean:.4f}, best {state.best_loss:.4f}", flush=True)
if checkpoints.preempted:
    sys.exit(75)  # not done yet: whoever has started it should do so again
