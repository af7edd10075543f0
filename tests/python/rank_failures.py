"""What goes wrong on one rank goes wrong on all, and the next save works: cases of test_rank_cases.py."""

import resource

import torch
import torch.distributed as dist
from rank_cases import Small, by_rank_0, debris, everyone, fails, manager, rank, require_same

import perdure


def a_value_that_cannot_be_saved(folder):
    small = Small(extra=0)
    with manager(folder, on_error="raise", keep_last=9) as checkpoints:
        for who in (dist.get_world_size() - 1, 0, 1):
            small.step()
            small.state.extra = (lambda: 0) if rank() == who else 1
            with fails(perdure.Error, "extra" if rank() == who else f"rank {who}", "function"):
                checkpoints.save(small.state).wait()
            small.state.extra = 10 + rank()
            checkpoints.save(small.state).wait()
        assert checkpoints.all_steps() == [1, 2, 3]
    wanted = small.whole()
    again = Small(seed=2, extra=0)
    with manager(folder) as checkpoints:
        assert checkpoints.restore(again.state).step == 3
    assert again.state.extra == 10 + rank()
    require_same(wanted, again.whole())
    assert not debris(folder)


def told_where_nobody_waits(folder):
    """on_error="warn": the handle has it, and wait() of the manager; three in a row are raised by the next save."""
    small = Small(extra=0)
    checkpoints = manager(folder)
    for _ in range(3):
        small.step()
        small.state.extra = (lambda: 0) if rank() == 1 else 1
        try:
            handle = checkpoints.save(small.state)
        except perdure.InvalidError:
            assert rank() == 1
        else:
            assert rank() != 1 and handle.error is None or "rank 1" in str(handle.error)
    small.state.extra = 1
    if rank() != 1:
        with fails(perdure.Error, "rank 1"):
            checkpoints.wait()
    checkpoints.save(small.state).wait()
    checkpoints.close()
    assert perdure.list_checkpoints(folder)[0].step == 3


def seen_by_one_rank_alone(folder):
    """Who has seen the error of a save goes on with the next one, and who has not gets it there: that one is not saved,
    but no rank waits for another, and the one after it works."""
    small = Small()
    with manager(folder, on_error="raise") as checkpoints:
        small.step()
        limited(1, lambda: see(checkpoints.save(small.state), only=0))
        dist.barrier()
        with fails(perdure.Error, "rank 1" if rank() != 1 else ""):
            checkpoints.save(small.state).wait()
        checkpoints.save(small.state).wait()
        assert checkpoints.latest_step() == 1


def see(handle, only):
    while not handle.done():
        pass
    if rank() == only:
        with fails(perdure.IoError, "rank 1"):
            handle.wait()


def limited(who, act, size=4096):
    """Does it while that rank cannot write larger files: as on a full disk (Python ignores SIGXFSZ)."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    if rank() == who:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        act()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def no_space_on_one_rank(folder):
    small = Small()
    with manager(folder, keep_last=9) as checkpoints:
        for who in range(dist.get_world_size()):
            small.step()

            def fail(who=who):
                with fails(perdure.IoError, "ulimit -f", *([] if rank() == who else [f"rank {who}"])):
                    checkpoints.save(small.state).wait()

            limited(who, fail)
            checkpoints.save(small.state).wait()
            checkpoints.wait()
            dist.barrier()
            assert not debris(folder), debris(folder)  # not even what a slower rank wrote after it was given up
            dist.barrier()
        assert checkpoints.all_steps() == [1, 2, 3]
    assert all(perdure.verify(c.path).good for c in perdure.list_checkpoints(folder))


def a_structure_that_was_told_in_a_save_that_failed(folder):
    """Ranks tell what they have only when it changes: also when the save in which it had changed has failed."""
    small = Small()
    with manager(folder, keep_last=9) as checkpoints:
        small.step(optimize=False)
        checkpoints.save(small.state).wait()  # without the state of the optimizer
        small.step()

        def fail():
            with fails(perdure.IoError):
                checkpoints.save(small.state).wait()

        limited(2, fail)
        dist.barrier()
        kept = dict(small.optimizer.state)
        small.optimizer.state.clear()
        checkpoints.save(small.state).wait()
        small.optimizer.state.update(kept)
        small.state.step += 1
        checkpoints.save(small.state).wait()
        wanted = small.whole()
    for step, tensors in (1, 4), (2, len(wanted)):
        again = Small(seed=2)
        with manager(folder) as checkpoints:
            checkpoints.restore(again.state, step=step)
        got = again.whole()
        assert len(got) == tensors, got.keys()
        require_same({name: wanted[name] for name in got}, got, f"step {step}")


def flip(path, tensor=b""):
    """A bit of the first such bytes in it."""
    data = bytearray(path.read_bytes())
    assert tensor in data
    data[data.find(tensor) + len(tensor or data) // 2] ^= 1
    path.write_bytes(data)


def unlink(path, _):
    path.unlink()


def part_of(small, who) -> bytes:
    """The weights that one rank has."""
    return everyone(small.model[0].weight._local_tensor.detach().numpy().tobytes())[who]


DAMAGES = [("__1_0.distcp", flip), (".metadata", flip), ("perdure.json", flip), ("__1_0.distcp", unlink),
           (".metadata", unlink), ("perdure.json", unlink)]  # fmt: skip


def damaged_directories(folder):
    for number, (name, damage) in enumerate(DAMAGES):
        run, where = folder / str(number), f"{damage.__name__} {name}"
        small = Small(mine=rank())
        with manager(run) as checkpoints:
            small.step()
            checkpoints.save(small.state).wait()
            wanted = small.whole()
            small.step()
            newest = checkpoints.save(small.state)
            newest.wait()
        part = part_of(small, 1) if name == "__1_0.distcp" else b""
        by_rank_0(lambda: damage(newest.checkpoint.path / name, part))  # noqa: B023
        again = Small(seed=2, mine=-1)
        with manager(run) as checkpoints:
            restored = checkpoints.restore(again.state)
            assert everyone(restored.step) == [1] * 3, where
            assert checkpoints.latest_step() == 1
        require_same(wanted, again.whole(), where)
        assert again.state.mine == rank() and not again.state.broken, where
        assert [p.name for p in run.glob("*.damaged")] == [newest.checkpoint.path.name + ".damaged"], where


def only_damaged_ones(folder):
    small = Small()
    with manager(folder) as checkpoints:
        checkpoints.save(small.state).wait()
        path = checkpoints.latest().path
        part = part_of(small, 2)
        by_rank_0(lambda: flip(path / "__2_0.distcp", part))
        for _ in range(2):
            with fails(perdure.CorruptionError, "damaged"):
                checkpoints.restore(small.state)
        by_rank_0(lambda: [p.rename(folder.with_name("elsewhere")) for p in folder.glob("*.damaged")])
        small = Small()  # of the other one nobody knows what it is
        assert checkpoints.restore(small.state) is None  # and not what was told before
        dist.barrier()
        checkpoints.save(small.state).wait()
        assert checkpoints.restore(small.state).step == 0


def a_step_that_is_not_there(folder):
    small = Small()
    with manager(folder) as checkpoints:
        checkpoints.save(small.state).wait()
        with fails(perdure.NotFoundError, "step 99"):
            checkpoints.restore(small.state, step=99)
        assert checkpoints.restore(small.state).step == 0
        with fails(perdure.NotFoundError):
            checkpoints.restore(small.state, path=folder / "nothing.pt")
        assert checkpoints.restore(small.state, step=0).step == 0
        # Where one rank alone does not find it.
        with fails(perdure.NotFoundError, *([] if rank() == 1 else ["rank 1"])):
            checkpoints.restore(small.state, path=folder / "nothing" if rank() == 1 else checkpoints.latest().path)
        assert checkpoints.restore(small.state).step == 0


def a_state_that_does_not_fit_on_one_rank(folder):
    small = Small()
    small.step()
    with manager(folder) as checkpoints:
        checkpoints.save(small.state).wait()
        for who in range(3):
            again = Small(seed=2, **({"more": 1} if rank() == who else {}))
            with fails(perdure.InvalidError, "more", *([] if rank() == who else [f"rank {who}"])):
                checkpoints.restore(again.state)
            assert again.state.broken == (rank() != who)  # which has not been touched
            if rank() != who:
                try:
                    checkpoints.save(again.state)
                except perdure.InvalidError as error:
                    assert "restore" in str(error)
                else:
                    raise AssertionError("a mixture was saved")
            else:  # and whoever saves it hears of that
                with fails(perdure.Error, "restore"):
                    checkpoints.save(again.state).wait()
            good = Small(seed=2)
            assert checkpoints.restore(good.state).step == 1
            require_same(small.whole(), good.whole())


def models_that_are_not_the_same(folder):
    """Of a tensor that one rank has and rank 0 has not, nothing would be known after a restore."""
    torch.manual_seed(0)
    for who in (0, 1):
        model = torch.nn.Linear(3, 4 if rank() == who else 5)
        state = perdure.TrainingState(model=model, optimizer=torch.optim.SGD(model.parameters(), lr=0.1))
        with manager(folder / str(who)) as checkpoints, fails(perdure.InvalidError, "the tensor model."):
            checkpoints.save(state).wait()
        layers = [torch.nn.Linear(2, 2) for _ in range(8 if rank() == who else 0)]
        more = torch.nn.Sequential(torch.nn.Linear(3, 3), *layers)
        state = perdure.TrainingState(model=more, optimizer=torch.optim.SGD(more.parameters(), lr=0.1))
        with manager(folder / f"more-{who}") as checkpoints:
            with fails(perdure.InvalidError, "the tensor model."):
                checkpoints.save(state).wait()
            assert checkpoints.checkpoints() == []


def overlapped_saves_what_was_there(folder):
    small = Small()
    small.step()
    with manager(folder, capture="overlapped") as checkpoints:
        for _ in range(3):
            wanted = small.whole()
            handle = checkpoints.save(small.state)
            step = small.state.step
            small.step()
            handle.wait()
            again = Small(seed=2)
            assert checkpoints.restore(again.state).step == step
            require_same(wanted, again.whole(), f"step {step}")


def checked_says_what_changed(folder):
    small = Small()
    small.step()
    checkpoints = manager(folder, capture="checked")
    wanted = small.whole()
    handle = checkpoints.save(small.state)
    if rank() == 1:
        with torch.no_grad():
            small.model[0].weight.add_(1)
    small.step()
    handle.wait()  # it is right
    if rank() == 1:
        with fails(perdure.InvalidError, "model.0.weight"):
            checkpoints.close()
    else:
        checkpoints.close()
    again = Small(seed=2)
    with manager(folder) as checkpoints:
        checkpoints.restore(again.state)
    require_same(wanted, again.whole())


def parts_of_tensors_without_their_ranks(folder):
    small = Small()
    with perdure.CheckpointManager(folder / str(rank())) as alone:
        with fails(perdure.InvalidError, "DTensor", "process_group", "weight"):
            alone.save(small.state)
        assert alone.checkpoints() == []
    with fails(perdure.InvalidError, "DTensor"):
        perdure.save({"model": small.model.state_dict()}, folder / f"{rank()}.pt")
    assert not (folder / f"{rank()}.pt").exists()


def a_second_manager(folder):
    """Nobody else gets the directory while the ranks have it; not the same ranks, and no process of its own."""
    small = Small()
    with manager(folder) as checkpoints:
        with fails(perdure.LockedError):
            manager(folder)
        if rank() == 1:
            with fails(perdure.LockedError):
                perdure.CheckpointManager(folder)
        dist.barrier()
        checkpoints.save(small.state).wait()
    with manager(folder) as checkpoints:
        assert checkpoints.latest_step() == 0


CASES = [
    a_value_that_cannot_be_saved,
    told_where_nobody_waits,
    seen_by_one_rank_alone,
    no_space_on_one_rank,
    a_structure_that_was_told_in_a_save_that_failed,
    damaged_directories,
    only_damaged_ones,
    a_step_that_is_not_there,
    a_state_that_does_not_fit_on_one_rank,
    models_that_are_not_the_same,
    overlapped_saves_what_was_there,
    checked_says_what_changed,
    parts_of_tensors_without_their_ranks,
    a_second_manager,
]
