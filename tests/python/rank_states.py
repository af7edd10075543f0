"""What is a rank's own, other numbers of ranks, files of one process, what is kept: cases of test_rank_cases.py."""

import contextlib
import io
import random

import numpy
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from rank_cases import Small, by_rank_0, everyone, manager, rank, require_same, whole
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler

import perdure

_pairs = {}


def first_two():
    """A process group of ranks 0 and 1."""
    if not _pairs:
        _pairs[0] = dist.new_group([0, 1])
    return _pairs[0]


def draws(state):
    """From every generator there is."""
    return [torch.rand(()).item(), random.random(), numpy.random.random(), torch.rand((), generator=state.noise).item(),
            state.numbers.random()]  # fmt: skip


def own_state(seed):
    torch.manual_seed(seed)
    random.seed(seed)
    numpy.random.seed(seed)
    return perdure.TrainingState(
        noise=torch.Generator().manual_seed(seed),
        numbers=numpy.random.default_rng(seed),
        mine=seed,
        log=[seed, {"s": str(seed)}],
    )


def random_numbers_and_values(folder):
    """3 -> 3, 3 -> 2, 2 -> 3 and 3 -> 1 ranks."""
    state = own_state(100 + rank())
    draws(state)
    with manager(folder / "three") as checkpoints:
        checkpoints.save(state).wait()
    if rank() < 2:
        with manager(folder / "two", process_group=first_two()) as checkpoints:
            checkpoints.save(state).wait()
    wanted = draws(state)
    assert len({tuple(one) for one in everyone(wanted)}) == 3

    again = own_state(500 + rank())
    with manager(folder / "three") as checkpoints:
        checkpoints.restore(again)
    assert draws(again) == wanted
    assert (again.mine, again.log) == (100 + rank(), [100 + rank(), {"s": str(100 + rank())}])

    if rank() < 2:
        again = own_state(500 + rank())
        with manager(folder / "three", process_group=first_two()) as checkpoints:
            checkpoints.restore(again)
        assert draws(again) == wanted and again.mine == 100 + rank()
    dist.barrier()

    again = own_state(500 + rank())
    unrestored = draws(own_state(500 + rank()))
    again = own_state(500 + rank())
    with manager(folder / "two") as checkpoints:
        checkpoints.restore(again)
    drawn = draws(again)
    if rank() < 2:
        assert drawn == wanted and again.mine == 100 + rank()
    else:  # what it would get is another's; its values are those of rank 0
        assert drawn == unrestored and again.mine == 100

    def alone():
        single = own_state(9)
        with perdure.CheckpointManager(folder / "three") as checkpoints:
            checkpoints.restore(single)
        assert draws(single) == wanted and single.mine == 100

    by_rank_0(alone)


def loader_of(group, samples):
    size, own = dist.get_world_size(group), dist.get_rank(group)
    sampler = DistributedSampler(range(samples), size, own, shuffle=True, seed=5)
    return perdure.ResumableLoader(DataLoader(range(samples), batch_size=2, sampler=sampler))


def rest_of(loader):
    return [x for batch in loader for x in batch.tolist()]


def places_in_the_data(folder):
    """The same number of ranks goes on exactly; with another one no sample of the epoch is left out."""
    for samples in (24, 36, 50):
        for taken in (1, 2, 3):
            run = folder / f"{samples}-{taken}"
            loader = loader_of(dist.group.WORLD, samples)
            state = perdure.TrainingState(loader=loader)
            batches = iter(loader)
            seen = [x for _ in range(taken) for x in next(batches).tolist()]
            with manager(run) as checkpoints:
                checkpoints.save(state).wait()
            left = [x for batch in batches for x in batch.tolist()]
            loader = loader_of(dist.group.WORLD, samples)
            with manager(run) as checkpoints:
                checkpoints.restore(perdure.TrainingState(loader=loader))
            assert rest_of(loader) == left
            assert rest_of(loader) == seen + left, "the next epoch is a whole one"
            all_seen = {x for one in everyone(seen) for x in one}
            if rank() < 2:
                loader = loader_of(first_two(), samples)
                with manager(run, process_group=first_two()) as checkpoints:
                    checkpoints.restore(perdure.TrainingState(loader=loader))
                left = rest_of(loader)
            left = {x for one in everyone(left)[:2] for x in one}
            assert all_seen | left == set(range(samples)), (samples, taken, set(range(samples)) - all_seen - left)
            assert len(left) < samples, "the epoch did not go on, it began anew"


def more_ranks_in_the_data(folder):
    samples = 48
    for taken in (1, 3, 5):
        run = folder / str(taken)
        seen = []
        if rank() < 2:
            loader = loader_of(first_two(), samples)
            batches = iter(loader)
            seen = [x for _ in range(taken) for x in next(batches).tolist()]
            with manager(run, process_group=first_two()) as checkpoints:
                checkpoints.save(perdure.TrainingState(loader=loader)).wait()
        dist.barrier()
        loader = loader_of(dist.group.WORLD, samples)
        with manager(run) as checkpoints:
            checkpoints.restore(perdure.TrainingState(loader=loader))
        found = {x for one in everyone(seen + rest_of(loader)) for x in one}
        assert found == set(range(samples)), (taken, set(range(samples)) - found)


def a_run_that_one_process_began(folder):
    """.pt files, then directories of three ranks, then one process again, and three."""
    plain = Small("plain", epoch=7)

    def alone():
        with perdure.CheckpointManager(folder, keep_last=9) as checkpoints:
            checkpoints.restore(plain.state)
            plain.step()
            checkpoints.save(plain.state).wait()
            assert checkpoints.latest_step() == plain.state.step

    by_rank_0(alone)
    steps = [1]
    for wrapping in ("fsdp", "tp", "ddp"):
        small = Small(wrapping, seed=2, epoch=0)
        with manager(folder, keep_last=9) as checkpoints:
            assert checkpoints.restore(small.state).step == steps[-1]
            if rank() == 0:
                require_same(plain.whole(), small.whole(), wrapping)
            else:
                small.whole()
            assert small.state.epoch == 7
            small.step()
            checkpoints.save(small.state).wait()
            assert small.state.step == steps[-1] + 1
        dist.barrier()
        got = small.whole()

        def compared(got=got):
            fresh = Small("plain", seed=3, epoch=0)
            with perdure.CheckpointManager(folder, keep_last=9) as checkpoints:
                checkpoints.restore(fresh.state)
            require_same(got, fresh.whole(), wrapping)  # noqa: B023
            alone()

        by_rank_0(compared)
        steps += [steps[-1] + 1, steps[-1] + 2]
    with manager(folder, keep_last=9) as checkpoints:
        assert everyone(checkpoints.all_steps()) == [steps] * 3
        endings = [c.path.suffix for c in reversed(checkpoints.checkpoints())]
    assert endings == [".pt", ".dcp"] * 3 + [".pt"]
    assert all(perdure.verify(c.path).good for c in perdure.list_checkpoints(folder))


def a_path_or_a_step(folder):
    plain = Small("plain")
    for _ in range(2):
        plain.step()
    by_rank_0(lambda: folder.mkdir(exist_ok=True))
    saved = {name: x for name, x in plain.state.state_dict().items() if name != "rng"}
    by_rank_0(lambda: torch.save(saved, folder / "stock.pt"))
    by_rank_0(lambda: perdure.save(plain.state.state_dict(), folder / "own.pt"))
    for wrapping in ("fsdp", "tp", "ddp"):
        for name in ("stock.pt", "own.pt"):
            small = Small(wrapping, seed=2)
            with manager(folder / wrapping, keep_last=9) as checkpoints:
                checkpoints.restore(small.state, path=folder / name, strict=name != "stock.pt")
                require_same(plain.whole(), small.whole(), f"{name} into {wrapping}")
                assert small.state.step == 2
                small.step()
                checkpoints.save(small.state).wait()
                wanted = small.whole()
                small.step()
                small.state.step += 1
                checkpoints.save(small.state).wait()
                newest = small.whole()
                assert checkpoints.restore(small.state, step=3).step == 3
                require_same(wanted, small.whole(), "step 3")
                path = checkpoints.latest().path
        other = Small("fsdp", seed=4)
        with manager(folder / f"other-{wrapping}") as checkpoints:
            checkpoints.restore(other.state, path=path)
        require_same(newest, other.whole(), f"{wrapping} by its path")

        def alone(path=path, newest=newest):
            single = Small("plain", seed=4)
            with perdure.CheckpointManager(folder / "single") as checkpoints:
                checkpoints.restore(single.state, path=path)
            require_same(newest, single.whole())

        by_rank_0(alone)


def what_is_kept(folder):
    small = Small()
    options = {"keep_last": 2, "keep_best": perdure.Best("loss", "min")}
    with manager(folder, **options) as checkpoints:
        for step, loss in enumerate([5.0, 1.0, 3.0, 4.0, 2.0, 6.0], start=1):
            small.state.step = step
            checkpoints.save(small.state, metrics={"loss": torch.tensor(loss)}).wait()
            if step == 3:
                checkpoints.pin(3, "the paper's")
        checkpoints.wait()
        dist.barrier()
        seen = (
            checkpoints.all_steps(),
            checkpoints.latest_step(),
            checkpoints.latest().step,
            checkpoints.best_step(),
            [c.step for c in checkpoints.checkpoints()],
            [c.metrics["loss"] for c in checkpoints.checkpoints()],
        )
        assert everyone(seen) == [([2, 3, 5, 6], 6, 6, 2, [6, 5, 3, 2], [6.0, 2.0, 3.0, 1.0])] * 3
        assert sorted(p.suffix for p in folder.glob("step-*")) == [".dcp"] * 4 + [".pin"]
        assert all(c.size == sum(f.stat().st_size for f in c.path.iterdir()) for c in checkpoints.checkpoints())
        dist.barrier()
        checkpoints.unpin(3)
        dist.barrier()
        plan = [(p.checkpoint.step, bool(p.reasons)) for p in checkpoints.retention_plan()]
        assert everyone(plan) == [[(6, True), (5, True), (3, False), (2, True)]] * 3
        checkpoints.prune()
        dist.barrier()
        assert checkpoints.all_steps() == [2, 5, 6]
    with manager(folder, keep_last=1) as checkpoints:
        # The one that was restored from stays.
        checkpoints.restore(small.state, step=2)
        small.state.step = 9
        checkpoints.save(small.state).wait()
        checkpoints.wait()
        dist.barrier()
        assert everyone(checkpoints.all_steps()) == [[2, 9]] * 3
        assert checkpoints.latest().parent == perdure.list_checkpoints(folder)[-1].generation
        dist.barrier()
        checkpoints.restore(small.state)
        assert small.state.step == 9


class Tied(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.a = torch.nn.Linear(512, 4096, bias=False)  # 8 MiB
        self.b = torch.nn.Linear(512, 4096, bias=False)
        self.tied = torch.nn.Linear(512, 4096, bias=False)
        self.tied.weight = self.a.weight

    def forward(self, x):
        return self.a(x) + self.b(x) + self.tied(x)


def bytes_are_shared_out(folder):
    """Of what all ranks have alike, each writes a third; tied weights are written once."""
    torch.manual_seed(1)
    model = DistributedDataParallel(Tied())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    state = perdure.TrainingState(model=model, optimizer=optimizer)
    with manager(folder / "run") as checkpoints:
        checkpoints.save(state).wait()
        path = checkpoints.latest().path
    sizes = [(path / f"__{r}_0.distcp").stat().st_size for r in range(3)]
    whole_size = 2 * 4096 * 512 * 4
    assert whole_size < sum(sizes) < whole_size * 1.02 and max(sizes) < whole_size / 3 * 1.05, sizes
    single = Tied()
    again = perdure.TrainingState(model=single, optimizer=torch.optim.SGD(single.parameters(), lr=0.1))
    with manager(folder / "run") as checkpoints:
        checkpoints.restore(again)
    assert single.tied.weight is single.a.weight
    assert torch.equal(single.a.weight, model.module.a.weight) and torch.equal(single.b.weight, model.module.b.weight)
    loaded = perdure.load(path)["model"]
    assert loaded["tied.weight"].data_ptr() == loaded["a.weight"].data_ptr()


def stock_dcp_reads_it(folder):
    for wrapping in ("fsdp", "tp", "ddp"):
        small = Small(wrapping, epoch=4, mine=rank())
        small.step()
        with manager(folder / wrapping) as checkpoints:
            checkpoints.save(small.state).wait()
            path = checkpoints.latest().path
        wanted = {name.removeprefix("module."): whole(p) for name, p in small.model.named_parameters()}
        by_rank_0(lambda: dcp_to_torch_save(path, folder / f"{wrapping}.pt"))  # noqa: B023
        joined = torch.load(folder / f"{wrapping}.pt", weights_only=False)
        require_same(wanted, dict(joined["model"]), f"dcp_to_torch_save of {wrapping}")
        assert joined["epoch"] == 4 and joined["mine"] == 0 and joined["step"] == 1
        # In the form that FSDP has it, and by all ranks.
        target = Small("fsdp", seed=2)
        loaded = {"model": target.model.state_dict(), "epoch": 0}
        with contextlib.redirect_stderr(io.StringIO()):
            dcp.load(loaded, checkpoint_id=path)
        require_same(wanted, {name: whole(p) for name, p in target.model.named_parameters()}, f"dcp.load of {wrapping}")
        assert loaded["epoch"] == 4
        own = {"model": {name: torch.zeros_like(x) for name, x in wanted.items()}}
        dcp.load(own, storage_reader=perdure.dcp.StorageReader(path))
        require_same(wanted, own["model"], f"StorageReader of {wrapping}")
        dist.barrier()


CASES = [
    random_numbers_and_values,
    places_in_the_data,
    more_ranks_in_the_data,
    a_run_that_one_process_began,
    a_path_or_a_step,
    what_is_kept,
    bytes_are_shared_out,
    stock_dcp_reads_it,
]
