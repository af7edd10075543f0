"""A rank that dies before, in and after its save: the others hear of it, and the next to come finds what is whole."""

import multiprocessing
import socket
from concurrent.futures import ThreadPoolExecutor

import pytest
import rank_deaths
import torch
from rank_cases import debris
from ranks import run

import perdure


@pytest.fixture(scope="module")
def deaths(tmp_path_factory):
    """Of each its folder and what the ranks said; some at a time, for most of it is waiting."""

    def die(death):
        folder = tmp_path_factory.mktemp(death)
        return folder, run(3, death, "rank_deaths.save_and_die", folder, dies=rank_deaths.DEATHS[death][0])

    with ThreadPoolExecutor(3) as pool:
        futures = {death: pool.submit(die, death) for death in rank_deaths.DEATHS}
    return futures


@pytest.mark.parametrize("death", rank_deaths.DEATHS)
def test_the_others_hear_of_it(deaths, death):
    who, _, newest = rank_deaths.DEATHS[death]
    folder, said = deaths[death].result()
    for rank, told in enumerate(said):
        if rank != who:
            assert f"rank {who} " in told and "sign of life" in told, told
            assert told.startswith("step "), told
            assert int(told.split()[1].rstrip(",")) <= newest, told

    model = torch.nn.Sequential(torch.nn.Linear(12, 24), torch.nn.Linear(24, 5))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    state = perdure.TrainingState(model=model, optimizer=optimizer, mine=-1)
    with perdure.CheckpointManager(folder / "run") as checkpoints:
        assert not debris(folder / "run")
        assert checkpoints.restore(state).step == newest
        assert (state.step, state.mine) == (newest, 0)
        assert checkpoints.all_steps() == list(range(1, newest + 1))
    assert all(perdure.verify(c.path).good for c in perdure.list_checkpoints(folder / "run"))


def test_a_store_that_dies_with_rank_0(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["rank_deaths"])
    ranks = [context.Process(target=rank_deaths.outlive_the_store, args=(rank, port, tmp_path)) for rank in range(2)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(60)
    assert [process.exitcode for process in ranks] == [-9, 0]
    told = (tmp_path / "told").read_text()
    assert told.startswith(("step 1, then ", "step 2, then ")) and "store of torch.distributed does not answer" in told
    steps = [c.step for c in perdure.list_checkpoints(tmp_path / "run")]
    assert steps in ([2, 1], [3, 2, 1])  # of step 3, rank 0 may have written all before it died
