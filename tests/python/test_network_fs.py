"""A network file system that is lost, for good or for a while: SSHFS over loopback, whose server is stopped and killed.

As root, with sshfs and sftp-server. (The kernel's NFS client is not to be had everywhere.)
"""

import contextlib
import os
import signal
import socket
import subprocess
import threading
import time
from pathlib import Path

import disks
import pytest
from numbered import NumberedState, check_verifies, debris_in

import perdure

SERVER = next((path for path in ("/usr/lib/openssh/sftp-server", "/usr/lib/ssh/sftp-server",
                                 "/usr/libexec/openssh/sftp-server") if os.access(path, os.X_OK)), None)  # fmt: skip

pytestmark = [
    disks.needs("sshfs"),
    pytest.mark.skipif(SERVER is None, reason="needs sftp-server"),
    pytest.mark.skipif(not os.access("/dev/fuse", os.W_OK), reason="needs /dev/fuse"),
]


class Share:
    """`folder` of the server, seen at `where` by the client."""

    def __init__(self, folder, where):
        self.where = Path(where)
        self.where.mkdir()
        with socket.create_server(("127.0.0.1", 0)) as listener:
            client = subprocess.Popen(
                ["sshfs", "-f", "-o", f"directport={listener.getsockname()[1]}", f"127.0.0.1:{folder}", where],
                stderr=subprocess.DEVNULL,
            )
            listener.settimeout(20)
            connection, _ = listener.accept()
        self.client = client
        with connection:
            self.server = subprocess.Popen([SERVER], stdin=connection, stdout=connection, stderr=subprocess.DEVNULL)
        while not os.path.ismount(where):
            assert client.poll() is None, "sshfs has ended"
            time.sleep(0.01)

    def end(self):
        with contextlib.suppress(ProcessLookupError):
            self.server.send_signal(signal.SIGCONT)
        self.server.kill()
        self.server.wait()
        subprocess.run(["umount", "--lazy", str(self.where)], stderr=subprocess.DEVNULL)
        self.client.wait(timeout=20)
        self.where.rmdir()


@pytest.fixture
def shared(tmp_path):
    """A function: mounts what the server has."""
    folder, shares = tmp_path / "server", []
    folder.mkdir()

    def mount():
        shares.append(Share(folder, tmp_path / f"client-{len(shares)}"))
        return shares[-1]

    yield mount
    for share in shares:
        share.end()


def open_run(share, **options):
    return perdure.CheckpointManager(share.where / "run", **options)


def test_it_is_a_file_system_like_others(shared):
    share, numbered = shared(), NumberedState()
    with open_run(share, keep_last=2) as checkpoints:
        for step in (1, 2, 3):
            numbered.save(checkpoints, step).wait()
        assert checkpoints.all_steps() == [2, 3]
    with open_run(share) as checkpoints:
        assert numbered.restore(checkpoints) == 3
    check_verifies(share.where / "run")
    assert not debris_in(share.where / "run")


@pytest.mark.parametrize("after", [0, 0.002, 0.01, 0.03])
def test_the_server_dies_in_a_save(shared, after):
    share, numbered = shared(), NumberedState()
    checkpoints = open_run(share)
    numbered.save(checkpoints, 1).wait()
    killer = threading.Timer(after, share.server.kill)
    killer.start()
    handle = numbered.save(checkpoints, 2)
    killer.join()
    acknowledged = 1 if handle.error else 2
    failed = numbered.save(checkpoints, 3)  # and the training goes on
    assert isinstance(failed.error, perdure.IoError) and str(share.where / "run") in str(failed.error)
    with contextlib.suppress(perdure.Error):
        checkpoints.close()
    again = shared()
    with open_run(again) as checkpoints:
        assert numbered.restore(checkpoints) >= acknowledged
        numbered.save(checkpoints, 4).wait()
    check_verifies(again.where / "run")
    assert not debris_in(again.where / "run") and not list((again.where / "run").glob("*.damaged"))


def test_a_server_that_does_not_answer_for_a_while(shared, caplog):
    share, numbered = shared(), NumberedState()
    with open_run(share, stuck_after=0.2, when_busy="skip") as checkpoints:
        numbered.save(checkpoints, 1).wait()
        share.server.send_signal(signal.SIGSTOP)
        numbered.go_to(2)
        with caplog.at_level("WARNING", "perdure"):
            stuck = checkpoints.save(numbered.state)
            until = time.monotonic() + 30
            while not caplog.records and time.monotonic() < until:
                time.sleep(0.05)
            assert "makes no progress" in caplog.records[0].getMessage()
            numbered.go_to(3)
            assert checkpoints.save(numbered.state).skipped  # nobody waits
        share.server.send_signal(signal.SIGCONT)
        stuck.wait()
        assert numbered.restore(checkpoints) == 2
