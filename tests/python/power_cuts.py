"""Power cuts on a real file system: a disk that records what is written to it, and every state it may be left in.

The disk is an image behind qemu-storage-daemon, which logs each write and each flush in the format of dm-log-writes; it
is exported as a file by FUSE, and mounted over a loop device. After a cut, what was written before the last flush is
there; of what was written since, anything may be: all, nothing, some writes in any order, some torn between sectors.

What was promised is noted with the size that the log had when it was acknowledged. Each write and flush is in the log
before the disk answers it, so all that an acknowledgement rests on lies within that size, and whoever is cut after it
has to find what was promised. That it may be a little more only makes the check less sharp; it is never wrong.

A failing state is kept, and this looks at it again:

    python tests/python/power_cuts.py FOLDER POSITION SEED
"""

import bisect
import json
import os
import random
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import disk_writers
import disks

SECTOR = 512
_PAGE = 4096
_MAGIC = 0x6A736677736872
_FLUSH, _FUA, _DISCARD, _MARK = 1, 2, 4, 8


class Entry(NamedTuple):
    place: int  # in the log
    offset: int  # on the disk
    data: bytes
    flags: int


def read_log(path) -> list[Entry]:
    log = Path(path).read_bytes()
    magic, _, _, sector = struct.unpack_from("<QQQI", log)
    assert (magic, sector) == (_MAGIC, SECTOR), "not a log of writes"
    entries, place = [], SECTOR
    while place + SECTOR <= len(log):
        offset, count, flags, data_length = struct.unpack_from("<QQQQ", log, place)
        if not (count or flags):
            break  # the daemon ended here
        assert not flags & (_DISCARD | _MARK) and not data_length, "the file systems are mounted without discard"
        data = log[place + SECTOR : place + SECTOR + count * SECTOR]
        assert len(data) == count * SECTOR
        entries.append(Entry(place, offset * SECTOR, data, flags))
        place += SECTOR + len(data)
    return entries


class RecordedDisk:
    """`device` is a file; what is written to it goes to `image` and to `log`."""

    def __init__(self, folder, image, log):
        self.device = Path(folder) / "device"
        self._size = os.path.getsize(image)
        self.device.touch()
        Path(log).touch()
        self._process = subprocess.Popen(
            [
                "qemu-storage-daemon",
                *("--blockdev", f"driver=file,node-name=disk,filename={image}"),
                *("--blockdev", f"driver=file,node-name=log,filename={log}"),
                *("--blockdev", f"driver=blklogwrites,node-name=recorded,file=disk,log=log,log-sector-size={SECTOR}"),
                *("--export", f"type=fuse,id=export,node-name=recorded,mountpoint={self.device},writable=on"),
            ]
        )

    def __enter__(self):
        disks.wait_for(lambda: os.path.getsize(self.device) == self._size)
        return self

    def __exit__(self, *_):
        self._process.terminate()
        self._process.wait(timeout=60)


class Recording:
    """In a folder: the disk before (base.img), the log, what was promised when (promises.json)."""

    def __init__(self, folder):
        self.folder = Path(folder)
        self.entries = read_log(self.folder / "log")
        told = json.loads((self.folder / "promises.json").read_text())
        self.kind, self.writer = told["kind"], told["writer"]
        self._promises = [{"newest": 0}] + told["promises"]
        ends = [entry.place for entry in self.entries]
        self._positions = [0] + [bisect.bisect_left(ends, p.pop("log")) for p in self._promises[1:]]

    def promise_at(self, position: int) -> dict:
        """What has to be found by who is cut when so many entries are in the log."""
        return self._promises[bisect.bisect_right(self._positions, position) - 1]

    def last_acknowledged(self) -> int:
        return max(promise["newest"] for promise in self._promises)

    def keep(self, folder=None) -> Path:
        kept = Path(tempfile.mkdtemp(prefix="perdure-power-cut-", dir=folder))
        for name in ("base.img", "log", "promises.json"):
            disks.command("cp", "--sparse=always", self.folder / name, kept)
        return kept


def record(folder, kind: str, writer: str, seed: int, mib: int = 32, before=lambda: None) -> Recording:
    """Runs the writer in a child, which calls before() first, on a disk that records it."""
    folder = Path(folder)
    folder.mkdir(exist_ok=True)
    base, image, log = disks.make_image(kind, folder / "base.img", mib), folder / "disk.img", folder / "log"
    disks.command("cp", base, image)
    pipe = folder / "promises"

    def write(where):
        def note(**promise):
            with open(pipe, "a") as file:
                file.write(json.dumps({"log": os.path.getsize(log), **promise}) + "\n")

        before()
        with disk_writers.neighbour(where):
            disk_writers.WRITERS[writer][0](where, note, random.Random(seed))

    with RecordedDisk(folder, image, log) as disk, disks.mounted(kind, disk.device, folder / "recorded") as where:
        assert disks.in_child(lambda: write(where)) == 0, "the writer failed: see above"
    promises = [json.loads(line) for line in pipe.read_text().splitlines()]
    told = {"kind": kind, "writer": writer, "promises": promises}
    (folder / "promises.json").write_text(json.dumps(told))
    return Recording(folder)


class Cut(NamedTuple):
    position: int  # the power is cut when so many entries are in the log
    seed: int = 0  # which of the writes since the last flush are there, and how much of them; 0: all


class Replay:
    """Puts the disk into the state of a cut, and looks. Quickest where the positions ascend."""

    def __init__(self, recording: Recording, folder):
        self.recording = recording
        self._folder = Path(folder)
        self._durable = self._folder / "durable.img"
        self._applied = 0
        self.unmountable: list[Cut] = []
        disks.command("cp", recording.folder / "base.img", self._durable)

    def check(self, cut: Cut) -> None:
        """Raises AssertionError, or what perdure raised, where not everything is as promised."""
        image = self._image_of(cut)
        try:
            mount = disks.mounted(self.recording.kind, image, self._folder / "replayed")
            where = mount.__enter__()
        except AssertionError:
            if not cut.seed:
                raise
            self.unmountable.append(cut)  # a file system may rely on whole blocks; the caller counts them
            return
        try:
            disk_writers.WRITERS[self.recording.writer][1](where, **self.recording.promise_at(cut.position))
        finally:
            mount.__exit__(None, None, None)

    def _image_of(self, cut: Cut) -> Path:
        entries = self.recording.entries
        flushes = [i for i in range(cut.position) if entries[i].flags & _FLUSH]
        since = flushes[-1] if flushes else 0
        if since < self._applied:
            disks.command("cp", self.recording.folder / "base.img", self._durable)
            self._applied = 0
        _write(self._durable, entries[self._applied : since])
        self._applied = since
        image = self._folder / "cut.img"
        disks.command("cp", self._durable, image)
        recent = entries[since : cut.position]
        _write(image, _survivors(recent, cut.seed) if cut.seed else recent)
        return image


def _write(image: Path, entries: list[Entry]) -> None:
    with open(image, "r+b") as file:
        for entry in entries:
            file.seek(entry.offset)
            file.write(entry.data)


def _survivors(entries: list[Entry], seed: int) -> list[Entry]:
    """Some of the writes, some of them in part. What is no longer than a page is there as a whole or not at all."""
    choose = random.Random(seed)
    lost, torn = choose.choice([0.1, 0.5, 0.9]), choose.choice([0, 0.3])
    survivors = []
    for entry in entries:
        if entry.flags & _FUA or choose.random() >= lost:
            survivors.append(entry)
        elif len(entry.data) > _PAGE and choose.random() < torn:
            survivors += _torn(entry, choose)
    return survivors


def _torn(entry: Entry, choose: random.Random) -> list[Entry]:
    """What of the sectors is there: those before a place, or any."""
    count = len(entry.data) // SECTOR
    if choose.random() < 0.5:
        kept = range(choose.randrange(count))
    else:
        kept = [i for i in range(count) if choose.random() < 0.5]
    sector = lambda i: entry.data[i * SECTOR : (i + 1) * SECTOR]
    return [entry._replace(offset=entry.offset + i * SECTOR, data=sector(i)) for i in kept]


def cuts_of(recording: Recording, count: int, seed: int) -> list[Cut]:
    """Every boundary between two writes where `count` allows it; the rest, or half, with writes lost and torn."""
    choose = random.Random(seed)
    boundaries = list(range(len(recording.entries) + 1))
    whole = choose.sample(boundaries, min(len(boundaries), max(count // 2, count - len(boundaries))))
    cuts = [Cut(position) for position in whole]
    cuts += [Cut(choose.choice(boundaries), choose.randrange(1, 2**32)) for _ in range(count - len(cuts))]
    return sorted(cuts)


class Failure(NamedTuple):
    error: Exception
    repeat: list[str]  # the command that looks at that state again


def first_failure(recording: Recording, folder, count: int, seed: int, keep_in=None) -> Failure | None:
    """Looks at so many states. The first one that is not as promised is kept, in the folder for temporary files."""
    replay = Replay(recording, folder)
    for cut in cuts_of(recording, count, seed):
        try:
            replay.check(cut)
        except Exception as error:
            repeat = [sys.executable, __file__, str(recording.keep(keep_in)), str(cut.position), str(cut.seed)]
            return Failure(error, repeat)
    flushes = sum(bool(entry.flags & _FLUSH) for entry in recording.entries)
    unmountable = f"{len(replay.unmountable)} of them cannot be mounted"
    print(f"{count} states of {len(recording.entries) - flushes} writes and {flushes} flushes, {unmountable}")
    assert len(replay.unmountable) <= count / 20, f"the fault of {recording.kind}: {replay.unmountable}"
    return None


def main(folder, position, seed) -> None:
    begin = time.monotonic()
    with tempfile.TemporaryDirectory() as work:
        Replay(Recording(folder), work).check(Cut(int(position), int(seed)))
    print(f"all is as promised ({time.monotonic() - begin:.1f} s)")


if __name__ == "__main__":
    main(*sys.argv[1:])
