"""Writes the seeds of the fuzz targets: small files as torch.save writes them, pickles of all protocols, and what else
there is to parse.

    python fuzz/make_seeds.py          (needs torch and safetensors; and perdure, for the files that perdure writes)
"""

import collections
import io
import json
import pathlib
import pickle
import tempfile
import zipfile

import safetensors.torch
import torch
import torch.distributed.checkpoint as dcp

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


def composites():
    dense = torch.eye(2)
    yield "sparse", [dense.to_sparse(), dense.to_sparse_csr(), dense.to_sparse_csc(), dense.to_sparse_bsr((1, 2))]
    scales, zeros = torch.ones(2).double(), torch.zeros(2, dtype=torch.int64)
    yield "quantized", [
        torch.quantize_per_tensor(dense, 0.1, 3, torch.quint8),
        torch.quantize_per_channel(dense, scales, zeros, 0, torch.qint8),
    ]
    rows = [torch.ones(1, 2), torch.ones(2, 2)]
    yield "nested", [torch.nested.nested_tensor(rows), torch.nested.nested_tensor(rows, layout=torch.jagged)]
    marked, parameter = torch.ones(2), torch.nn.Parameter(dense.to_sparse())
    marked.note = parameter.note = "a"
    yield "attributes", [marked, parameter]


def torch_file(state, **options):
    buffer = io.BytesIO()
    torch.save(state, buffer, **options)
    return buffer.getvalue()


def script_file():
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 1)), buffer)
    return buffer.getvalue()


def compressed():
    """The code in a TorchScript archive, as it lies there."""
    data = script_file()
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        for info in archive.infolist():
            if info.compress_type == zipfile.ZIP_DEFLATED:
                at = info.header_offset
                at += 30 + sum(int.from_bytes(data[at + i : at + i + 2], "little") for i in (26, 28))
                yield f"unpack/{pathlib.PurePath(info.filename).name}", data[at : at + info.compress_size]


def without_checksums(state):
    torch.serialization.set_crc32_options(False)
    try:
        return torch_file(state)
    finally:
        torch.serialization.set_crc32_options(True)


def plain_zips():
    """Of all forms that the reader takes: sizes in front or behind, zip64 or not."""
    for name, options in {"plain": {}, "zip64": {"force_zip64": True}}.items():
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as archive:
            for record, data in (("a/x", b"abc"), ("a/y", b"")):
                with archive.open(zipfile.ZipInfo(record), "w", **options) as file:
                    file.write(data)
        yield f"{name}.zip", buffer.getvalue()
    yield "streamed.zip", torch_file([1])


def own_records():
    """What .perdure/checkpoint.json and .perdure/index look like, and a history."""
    with tempfile.TemporaryDirectory() as folder:
        state = perdure.TrainingState(w=torch.ones(2), b=torch.ones((), dtype=torch.int8), best=0.5)
        with perdure.CheckpointManager(folder, keep_last=1) as checkpoints:
            for metrics in ({}, {"loss": 0.5, "odd": float("nan")}):
                state.step += 1
                checkpoints.save(state, metrics=metrics)
            checkpoints.wait()
            checkpoints.restore(state)
        (path,) = pathlib.Path(folder).glob("step-*.pt")
        with zipfile.ZipFile(path) as archive:
            yield "json/run.json", archive.read("archive/.perdure/checkpoint.json")
            yield "index/run.index", archive.read("archive/.perdure/index")
        yield "history/run.jsonl", (pathlib.Path(folder) / "history.jsonl").read_bytes()


def texts():
    """The small ones: names, patterns, and rules and keys in front of a pickle."""
    names = ["step-0000000001-g00000001.pt", "step-12345678901-g123456789.pt.damaged-2", ".step-0000000001-g00000001.pt.12-0123456789abcdef.tmp"]
    for number, name in enumerate(names):
        yield f"names/{number}", name.encode()
    patterns = ["model.*.weight\nmodel.fc.weight\nnet.*.w", "optimizer\noptimizer.state.0\nother", "a?*b\nacab\n*"]
    for number, pattern in enumerate(patterns):
        yield f"patterns/{number}", pattern.encode()


def safetensors_files():
    tensors = {"a": torch.ones(2, 3), "b": torch.zeros(0, dtype=torch.bool), "c": torch.tensor(1.5, dtype=torch.bfloat16)}
    yield "safetensors/tensors", safetensors.torch.save(tensors, {"format": "pt"})
    yield "safetensors/empty", safetensors.torch.save({})
    places = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    yield "safetensors_index/two", json.dumps({"metadata": {"total_size": 24}, "weight_map": places}).encode()


def dcp_metadata():
    with tempfile.TemporaryDirectory() as folder:
        state = {"model": {"w": torch.ones(2, 3), "b": torch.ones(())}, "groups": [{"t": torch.ones(1)}], "step": 3}
        dcp.save(state, checkpoint_id=folder)
        data = (pathlib.Path(folder) / ".metadata").read_bytes()
    yield "dcp/protocol-4", data
    yield "dcp/protocol-2", pickle.dumps(pickle.loads(data), 2)


def with_pickles(pickles):
    state = pickles["training"]
    yield "renaming/one", b"model.*\tnet.*\n\n" + state
    yield "renaming/two", b"model\tmodel.head\noptimizer.state\tadam\n\n" + state
    yield "show/all", b"\n" + pickles["values"]
    yield "show/some", b"*weight\n" + pickles["views"]
    yield "outline/same", pickles["views"] + pickles["views"]
    yield "outline/other", pickles["mappings"] + pickles["values"]


def main():
    files, pickles = {}, {}
    for name, state in states():
        files[f"torch-{name}"] = torch_file(state)
        perdure.save(state, SEEDS / "zip" / f"perdure-{name}.pt")
        with zipfile.ZipFile(io.BytesIO(files[f"torch-{name}"])) as archive:
            pickles[name] = archive.read("archive/data.pkl")
    for name, state in composites():
        with zipfile.ZipFile(io.BytesIO(torch_file(state))) as archive:
            pickles[name] = archive.read("archive/data.pkl")
    files["torch-script"] = script_file()
    files["torch-opaque"] = torch_file(opaque())
    files["torch-unchecked"] = without_checksums({"w": torch.ones(3)})
    for protocol in range(2, 6):
        pickles[f"protocol-{protocol}"] = pickle.dumps([opaque(), {"a": [1, (2,), b"x", 1.5], "big": 2**80}], protocol)
    more = {f"zip/{name}.pt": data for name, data in files.items()}
    more |= {f"pickle/{name}.pkl": data for name, data in pickles.items()}
    more |= {f"directory/{name}": data for name, data in plain_zips()}
    more |= {**dict(own_records()), **dict(texts()), **dict(with_pickles(pickles))}
    more |= {**dict(safetensors_files()), **dict(dcp_metadata())}
    legacy = {"_use_new_zipfile_serialization": False}
    head = len(b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.")  # fuzz_legacy puts it in front
    more |= {f"legacy/{name}.pt": torch_file(state, **legacy)[head:] for name, state in [*states(), *composites()]}
    more |= dict(compressed())
    for name, data in more.items():
        (SEEDS / name).parent.mkdir(exist_ok=True)
        (SEEDS / name).write_bytes(data)


if __name__ == "__main__":
    main()
