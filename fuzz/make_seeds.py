"""Writes the seeds of the fuzz targets: small files as torch.save writes them, and pickles of all protocols.

    python fuzz/make_seeds.py          (needs torch; and perdure, for the files that perdure writes)
"""

import collections
import io
import pathlib
import pickle
import zipfile

import torch

import perdure

SEEDS = pathlib.Path(__file__).parent / "seeds"


def states():
    """Small states, each with another part of the format in it."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3))
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(2, 2)).sum().backward()
    optimizer.step()
    base = torch.arange(12.0).reshape(3, 4)
    yield "training", {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "epoch": 3, "loss": 0.5}
    yield "views", {"base": base, "row": base[1], "transposed": base.T, "scalar": torch.tensor(1.5), "empty": torch.ones(0, 3)}
    yield "flags", [torch.ones(2, dtype=torch.complex64).conj(), torch.nn.Parameter(torch.ones(1)), torch.ones(1, device="meta")]
    yield "dtypes", [torch.zeros(2, dtype=d) for d in (torch.bool, torch.uint16, torch.bfloat16, torch.float8_e4m3fn, torch.int64)]
    plain = {1: None, "b": b"\xff\x00", "c": 1 - 2j, "big": 2**70, "t": (1, -1, 70000, True), 2.5: {"set", 7}}
    shared = ["x"]
    yield "values", [plain, bytearray(b"ab"), torch.Size([2]), torch.device("cuda", 1), torch.float16, shared, (shared, shared)]
    yield "mappings", [collections.OrderedDict(a=1), collections.Counter("aab")]


def opaque():
    return {"config": pathlib.PurePosixPath("a"), "range": range(3), "frozen": frozenset({1}), "error": ValueError("x")}


def torch_file(state):
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


def without_checksums(state):
    torch.serialization.set_crc32_options(False)
    try:
        return torch_file(state)
    finally:
        torch.serialization.set_crc32_options(True)


def main():
    files, pickles = {}, {}
    for name, state in states():
        files[f"torch-{name}"] = torch_file(state)
        perdure.save(state, SEEDS / "zip" / f"perdure-{name}.pt")
        with zipfile.ZipFile(io.BytesIO(files[f"torch-{name}"])) as archive:
            pickles[name] = archive.read("archive/data.pkl")
    files["torch-opaque"] = torch_file(opaque())
    files["torch-unchecked"] = without_checksums({"w": torch.ones(3)})
    for protocol in range(2, 6):
        pickles[f"protocol-{protocol}"] = pickle.dumps([opaque(), {"a": [1, (2,), b"x", 1.5], "big": 2**80}], protocol)
    for name, data in files.items():
        (SEEDS / "zip" / f"{name}.pt").write_bytes(data)
    for name, data in pickles.items():
        (SEEDS / "pickle" / f"{name}.pkl").write_bytes(data)


if __name__ == "__main__":
    main()
