"""What the libraries of the formats themselves load: torch.load, safetensors, and torch.distributed.checkpoint."""

import json
from pathlib import Path

import torch

import perdure


def pair(path: Path) -> tuple:
    """What perdure loads, and what they do. First perdure: reading a DCP directory executes what is in it."""
    ours = perdure.load(path)
    if path.is_dir() and (path / ".metadata").exists():
        return ours, dcp(path)
    if path.is_dir():
        return by_name(ours), indexed(path)
    with open(path, "rb") as opened:
        head = opened.read(9)
    if head[8:] == b"{" and head[:2] != b"PK":
        return by_name(ours), safetensors_file(path)
    return ours, torch.load(path, weights_only=True)


def safetensors_file(path: Path) -> dict:
    import safetensors.torch

    return by_name(safetensors.torch.load_file(path))


def by_name(tensors: dict) -> dict:
    """The library sorts by offset, and where that is the same it has no order."""
    return dict(sorted(tensors.items()))


def indexed(path: Path) -> dict:
    """As transformers do it: each tensor from the file that the index names."""
    index = json.loads((path / "model.safetensors.index.json").read_text())
    shards = {name: safetensors_file(path / name) for name in dict.fromkeys(index["weight_map"].values())}
    return by_name({name: tensor for shard in shards.values() for name, tensor in shard.items()})


def dcp(path: Path) -> dict:
    """As torch.distributed.checkpoint.format_utils.dcp_to_torch_save."""
    from torch.distributed.checkpoint import FileSystemReader
    from torch.distributed.checkpoint.default_planner import _EmptyStateDictLoadPlanner
    from torch.distributed.checkpoint.state_dict_loader import _load_state_dict

    state = {}
    _load_state_dict(state, storage_reader=FileSystemReader(path), planner=_EmptyStateDictLoadPlanner(), no_dist=True)
    return state
