"""Makes the golden files of one version of PyTorch, and what is in them as that version sees it.

    python make.py FOLDER            # once with each PyTorch: 1.13 (Debian's python3-torch), 2.13, 2.14

FOLDER gets, as far as the version has it: state.pt (a training's state), tensors.pt (every dtype, views, tied and empty
tensors), legacy.pt (the same state in the format before 1.6), script.pt (TorchScript), sparse.pt, quantized.pt, nested.pt
and dcp/ (torch.distributed.checkpoint); and expected.json: for each file, each tensor's place, dtype, shape and SHA-256 of
its elements in row-major order, little-endian.
"""

import collections
import hashlib
import io
import json
import sys
from pathlib import Path

import torch

DTYPES = [
    "float64", "float32", "float16", "bfloat16", "complex128", "complex64", "complex32", "int64", "int32", "int16", "int8",
    "uint64", "uint32", "uint16", "uint8", "bool", "float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz",
    "float8_e8m0fnu",
]  # fmt: skip


def numbers(dtype, *shape):
    """Every byte of them follows from its place; of bools and of floats that are no NaN, as far as there are any."""
    count = torch.Size(shape).numel()
    if dtype == torch.bool:
        return (torch.arange(count) % 3 == 0).reshape(shape)
    size = torch.empty(0, dtype=dtype).element_size()
    data = torch.tensor([(i * 37 + 11) % 120 for i in range(count * size)], dtype=torch.uint8)
    return data.view(dtype).reshape(shape)


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = torch.nn.Embedding(5, 3)
        self.norm = torch.nn.BatchNorm1d(3)
        self.out = torch.nn.Linear(3, 5, bias=False)
        self.out.weight = self.embed.weight  # tied

    def forward(self, x):
        return self.out(self.norm(self.embed(x)))


def trained():
    torch.manual_seed(0)
    model = Net()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(2):
        model(torch.arange(5)).square().sum().backward()
        optimizer.step()
    return model, optimizer


def state():
    model, optimizer = trained()
    return {
        "model": model.state_dict(), "optimizer": optimizer.state_dict(), "epoch": 3, "best": 0.25, "name": "golden",
        "losses": [1.5, float("inf"), None, True], "shape": torch.Size([2, 3]), "pair": (1, "two"), "big": 1 << 70,
        "lowest": -(1 << 63), "rng": torch.arange(8, dtype=torch.uint8), "order": collections.OrderedDict(b=1, a=2),
        "text": "Grüße, 世界", "dtype": torch.float16, "raw": b"\x00\xff",
    }  # fmt: skip


def can_be_saved(tensor):
    try:
        torch.save(tensor, io.BytesIO())
        return True
    except (KeyError, NotImplementedError, RuntimeError):
        return False


def tensors():
    known = [getattr(torch, name) for name in DTYPES if hasattr(torch, name)]
    made = {str(dtype)[6:]: numbers(dtype, 2, 3) for dtype in known if can_be_saved(torch.empty(1, dtype=dtype))}
    base = numbers(torch.float32, 4, 6)
    return made | {
        "scalar": torch.tensor(1.5), "empty": torch.empty(0, 3), "transposed": base.t(), "slice": base[1:3, ::2],
        "expanded": torch.tensor([1.0, 2.0]).expand(3, 2), "tied": base, "parameter": torch.nn.Parameter(torch.ones(2)),
        "nothing": torch.empty(0, dtype=torch.int32),
    }  # fmt: skip


class Scripted(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = torch.nn.Linear(3, 2)
        self.register_buffer("count", torch.tensor([7]))
        self.scale = 2.5
        self.names = ["a", "b"]

    def forward(self, x):
        return self.inner(x) * self.scale + torch.ones(2)


def scripted():
    torch.manual_seed(1)
    return Scripted()


def sparse():
    dense = torch.tensor([[0.0, 1.0, 0.0], [2.0, 0.0, 3.0]])
    made = {"coo": dense.to_sparse(), "csr": dense.to_sparse_csr()}
    if hasattr(dense, "to_sparse_csc"):
        made["csc"] = dense.to_sparse_csc()
        made["bsr"] = torch.ones(4, 4).to_sparse_bsr((2, 2))
        made["bsc"] = torch.ones(4, 4).to_sparse_bsc((2, 2))
    made["uncoalesced"] = torch.sparse_coo_tensor([[0, 0], [1, 1]], [1.0, 2.0], (2, 2))
    return {name: tensor for name, tensor in made.items() if can_be_saved(tensor)}


def quantized():
    x = torch.arange(6.0).reshape(2, 3)
    scales, points = torch.tensor([0.1, 0.2], dtype=torch.float64), torch.tensor([1, 2])
    return {
        "per_tensor": torch.quantize_per_tensor(x, 0.5, 3, torch.qint8),
        "unsigned": torch.quantize_per_tensor(x, 0.5, 3, torch.quint8),
        "wide": torch.quantize_per_tensor(x, 0.5, 0, torch.qint32),
        "per_channel": torch.quantize_per_channel(x, scales, points, 0, torch.qint8),
    }


def nested():
    return {"strided": torch.nested.nested_tensor([torch.ones(2, 3), torch.zeros(1, 3)])}


def parts(tensor):
    """The plain tensors that one of another kind consists of, by the names under which it is saved."""
    if tensor.layout == torch.sparse_coo:
        return {"indices": tensor._indices(), "values": tensor._values()}
    if tensor.layout in (torch.sparse_csr, getattr(torch, "sparse_bsr", None)):
        return {"crow_indices": tensor.crow_indices(), "col_indices": tensor.col_indices(), "values": tensor.values()}
    if tensor.layout != torch.strided and hasattr(tensor, "ccol_indices"):
        return {"ccol_indices": tensor.ccol_indices(), "row_indices": tensor.row_indices(), "values": tensor.values()}
    if tensor.is_quantized:
        return {"int_repr": tensor.int_repr()}
    return {"": tensor}


def digest(tensor):
    flat = tensor.detach().clone(memory_format=torch.contiguous_format).reshape(-1)
    data = bytes(flat.view(torch.uint8).tolist()) if flat.numel() and flat.dtype != torch.bool else bytes(map(int, flat.tolist()))
    return {"dtype": str(tensor.dtype)[6:], "shape": list(tensor.shape), "sha256": hashlib.sha256(data).hexdigest()}


def describe(value, place=()):
    """[place, part, what] of every tensor."""
    if isinstance(value, torch.Tensor):
        if getattr(value, "is_nested", False):
            return [[list(place), str(i), digest(part)] for i, part in enumerate(value.unbind())]
        return [[list(place), name, digest(part)] for name, part in parts(value).items()]
    if isinstance(value, dict):
        return [found for key, inner in value.items() for found in describe(inner, (*place, key))]
    if isinstance(value, (list, tuple)):
        return [found for i, inner in enumerate(value) for found in describe(inner, (*place, i))]
    return []


def make(folder):
    folder.mkdir(parents=True, exist_ok=True)
    expected = {}
    for name, value in (("state", state), ("tensors", tensors), ("sparse", sparse), ("quantized", quantized)):
        made = value()
        torch.save(made, folder / f"{name}.pt")
        expected[f"{name}.pt"] = describe(made)
    torch.save(state(), folder / "legacy.pt", _use_new_zipfile_serialization=False)
    expected["legacy.pt"] = expected["state.pt"]
    module = scripted()
    torch.jit.script(module).save(str(folder / "script.pt"))
    expected["script.pt"] = describe(dict(module.state_dict()))
    if hasattr(torch, "nested") and can_be_saved(made := nested()):
        torch.save(made, folder / "nested.pt")
        expected["nested.pt"] = describe(made)
    try:
        import torch.distributed.checkpoint as dcp

        dcp.save({"model": state()["model"], "epoch": 3}, checkpoint_id=folder / "dcp", no_dist=True)
        expected["dcp"] = describe({"model": state()["model"]})
    except (ImportError, AttributeError):
        pass  # before 2.0
    expected["torch"] = torch.__version__
    (folder / "expected.json").write_text(json.dumps(expected).replace("], [[", "],\n[[") + "\n")


if __name__ == "__main__":
    make(Path(sys.argv[1]))
