"""What a rank of a job saves with torch.distributed.checkpoint: python dcp_ranks.py RANK RANKS FOLDER."""

import sys

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard


def whole_state():
    torch.manual_seed(7)
    return {
        "rows": torch.randn(7, 5),
        "columns": torch.randn(6, 9),
        "middle": torch.randn(2, 6, 4),
        "long": torch.arange(23),
        "half": torch.randn(8, 4).bfloat16(),
        "eight": torch.randn(5, 4).to(torch.float8_e4m3fn),
        "large": torch.randn(1030, 1031),
        "replicated": torch.randn(3),
        "grid": torch.randn(6, 10),
        "plain": torch.randn(4),
    }


DIMENSIONS = {"rows": 0, "columns": 1, "middle": 1, "long": 0, "half": 0, "eight": 0, "large": 1}


def on(mesh, tensor, placements):
    """As distribute_tensor, which gloo can do for few dtypes."""
    local = tensor
    for placement, coordinate in zip(placements, mesh.get_coordinate()):
        if placement.is_shard():
            chunks = list(local.chunk(mesh.size(placements.index(placement)), placement.dim))
            none = local.narrow(placement.dim, 0, 0)
            local = chunks[coordinate] if coordinate < len(chunks) else none
    return DTensor.from_local(
        local.clone(), mesh, placements, run_check=False, shape=tensor.shape, stride=tensor.stride()
    )


def main(rank, ranks, folder):
    store = dist.FileStore(f"{folder}.store", ranks)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=ranks)
    mesh, grid = init_device_mesh("cpu", (ranks,)), init_device_mesh("cpu", (2, ranks // 2))
    state = whole_state()
    sharded = {name: on(mesh, state[name], [Shard(d)]) for name, d in DIMENSIONS.items()}
    sharded["replicated"] = on(mesh, state["replicated"], [Replicate()])
    sharded["grid"] = on(grid, state["grid"], [Shard(0), Shard(1)])
    sharded["plain"] = state["plain"]
    dcp.save({"model": sharded, "step": 5, "groups": [{"lr": 0.5, "w": state["plain"]}, 2]}, checkpoint_id=folder)
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
