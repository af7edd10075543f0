"""Many cases in one set of processes, for starting these takes longer than most cases do; see ranks.py.

A module of cases has functions of a folder, in CASES; all ranks call them one after the other, until one goes wrong:
then ranks no longer know of each other where they are. `run_cases` tells of each what went wrong, by rank.
"""

import contextlib
import importlib
import json
import pathlib
import traceback

import ranks
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Replicate
from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module
from torch.nn.parallel import DistributedDataParallel

import perdure

PATIENCE = 30  # seconds; a case that needs them all has failed


def run_cases(size, module, folder) -> dict[str, list[str]]:
    said = [json.loads(text) for text in ranks.run(size, module, "rank_cases.run_all", folder)]
    return {case: [one[case] for one in said] for case in said[0]}


def run_all(module, folder):
    cases = importlib.import_module(module).CASES
    said = dict.fromkeys((case.__name__ for case in cases), "not reached: one before it has failed")
    for case in cases:
        try:
            dist.barrier()
            case(pathlib.Path(folder / case.__name__))
        except BaseException:  # noqa: BLE001: whatever it was, it is told
            said[case.__name__] = traceback.format_exc()
            break
        said[case.__name__] = ""
    return json.dumps(said)


def rank() -> int:
    return dist.get_rank()


def manager(folder, **options):
    options = {"process_group": dist.group.WORLD, "rank_timeout": PATIENCE, **options}
    return perdure.CheckpointManager(folder, **options)


def everyone(x) -> list:
    """What each rank has for it."""
    told = [None] * dist.get_world_size()
    dist.all_gather_object(told, x)
    return told


def by_rank_0(act):
    """What only one of them is to do, and all others wait for."""
    if rank() == 0:
        act()
    dist.barrier()


@contextlib.contextmanager
def fails(error, *words):
    """The block must end with such an error, whose text has all the words, and which is no rank's that waited."""
    try:
        yield
    except error as raised:
        missing = [word for word in words if word not in str(raised)]
        assert not missing and "sign of life" not in str(raised), f"no {missing} in {type(raised).__name__}: {raised}"
    else:
        raise AssertionError(f"no {error.__name__} was raised")


class Small:
    """A model of two layers and its optimizer: "fsdp", "tp", "ddp" or "plain"."""

    def __init__(self, wrapping="fsdp", seed=1, **values):
        torch.manual_seed(seed)
        self.model = torch.nn.Sequential(torch.nn.Linear(12, 24), torch.nn.Linear(24, 5))
        mesh = None if wrapping == "plain" else init_device_mesh("cpu", (dist.get_world_size(),))
        if wrapping == "fsdp":
            fully_shard(self.model, mesh=mesh)
        elif wrapping == "tp":
            plan = {"0": ColwiseParallel(output_layouts=Replicate())}
            parallelize_module(self.model, mesh, plan)
        elif wrapping == "ddp":
            self.model = DistributedDataParallel(self.model)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.1)
        self.state = perdure.TrainingState(model=self.model, optimizer=self.optimizer, **values)

    def step(self, optimize=True):
        batch = torch.rand(4, 12, generator=torch.Generator().manual_seed(self.state.step))
        self.model(batch).square().sum().backward()
        if optimize:
            self.optimizer.step()
            self.optimizer.zero_grad()
            self.state.step += 1

    def whole(self) -> dict[str, torch.Tensor]:
        """All its tensors, each as one. All ranks call it."""
        found = {}
        for name, p in self.model.named_parameters():
            name = name.removeprefix("module.")
            found[name] = whole(p)
            for key, x in self.optimizer.state[p].items():
                found[f"{name}.{key}"] = whole(x)
        return found


def whole(x) -> torch.Tensor:
    return (x.full_tensor() if hasattr(x, "full_tensor") else x).detach().clone()


def require_same(wanted, got, where=""):
    found = ranks.differences(wanted, got)
    assert not found, f"{where}: {found[:3]}"


def debris(folder) -> list[str]:
    return sorted(p.name for p in pathlib.Path(folder).iterdir() if ".tmp" in p.name)
