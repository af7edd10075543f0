"""safetensors that mean harm: files, and directories of several with an index. Written against the format's description
and not with its library: name -> (what must happen, what is there, as hostile_parts.write takes it)."""

import json
import struct

from hostile_parts import Link, Pipe, Sparse

DATA = struct.pack("<3f", 1, 2, 3)
HEAD = '{"w":{"dtype":"F32","shape":[3],"data_offsets":[0,12]}}'
INDEX = "model.safetensors.index.json"


def file(header: str | bytes = HEAD, data: bytes = DATA, length: int | None = None) -> bytes:
    header = header.encode() if isinstance(header, str) else header
    return struct.pack("<Q", len(header) if length is None else length) + header + data


def entry(dtype='"F32"', shape="[3]", offsets="[0,12]") -> str:
    """Of JSON texts, which need be none."""
    return f'{{"dtype":{dtype},"shape":{shape},"data_offsets":{offsets}}}'


def header(*members: tuple[str, str]) -> str:
    return "{" + ",".join(f"{json.dumps(name)}:{value}" for name, value in members) + "}"


def one(data=DATA, **parts) -> bytes:
    return file(header(("w", entry(**parts))), data)


def safetensors_files(random) -> dict[str, tuple[str, bytes | Sparse]]:
    found = {}
    for part in (lengths, texts, members, dtypes, shapes, places, metadata, names, bombs):
        found |= {f"st-{name}": case for name, case in part().items()}
    return found | mutations(random)


def lengths():
    size = len(HEAD)
    wrong = (
        0,
        1,
        2,
        7,
        8,
        size - 1,
        size + 1,
        size + 12,
        size + 13,
        2**31,
        2**32,
        2**63 - 1,
        2**63,
        2**64 - 8,
        2**64 - 1,
    )
    cases = {f"length-{n:x}": ("corrupt", file(length=n)) for n in wrong}
    return cases | {
        "length-too-large-and-there": ("corrupt", Sparse(file(length=100_000_001), 100_000_100)),
        "length-largest-and-blank": ("corrupt", Sparse(file(length=100_000_000), 100_000_008)),
        "head-cut": ("corrupt", b"\x40\0\0\0"),
        "head-alone": ("corrupt", struct.pack("<Q", 2)),
        "head-of-nothing": ("corrupt", struct.pack("<Q", 0)),
    }


def texts():
    """What is no JSON, or not the JSON that the format allows."""
    wrong = {
        "array": "[]", "string": '"w"', "number": "12", "null": "null", "text": "hello, world", "blank": " " * 64, "space-first": " " + HEAD,
        "bom": b"\xef\xbb\xbf" + HEAD.encode(), "utf16": HEAD.encode("utf-16-le"), "open": "{", "open-string": '{"', "twice": HEAD * 2,
        "comma": HEAD[:-1] + ",}", "comment": "{/* a */" + HEAD[1:], "quotes": HEAD.replace('"', "'"), "garbage-behind": HEAD + "x",
        "nul-behind": HEAD + "\0\0\0", "nul-inside": HEAD.replace('"shape"', '\0"shape"'), "nan": header(("w", "NaN")),
        "infinity": header(("w", "Infinity")), "nan-in-shape": header(("w", entry(shape="[NaN]"))),
        "infinite-offset": header(("w", entry(offsets="[0,Infinity]"))), "minus-infinity": header(("w", entry(offsets="[-Infinity,12]"))),
        "large-float": header(("w", entry(shape="[1e999]"))), "many-digits": header(("w", entry(shape="[" + "9" * 100_000 + "]"))),
        "deep-arrays": '{"w":' + "[" * 1_000_000, "deep-objects": '{"w":' * 300_000, "deep-shape": header(("w", entry(shape="[" * 1000 + "]" * 1000))),
        "deep-metadata": header(("__metadata__", '{"a":' * 1000 + "1" + "}" * 1000), ("w", entry())),
        "invalid-utf8": HEAD.encode().replace(b'"w"', b'"\xff"'), "overlong-utf8": HEAD.encode().replace(b'"w"', b'"\xc0\x80"'),
        "raw-control": HEAD.replace('"w"', '"\x01"'), "raw-surrogate": HEAD.encode().replace(b'"w"', b'"\xed\xa0\x80"'),
        "lone-surrogate": HEAD.replace('"w"', '"\\ud800"'), "lone-low": HEAD.replace('"w"', '"\\udc00x"'), "bad-escape": HEAD.replace('"w"', '"\\x"'),
        "long-token": "{" + "x" * 1_000_000,
    }  # fmt: skip
    cases = {f"json-{name}": ("corrupt", file(text)) for name, text in wrong.items()}
    return cases | {
        "json-empty": ("loads", file("{}", b"")),
        "json-empty-with-bytes": ("corrupt", file("{}")),
        "json-spaces": ("loads", file(HEAD + " " * 1000)),
        "json-white": ("loads", file(HEAD.replace(",", " ,\n\t ") + "\r\n\t ")),
        "json-escaped": ("loads", file(HEAD.replace('"dtype"', '"\\u0064type"'))),
        "json-pair": ("loads", file(HEAD.replace('"w"', '"\\ud83d\\ude00"'))),
    }


def members():
    good = entry()
    return {
        "twice-the-same": ("corrupt", file(header(("w", good), ("w", good)))),
        "twice-two-places": ("corrupt", file(header(("w", good), ("w", entry(offsets="[12,24]"))), DATA * 2)),
        "twice-escaped": ("corrupt", file(f'{{"w":{good},"\\u0077":{entry(offsets="[12,24]")}}}', DATA * 2)),
        "member-dtype-twice": ("corrupt", file(HEAD.replace('"dtype":"F32"', '"dtype":"F32","dtype":"I32"'))),
        "member-shape-twice": ("corrupt", file(HEAD.replace('"shape":[3]', '"shape":[3],"shape":[3]'))),
        "member-offsets-twice": (
            "corrupt",
            file(HEAD.replace('"data_offsets":[0,12]', '"data_offsets":[],"data_offsets":[0,12]')),
        ),
        "member-more": ("corrupt", file(HEAD.replace('"dtype"', '"extra":1,"dtype"'))),
        "member-crc": ("corrupt", file(HEAD.replace('"dtype"', '"crc":"x","dtype"'))),
        "member-none": ("corrupt", file('{"w":{}}')),
        "member-array": ("corrupt", file('{"w":["F32",[3],[0,12]]}')),
        "member-null": ("corrupt", file('{"w":null}')),
        "member-string": ("corrupt", file('{"w":"F32"}')),
        "member-nested": ("corrupt", file(f'{{"w":{{"a":{good}}}}}')),
        "member-no-dtype": ("corrupt", file('{"w":{"shape":[3],"data_offsets":[0,12]}}')),
        "member-no-shape": ("corrupt", file('{"w":{"dtype":"F32","data_offsets":[0,12]}}')),
        "member-no-offsets": ("corrupt", file('{"w":{"dtype":"F32","shape":[3]}}')),
    }


def dtypes():
    cases = {
        f"dtype-{i}": ("corrupt", one(dtype=text))
        for i, text in enumerate(("5", "null", "[]", "{}", "true", "1.5", '["F32"]'))
    }
    unknown = ("f32", "F31", "", "torch.float32", "F32 ", "F\\u00003", "x" * 1_000_000)
    cases |= {f"dtype-unknown-{i}": ("unsupported", one(dtype=f'"{text}"')) for i, text in enumerate(unknown)}
    return cases | {
        "dtype-of-other-size": ("corrupt", one(dtype='"F64"')),
        "dtype-of-no-size": ("corrupt", one(dtype='"F4"', shape="[3]", offsets="[0,1]", data=b"a")),
        "dtype-f4-odd": ("unsupported", one(dtype='"F4"', shape="[2,1]", offsets="[0,1]", data=b"a")),
        "dtype-f4-scalar": ("refused", one(dtype='"F4"', shape="[]", offsets="[0,1]", data=b"a")),
        "dtype-f6": ("unsupported", one(dtype='"F6_E2M3"', shape="[16]")),
        "dtype-bool-of-anything": ("refused-or-loads", one(dtype='"BOOL"', shape="[12]", data=bytes(range(12)))),
    }


def shapes():
    no_shapes = ("[-1]", "[-3]", "[3.0]", "[3e0]", "[-0]", '["3"]', "[true]", "[null]", "[[3]]", "3", '"3"', "null", "{}", '{"0":3}',
                 "[18446744073709551616]", "[1e30]")  # fmt: skip
    cases = {f"shape-{i}": ("corrupt", one(shape=text)) for i, text in enumerate(no_shapes)}
    # As wrapped products they would be what the offsets say.
    wrapping = (
        [2**62, 2**62],
        [2**32, 2**32],
        [2**31, 2**31, 4],
        [2**61],
        [2**62, 3, 2**62],
        [2**64 - 1, 2**64 - 1],
        [2**62, 4],
    )
    cases |= {
        f"shape-wraps-{i}": ("corrupt", one(b"", shape=json.dumps(s), offsets="[0,0]")) for i, s in enumerate(wrapping)
    }
    empty = ([0, 2**64 - 1], [2**63, 0], [0, 2**62, 2**62], [2**62, 2**62, 0], [0, 2**40], [0] * 1000)
    cases |= {
        f"shape-empty-{i}": ("refused-or-loads", one(b"", shape=json.dumps(s), offsets="[0,0]"))
        for i, s in enumerate(empty)
    }
    return cases | {
        "shape-of-64": ("loads", one(shape=json.dumps([1] * 63 + [3]))),
        "shape-of-65": ("refused-or-loads", one(shape=json.dumps([1] * 64 + [3]))),
        "shape-of-1000": ("refused-or-loads", one(shape=json.dumps([1] * 999 + [3]))),
        "shape-of-1001": ("corrupt", one(shape=json.dumps([1] * 1000 + [3]))),
        "shape-of-a-million": ("corrupt", one(shape=json.dumps([1] * 1_000_000))),
        "shape-one-more": ("corrupt", one(shape="[4]")),
        "shape-one-less": ("corrupt", one(shape="[2]")),
    }


def places():
    no_places = ("[12,0]", "[0,13]", "[0,11]", "[1,13]", "[4,12]", "[-1,11]", "[0,12,12]", "[12]", "[]", "[0.0,12]", '["0","12"]', "[0,-12]",
                 "[0,18446744073709551615]", "[18446744073709551604,18446744073709551615]", "[9223372036854775808,9223372036854775820]",
                 "[null,12]", "null", "12", '"0,12"', "{}")  # fmt: skip
    cases = {f"place-{i}": ("corrupt", one(offsets=text)) for i, text in enumerate(no_places)}

    def two(a, b, data=DATA * 2, shape="[3]"):
        return file(header(("a", entry(offsets=a)), ("b", entry(offsets=b, shape=shape))), data)

    return cases | {
        "place-same": ("corrupt", two("[0,12]", "[0,12]", DATA)),
        "place-overlap": ("corrupt", two("[0,12]", "[8,20]", DATA * 2)),
        "place-hole": ("corrupt", two("[0,12]", "[16,28]", DATA * 3)),
        "place-hole-first": ("corrupt", two("[4,16]", "[16,28]", DATA + DATA + b"abcd")),
        "place-hole-last": ("corrupt", two("[0,12]", "[12,24]", DATA * 3)),
        "place-other-order": ("loads", two("[12,24]", "[0,12]")),
        "place-empty-in-front": ("loads", two("[0,12]", "[0,0]", DATA, "[0]")),
        "place-empty-behind": ("loads", two("[0,12]", "[12,12]", DATA, "[5,0]")),
        "place-empty-inside": ("corrupt", two("[0,12]", "[4,4]", DATA, "[0]")),
        "place-empty-outside": ("corrupt", two("[0,12]", "[16,16]", DATA, "[0]")),
        "place-bytes-behind": ("corrupt", file(data=DATA + b"x")),
        "place-zip-behind": ("corrupt", file(data=DATA + b"PK\x05\x06" + bytes(18))),
        "place-byte-missing": ("corrupt", file(data=DATA[:-1])),
        "place-no-bytes": ("corrupt", file(data=b"")),
    }


def metadata():
    wrong = ("[]", '"x"', "1", "null", '{"a":1}', '{"a":null}', '{"a":[]}', '{"a":{}}', '{"a":true}', '{"a":1.5}', '{"a":"1","a":"1"}',
             entry())  # fmt: skip
    cases = {
        f"metadata-{i}": ("corrupt", file(header(("__metadata__", text), ("w", entry()))))
        for i, text in enumerate(wrong)
    }
    many = json.dumps({f"k{i}": "v" for i in range(20_000)})
    odd = json.dumps(
        {
            "": "",
            "\x1b[2J": "\x1b]0;pwned\x07",
            "\u202e": "\u202e",
            "a\0b": "\0",
            "total_size": "-1",
            "format": "../../evil",
        }
    )
    return cases | {
        "metadata-twice": ("corrupt", file(header(("__metadata__", "{}"), ("w", entry()), ("__metadata__", "{}")))),
        "metadata-empty": ("loads", file(header(("__metadata__", "{}"), ("w", entry())))),
        "metadata-alone": ("loads", file(header(("__metadata__", '{"a":"b"}')), b"")),
        "metadata-last": ("loads", file(header(("w", entry()), ("__metadata__", '{"a":"b"}')))),
        "metadata-many": ("loads", file(header(("__metadata__", many), ("w", entry())))),
        "metadata-long": ("loads", file(header(("__metadata__", json.dumps({"a": "x" * 2_000_000})), ("w", entry())))),
        "metadata-odd": ("loads", file(header(("__metadata__", odd), ("w", entry())))),
    }


def names():
    odd = ("", ".", "..", "../x", "../../../etc/passwd", "/etc/passwd", "a\0b", "\0", "\x1b[2J", "\x1b]0;pwned\x07", "\u202egnp", "a\nb", "a\\b",
           "x" * 100_000, "__metadata__x", "a.b.c", "w*", "\u2028", "%s%n", "{}", "'", '"')  # fmt: skip
    cases = {f"name-{i}": ("loads", file(header((name, entry())))) for i, name in enumerate(odd)}
    return cases | {
        "name-like-metadata": ("corrupt", file(header(("__metadata__", entry())))),
        "names-nested": (
            "loads",
            file(
                header(("a", entry()), ("a.b", entry(offsets="[12,24]")), ("a.b.c", entry(offsets="[24,36]"))), DATA * 3
            ),
        ),
        "names-alike": ("loads", file(header(("\u00e9", entry()), ("e\u0301", entry(offsets="[12,24]"))), DATA * 2)),
    }


def bombs():
    nothing = entry(shape="[0]", offsets="[0,0]")
    return {
        "bomb-tensors": ("loads", file(header(*[(f"t{i}", nothing) for i in range(10_000)]), b"")),
        "bomb-tensors-and-a-lie": (
            "corrupt",
            file(header(*[(f"t{i}", nothing) for i in range(10_000)], ("t7", nothing)), b""),
        ),
        "bomb-long-names": ("loads", file(header(*[(str(i) + "x" * 50_000, nothing) for i in range(20)]), b"")),
    }


def mutations(random) -> dict[str, tuple[str, bytes]]:
    whole = file('{"__metadata__":{"format":"pt"},' + header(
        ("a.weight", entry('"F16"', "[2,3]", "[12,24]")), ("b", entry()), ("c", entry('"I64"', "[]", "[24,32]")))[1:], bytes(range(32)))  # fmt: skip
    cuts = sorted({random.randrange(len(whole)) for _ in range(10)} | {8, 9, len(whole) - 32, len(whole) - 1})
    cases = {f"st-cut-at-{size}": ("corrupt", whole[:size]) for size in cuts}
    for number in range(50):
        cases[f"st-mutated-{number}"] = ("refused-or-loads", mutated(random, whole, len(whole) - 24))
    return cases


def mutated(random, whole: bytes, until: int) -> bytes:
    """Bits flipped, bytes of the same file put elsewhere, a digit changed."""
    data = bytearray(whole)
    for _ in range(random.randint(1, 3)):
        at, kind = random.randrange(until), random.randrange(3)
        if kind == 0:
            data[at] ^= 1 << random.randrange(8)
        elif kind == 1:
            start = random.randrange(max(until - 3, 1))
            data[at : at + 3] = data[start : start + 3][: len(data) - at]
        else:
            digits = [i for i in range(until) if 0x30 <= data[i] <= 0x39] or [at]
            data[random.choice(digits)] = 0x30 + random.randrange(10)
    return bytes(data)


# ---- several with an index


def safetensors_directories(secret) -> dict[str, tuple[str, dict]]:
    """`secret` is a folder beside them, of which nothing must ever be seen."""
    shards = {
        "a.safetensors": file(header(("a", entry()))),
        "b.safetensors": file(header(("b", entry()), ("c", entry(offsets="[12,24]"))), DATA * 2),
    }
    places = {"a": "a.safetensors", "b": "b.safetensors", "c": "b.safetensors"}
    found = escapes(secret, shards, places) | shard_lies(shards, places) | index_texts(shards, places)
    return {f"index-{name}": case for name, case in found.items()}


def indexed(weight_map, shards, **more) -> dict:
    return {INDEX: json.dumps({"metadata": {"total_size": 36}, "weight_map": weight_map} | more).encode()} | shards


def escapes(secret, shards, places):
    def naming(name):
        return indexed(places | {"secret": name}, shards)

    away = (f"../{secret.name}/secret.safetensors", str(secret / "secret.safetensors"), "../../blobs/x", "..", ".", "", "/", "./a.safetensors",
            "sub/a.safetensors", "sub\\a.safetensors", "a.safetensors\0", "\0", "a.safetensors/", "//a.safetensors", "/proc/self/mem")  # fmt: skip
    cases = {f"escape-{i}": ("invalid", naming(name)) for i, name in enumerate(away)}
    # As names of files these are no worse than others.
    names = ("~", "~root", "-x", "C:a", "file:a", "%2e%2e%2fsecret", "x" * 300, "a" * 5_000_000, "\x1b[2J")
    cases |= {f"missing-{i}": ("refused", naming(name)) for i, name in enumerate(names)}
    linked = indexed(places, shards)
    for name, target in {
        "link": f"../{secret.name}/secret.safetensors", "link-absolute": str(secret / "secret.safetensors"), "link-proc": "/proc/self/fd/0",
        "link-blobs-deep": "../../blobs/../x", "link-loop": "a.safetensors", "link-fifo": "pipe",
    }.items():  # fmt: skip
        cases[name] = ("refused", linked | {"a.safetensors": Link(target), "pipe": Pipe()})
    return cases | {
        "shard-is-a-pipe": ("refused", linked | {"a.safetensors": Pipe()}),
        "shard-is-a-folder": ("io", linked | {"a.safetensors": {"x": b""}}),
        "shard-is-its-index": ("refused", naming(INDEX)),
        "shard-is-another-index": ("refused", naming("x.json") | {"x.json": linked[INDEX]}),
        "is-a-link-to-text": ("refused", {INDEX: Link(str(secret / "secret.txt"))} | shards),
        "is-a-pipe": ("refused", {INDEX: Pipe()} | shards),
        "is-a-folder": ("io", {INDEX: {"x": b""}} | shards),
    }


def shard_lies(shards, places):
    good = indexed(places, shards)
    return {
        "good": ("loads", good),
        "shard-missing": ("not_found", {name: data for name, data in good.items() if name != "b.safetensors"}),
        "shards-missing": ("not_found", indexed({f"t{i}": f"{i}.safetensors" for i in range(5000)}, {})),
        "tensor-missing": ("corrupt", indexed(places | {"d": "a.safetensors"}, shards)),
        "tensor-elsewhere": ("corrupt", indexed(places | {"c": "a.safetensors"}, shards)),
        "tensor-unnamed": ("corrupt", indexed({"a": "a.safetensors", "b": "b.safetensors"}, shards)),
        "tensor-in-both": (
            "corrupt",
            good | {"b.safetensors": file(header(("b", entry()), ("a", entry(offsets="[12,24]"))), DATA * 2)},
        ),
        "shard-cut": ("corrupt", good | {"b.safetensors": shards["b.safetensors"][:-1]}),
        "shard-empty": ("corrupt", good | {"b.safetensors": b""}),
        "shard-is-a-zip": ("corrupt", good | {"b.safetensors": b"PK\x03\x04" + bytes(100)}),
        "shard-lies": ("corrupt", good | {"b.safetensors": file(length=2**63)}),
        "two": ("invalid", good | {"other.safetensors.index.json": good[INDEX]}),
        "size-lies": ("loads", indexed(places, shards, metadata={"total_size": -1})),
        "size-is-text": ("loads", indexed(places, shards, metadata={"total_size": "\x1b[2J"})),
        "size-is-huge": ("loads", indexed(places, shards, metadata={"total_size": 2**63})),
        "metadata-odd": ("loads", indexed(places, shards, metadata={"a": [1, {"b": None}], "\x1b": 1.5})),
        "many-tensors": ("corrupt", indexed({f"t{i}": "a.safetensors" for i in range(100_000)}, shards)),
    }


def index_texts(shards, places):
    good = indexed(places, shards)[INDEX].decode()
    wrong = {
        "no-map": '{"metadata": {}}', "map-list": '{"weight_map": []}', "map-text": '{"weight_map": "a.safetensors"}', "map-null": '{"weight_map": null}',
        "map-number": '{"weight_map": {"a": 1}}', "map-of-lists": '{"weight_map": {"a": ["a.safetensors"]}}', "map-nested": '{"weight_map": {"a": {"b": "a"}}}',
        "map-twice": '{"weight_map": {}, ' + good[1:], "name-twice": good.replace('"a":', '"a": "b.safetensors", "a":', 1), "open": good[:-1],
        "cut": good[: len(good) // 2], "behind": good + "x", "nul": good + "\0", "deep": '{"a":' + "[" * 500_000, "deep-objects": '{"a":' * 200_000,
        "deep-closed": '{"weight_map":{},"a":' + "[" * 10_000 + "]" * 10_000 + "}", "nan": good.replace("36", "NaN"), "no-json": '{"hello, world',
        "surrogate": good.replace('"a":', '"\\ud800":'), "metadata-list": good.replace('{"total_size": 36}', "[]"),
    }  # fmt: skip
    cases = {f"text-{name}": ("corrupt", {INDEX: text.encode()} | shards) for name, text in wrong.items()}
    return cases | {
        "text-not-utf8": ("corrupt", {INDEX: good.encode().replace(b'"a":', b'"\xff":')} | shards),
        "text-digits": ("refused-or-loads", {INDEX: good.replace("36", "9" * 100_000).encode()} | shards),
        "text-empty": ("refused", {INDEX: b""} | shards),
        "text-empty-object": ("refused", {INDEX: b"{}"} | shards),
        "text-array": ("refused", {INDEX: b"[]"} | shards),
        "map-empty": ("refused-or-loads", {INDEX: b'{"weight_map": {}}'} | shards),
        "text-too-long": ("unsupported", {INDEX: Sparse(good.encode(), (64 << 20) + 1)} | shards),
    }
