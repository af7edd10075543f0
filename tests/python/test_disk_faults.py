"""Disks that are full, slow, broken or taken away: the training goes on, nothing acknowledged is lost, and whoever is
to do something about it is told.

On real file systems, as root. What the operating system can be made to say without them, tests/cpp does.
"""

import errno
import os
import re
import resource
import shutil
import subprocess
import threading
import time

import disks
import pytest
from numbered import NumberedState, check_verifies, debris_in

import perdure

MIB = 1 << 20
EXT4, XFS = disks.needs("mkfs.ext4"), disks.needs("mkfs.xfs")


@pytest.fixture
def numbered():
    return NumberedState()


def open_run(where, **options):
    return perdure.CheckpointManager(where / "run", **options)


def save_fails(numbered, checkpoints, step, kind=perdure.IoError) -> perdure.Error:
    """The error of a save, which has left no trace."""
    before = checkpoints.latest_step()
    handle = numbered.save(checkpoints, step)
    assert isinstance(handle.error, kind), handle.error
    assert f"step-{step:010d}" in str(handle.error)
    assert handle.checkpoint is None and checkpoints.latest_step() == before
    with pytest.raises(type(handle.error)):
        handle.wait()
    return handle.error


# full


def assert_tells_of_space(text):
    """How much is wanted and how much there is; of names only that there is no space for them."""
    if "cannot create" in text or "cannot rename" in text:
        assert "df -i" in text
    else:
        assert "needed" in text and "available" in text


@pytest.mark.parametrize("kind", [
    pytest.param("ext4", marks=EXT4),
    pytest.param("ext4-without-fallocate", marks=EXT4),
    pytest.param("xfs", marks=XFS),
])
def test_full_at_every_64_kib(tmp_path, numbered, kind):
    failed = saved = 0
    # XFS sets space aside behind a file that grows, as what fills the disk does, and gives it back when it likes.
    exact = "allocsize=4k" if kind == "xfs" else ""
    with disks.small_disk(kind, tmp_path, 16, exact) as where, open_run(where, keep_last=1) as checkpoints:
        numbered.save(checkpoints, 1).wait()
        size = checkpoints.latest().size
        step = 1
        for room in range(0, size + 1024 * 1024, 64 * 1024):  # XFS calls space free that it keeps for itself
            with disks.filled_up(where, room):
                handle = numbered.save(checkpoints, step + 1)
                if handle.error:
                    failed += 1
                    assert isinstance(handle.error, perdure.FullError), handle.error
                    assert handle.error.errno == errno.ENOSPC
                    assert_tells_of_space(str(handle.error))
                    assert checkpoints.latest_step() == step
                else:
                    saved += 1
                    step += 1
                assert not debris_in(where / "run")
                assert numbered.restore(checkpoints) == step
            step += 2
            numbered.save(checkpoints, step).wait()
            checkpoints.wait()  # the older one is removed after that, and its space must not come as a surprise
        check_verifies(where / "run")
    assert failed >= size // (64 * 1024) and saved >= 1


@EXT4
def test_no_inode_left(tmp_path, numbered):
    """df says that there is space."""
    with disks.small_disk("ext4-few-inodes", tmp_path, 24) as where, open_run(where) as checkpoints:
        numbered.save(checkpoints, 1).wait()
        files = []
        with pytest.raises(OSError):
            while True:
                files.append(where / str(len(files)))
                files[-1].touch()
        error = save_fails(numbered, checkpoints, 2, perdure.FullError)
        assert "df -i" in str(error)
        files[0].unlink()
        numbered.save(checkpoints, 3).wait()
        assert numbered.restore(checkpoints) == 3


@disks.needs("mkfs.btrfs", "btrfs")
def test_quota(tmp_path, numbered):
    with disks.small_disk("btrfs", tmp_path, 256) as where:
        limited = where / "limited"
        disks.command("btrfs", "subvolume", "create", limited)
        disks.command("btrfs", "quota", "enable", where)
        disks.command("btrfs", "qgroup", "limit", str(6 * MIB), limited)
        with open_run(limited, keep_last=100) as checkpoints:
            for step in range(1, 4):
                numbered.save(checkpoints, step).wait()
            for step in range(4, 10):
                if numbered.save(checkpoints, step).error:
                    break
            error = save_fails(numbered, checkpoints, step, perdure.FullError)
            assert error.errno == errno.EDQUOT and "quota" in str(error)
            assert numbered.restore(checkpoints) == step - 1
            disks.command("btrfs", "qgroup", "limit", "none", limited)
            numbered.save(checkpoints, step).wait()


@EXT4
@pytest.mark.parametrize("before", [lambda: None, disks.refuse_direct_io], ids=["direct", "cached"])
@pytest.mark.parametrize("kind", ["ext4", "ext4-without-journal"])
def test_a_thin_device_that_runs_full(tmp_path, kind, before):
    """The file system believes in space that is not there. fsync fails once, and the next one says that all is well."""
    told = tmp_path / "told"

    def train():
        before()
        numbered = NumberedState()
        with open_run(where, keep_last=100) as checkpoints:
            for step in range(1, 30):
                handle = numbered.save(checkpoints, step)
                if handle.error:
                    assert isinstance(handle.error, perdure.IoError), handle.error
                    assert checkpoints.latest_step() == step - 1
                    os._exit(0)
                told.write_text(str(step))
        raise AssertionError("the disk was never full")

    with disks.thin_disk(kind, tmp_path, mib=64, pool_mib=16) as (mount, enlarge):
        with mount() as where:
            assert disks.in_child(train) == 0
        acknowledged = int(told.read_text())
        assert acknowledged >= 3
        enlarge()
        numbered = NumberedState()
        with mount() as where, open_run(where, keep_last=100) as checkpoints:
            check_verifies(where / "run")
            assert checkpoints.all_steps() == list(range(1, acknowledged + 1))
            assert numbered.restore(checkpoints) == acknowledged
            numbered.save(checkpoints, 100).wait()
            assert not debris_in(where / "run")


@pytest.mark.parametrize("limit", [MIB, 4096])
def test_file_size_limit(tmp_path, numbered, limit):
    """What the kernel does to a process that writes past it is to end it (SIGXFSZ): so we never do."""
    with open_run(tmp_path) as checkpoints:
        for step in range(1, 20):
            numbered.save(checkpoints, step).wait()

    def train():
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        with open_run(tmp_path) as checkpoints:
            assert numbered.restore(checkpoints) == 19
            for step in (20, 21):
                error = save_fails(numbered, checkpoints, step, perdure.FullError)
                assert error.errno == errno.EFBIG and "ulimit -f" in str(error)

    assert (tmp_path / "run" / "history.jsonl").stat().st_size > 4096
    assert disks.in_child(train) == 0
    with open_run(tmp_path) as checkpoints:
        assert numbered.restore(checkpoints) == 19
        numbered.save(checkpoints, 22).wait()


# broken


@EXT4
def test_read_only_in_the_middle(tmp_path, numbered):
    """As ext4 makes itself when it finds an error."""
    with disks.memory_folder(tmp_path / "memory") as memory:
        image = disks.make_image("ext4", memory / "disk.img", 24)
        with disks.mounted("ext4", image, tmp_path / "disk", "errors=remount-ro") as where:
            with open_run(where) as checkpoints:
                numbered.save(checkpoints, 1).wait()
                disks.command("mount", "-o", "remount,abort", where)
                for step in (2, 3):
                    error = save_fails(numbered, checkpoints, step)
                    assert error.errno == errno.EROFS
                assert numbered.restore(checkpoints) == 1
            check_verifies(where / "run")
        with disks.mounted("ext4", image, tmp_path / "disk") as where, open_run(where) as checkpoints:
            assert numbered.restore(checkpoints) == 1
            numbered.save(checkpoints, 4).wait()
            assert not debris_in(where / "run")


@EXT4
def test_read_only_from_the_beginning(tmp_path, numbered):
    with disks.memory_folder(tmp_path / "memory") as memory:
        image = disks.make_image("ext4", memory / "disk.img", 24)
        with disks.mounted("ext4", image, tmp_path / "disk") as where, open_run(where) as checkpoints:
            numbered.save(checkpoints, 1).wait()
        with disks.mounted("ext4", image, tmp_path / "disk", "ro") as where:
            check_verifies(where / "run")
            assert [c.step for c in perdure.list_checkpoints(where / "run")] == [1]
            with pytest.raises(perdure.IoError) as caught:
                open_run(where)
            assert caught.value.errno == errno.EROFS and str(where / "run") in str(caught.value)


@disks.needs("mkfs.ext4", "nbdkit", "nbdfuse")
def test_every_write_fails_from_some_moment(tmp_path, numbered):
    with disks.memory_folder(tmp_path / "memory") as memory:
        image = disks.make_image("ext4", memory / "disk.img", 24)
        with disks.FailingDisk(memory, image) as disk:
            with disks.mounted("ext4", disk.image, tmp_path / "disk") as where, open_run(where) as checkpoints:
                numbered.save(checkpoints, 1).wait()
                numbered.save(checkpoints, 2).wait()
                disk.bad_writes.touch()
                for step in (3, 4):
                    error = save_fails(numbered, checkpoints, step)
                    assert error.errno in (errno.EIO, errno.EROFS)
            disk.bad_writes.unlink()
            disks.command("fsck.ext4", "-fy", image, check=False)
            with disks.mounted("ext4", disk.image, tmp_path / "disk") as where, open_run(where) as checkpoints:
                assert numbered.restore(checkpoints) == 2
                numbered.save(checkpoints, 5).wait()
                assert not debris_in(where / "run")


@disks.needs("mkfs.ext4", "nbdkit", "nbdfuse")
def test_an_error_of_reading_is_no_reason_to_fall_back(tmp_path, numbered, caplog):
    """It may pass. Going on from an older step would lose what is there."""
    with disks.memory_folder(tmp_path / "memory") as memory:
        image = disks.make_image("ext4", memory / "disk.img", 24)
        with disks.FailingDisk(memory, image) as disk:
            with disks.mounted("ext4", disk.image, tmp_path / "disk") as where, open_run(where) as checkpoints:
                numbered.save(checkpoints, 1).wait()
                numbered.save(checkpoints, 2).wait()
            with disks.mounted("ext4", disk.image, tmp_path / "disk") as where, open_run(where) as checkpoints:
                assert checkpoints.all_steps() == [1, 2]  # the names are in memory now, the contents are not
                disk.bad_reads.touch()
                with pytest.raises(perdure.IoError, match="step-0000000002") as caught:
                    numbered.restore(checkpoints)
                assert caught.value.errno == errno.EIO
                disk.bad_reads.unlink()
                assert numbered.restore(checkpoints) == 2
                assert not caplog.records and not list((where / "run").glob("*.damaged"))


# taken away


def test_the_directory_is_deleted_under_the_run(tmp_path, numbered):
    run = tmp_path / "run"
    with open_run(tmp_path) as checkpoints:
        numbered.save(checkpoints, 1).wait()
        shutil.rmtree(run)
        error = save_fails(numbered, checkpoints, 2)
        assert error.errno == errno.ENOENT and "removed" in str(error)
    with open_run(tmp_path) as checkpoints:
        assert numbered.restore(checkpoints) == 0
        numbered.save(checkpoints, 3).wait()


def test_the_directory_is_deleted_again_and_again(tmp_path, numbered):
    """At any moment of a save, or of a restore, or of the opening."""
    over = threading.Event()

    def delete():
        while not over.wait(0.001):
            shutil.rmtree(tmp_path / "run", ignore_errors=True)

    thread = threading.Thread(target=delete)
    thread.start()
    try:
        for step in range(1, 60):
            try:
                with open_run(tmp_path, on_error="raise") as checkpoints:
                    numbered.restore(checkpoints)
                    numbered.save(checkpoints, step).wait()
            except perdure.IoError as error:
                assert error.errno in (errno.ENOENT, errno.ENOTEMPTY), error
    finally:
        over.set()
        thread.join()
    with open_run(tmp_path) as checkpoints:
        numbered.save(checkpoints, 100).wait()
    assert not debris_in(tmp_path / "run")


def test_the_directory_is_renamed_under_the_run(tmp_path, numbered):
    """The run goes with it."""
    with open_run(tmp_path) as checkpoints:
        numbered.save(checkpoints, 1).wait()
        os.rename(tmp_path / "run", tmp_path / "elsewhere")
        numbered.save(checkpoints, 2).wait()
    assert not (tmp_path / "run").exists()
    with perdure.CheckpointManager(tmp_path / "elsewhere") as checkpoints:
        assert checkpoints.all_steps() == [1, 2] and numbered.restore(checkpoints) == 2


# stuck


class Frozen:
    """A file system on which every write waits until it is thawed: after PATIENCE seconds in any case."""

    PATIENCE = 10

    def __init__(self, where):
        self._where = where
        disks.command("fsfreeze", "--freeze", where)
        self.since = time.monotonic()
        self._watchdog = subprocess.Popen(["sh", "-c", f"sleep {self.PATIENCE}; exec fsfreeze --unfreeze '{where}'"])

    def thaw(self):
        if self._watchdog.poll() is None:
            self._watchdog.kill()
            self._watchdog.wait()
            disks.command("fsfreeze", "--unfreeze", self._where)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.thaw()


@pytest.mark.parametrize("kind", [pytest.param("ext4", marks=EXT4), pytest.param("xfs", marks=XFS)])
def test_a_disk_that_hangs_holds_up_nobody_but_the_writer(tmp_path, numbered, caplog, kind):
    with disks.small_disk(kind, tmp_path, 24) as where:
        with open_run(where, when_busy="skip", overhead=0.5, stuck_after=0.2) as checkpoints:
            numbered.save(checkpoints, 1).wait()
            with Frozen(where) as frozen, caplog.at_level("WARNING", "perdure"):
                numbered.go_to(2)
                stuck = checkpoints.save(numbered.state)
                assert not stuck.wait(timeout=0.3)
                for step in range(3, 30):
                    numbered.go_to(step)
                    checkpoints.should_save(step)
                    assert checkpoints.save(numbered.state).skipped
                assert time.monotonic() - frozen.since < frozen.PATIENCE / 2, "a step has waited for the disk"
                assert not stuck.done()
                while not caplog.records:
                    time.sleep(0.05)
                frozen.thaw()
                stuck.wait()
            assert len(caplog.records) == 1
            assert re.search("step-0000000002.* makes no progress, .* hangs", caplog.records[0].getMessage())
            assert numbered.restore(checkpoints) == 2
            numbered.save(checkpoints, 30).wait()
        events = [(event["event"], event.get("step")) for event in perdure.read_history(where / "run")]
        expected = [("save", 1), *(("skip", step) for step in range(3, 30)), ("save", 2), ("restore", 2), ("save", 30)]
        assert [event for event in events if event[0] != "interval"] == expected


@EXT4
def test_close_waits_for_a_disk_that_hangs(tmp_path, numbered):
    with disks.small_disk("ext4", tmp_path, 24) as where:
        checkpoints = open_run(where)
        numbered.save(checkpoints, 1).wait()
        with Frozen(where) as frozen:
            numbered.go_to(2)
            stuck = checkpoints.save(numbered.state)
            closing = threading.Thread(target=checkpoints.close)
            closing.start()
            closing.join(0.3)
            assert closing.is_alive() and not stuck.done()
            frozen.thaw()
            closing.join(20)
        assert stuck.done() and stuck.error is None
        with open_run(where) as checkpoints:
            assert numbered.restore(checkpoints) == 2
