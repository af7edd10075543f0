"""Files of perdure whose own records lie: .perdure/checkpoint.json and .perdure/index, under right checksums."""

import json
import struct
import zipfile

from hostile_parts import archive

NAME_JSON, NAME_INDEX = ".perdure/checkpoint.json", ".perdure/index"


def records_of(path) -> dict[str, bytes]:
    """What is in a good file, in its order, so that it can be put together again."""
    with zipfile.ZipFile(path) as opened:
        return {name.removeprefix("archive/"): opened.read(name) for name in opened.namelist()}


def own_records(path) -> dict[str, tuple[str, bytes]]:
    """`path`: a good file that perdure wrote, of one tensor."""
    base = records_of(path)
    del base[NAME_INDEX]  # the offsets in it are those of the file that it came from
    return documents(base) | indices(records_of(path))


def documents(base):
    good = json.loads(base[NAME_JSON])

    def raw(data):
        return archive(base | {NAME_JSON: data}).build()

    def having(**changes):
        return raw(json.dumps(good | changes).encode())

    def without(name):
        return raw(json.dumps({k: v for k, v in good.items() if k != name}).encode())

    wrong = {
        "step": ["7", 1.5, 1e300, True, None, [], {}, 2**63, -(2**63) - 1, 10**400], "generation": ["7", -1, 0.5, 2**64, None],
        "parent": ["7", -1, 2**64], "metrics": [[], 1, None, "x", {"a": []}, {"a": {}}, {"a": "much"}, {"a": None}],
        "created": ["now", [], None], "reason": [1, [], None], "writer": [1, {}], "libraries": [[], 1, {"torch": 2}, {"a": []}],
        "optimizers": [[], 1, {"o": 1}, {"o": {}}, {"o": {"class": 1, "param_names": []}},
                       {"o": {"class": "A", "param_names": [1]}}, {"o": {"class": "A", "param_names": [[1]]}}],
        "format_version": ["1", 1.0, 0, -1, True, None, [1]],
    }  # fmt: skip
    cases = {}
    for name, values in wrong.items():
        cases[f"json-without-{name}"] = ("corrupt", without(name))
        for number, value in enumerate(values):
            cases[f"json-{name}-{number}"] = ("corrupt", having(**{name: value}))
    for number, value in enumerate(["2", 1.5, -1, 0, 2, 2**64 - 1, 2**64, None, []]):  # a file of one process has none
        cases[f"json-ranks-{number}"] = ("corrupt", having(ranks=value))
    text = base[NAME_JSON].decode()
    bad = {
        "empty": b"", "no-json": b"hello", "array": b"[]", "number": b"1", "null": b"null", "string": b'"a"',
        "open": b"{", "cut": text[: len(text) // 2].encode(), "trailing": text.encode() + b"x", "twice": text.encode() * 2,
        "comment": b"/* a */" + text.encode(), "nan": text.replace('"step": ', '"step": NaN, "x": ').encode(),
        "not-utf8": text.encode().replace(b'"reason": "', b'"reason": "\xff'), "utf16": text.encode("utf-16"),
        "surrogate": text.replace('"reason": "', '"reason": "\\ud800').encode(), "nul": text.encode() + b"\0",
        "deep": b"[" * 1_000_000, "deep-objects": b'{"a":' * 500_000,
        "key-twice": text.replace("{", '{"step": 1,', 1).encode(),
        "metric-twice": text.replace('"metrics": {', '"metrics": {"a": 1, "a": 2', 1).encode(),
        "long-garbage": b'{"' + b"\xff" * 10_000_000, "long-token": b"{" + b"x" * 10_000_000,
        "many-digits": b'{"step": ' + b"9" * 1_000_000 + b"}",
    }  # fmt: skip
    cases |= {f"json-{name}": ("corrupt", raw(data)) for name, data in bad.items()}
    many = {f"m{i}": i for i in range(100_000)}
    odd = {"\x1b[2J": 1, "\u202e": 2, "": 3, "x" * 100_000: 4}
    return cases | {
        "json-newer": ("unsupported", having(format_version=2)),
        "json-newer-by-far": ("unsupported", having(format_version=2**64 - 1)),
        "json-newer-and-otherwise-new": ("unsupported", raw(b'{"format_version": 2}')),
        "json-deep-member": ("corrupt", raw(text.replace("{", '{"x":' + "[" * 100_000 + "]" * 100_000 + ",", 1).encode())),
        "json-many-metrics": ("loads", having(metrics=many)),
        "json-many-unknown": ("loads", having(**{f"x{i}": i for i in range(100_000)})),
        "json-many-libraries": ("loads", having(libraries={name: "1" for name in many})),
        "json-odd-names": ("loads", having(metrics=odd, reason="\x1b[2J", writer="\u202e", libraries={"\x07": "\x1b"})),
        "json-long-texts": ("loads", having(reason="r" * 5_000_000, writer="w" * 5_000_000)),
        "json-infinite": ("loads", having(metrics={"a": "inf", "b": "-inf", "c": "nan"}, created=1e308)),
        "json-largest": ("loads", having(step=2**63 - 1, generation=2**64 - 1, parent=2**64 - 1)),
        "json-negative": ("loads", having(step=-(2**63), created=-1e300)),
    }


def indices(base):
    good = base[NAME_INDEX]
    head, storages, blocks = good[:32], good[32:52], good[52:56]
    tensors = good[56:]
    assert struct.unpack_from("<8sIIQQ", good)[3:] == (1, 1), "the good file has one tensor"

    def having(data):
        return archive(base | {NAME_INDEX: data}).build()

    def patched(at, code, value, data=good):
        changed = bytearray(data)
        struct.pack_into("<" + code, changed, at, value)
        return having(bytes(changed))

    cases = {"index-as-it-was": ("refused-or-loads", having(good))}
    fields = {"block-size": (12, "I"), "storages": (16, "Q"), "tensors": (24, "Q"), "offset": (32, "Q"), "size": (40, "Q"),
              "crc": (48, "I"), "block-crc": (52, "I"), "record": (56, "Q"), "keys": (66, "H"), "dimensions": (68, "I")}  # fmt: skip
    for name, (at, code) in fields.items():
        for value in (0, 1, 2, 2 ** (8 * struct.calcsize(code) - 1), 2 ** (8 * struct.calcsize(code)) - 1):
            # The index only describes: what of it says nothing of bytes is not compared.
            cases[f"index-{name}-{value:x}"] = ("refused-or-loads", patched(at, code, value))
    return cases | {
        "index-empty": ("corrupt", having(b"")),
        "index-other-magic": ("corrupt", having(b"PERDUREY" + good[8:])),
        "index-newer": ("unsupported", patched(8, "I", 2)),
        "index-version-0": ("unsupported", patched(8, "I", 0)),
        "index-longer": ("corrupt", having(good + b"\0")),
        "index-cut-in-head": ("corrupt", having(head[:20])),
        "index-cut-in-storages": ("corrupt", having(head + storages[:7])),
        "index-cut-in-blocks": ("corrupt", having(head + storages + blocks[:2])),
        "index-cut-in-tensors": ("corrupt", having(good[:-1])),
        "index-dtype": ("corrupt", patched(64, "B", 200)),
        "index-key-kind": ("corrupt", having(_patched_first_key(good, kind=9))),
        "index-key-length": ("corrupt", having(_patched_first_key(good, length=2**32 - 1))),
        "index-key-not-utf8": ("corrupt", having(_patched_first_key(good, byte=0xFF))),
        "index-millions-of-nothing": ("corrupt", having(head[:16] + struct.pack("<QQ", 2**40, 0) + bytes(1000))),
        "index-tensors-of-nothing": ("corrupt", having(head[:16] + struct.pack("<QQ", 0, 2**40) + tensors)),
    }


def _patched_first_key(good, kind=None, length=None, byte=None) -> bytes:
    dimensions = struct.unpack_from("<I", good, 68)[0]
    at = 80 + 16 * dimensions
    changed = bytearray(good)
    if kind is not None:
        changed[at] = kind
    if length is not None:
        struct.pack_into("<I", changed, at + 1, length)
    if byte is not None:
        changed[at + 5] = byte
    return bytes(changed)
