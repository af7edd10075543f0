"""AsyncSaver: files of one's own names, saved behind the training."""

import os
import resource
import subprocess
import sys
import threading

import pytest
import torch

import perdure


@pytest.fixture
def saver():
    with perdure.AsyncSaver() as saver:
        yield saver


@pytest.fixture
def full():
    """No file may have more than 1 MiB, which what `big()` gives has."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def big(number=1.0, count=1 << 20):
    return {"epoch": 3, "weight": torch.full((count,), number)}


def test_saves_what_save_would(tmp_path, saver):
    handle = saver.save(big(), tmp_path / "a.pt")
    assert handle.wait() and handle.done() and handle.error is None
    loaded = torch.load(tmp_path / "a.pt")
    assert loaded["epoch"] == 3 and torch.equal(loaded["weight"], big()["weight"])
    assert perdure.verify(tmp_path / "a.pt").state == "good"
    assert handle.checkpoint.path == tmp_path / "a.pt" and str(handle.checkpoint) == str(tmp_path / "a.pt")
    assert handle.stats.bytes == handle.checkpoint.size == (tmp_path / "a.pt").stat().st_size
    assert handle.stats.durable > 0 and handle.progress == 1.0


@pytest.mark.parametrize("count", [1000, 20 << 20])
def test_what_changes_after_the_call_is_not_saved(tmp_path, saver, count):
    for _ in range(2):
        state = big(1.0, count)
        saver.save(state, tmp_path / "a.pt")
        state["weight"].fill_(2.0)
        state["epoch"] = 4
        saver.wait()
        loaded = perdure.load(tmp_path / "a.pt")
        assert loaded["epoch"] == 3 and loaded["weight"].eq(1.0).all()


def test_a_small_staging_memory_suffices(tmp_path):
    with perdure.AsyncSaver(staging_bytes=16 << 20) as saver:
        for number in range(3):
            saver.save(big(number, 10 << 20), tmp_path / f"{number}.pt")
    assert [perdure.load(tmp_path / f"{n}.pt")["weight"].max() for n in range(3)] == [0, 1, 2]
    with pytest.raises(perdure.InvalidError, match="staging_bytes"):
        perdure.AsyncSaver(staging_bytes=1)


def test_removes_behind_the_save_that_is_in_flight(tmp_path, saver):
    saver.save(big(), tmp_path / "a.pt")
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "file").write_text("x")
    saver.save(big(2.0, 20 << 20), tmp_path / "b.pt")
    for name in ("a.pt", "old", "never.pt"):
        saver.remove(tmp_path / name)
    saver.wait()
    assert [path.name for path in tmp_path.iterdir()] == ["b.pt"]
    saver.remove(tmp_path / "b.pt")  # at once
    assert not list(tmp_path.iterdir())
    with pytest.raises(perdure.InvalidError):
        saver.remove("..")


def test_an_error_is_seen_once(tmp_path, saver, full):
    handle = saver.save(big(), tmp_path / "a.pt")
    with pytest.raises(perdure.FullError, match="a.pt"):
        handle.wait()
    assert isinstance(handle.error, perdure.FullError) and "failed" in repr(handle)
    saver.wait()  # it was seen
    saver.save(big(), tmp_path / "a.pt")
    with pytest.raises(perdure.FullError, match="a.pt"):
        saver.wait()
    saver.save({"small": 1}, tmp_path / "a.pt").wait()
    assert perdure.load(tmp_path / "a.pt") == {"small": 1}


def test_what_a_failed_save_was_to_replace_is_kept(tmp_path, saver, full, caplog):
    saver.save({"small": 1}, tmp_path / "a.pt")
    saver.wait()
    handle = saver.save(big(), tmp_path / "b.pt")
    saver.remove(tmp_path / "a.pt")
    with pytest.raises(perdure.FullError):
        handle.wait()
    saver.remove(tmp_path / "a.pt")  # it has failed all the same
    assert caplog.text.count("a.pt' is kept") == 2
    assert [path.name for path in tmp_path.iterdir()] == ["a.pt"]
    saver.save({"small": 2}, tmp_path / "b.pt")
    saver.remove(tmp_path / "a.pt")
    saver.wait()
    assert [path.name for path in tmp_path.iterdir()] == ["b.pt"]


def test_says_what_is_wrong(tmp_path, saver):
    with pytest.raises(perdure.InvalidError, match=r"\['model'\].*state_dict"):
        saver.save({"model": torch.nn.Linear(1, 1)}, tmp_path / "a.pt")
    with pytest.raises(perdure.IoError, match="directory"):
        saver.save({}, tmp_path).wait()
    with pytest.raises(perdure.NotFoundError):
        saver.save({}, tmp_path / "none" / "a.pt")
    with pytest.raises(TypeError):
        saver.save({}, 3)
    saver.close()
    saver.close()
    assert repr(saver) == "<AsyncSaver: closed>"
    for call in (lambda: saver.save({}, tmp_path / "a.pt"), lambda: saver.remove("a"), saver.wait):
        with pytest.raises(perdure.InvalidError, match="closed"):
            call()


def test_threads_save_one_after_the_other(tmp_path, saver):
    def save(number):
        for n in range(10):
            saver.save(big(number, 1000), tmp_path / f"{number}-{n}.pt")

    threads = [threading.Thread(target=save, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    saver.wait()
    assert len(list(tmp_path.iterdir())) == 40
    assert all(perdure.load(path)["weight"].eq(int(path.name[0])).all() for path in tmp_path.iterdir())


def test_a_forked_child_cannot_use_it(tmp_path, saver):
    saver.save(big(), tmp_path / "a.pt")
    child = os.fork()
    if child == 0:
        try:
            saver.save({}, tmp_path / "b.pt")
        except perdure.InvalidError:
            os._exit(0)
        os._exit(1)
    assert os.waitpid(child, 0)[1] == 0
    saver.wait()
    assert [path.name for path in tmp_path.iterdir()] == ["a.pt"]


def test_one_that_nobody_closes_finishes_what_is_in_flight(tmp_path):
    code = """
import sys, torch, perdure
saver = perdure.AsyncSaver()
saver.save({"weight": torch.ones(20 << 20)}, sys.argv[1])
"""
    subprocess.run([sys.executable, "-c", code, tmp_path / "a.pt"], check=True)
    assert perdure.load(tmp_path / "a.pt")["weight"].eq(1).all()


def test_an_error_that_nobody_has_seen_is_logged_at_the_end(tmp_path, full, caplog):
    saver = perdure.AsyncSaver()
    saver.save(big(), tmp_path / "a.pt")
    del saver
    assert "a.pt" in caplog.text
    with pytest.raises(ZeroDivisionError):
        with perdure.AsyncSaver() as saver:
            saver.save(big(), tmp_path / "b.pt")
            1 / 0
    assert "b.pt" in caplog.text
