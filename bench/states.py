"""The training runs whose states are saved: real modules with a real AdamW, in the sizes of the benches."""

import dataclasses

import torch
from torch import nn
from torch.nn import functional


@dataclasses.dataclass(frozen=True)
class Shape:
    """Of a GPT-2: 12 layers of width 768 are the one of 124M parameters."""

    layers: int
    width: int
    vocabulary: int
    context: int


# The sizes: "full" is what the tables are about, "small" is for --quick and for work on the bench itself.
GPT = {"full": Shape(12, 768, 50257, 1024), "small": Shape(2, 192, 4096, 128)}
TRAINED = {"full": Shape(8, 512, 9472, 256), "small": Shape(2, 192, 4096, 128)}
SMALL_CELLS = {"full": 1000, "small": 100}


class Block(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.heads = width // 64
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.fc, self.out = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x):
        batch, length, width = x.shape
        q, k, v = (
            part.view(batch, length, self.heads, -1).transpose(1, 2)
            for part in self.qkv(self.ln_1(x)).split(width, 2)
        )
        attended = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.proj(attended.transpose(1, 2).reshape(batch, length, width))
        return x + self.out(functional.gelu(self.fc(self.ln_2(x))))


class GPT2(nn.Module):
    """GPT-2 with its input embedding used for the output too, so that there is one tensor of it."""

    def __init__(self, shape: Shape):
        super().__init__()
        self.wte = nn.Embedding(shape.vocabulary, shape.width)
        self.wpe = nn.Embedding(shape.context, shape.width)
        self.h = nn.ModuleList(Block(shape.width) for _ in range(shape.layers))
        self.ln_f = nn.LayerNorm(shape.width)
        nn.init.normal_(self.wte.weight, std=0.02)

    def forward(self, tokens):
        x = self.wte(tokens) + self.wpe.weight[: tokens.shape[1]]
        for block in self.h:
            x = block(x)
        return functional.linear(self.ln_f(x), self.wte.weight)


class Cell(nn.Module):
    def __init__(self):
        super().__init__()
        for name in ("query", "key", "value", "output"):
            setattr(self, name, nn.Parameter(torch.randn(50, 125)))


class ManySmall(nn.Module):
    """Four parameters of 25 kB a cell: what costs here is everything but the bytes."""

    def __init__(self, cells: int):
        super().__init__()
        self.cells = nn.ModuleList(Cell() for _ in range(cells))


class Training:
    """A module, its AdamW and an epoch: what a checkpoint holds."""

    def __init__(self, model: nn.Module, moments: bool):
        self.model = model
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
        self.epoch = 0
        if moments:  # as after a first step, without the memory of the gradients
            for parameter in model.parameters():
                self.optimizer.state[parameter] = {
                    "step": torch.tensor(1.0),
                    "exp_avg": torch.rand_like(parameter),
                    "exp_avg_sq": torch.rand_like(parameter),
                }

    def as_dict(self) -> dict:
        """What one hands to torch.save. It is made anew at each save, and that time counts."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "epoch": self.epoch,
        }

    def load_dict(self, state: dict) -> None:
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.epoch = state["epoch"]

    def tensors(self) -> dict[str, torch.Tensor]:
        return tensors_of(self.as_dict())

    @property
    def nbytes(self) -> int:
        return sum(t.nbytes for t in self.tensors().values())

    def advance(self) -> None:
        """Changes every tensor, as a step does, so that no engine can leave anything out."""
        self.epoch += 1
        with torch.no_grad():
            torch._foreach_add_(list(self.tensors().values()), 1.0)


def tensors_of(state: dict) -> dict[str, torch.Tensor]:
    """The tensors of a state by flat names, which is what safetensors takes."""
    found = {f"model.{name}": tensor for name, tensor in state["model"].items()}
    for index, slots in state["optimizer"]["state"].items():
        found |= {f"optimizer.{index}.{name}": tensor for name, tensor in slots.items()}
    return found


def build(kind: str, scale: str, moments: bool = True) -> Training:
    """kind: "gpt", "trained" or "small". The same values every time."""
    torch.manual_seed(1)
    if kind == "small":
        return Training(ManySmall(SMALL_CELLS[scale]), moments)
    return Training(GPT2((GPT if kind == "gpt" else TRAINED)[scale]), moments)
