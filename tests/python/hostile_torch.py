"""Files of PyTorch's other formats that mean harm: legacy ones (from before 1.6) and TorchScript archives. name -> (what
must happen, the bytes)."""

import io
import struct
import warnings
import zipfile
import zlib

import torch

from hostile_parts import (
    EMPTY_DICT, EMPTY_LIST, FALSE, HOOKS, NONE, Archive, Entry, Sparse, call, integer, integers, items, listed, mapped,
    named, pickle, string, tensor,
)  # fmt: skip
from hostile_pickles import pickles
from hostile_safetensors import mutated

MAGIC = pickle(integer(0x1950A86A20F9469CFC6C))
VERSION = pickle(integer(1001))
MACHINE = pickle(mapped(string("little_endian"), b"\x88", string("protocol_version"), integer(1001)))
WEIGHT = struct.pack("<3f", 1, 2, 3)


def stored(key="0", count=3, kind="FloatStorage", device="cpu", view=NONE) -> bytes:
    """A storage in the object of a legacy file."""
    return items(string("storage"), named("torch", kind), string(key), string(device), integer(count), view) + b"Q"


def view(key: bytes, offset: int, count: int) -> bytes:
    return items(key, integer(offset), integer(count))


ONE = pickle(mapped(string("w"), tensor(stored())))
KEYS = pickle(listed(string("0")))


def storage_bytes(data=WEIGHT, count=3) -> bytes:
    return struct.pack("<Q", count) + data


def legacy(body=ONE, keys=KEYS, storages=storage_bytes(), magic=MAGIC, version=VERSION, machine=MACHINE) -> bytes:
    return magic + version + machine + body + keys + storages


def legacy_files(canary, random) -> dict[str, tuple[str, bytes | Sparse]]:
    found = heads() | keys() | storages() | views() | inner(canary, random)
    return {f"legacy-{name}": case for name, case in found.items()} | legacy_mutations(random)


def heads():
    versions = (0, 1000, 1002, 2**62, 2**200, -1)
    cases = {
        f"version-{i}": ("unsupported", legacy(version=pickle(integer(number)))) for i, number in enumerate(versions)
    }
    cases |= {
        f"version-odd-{i}": ("unsupported", legacy(version=pickle(body)))
        for i, body in enumerate((NONE, b"\x88", string("1001"), EMPTY_LIST))
    }
    whole = legacy()
    return cases | {
        "good": ("loads", whole),
        "magic-only": ("corrupt", MAGIC),
        "magic-often": ("refused", MAGIC * 1000),
        "magic-text": ("refused", legacy(magic=pickle(string("0x1950a86a20f9469cfc6c")))),
        "magic-of-call": ("refused", legacy(magic=pickle(call("os", "system", string("id"))))),
        "machine-of-anything": ("loads", legacy(machine=pickle(EMPTY_LIST))),
        "machine-big-endian": ("refused-or-loads", legacy(machine=pickle(mapped(string("little_endian"), FALSE)))),
        "machine-of-call": ("refused", legacy(machine=pickle(call("os", "system", string("id"))))),
        "no-object": ("corrupt", MAGIC + VERSION + MACHINE),
        "sparse": ("corrupt", Sparse(whole, 1 << 40)),
        "sparse-pickle": (
            "refused",
            Sparse(MAGIC + VERSION + MACHINE + b"\x80\x02\x8b" + struct.pack("<I", 2**31 - 1), 1 << 40),
        ),
        "sparse-text": (
            "refused",
            Sparse(MAGIC + VERSION + MACHINE + b"\x80\x02X" + struct.pack("<I", 2**32 - 1), 1 << 40),
        ),
        "sparse-text-8": (
            "refused",
            Sparse(MAGIC + VERSION + MACHINE + b"\x80\x04\x8d" + struct.pack("<Q", 2**39), 1 << 40),
        ),
        "many-storages": many_storages(),
    }


def many_storages():
    body = pickle(listed(*[tensor(stored(str(i), 1), size=(1,)) for i in range(5000)]))
    return "loads", legacy(
        body, pickle(listed(*[string(str(i)) for i in range(5000)])), storage_bytes(b"abcd", 1) * 5000
    )


def keys():
    def having(*parts, storages=storage_bytes()):
        return legacy(keys=pickle(listed(*parts)), storages=storages)

    wrong = {
        "none": having(), "no-list": legacy(keys=pickle(NONE)), "tuple": legacy(keys=pickle(items(string("0")))),
        "twice": having(string("0"), string("0"), storages=storage_bytes() * 2), "other": having(string("1")), "number": having(integer(0)),
        "more": having(string("0"), string("1"), storages=storage_bytes() * 2), "nested": having(listed(string("0"))), "null": having(NONE),
        "missing": MAGIC + VERSION + MACHINE + ONE, "swapped": MAGIC + VERSION + MACHINE + KEYS + ONE + storage_bytes(),
    }  # fmt: skip
    return {f"keys-{name}": ("corrupt", data) for name, data in wrong.items()} | {
        "keys-of-call": ("refused", legacy(keys=pickle(call("os", "listdir", string("/"))))),
        "keys-odd": (
            "loads",
            legacy(pickle(listed(tensor(stored("../\x1b[2J\0x")))), pickle(listed(string("../\x1b[2J\0x")))),
        ),
        "keys-long": (
            "loads",
            legacy(pickle(listed(tensor(stored("x" * 1_000_000)))), pickle(listed(string("x" * 1_000_000)))),
        ),
        "keys-million": ("corrupt", having(*[string("0")] * 500_000)),
    }


def storages():
    """Sizes that lie, in the object and in front of the bytes."""
    cases = {}
    for number, count in enumerate((0, 2, 4, 2**31, 2**61, 2**62, 2**63 - 1, 2**63, 2**64 - 1)):
        cases[f"count-{number}"] = ("corrupt", legacy(storages=storage_bytes(count=count)))
        cases[f"claim-{number}"] = ("refused", legacy(pickle(listed(tensor(stored(count=count))))))
        cases[f"both-{number}"] = (
            "refused",
            legacy(pickle(listed(tensor(stored(count=count)))), storages=storage_bytes(count=count)),
        )
    for number, count in enumerate((-1, -(2**63), 2**200)):
        cases[f"claim-below-{number}"] = ("refused", legacy(pickle(listed(tensor(stored(count=count))))))
    geometry = {
        "size": ((4,), (2**62,), (2**62, 4), (-1,), (3, 1)),
        "stride": ((2,), (2**62,), (-1,), ()),
        "offset": (1, -1, 2**62, 2**63),
    }
    for name, values in geometry.items():
        for number, value in enumerate(values):
            cases[f"{name}-{number}"] = ("refused-or-loads", legacy(pickle(listed(tensor(stored(), **{name: value})))))
    two = listed(tensor(stored()), tensor(stored(kind="IntStorage")))
    return cases | {
        "kind-unknown": ("refused", legacy(pickle(listed(tensor(stored(kind="OtherStorage")))))),
        "kind-of-call": ("refused", legacy(pickle(listed(tensor(items(string("storage"), named("os", "system"), string("0"), string("cpu"), integer(3), NONE) + b"Q"))))),
        "kind-twice": ("refused", legacy(pickle(two))),
        "kind-quantized": ("refused", legacy(pickle(listed(tensor(stored(kind="QInt32Storage")))))),
        "device-odd": ("refused", legacy(pickle(listed(tensor(stored(device="\x1b[2J:../")))))),
        "device-long": ("refused-or-loads", legacy(pickle(listed(tensor(stored(device="x" * 100_000)))))),
        "four-fields": ("refused-or-loads", legacy(pickle(listed(tensor(items(string("storage"), named("torch", "FloatStorage"), string("0"), string("cpu"), integer(3)) + b"Q"))))),
        "module-source": ("refused", legacy(pickle(listed(items(string("module"), named("os", "system"), string("a.py"), string("import os")) + b"Q")))),
        "bytes-cut": ("corrupt", legacy(storages=storage_bytes()[:-1])),
        "bytes-none": ("corrupt", legacy(storages=b"")),
        "bytes-half-a-count": ("corrupt", legacy(storages=b"\3\0\0")),
        "bytes-behind": ("corrupt", legacy(storages=storage_bytes() + b"x")),
        "zip-behind": ("corrupt", legacy(storages=storage_bytes() + b"PK\x05\x06" + bytes(18))),
    }  # fmt: skip


def views():
    def having(*fields, count=3):
        return legacy(pickle(listed(tensor(stored(view=view(*fields)), size=(count,)))))

    outside = ((1, 3), (0, 4), (3, 1), (-1, 3), (0, -1), (2**62, 2**62), (2**63 - 1, 1), (0, 2**63), (2**200, 1))
    cases = {f"view-outside-{i}": ("refused", having(string("v"), *fields)) for i, fields in enumerate(outside)}
    odd = (
        EMPTY_DICT,
        items(string("v")),
        items(string("v"), NONE, NONE),
        integer(0),
        items(string("v"), integer(0), integer(3), integer(0)),
    )
    cases |= {
        f"view-odd-{i}": ("refused", legacy(pickle(listed(tensor(stored(view=body)))))) for i, body in enumerate(odd)
    }
    return cases | {
        "view-whole": ("refused-or-loads", having(string("v"), 0, 3)),
        "view-of-a-part": ("refused-or-loads", having(string("v"), 1, 2, count=2)),
        "view-too-small": ("refused", having(string("v"), 1, 1, count=2)),
    }


def inner(canary, random):
    """Pickles as the object. Not all of them each time: they are tested in zips. Their storages are not there."""
    cases, bodies = {}, pickles(canary)
    for name in sorted({*random.sample(sorted(bodies), 120), *[name for name in bodies if "call" in name]}):
        what, data = bodies[name]
        cases[f"object-{name}"] = (
            "refused-or-loads" if what in ("None", "loads", "refused-or-loads") else "refused",
            legacy(data, pickle(EMPTY_LIST), b""),
        )
    return cases


def legacy_mutations(random):
    out = io.BytesIO()
    torch.save(
        {"w": torch.ones(2, 3), "n": [1, {"lr": 0.5}], "v": torch.arange(4)[1:]},
        out,
        _use_new_zipfile_serialization=False,
    )
    whole = out.getvalue()
    cases = {
        f"legacy-cut-at-{size}": ("corrupt", whole[:size])
        for size in sorted({random.randrange(20, len(whole)) for _ in range(12)})
    }
    return cases | {f"legacy-mutated-{i}": ("refused-or-loads", mutated(random, whole, len(whole))) for i in range(50)}


# ---- TorchScript


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = torch.nn.Linear(2, 3)

    def forward(self, x):
        return self.fc(x) + torch.tensor([1.0, 2.0, 3.0])  # traced, it is a constant of the archive


def script_records() -> dict[str, bytes]:
    out = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(Net(), torch.ones(2))
    torch.jit.save(traced, out)
    with zipfile.ZipFile(out) as opened:
        return {name.partition("/")[2]: opened.read(name) for name in opened.namelist()}


def script(records: dict[str, bytes], packed=(), **lies) -> bytes:
    """`packed` are the names of records that are compressed, with `lies` in both of their headers."""
    return Archive([entry(name, data, name in packed, lies) for name, data in records.items()]).build()


def entry(name, data, is_packed, lies) -> Entry:
    name = b"archive/" + name.encode()
    if not is_packed:
        return Entry(name, data, streamed=False)
    body = lies.get("body", deflated(data))
    truth = {"method": 8, "size": len(data), "crc": zlib.crc32(data), "compressed": len(body)} | {
        k: v for k, v in lies.items() if k != "body"
    }
    return Entry(name, body, streamed=False, local=truth, central=truth)


def deflated(data: bytes) -> bytes:
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    return packer.compress(data) + packer.flush()


def script_files(canary, random) -> dict[str, tuple[str, bytes]]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        base = script_records()
    found = codes(base) | objects(base, canary) | script_mutations(base, random)
    return {f"script-{name}": case for name, case in found.items()}


def codes(base):
    """The code, which nobody runs: its checksum is compared by verify alone."""
    code = next(name for name in base if name.startswith("code/") and name.endswith(".py"))
    zeros = deflated(bytes(300_000_000))

    def having(**lies):
        return "refused-or-loads", script(base, {code}, **lies)

    whole = deflated(base[code])
    return {
        "good": ("loads", script(base)),
        "code-packed": ("loads", script(base, {code})),
        "code-evil": ("loads", script(base | {code: b"import os\nos.system('id')\n" * 100})),
        "code-missing": ("refused-or-loads", script({name: data for name, data in base.items() if name != code})),
        "code-size-0": having(size=0), "code-size-more": having(size=2 * len(base[code])), "code-size-2-31": having(size=2**31),
        "code-size-most": having(size=2**32 - 2), "code-crc": having(crc=1), "code-bomb": having(body=zeros, size=300_000_000, crc=zlib.crc32(bytes(300_000_000))),
        "code-bomb-that-lies": having(body=zeros), "code-cut": having(body=whole[:-3]), "code-empty": having(body=b""),
        "code-behind": having(body=whole + b"x"), "code-garbage": having(body=b"\xff" * 100), "code-method-9": having(method=9),
        "code-endless": having(body=b"\0\0\0\xff\xff" * 10_000), "pickle-packed": ("unsupported", script(base, {"data.pkl"})),
        "constants-packed": ("unsupported", script(base, {"constants.pkl"})), "bomb-records": ("loads", script(base | {f"extra/{i}": b"" for i in range(10_000)})),
        "data-packed": ("unsupported", script(base, {next(name for name in base if name.startswith("data/"))})),
    }  # fmt: skip


def objects(base, canary):
    def pickled(body, name="data.pkl", records=None):
        return script(base | {name: pickle(body)} | (records or {}))

    def instance(module="__torch__", name="Net", state=EMPTY_DICT):
        return named(module, name) + b")\x81" + state + b"b"

    modules = (
        "os",
        "builtins",
        "__torch__os",
        "__torch__.os",
        "__torch__.../..",
        "__torch__.\x1b[2J",
        "torch.__torch__",
        "__torch__." + "x" * 100_000,
    )
    cases = {
        f"object-{i}": ("refused-or-loads", pickled(instance(module, "system"))) for i, module in enumerate(modules)
    }
    cases |= {f"call-{i}": ("unsupported", pickled(call(module, name, string(f"touch {canary}")))) for i, (module, name) in enumerate(
        [("os", "system"), ("builtins", "eval"), ("builtins", "exec"), ("torch.jit", "load"), ("torch._C", "import_ir_module")])}  # fmt: skip
    cases |= {f"constants-call-{i}": ("unsupported", pickled(call(module, name, string(f"touch {canary}")), "constants.pkl"))
              for i, (module, name) in enumerate([("os", "system"), ("builtins", "eval")])}  # fmt: skip
    for name, (_, data) in pickles(canary).items():
        if name.startswith(("call", "deep", "bomb", "memo", "geometry")):
            cases[f"constants-{name}"] = ("refused-or-loads", script(base | {"constants.pkl": data}))
    number = base["constants/0"]
    constant = tensor(
        items(string("storage"), named("torch", "FloatStorage"), string("0"), string("cpu"), integer(len(number) // 4))
        + b"Q",
        size=(2**40,),
    )
    reference = mapped(string("a"), named("__torch__", "Net"))
    return cases | {
        "constants-outside": ("corrupt", pickled(items(constant), "constants.pkl")),
        "constants-missing": ("corrupt", script({name: data for name, data in base.items() if name != "constants/0"})),
        "constants-no-tuple": ("refused-or-loads", pickled(NONE, "constants.pkl")),
        "constants-not-there": (
            "refused-or-loads",
            script({name: data for name, data in base.items() if name != "constants.pkl"}),
        ),
        "constants-in-data": (
            "refused-or-loads",
            script({name.replace("constants/", "data/1"): data for name, data in base.items()}),
        ),
        "class-alone": ("unsupported", pickled(reference)),
        "class-with-two-arguments": (
            "refused",
            pickled(named("__torch__", "E") + items(integer(1), integer(2)) + b"R"),
        ),
        "class-of-a-call": (
            "refused-or-loads",
            pickled(named("__torch__", "E") + items(call("os", "system", string("id"))) + b"R"),
        ),
        "state-no-dict": ("refused-or-loads", pickled(instance(state=integers(1, 2)))),
        "state-odd-keys": (
            "refused-or-loads",
            pickled(instance(state=mapped(integer(1), NONE, NONE, NONE, string("(state)"), NONE))),
        ),
        "state-taken-names": (
            "refused-or-loads",
            pickled(instance(state=mapped(string("(constants)"), integer(1), string("_class"), integer(2)))),
        ),
        "deep": (
            "unsupported",
            pickled(
                b"".join(named("__torch__", "N") + b")\x81" + EMPTY_DICT + string("a") for _ in range(2000))
                + NONE
                + b"sb" * 2000
            ),
        ),
        "list-of-call": (
            "refused",
            pickled(call("torch.jit._pickle", "build_intlist", call("os", "system", string("id")))),
        ),
        "list-of-no-list": ("refused", pickled(call("torch.jit._pickle", "build_tensorlist", NONE))),
        "restore-type-tag": (
            "refused-or-loads",
            pickled(call("torch.jit._pickle", "restore_type_tag", EMPTY_LIST, string("List[\x1b[2J]"))),
        ),
        "hooks-in-the-root": ("loads", pickled(HOOKS)),
        "model-json": ("refused", script({"model.json": b"{}", **base})),
    }


def script_mutations(base, random):
    cases = {}
    for number in range(40):
        name = random.choice(["data.pkl", "data.pkl", "constants.pkl", "constants.pkl", "version"])
        cases[f"mutated-{number}-{name}"] = (
            "refused-or-loads",
            script(base | {name: mutated(random, base[name], len(base[name]))}),
        )
    whole = script(base)
    return cases | {
        f"cut-at-{size}": ("corrupt", whole[:size])
        for size in sorted({random.randrange(30, len(whole)) for _ in range(10)})
    }
