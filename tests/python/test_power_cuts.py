"""Power cuts on real file systems: at any moment, what was acknowledged is there, whole, and the run goes on.

PERDURE_CUTS says how many states are looked at of each recording, PERDURE_POWER_CUTS how often the power of a running
trainer is cut; with the first, all writers run on all file systems. PERDURE_SEED makes the same choices again.
"""

import os
import random
import signal
import subprocess
import time

import disks
import power_cuts
import pytest
from numbered import check_verifies, debris_in
from test_kills import KILLEE, steps_of

CUTS = int(os.environ.get("PERDURE_CUTS", "12"))
POWER_CUTS = int(os.environ.get("PERDURE_POWER_CUTS", "6"))
SEED = int(os.environ.get("PERDURE_SEED") or random.SystemRandom().randrange(2**32))

SHORT = [("ext4", "saves"), ("ext4-writeback", "overwrites"), ("xfs", "falls_back"), ("ext4", "pins")]
ALL = [
    (kind, writer)
    for kind in ("ext4", "ext4-writeback", "xfs")
    for writer in ("saves", "overwrites", "falls_back", "pins")
]
needs_recorder = disks.needs("qemu-storage-daemon", "mkfs.ext4", "mkfs.xfs")


@pytest.fixture
def memory(tmp_path):
    with disks.memory_folder(tmp_path / "memory") as folder:
        yield folder


@needs_recorder
@pytest.mark.parametrize("kind, writer", ALL if "PERDURE_CUTS" in os.environ else SHORT)
def test_every_state_after_a_power_cut(memory, kind, writer):
    print(f"PERDURE_SEED={SEED} PERDURE_CUTS={CUTS}")
    recording = power_cuts.record(memory / "recording", kind, writer, SEED)
    assert recording.last_acknowledged() >= 5
    failure = power_cuts.first_failure(recording, memory, CUTS, SEED)
    assert failure is None, " ".join(failure.repeat)


@needs_recorder
def test_it_is_found_out_that_torch_save_syncs_nothing(memory):
    recording = power_cuts.record(memory / "recording", "ext4", "overwrites_with_torch", SEED)
    assert power_cuts.first_failure(recording, memory, 30, SEED, keep_in=memory)


@needs_recorder
def test_it_is_found_out_where_fsync_does_nothing(memory):
    """And what is told then repeats it."""
    recording = power_cuts.record(memory / "recording", "ext4", "saves", SEED, before=disks.forget_syncs)
    failure = power_cuts.first_failure(recording, memory, 30, SEED, keep_in=memory)
    assert failure is not None
    again = subprocess.run(failure.repeat, capture_output=True, text=True)
    assert again.returncode == 1 and str(failure.error).splitlines()[0] in again.stderr, again.stderr


def train_until_cut(where, choose) -> tuple[int, list[int]]:
    """Cuts the power of a trainer; the step that it began with and those that it was told were safe."""
    capture = choose.choice(["eager", "overlapped"])
    trainer = subprocess.Popen(
        [KILLEE, str(where / "run"), str(choose.randrange(2**32)), capture],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    first = trainer.stdout.readline()
    assert first.startswith("restored"), trainer.communicate()
    time.sleep(choose.uniform(0.001, 0.15))
    disks.cut_power(where)
    trainer.send_signal(signal.SIGKILL)
    with trainer:
        output = trainer.stdout.read()  # and not communicate(), which knows nothing of what readline() took beyond its line
    return steps_of(first, "restored")[0], steps_of(output, "saved")


@disks.needs("mkfs.ext4", "mkfs.xfs")
@pytest.mark.skipif(KILLEE is None, reason="PERDURE_KILLEE does not name the program to kill")
@pytest.mark.parametrize("kind", ["ext4", "ext4-writeback", "xfs"])
def test_the_power_of_a_running_trainer_is_cut(memory, kind):
    print(f"PERDURE_SEED={SEED}")
    choose = random.Random(SEED)
    image = disks.make_image(kind, memory / "disk.img", 96)
    acknowledged = cuts_after_saves = 0
    for cut in range(POWER_CUTS):
        with disks.mounted(kind, image, memory / "disk") as where:
            began_at, saved = train_until_cut(where, choose)
        # One more than acknowledged: durable already, and cut off before it could say so.
        assert acknowledged <= began_at <= acknowledged + 1, f"cut {cut}, PERDURE_SEED={SEED}"
        assert saved == list(range(began_at + 1, began_at + 1 + len(saved)))
        acknowledged = saved[-1] if saved else began_at
        cuts_after_saves += bool(saved)
        with disks.mounted(kind, image, memory / "disk") as where:
            if acknowledged:
                check_verifies(where / "run")
            assert not list((where / "run").glob("*.damaged"))
            assert len(debris_in(where / "run")) <= 8  # the next manager's to collect
    assert cuts_after_saves > POWER_CUTS / 3, "too few saves to have tested anything"
