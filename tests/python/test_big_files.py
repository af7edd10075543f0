"""Where 32 and 16 bits end: a record of more than 4 GiB, records that lie after 4 GiB, more than 65,535 records."""

import os
import shutil
import zipfile

import pytest
import torch
from torch.utils.serialization import config

import perdure

GIB = 2**30
BIG = 4 * GIB + 12345
EDGES = (0, 1, 2**31, 2**32 - 1, 2**32, BIG - 1)
MANY = 66_000


def free_memory():
    with open("/proc/meminfo") as lines:
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))


@pytest.fixture(scope="module")
def big_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("big")
    disk, memory = shutil.disk_usage(folder).free, free_memory()
    if disk < 12 * GIB:
        pytest.skip(f"needs 12 GiB of free disk in {folder}, there are {disk / GIB:.1f}")
    if memory < 8 * GIB:
        pytest.skip(f"needs 8 GiB of free memory, there are {memory / GIB:.1f}")
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def big_path(big_folder):
    path = big_folder / "perdure.pt"
    perdure.save(big_state(), path)
    return path


def big_state():
    big = torch.zeros(BIG, dtype=torch.uint8)  # pages that nobody writes to take no memory
    for i, at in enumerate(EDGES):
        big[at] = i + 1
    return {"big": big, "after": torch.arange(5.0), "empty": torch.zeros(0, 3), "last": torch.arange(7), "epoch": 3}


def assert_is_big_state(state):
    assert state["big"].numel() == BIG and [state["big"][at].item() for at in EDGES] == [1, 2, 3, 4, 5, 6]
    assert_is_small_part(state)


def assert_is_small_part(state):
    assert torch.equal(state["after"], torch.arange(5.0)) and torch.equal(state["last"], torch.arange(7))
    assert state["empty"].shape == (0, 3) and state["epoch"] == 3


@pytest.fixture
def calculated_offsets():
    config.load.calculate_storage_offsets = True
    yield
    config.load.calculate_storage_offsets = False


def test_layout_beyond_4_gib(big_path):
    assert os.stat(big_path).st_size > BIG
    with zipfile.ZipFile(big_path) as archive:
        sizes = {info.filename: (info.file_size, info.header_offset) for info in archive.infolist()}
        assert sizes["archive/data/0"] == (BIG, 0) and sizes["archive/data/1"][1] > 2**32
        assert archive.testzip() is None


def test_torch_reads_beyond_4_gib(big_path):
    assert_is_big_state(torch.load(big_path, mmap=True))


def test_offsets_that_torch_calculates(big_path, calculated_offsets):
    assert_is_big_state(torch.load(big_path, mmap=True))


def test_perdure_reads_beyond_4_gib(big_path):
    assert_is_small_part(perdure.load(big_path, keys=["after", "empty", "last", "epoch"]))
    assert_is_big_state(perdure.load(big_path))
    assert perdure.verify(big_path).state == "good"


def write_at(path, offset, byte):
    with open(path, "r+b") as file:
        file.seek(offset)
        found = file.read(1)
        file.seek(offset)
        file.write(byte)
    return found


def test_damage_beyond_4_gib_is_found_and_named(big_path):
    place = 128 + 2**32  # the data of the first record begins at 128, and a block does 4 GiB later
    try:
        assert write_at(big_path, place, b"\x04") == b"\x05"
        report = perdure.verify(big_path)
        assert report.state == "damaged"
        assert [(finding.tensor, finding.offset) for finding in report.findings] == [("state['big']", place)]
        assert_is_small_part(perdure.load(big_path, keys=["after", "empty", "last", "epoch"]))
        with pytest.raises(perdure.CorruptionError, match=rf"state\['big'\] is damaged: .* at offset {place}"):
            perdure.load(big_path, keys=["big"])
    finally:
        write_at(big_path, place, b"\x05")


def test_perdure_reads_what_torch_wrote_beyond_4_gib(big_folder):
    path = big_folder / "torch.pt"
    torch.save(big_state(), path)
    assert perdure.verify(path).state == "good"
    assert_is_big_state(perdure.load(path))


def many_state():
    numbers = torch.arange(MANY, dtype=torch.int32)
    return {i: number.clone() for i, number in enumerate(numbers)}


def assert_is_many_state(state):
    assert list(state) == list(range(MANY))
    assert torch.equal(torch.stack(list(state.values())), torch.arange(MANY, dtype=torch.int32))


def test_more_records_than_16_bits_count(path, calculated_offsets):
    perdure.save(many_state(), path)
    with zipfile.ZipFile(path) as archive:
        assert sum(info.filename.startswith("archive/data/") for info in archive.infolist()) == MANY
    assert_is_many_state(torch.load(path))
    assert_is_many_state(torch.load(path, mmap=True))
    assert_is_many_state(perdure.load(path))
    assert perdure.verify(path).state == "good"
    assert perdure.load(path, keys=[65_999]).keys() == {65_999}


def test_more_records_than_16_bits_count_from_torch_save(path):
    torch.save(many_state(), path)
    assert_is_many_state(perdure.load(path))
    assert perdure.verify(path).state == "good"
