"""Trains a small GPT on text files; kill it at any moment and start it again: it goes on exactly where it was.

python train_gpt.py --run runs/gpt --text ../../README.md --steps 300 --save-every 5
"""

import argparse
import pathlib
import random

import numpy
import torch
from gpt import CONFIG, VOCABULARY, Gpt
from torch.nn import functional as F

import perdure

BATCH = 16


def read_text(paths):
    text = b"\n".join(pathlib.Path(p).read_bytes() for p in paths)
    return torch.tensor([b for b in text if b < VOCABULARY])


def random_batch(text, context):
    starts = torch.randint(len(text) - context - 1, (BATCH,))
    windows = text[starts[:, None] + torch.arange(context + 1)]
    return windows[:, :-1], windows[:, 1:]


def train_step(model, optimizer, scheduler, text):
    tokens, targets = random_batch(text, model.context)
    loss = F.cross_entropy(model(tokens).view(-1, VOCABULARY), targets.reshape(-1))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    scheduler.step()
    return loss.item()


def train(run, text, steps, save_every):
    model = Gpt(**CONFIG)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=100, gamma=0.5)
    state = perdure.TrainingState(
        model=model, optimizer=optimizer, scheduler=scheduler, losses=[], config={**CONFIG, "batch": BATCH}
    )
    with perdure.CheckpointManager(run, keep_last=3) as checkpoints:
        checkpoints.restore(state)
        print(f"starting at step {state.step}", flush=True)
        while state.step < steps:
            state.losses.append(train_step(model, optimizer, scheduler, text))
            state.step += 1
            if state.step % save_every == 0 or state.step == steps:
                checkpoints.save(state, metrics={"loss": state.losses[-1]})
    if state.losses:
        print(f"step {state.step}: loss {state.losses[-1]:.4f}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--run", required=True, help="directory of the checkpoints; training goes on from the newest"
    )
    parser.add_argument("--text", required=True, nargs="+", help="files to train on")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--save-every", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(1)
    for seed in (torch.manual_seed, random.seed, numpy.random.seed):  # all of them are in the checkpoint
        seed(1)
    train(args.run, read_text(args.text), args.steps, args.save_every)


if __name__ == "__main__":
    main()
