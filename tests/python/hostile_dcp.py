"""Directories of torch.distributed.checkpoint that mean harm: name -> (what must happen, what is in the directory)."""

import dataclasses
import io
import os
import pickle
import types

import torch
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata, ChunkStorageMetadata, Metadata, MetadataIndex, TensorProperties, TensorStorageMetadata,
)  # fmt: skip

from hostile_parts import Link, Pipe, Sparse, torch_file
from hostile_parts import pickle as pickle_of
from hostile_pickles import pickles
from hostile_safetensors import mutated
from hostile_zips import zips

SIZE, HALF = torch.Size, torch.Size((2, 3))


def saved(value) -> bytes:
    out = io.BytesIO()
    torch.save(value, out)
    return out.getvalue()


@dataclasses.dataclass
class Made:
    """A checkpoint of w, a tensor of 4 x 3 in two pieces; v, a tensor in one; and n, a value."""

    items: dict
    places: dict
    paths: object
    files: dict
    protocol: int = 4

    def metadata(self) -> Metadata:
        return Metadata(self.items, self.paths, self.places)

    def build(self) -> dict:
        return {".metadata": pickle.dumps(self.metadata(), self.protocol)} | self.files

    def place(self, name="v") -> _StorageInfo:
        return next(info for index, info in self.places.items() if index.fqn == name)

    def only(self, item, places=None):
        """Nothing but a tensor x."""
        self.items, self.paths = {"x": item}, {"x": ("x",)}
        self.places = places or {}


def tensor_item(shape, chunks, dtype=torch.float32, size=None):
    pieces = [ChunkStorageMetadata(SIZE(offsets), SIZE(sizes)) for offsets, sizes in chunks]
    return TensorStorageMetadata(TensorProperties(dtype=dtype), SIZE(shape) if size is None else size, pieces)


def good() -> Made:
    made = Made({}, {}, {"w": ("model", "w"), "v": ("v",), "n": ("list", 0)}, {})
    rows = torch.arange(12.0).reshape(4, 3)
    for name, at, value in (
        ("n", None, {"lr": 0.5}),
        ("v", (0,), torch.ones(3)),
        ("w", (0, 0), rows[:2].clone()),
        ("w", (2, 0), rows[2:].clone()),
    ):
        data, file = saved(value), "__0_0.distcp" if at != (2, 0) else "__1_0.distcp"
        index = MetadataIndex(name, None if at is None else SIZE(at))
        made.places[index] = _StorageInfo(file, len(made.files.get(file, b"")), len(data))
        made.files[file] = made.files.get(file, b"") + data
    made.items = {
        "w": tensor_item((4, 3), [((0, 0), HALF), ((2, 0), HALF)]),
        "v": tensor_item((3,), [((0,), (3,))]),
        "n": BytesStorageMetadata(),
    }
    return made


def changed(change, protocol=4) -> dict:
    made = good()
    made.protocol = protocol
    change(made)
    return made.build()


def dcp_directories(canary, secret, random) -> dict[str, tuple[str, dict]]:
    """`secret` is a folder beside them, of which nothing must ever be seen."""
    found = (
        escapes(secret)
        | ranges()
        | chunks()
        | shapes()
        | dtypes()
        | paths()
        | forms()
        | parts(canary, random)
        | metadata_pickles(canary, random)
    )
    return {f"dcp-{name}": case for name, case in found.items()} | mutations(random)


# ---- where the bytes lie


def escapes(secret):
    def naming(name):
        return changed(lambda made: setattr(made.place(), "relative_path", name))

    away = (f"../{secret.name}/secret.pt", str(secret / "secret.pt"), "..", ".", "", "/", "./__0_0.distcp", "a/../__0_0.distcp", "__0_0.distcp/",
            "a//b", "__0_0.distcp\0", "\0", "/proc/self/mem", "a/./b", "../dcp-good/__0_0.distcp")  # fmt: skip
    cases = {f"escape-{i}": ("invalid", naming(name)) for i, name in enumerate(away)}
    names = ("~", "a\\b", "x" * 300, "a/" * 3000 + "b", "\x1b[2J", "x" * 5_000_000, "%2e%2e/x", "file:x")
    cases |= {f"missing-{i}": ("refused", naming(name)) for i, name in enumerate(names)}
    no_names = (5, None, b"__0_0.distcp", ("a",), 1.5, ["__0_0.distcp"], "\ud800")
    cases |= {f"no-name-{i}": ("refused", naming(name)) for i, name in enumerate(no_names)}
    here = good().build()
    for name, target in {
        "link": f"../{secret.name}/secret.pt", "link-absolute": str(secret / "secret.pt"), "link-proc": "/proc/self/fd/0", "link-loop": "__1_0.distcp",
        "link-blobs": "../../blobs/x",
    }.items():  # fmt: skip
        cases[name] = ("refused", here | {"__1_0.distcp": Link(target)})
    nested = naming("inside/x") | {"inside": Link(f"../{secret.name}")}
    return cases | {
        "good": ("loads", here),
        "good-protocol-2": ("loads", changed(lambda made: None, 2)),
        "good-protocol-5": ("loads", changed(lambda made: None, 5)),
        "good-in-a-folder": ("loads", naming("sub/f") | {"sub/f": here["__0_0.distcp"]}),
        "link-folder": ("io", nested),
        "link-metadata": ("refused", here | {".metadata": Link(str(secret / "secret.txt"))}),
        "file-missing": ("not_found", {name: data for name, data in here.items() if name != "__1_0.distcp"}),
        "file-is-a-pipe": ("refused", here | {"__1_0.distcp": Pipe()}),
        "file-is-a-folder": ("io", here | {"__1_0.distcp": {"x": b""}}),
        "file-is-the-metadata": ("refused", naming(".metadata")),
        "file-empty": ("corrupt", here | {"__1_0.distcp": b""}),
        "file-cut": ("corrupt", here | {"__1_0.distcp": here["__1_0.distcp"][:-1]}),
        "file-longer": ("loads", here | {"__1_0.distcp": here["__1_0.distcp"] + b"x"}),
        "file-flipped": (
            "corrupt",
            here
            | {
                "__1_0.distcp": bytes(
                    b ^ (i == len(here["__1_0.distcp"]) // 2) for i, b in enumerate(here["__1_0.distcp"])
                )
            },
        ),
        "metadata-is-a-pipe": ("refused", here | {".metadata": Pipe()}),
        "metadata-is-a-folder": ("io", here | {".metadata": {"x": b""}}),
        "metadata-too-long": ("unsupported", here | {".metadata": Sparse(here[".metadata"], (1 << 30) + 1)}),
        "metadata-empty": ("corrupt", here | {".metadata": b""}),
    }


def ranges():
    large = (2**31, 2**32, 2**62, 2**63 - 1, 2**63, 2**64 - 1, 2**64, 2**200)
    cases = {}
    for number, value in enumerate((*large, -1, -(2**63), 1.5, None, "0", True, (0,))):
        for field in ("offset", "length"):
            cases[f"{field}-{number}"] = ("refused", changed(lambda made: setattr(made.place(), field, value)))
    truth = good().place()
    return cases | {
        "offset-one-more": ("corrupt", changed(lambda made: setattr(made.place(), "offset", truth.offset + 1))),
        "length-one-less": ("corrupt", changed(lambda made: setattr(made.place(), "length", truth.length - 1))),
        "length-one-more": (
            "refused-or-loads",
            changed(lambda made: setattr(made.place(), "length", truth.length + 1)),
        ),
        "length-nothing": ("corrupt", changed(lambda made: setattr(made.place(), "length", 0))),
        "sum-wraps": (
            "corrupt",
            changed(
                lambda made: (setattr(made.place(), "offset", 2**63 - 1), setattr(made.place(), "length", 2**63 - 1))
            ),
        ),
        "range-of-another": (
            "corrupt",
            changed(lambda made: made.places.update({MetadataIndex("v", SIZE((0,))): made.place("n")})),
        ),
        "transform": (
            "unsupported",
            changed(lambda made: setattr(made.place(), "transform_descriptors", ["stream.zstd/1"])),
        ),
        "transform-odd": ("unsupported", changed(lambda made: setattr(made.place(), "transform_descriptors", "x"))),
        "transform-none": ("loads", changed(lambda made: setattr(made.place(), "transform_descriptors", []))),
    }


# ---- what tensors are made of


def chunks():
    def of_w(*pieces):
        return changed(lambda made: made.items.update(w=tensor_item((4, 3), pieces)))

    def of_nothing(shape):
        return changed(lambda made: made.only(tensor_item(shape, [])))

    first, second = ((0, 0), HALF), ((2, 0), HALF)
    wrong = {
        "hole": of_w(first), "none": of_w(), "overlap": of_w(first, ((1, 0), HALF), second), "outside": of_w(first, ((3, 0), HALF)),
        "far-outside": of_w(first, ((2**62, 0), HALF)), "wraps": of_w(first, ((2**63 - 1, 0), HALF)), "too-large": of_w(first, ((2, 0), (2**62, 3))),
        "product-wraps": of_w(((0, 0), (2**62, 4)), first, second), "other-dimensions": of_w(first, ((2,), (2,))),
        "more-dimensions": of_w(first, ((2, 0, 0), (2, 3, 1))), "larger-than-the-file's": of_w(((0, 0), (3, 3)), ((3, 0), (1, 3))),
        "nowhere": of_w(first, ((2, 0), (1, 3)), ((3, 0), (1, 3))), "none-of-a-scalar": of_nothing(()), "none-of-many": of_nothing((2**60,)),
        "none-of-too-many": of_nothing((2**62, 2**62)), "of-2-60": changed(lambda made: made.only(
            tensor_item((2**60,), [((0,), (2**60,))]), {MetadataIndex("x", SIZE((0,))): made.place()})),
    }  # fmt: skip
    cases = {f"chunks-{name}": ("corrupt", folder) for name, folder in wrong.items()}
    empty = ((0,), (0, 2**62), (2**62, 0, 2**62), (0,) * 1000)
    cases |= {f"chunks-none-of-nothing-{i}": ("refused-or-loads", of_nothing(shape)) for i, shape in enumerate(empty)}
    many = changed(lambda made: made.only(tensor_item((8_000,), [((i,), (1,)) for i in range(8_000)]),
                                          {MetadataIndex("x", SIZE((i,))): made.place() for i in range(8_000)}))  # fmt: skip
    return cases | {
        "chunks-replica": ("loads", of_w(first, first, second)),
        "chunks-of-nothing-too": ("loads", of_w(first, ((2, 0), (0, 3)), second)),
        "chunks-many": ("refused", many),
        "chunks-too-many": ("refused", of_w(*[((0, i), (0, 3)) for i in range(20_000)])),
        "chunks-in-two-places": ("corrupt", twice_placed()),
    }


def twice_placed():
    """Two indices of one piece, as no dict of Python's could have them: written as text that equals after a change."""
    made = good()
    made.places[MetadataIndex("W", SIZE((0, 0)))] = made.place("v")
    folder = made.build()
    return folder | {".metadata": folder[".metadata"].replace(b"\x8c\x01W", b"\x8c\x01w")}


def shapes():
    sizes = ((-1,), (2**63,), (2**64,), (2**200,), (1.5,), ("3",), (None,), ((3,),), (True,), (3, 1), (), (2,), (4,))
    cases = {}
    for number, size in enumerate(sizes):
        cases[f"shape-{number}"] = ("refused", changed(lambda made: setattr(made.items["v"], "size", size)))
    for number, size in enumerate((3, None, "3", {0: 3}, b"\x03", (3,) * 200_000)):
        cases[f"no-shape-{number}"] = ("refused", changed(lambda made: setattr(made.items["v"], "size", size)))
    return cases | {
        "shape-as-a-list": ("refused-or-loads", changed(lambda made: setattr(made.items["v"], "size", [3])))
    }


def dtypes():
    def having(value):
        def change(made):
            made.items["v"].properties = (
                types.SimpleNamespace(dtype=value) if value is None else TensorProperties(dtype=torch.float32)
            )
            if value is not None:
                made.items["v"].properties.dtype = value

        return changed(change)

    values = (
        torch.float64,
        torch.int32,
        torch.quint8,
        torch.bits8,
        torch.float4_e2m1fn_x2,
        None,
        os.system,
        torch.Size,
        torch.strided,
    )
    return {f"dtype-{i}": ("refused", having(value)) for i, value in enumerate(values)} | {
        f"no-dtype-{i}": ("refused", folder) for i, folder in enumerate(
            changed(lambda made: setattr(made.items["v"], "properties", value)) for value in (None, 5, "float32", torch.float32, ()))
    }  # fmt: skip


# ---- the nesting of the state


def paths():
    def nested(paths):
        return changed(lambda made: setattr(made, "paths", paths))

    whole = good().paths
    wrong = {
        "same": whole | {"v": ("model", "w")}, "below": whole | {"v": ("model", "w", "x")}, "above": whole | {"v": ("model",)},
        "dict-and-list": whole | {"v": ("model", 0)}, "list-and-dict": whole | {"v": ("list", "a")}, "far-in-a-list": whole | {"v": ("list", 2**40)},
        "huge-in-a-list": whole | {"v": ("list", 2**200)}, "before-a-list": whole | {"v": ("list", -1)}, "empty": whole | {"v": ()},
        "no-tuple": whole | {"v": "v"}, "none": whole | {"v": None}, "list": whole | {"v": ["v"]}, "odd": whole | {"v": (1.5,)},
        "nested": whole | {"v": (("v",),)}, "bytes": whole | {"v": (b"v",)}, "lists-at-the-top": {"w": (0,), "v": (1,), "n": ("a",)},
    }  # fmt: skip
    cases = {f"paths-{name}": ("corrupt", nested(value)) for name, value in wrong.items()}
    cyclic = {}
    cyclic["v"] = cyclic

    return cases | {
        "paths-deep": ("unsupported", nested(whole | {"v": ("x",) * 10_000})),
        "paths-deepest": ("refused-or-loads", nested(whole | {"v": ("x",) * 250})),
        "paths-lists-in-lists": ("loads", nested(whole | {"v": ("deep", 0, 0, 0, 1)})),
        "paths-list-with-gaps": ("loads", nested(whole | {"v": ("list", 2)})),
        "paths-missing": ("loads", nested({})),
        "paths-none-at-all": ("loads", nested(None)),
        "paths-of-nobody": ("loads", nested(whole | {"nobody": ("model", "w")})),
        "paths-of-no-dict": ("refused-or-loads", nested([1, 2])),
        "paths-in-themselves": ("refused", nested(cyclic)),
        "paths-of-another-class": ("refused-or-loads", nested(os.system)),
        "paths-odd-names": (
            "loads",
            nested(whole | {"v": ("", "..", "../x", "\x1b[2J", "a\0b", "\u202e", "/etc/passwd")}),
        ),
        "paths-long": ("loads", nested(whole | {"v": ("x" * 2_000_000,)})),
    }


def forms():
    """A Metadata that is none."""

    def having(name, value):
        return changed(lambda made: setattr(made, name, value))

    cases = {}
    for name in ("items", "places"):
        for number, value in enumerate((None, [], 5, "x", {1: 2}, {"v": None}, {"v": 5}, {None: None})):
            cases[f"{name}-{number}"] = ("refused", having(name, value))
    here = good().build()
    for number, root in enumerate(
        (
            None,
            {},
            [],
            5,
            "x",
            torch.Size((1,)),
            MetadataIndex("a"),
            BytesStorageMetadata(),
            {"state_dict_metadata": {}},
        )
    ):
        cases[f"root-{number}"] = ("corrupt", here | {".metadata": pickle.dumps(root)})
    return cases | {
        "empty": ("loads", {".metadata": pickle.dumps(Metadata({}, {}, {}))}),
        "bytes-nowhere": ("corrupt", changed(lambda made: made.places.pop(MetadataIndex("n", None)))),
        "tensor-as-bytes": ("refused-or-loads", changed(lambda made: made.places.update({MetadataIndex("v", None): made.place("v")})
                            or made.items.update(v=BytesStorageMetadata()))),
        "bytes-as-tensor": ("corrupt", changed(lambda made: made.items.update(n=tensor_item((3,), [((0,), (3,))])))),
        "names-odd": ("loads", changed(lambda made: made.items.update({"\x1b[2J\0../x": made.items.pop("v")}) or made.places.update(
            {MetadataIndex("\x1b[2J\0../x", SIZE((0,))): made.place("v")}))),
        "items-many": ("loads", changed(lambda made: (made.items.update({f"e{i}": tensor_item((0,), []) for i in range(8_000)})))),
        "places-many": ("loads", changed(lambda made: made.places.update({MetadataIndex(f"x{i}"): made.place("v") for i in range(8_000)}))),
    }  # fmt: skip


# ---- the pickles and zips inside


def metadata_pickles(canary, random):
    """None of them is a Metadata."""
    here, bodies = good().build(), pickles(canary)
    chosen = {name for name in bodies if name.startswith("call")} | set(random.sample(sorted(bodies), 60))
    return {f"pickle-{name}": ("refused", here | {".metadata": bodies[name][1]}) for name in sorted(chosen)} | {
        f"call-{name}": ("refused", changed(lambda made: setattr(made.items["v"], "properties", Calling(made_of)))) for name, made_of in {
            "system": (os.system, (f"touch {canary}",)), "eval": (eval, (f"open({str(canary)!r}, 'w')",)), "open": (open, (str(canary), "w")),
            "load": (torch.load, (str(canary),)),
        }.items()
    }  # fmt: skip


class Calling:
    def __init__(self, made_of):
        self.made_of = made_of

    def __reduce__(self):
        return self.made_of


def parts(canary, random):
    """A value, or a tensor, that is a hostile file of its own. Not all of them each time: they are tested alone."""

    def value(data):
        def change(made):
            made.files["n"] = data
            made.places[MetadataIndex("n", None)] = _StorageInfo("n", 0, len(data))

        return changed(change)

    def tensor(data):
        def change(made):
            made.files["v"] = data
            made.places[MetadataIndex("v", SIZE((0,)))] = _StorageInfo("v", 0, len(data))

        return changed(change)

    bodies, archives = pickles(canary), zips(random)
    calls = [name for name in bodies if "call" in name or "torch-jit" in name]
    cases = {}
    for name in sorted({*calls, *random.sample(sorted(bodies), 20)}):
        cases[f"value-{name}"] = (as_part(bodies[name][0]), value(torch_file(bodies[name][1])))
    for name in random.sample(sorted(archives), 20):
        cases[f"value-{name}"] = (as_part(archives[name][0]), value(archives[name][1]))
        cases[f"tensor-{name}"] = ("refused-or-loads", tensor(archives[name][1]))
    legacy = io.BytesIO()
    torch.save(torch.ones(3), legacy, _use_new_zipfile_serialization=False)
    return cases | {
        "value-raw-pickle": ("refused", value(pickle_of(b"N"))),
        "value-legacy": ("refused-or-loads", value(legacy.getvalue())),
        "tensor-legacy": ("refused-or-loads", tensor(legacy.getvalue())),
        "tensor-transposed": ("corrupt", tensor(saved(torch.ones(3, 2).T))),
        "tensor-strided": ("loads", tensor(saved(torch.arange(6.0)[::2]))),
        "tensor-expanded": ("refused", tensor(saved(torch.ones(1).expand(3)))),
        "tensor-of-meta": ("refused", tensor(saved(torch.ones(3, device="meta")))),
        "tensor-sparse": ("refused", tensor(saved(torch.ones(3).to_sparse()))),
        "tensor-conjugated": ("refused", tensor(saved(torch.ones(3, dtype=torch.complex64).conj()))),
        "tensor-in-a-dict": ("corrupt", tensor(saved({"v": torch.ones(3)}))),
    }


def as_part(what: str) -> str:
    return {"None": "loads"}.get(what, what)


def mutations(random):
    whole, cases = good().build(), {}
    metadata, data = whole[".metadata"], whole["__0_0.distcp"]
    for size in sorted({random.randrange(len(metadata)) for _ in range(15)} | {1, len(metadata) - 1}):
        cases[f"dcp-cut-metadata-at-{size}"] = ("corrupt", whole | {".metadata": metadata[:size]})
    for size in sorted({random.randrange(len(data)) for _ in range(8)}):
        cases[f"dcp-cut-data-at-{size}"] = ("corrupt", whole | {"__0_0.distcp": data[:size]})
    for number in range(60):
        cases[f"dcp-mutated-metadata-{number}"] = (
            "refused-or-loads",
            whole | {".metadata": mutated(random, metadata, len(metadata))},
        )
    for number in range(20):
        cases[f"dcp-mutated-data-{number}"] = (
            "refused-or-loads",
            whole | {"__0_0.distcp": mutated(random, data, len(data))},
        )
    return cases
