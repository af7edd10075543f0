"""The everyday case: a loop over epochs that keeps its best loss, and can be stopped and started at will.

python everyday.py runs/everyday
"""

import sys

import torch

import perdure

EPOCHS = 10

torch.manual_seed(1)
inputs = torch.randn(256, 8)
targets = inputs.sum(dim=1, keepdim=True)
model = torch.nn.Sequential(torch.nn.Linear(8, 32), torch.nn.ReLU(), torch.nn.Linear(32, 1))
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
loader = torch.utils.data.DataLoader(
    torch.utils.data.TensorDataset(inputs, targets), batch_size=32, shuffle=True
)

state = perdure.TrainingState(model=model, optimizer=optimizer, epoch=0, best_loss=float("inf"))
with perdure.CheckpointManager(
    sys.argv[1], keep_last=3, keep_best=perdure.Best("loss", "min")
) as checkpoints:
    print("restored:", checkpoints.restore(state))
    while state.epoch < EPOCHS:
        for x, y in loader:
            loss = torch.nn.functional.mse_loss(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            state.step += 1
        state.epoch += 1
        state.best_loss = min(state.best_loss, loss.item())
        checkpoints.save(state, metrics={"loss": loss})
        print(f"epoch {state.epoch}: loss {loss.item():.4f}, best {state.best_loss:.4f}")
