"""Zip files that two readers would understand differently, that lie, or that fill memory: name -> (what must happen,
bytes). And the records of perdure's own, with the right checksums around wrong content."""

import copy
import json
import struct
import zlib

from hostile_parts import (
    CENTRAL, DESCRIPTOR, END, END64, LOCAL, LOCATOR, MEANINGLESS, WIDTHS, Archive, Entry, archive, integer, listed,
    mapped, pickle, string, tensor, torch_file, torch_records,
)  # fmt: skip

STATE = mapped(string("w"), tensor(), string("epoch"), integer(3))
PICKLE = pickle(STATE)
OTHER = pickle(mapped(string("w"), tensor(), string("epoch"), integer(666)))
WEIGHT = struct.pack("<3f", 1, 2, 3)


def plain(**options) -> Archive:
    return archive(torch_records(PICKLE, {"0": WEIGHT}), **options)


def zips(random) -> dict[str, tuple[str, bytes]]:
    found = lies(random)
    for part in (joins, names, overlaps, records, zip64, methods, bombs, checksums, others):
        found |= part()
    return found


def lies(random):
    """Every field of every header, one at a time, says something else than is so: of many such numbers, a few."""
    cases = {}

    def add(place, fields, change, truths):
        for field, code in fields.items():
            most = 2 ** WIDTHS[code] - 1
            truth = truths.get(field, 0)
            numbers = {0, 1, truth + 1, max(truth - 1, 0), most // 2 + 1, most - 1, most, random.randint(0, most)} - {truth}
            for x in [most if truth != most else 0, *random.sample(sorted(numbers), 2)]:
                made = plain(streamed=place != "local")
                change(made, {field: x & most})
                kind = "loads" if field in MEANINGLESS else "refused"
                if field == "external" and x & 0x10:  # "a folder": to torch it has no content
                    kind = "corrupt"
                cases[f"lie-{place}-{field}-{x & most:x}"] = (kind, made.build())

    base = plain()
    entry = base.entry("data/0")
    at = base.build()
    size, count = sum(len(e.central_bytes(0)) for e in base.entries), len(base.entries)
    ends = {"count_here": count, "count": count, "size": size, "offset": len(at) - 98 - size, "record_size": 44}
    local = entry.truth() | {"flags": 0x0800, "signature": 0x04034B50}
    add("local", LOCAL, lambda made, x: made.entry("data/0").local.update(x), local)
    offset = at.index(b"archive/data/0") - 30
    add("central", CENTRAL, lambda made, x: made.entry("data/0").central.update(x),
        entry.truth() | {"signature": 0x02014B50, "offset": offset})  # fmt: skip
    add("descriptor", DESCRIPTOR, lambda made, x: made.entry("data/0").descriptor.update(x),
        entry.truth() | {"signature": 0x08074B50})  # fmt: skip
    add("end64", END64, lambda made, x: made.end64.update(x), ends | {"signature": 0x06064B50})
    add("locator", LOCATOR, lambda made, x: made.locator.update(x),
        {"signature": 0x07064B50, "end64": len(at) - 98, "disks": 1})  # fmt: skip
    add("end", END, lambda made, x: made.end.update(x), ends | {"signature": 0x06054B50})
    # All ones is how a zip says "see zip64", which says the same; torch writes 0 or 1 disks.
    for name in list(cases):
        if name.startswith("lie-end-") and name.endswith("-ffff") and "-count-" in name or name == "lie-locator-disks-0":
            cases[name] = ("refused-or-loads", cases[name][1])
        if name.startswith("lie-end-") and name.endswith("-ffffffff"):
            cases[name] = ("refused-or-loads", cases[name][1])
    return cases


def joins():
    """Files in which a reader from the front and one from the back see different things."""
    a, b = plain().build(), archive(torch_records(OTHER, {"0": WEIGHT})).build()
    in_comment = plain()
    in_comment.comment = b
    return {
        "join-concatenated": ("corrupt", a + b),
        "join-concatenated-same": ("corrupt", a + a),
        "join-in-the-comment": ("corrupt", in_comment.build()),
        "join-appended": ("corrupt", a + b"\0" * 64),
        "join-appended-byte": ("corrupt", a + b"\n"),
        "join-prepended": ("corrupt", b"\0" * 64 + a),
        "join-prepended-script": ("corrupt", b"#!/bin/sh\ntouch pwned\n" + a),
        "join-with-end-of-another": ("corrupt", a + b[-22:]),
        "join-pickle-in-front": ("corrupt", pickle(STATE) + a),
        "join-legacy-in-front": ("unsupported", b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19." + a),
        "join-marked-as-folder": ("corrupt", _changed(lambda made: made.entry("data/0").central.update(external=0x10))),
        "join-between-records": ("corrupt", _changed(lambda made: setattr(made.entries[1], "before", b"\0" * 7))),
        "join-hidden-record": ("corrupt", _changed(lambda made: setattr(made.entries[1], "listed", False))),
        "join-before-directory": ("corrupt", _changed(lambda made: setattr(made, "before_directory", b"\0" * 46))),
        "join-before-end": ("corrupt", _changed(lambda made: setattr(made, "before_end", b"\0" * 10))),
    }


def _changed(change, **options) -> bytes:
    made = plain(**options)
    change(made)
    return made.build()


def names():
    cases = {}
    bad = {
        "escape": b"archive/../../evil", "absolute": b"/etc/passwd", "other-top": b"other/x", "no-top": b"x",
        "dot": b"archive/./x", "dotdot": b"archive/..", "empty-part": b"archive//x", "folder": b"archive/x/",
        "nul": b"archive/x\0y", "backslash": b"archive/..\\x", "control": b"archive/\x1b[2J", "newline": b"archive/a\nb",
        "not-utf8": b"archive/\xff\xfe", "overlong": b"archive/\xc0\xaf", "surrogate": b"archive/\xed\xa0\x80", "top-alone": b"archive/", "empty": b"",
        "drive": b"C:/x", "del": b"archive/\x7f",
    }  # fmt: skip
    for name, raw in bad.items():
        cases[f"name-{name}"] = ("corrupt", _changed(lambda made, raw=raw: made.entries.append(Entry(raw, b"x"))))
    good = {"long": b"archive/" + b"n" * 65_000, "unicode": "archive/\u202e\u2028é".encode(), "upper": b"archive/DATA.PKL",
            "hidden": b"archive/.data/0", "upper-storage": b"archive/DATA/0"}  # fmt: skip
    for name, raw in good.items():
        cases[f"name-{name}"] = ("loads", _changed(lambda made, raw=raw: made.entries.append(Entry(raw, OTHER))))
    return cases | {
        "name-twice": ("corrupt", _changed(lambda made: made.entries.append(Entry(b"archive/data.pkl", OTHER)))),
        "name-twice-same": ("corrupt", _changed(lambda made: made.entries.append(Entry(b"archive/data.pkl", PICKLE)))),
        "name-storage-twice": ("corrupt", _changed(lambda made: made.entries.append(Entry(b"archive/data/0", b"x" * 12)))),
        "name-local-differs": ("corrupt", _changed(lambda made: setattr(made.entries[0], "local_name", b"archive/data.pkm"))),
        "name-local-shorter": ("corrupt", _changed(lambda made: setattr(made.entries[0], "local_name", b"archive/d"))),
        "name-top-is-empty": ("corrupt", _renamed(b"/")),
        "name-top-is-dots": ("corrupt", _renamed(b"../")),
        "name-no-top": ("corrupt", _renamed(b"")),
        "name-other-top": ("loads", _renamed(b"model/")),
    }  # fmt: skip


def _renamed(top: bytes) -> bytes:
    made = plain()
    for entry in made.entries:
        entry.name = top + entry.name.removeprefix(b"archive/")
    return made.build()


def overlaps():
    """Two directory entries for the same bytes: how a zip bomb is made."""

    def alias(made, name=b"archive/data/1"):
        made.entries.append(Entry(name, WEIGHT, stored=False, central={"offset": made.build().index(b"archive/data/0") - 30}))

    def inside(made):  # a whole record in the data of another
        inner = Entry(b"archive/data/1", b"y" * 12, streamed=False)
        made.entries[0].data += inner.local_bytes()
        at = 30 + len(made.entries[0].name) + len(PICKLE)
        made.entries.append(Entry(b"archive/data/1", b"y" * 12, streamed=False, stored=False, central={"offset": at}))

    def many(made):
        at = made.build().index(b"archive/data/0") - 30
        made.entries += [Entry(b"archive/x/%d" % i, WEIGHT, stored=False, central={"offset": at}) for i in range(5000)]

    return {
        "overlap-two-names": ("corrupt", _changed(alias)),
        "overlap-inside": ("corrupt", _changed(inside)),
        "overlap-many": ("corrupt", _changed(many)),
        "overlap-directory": ("corrupt", _changed(lambda made: made.entry("version").central.update(size=500, compressed=500))),
    }


def records():
    """A good zip that is no checkpoint, or one of another kind."""
    base = torch_records(PICKLE, {"0": WEIGHT})

    def without(name):
        return archive({k: v for k, v in base.items() if k != name}).build()

    def having(**changes):
        return archive(base | {k.replace("__", "."): v for k, v in changes.items()}).build()

    return {
        "record-none": ("corrupt", archive({}).build()),
        "record-no-pickle": ("unsupported", without("data.pkl")),
        "record-no-version": ("unsupported", without("version")),
        "record-no-storage": ("corrupt", without("data/0")),
        "record-no-byteorder": ("loads", without("byteorder")),
        "record-big-endian": ("unsupported", having(byteorder=b"big")),
        "record-odd-endian": ("unsupported", having(byteorder=b"middle")),
        "record-long-endian": ("unsupported", having(byteorder=b"little" * 1_000_000)),
        "record-version-99": ("unsupported", having(version=b"99\n")),
        "record-version-0": ("unsupported", having(version=b"0\n")),
        "record-version-text": ("unsupported", having(version=b"three")),
        "record-version-huge": ("unsupported", having(version=b"9" * 1_000_000)),
        "record-version-empty": ("unsupported", having(version=b"")),
        "record-torchscript": ("corrupt", archive(base | {"constants.pkl": PICKLE}).build()),
        "record-storage-shorter": ("corrupt", archive(base | {"data/0": b"x" * 11}).build()),
        "record-storage-longer": ("corrupt", archive(base | {"data/0": b"x" * 16}).build()),
        "record-storage-empty": ("corrupt", archive(base | {"data/0": b""}).build()),
        "record-extra": ("loads", archive(base | {"code/evil.py": b"import os", "data/00": b"y" * 12}).build()),
        "record-pickle-empty": ("corrupt", archive(base | {"data.pkl": b""}).build()),
        "record-pickle-of-text": ("corrupt", archive(base | {"data.pkl": b"hello"}).build()),
    }


def zip64():
    def extra(*numbers, size=None):
        return struct.pack("<HH", 1, 8 * len(numbers) if size is None else size) + struct.pack(f"<{len(numbers)}Q", *numbers)

    def with_central(data, **fields):
        return _changed(lambda made: (setattr(made.entry("data/0"), "central_extra", data), made.entry("data/0").central.update(fields)))

    ones = 0xFFFFFFFF
    return {
        "zip64-called-for": ("loads", with_central(extra(12, 12), size=ones, compressed=ones)),
        "zip64-missing": ("corrupt", with_central(b"", size=ones, compressed=ones)),
        "zip64-uncalled-for": ("corrupt", with_central(extra(12, 12))),
        "zip64-too-short": ("corrupt", with_central(extra(12), size=ones, compressed=ones)),
        "zip64-too-long": ("corrupt", with_central(extra(12, 12, 0), size=ones, compressed=ones)),
        "zip64-twice": ("corrupt", with_central(extra(12, 12) * 2, size=ones, compressed=ones)),
        "zip64-past-the-extra": ("corrupt", with_central(extra(12, 12, size=40), size=ones, compressed=ones)),
        "zip64-size-lies": ("corrupt", with_central(extra(13, 13), size=ones, compressed=ones)),
        "zip64-size-huge": ("corrupt", with_central(extra(2**63, 2**63), size=ones, compressed=ones)),
        "zip64-sizes-differ": ("corrupt", with_central(extra(12, 13), size=ones, compressed=ones)),
        "zip64-offset-huge": ("corrupt", with_central(extra(2**64 - 1), offset=ones)),
        "zip64-offset-wraps": ("corrupt", with_central(extra(2**64 - 30), offset=ones)),
        "zip64-extra-torn": ("corrupt", with_central(b"\x01\x00\x08")),
        "zip64-extra-many": ("loads", with_central(b"ZZ\0\0" * 10_000)),
        "zip64-local-lies": ("corrupt", _changed(lambda made: (
            setattr(made.entry("data/0"), "local_extra", extra(13, 13)),
            made.entry("data/0").local.update(size=ones, compressed=ones)), streamed=False)),
        "zip64-end-missing": ("corrupt", _changed(lambda made: (setattr(made, "with_zip64", False), made.end.update(count=0xFFFF, count_here=0xFFFF)))),
        "zip64-2**32-entries": ("corrupt", _changed(lambda made: made.end64.update(count=2**32, count_here=2**32) or made.end.update(count=0xFFFF, count_here=0xFFFF))),
        "zip64-directory-of-an-exabyte": ("corrupt", _changed(lambda made: made.end64.update(size=2**60) or made.end.update(size=ones))),
        "zip64-descriptor-wide": ("loads", _changed(lambda made: setattr(made.entry("data/0"), "wide_descriptor", True))),
    }  # fmt: skip


def methods():
    """Compressed, encrypted, and flags that nobody needs."""

    def deflated(both):
        made = plain(streamed=False)
        entry = made.entry("data/0")
        raw = zlib.compressobj(9, zlib.DEFLATED, -15)
        packed = raw.compress(bytes(10_000_000)) + raw.flush()
        entry.data = packed
        fields = {"method": 8, "size": 10_000_000, "crc": zlib.crc32(bytes(10_000_000))}
        entry.central.update(fields)
        entry.local.update(fields if both else {})
        return made.build()

    def flagged(flags, method=0):
        made = plain(streamed=False)
        made.entry("data/0").local.update(flags=flags, method=method)
        made.entry("data/0").central.update(flags=flags, method=method)
        return made.build()

    return {
        "method-deflated": ("unsupported", deflated(True)),
        "method-deflated-in-the-directory": ("corrupt", deflated(False)),
        "method-unknown": ("unsupported", flagged(0, 99)),
        **{f"flag-{bit}": ("corrupt", flagged(1 << bit)) for bit in range(16) if bit not in (3, 11)},
        "flag-encrypted-in-the-local-header": ("corrupt", _changed(lambda made: made.entry("data/0").local.update(flags=1), streamed=False)),
    }  # fmt: skip


def bombs():
    tiny = torch_records(PICKLE, {"0": WEIGHT}) | {f"x/{i}": b"" for i in range(20_000)}
    shared = pickle(listed(*[tensor() for _ in range(3000)]))
    return {
        "bomb-tiny-records": ("loads", archive(tiny).build()),
        "bomb-tensors-of-one-record": ("loads", torch_file(shared)),
        "bomb-long-names": ("loads", archive(torch_records(PICKLE, {"0": WEIGHT}) | {"n" * 60_000 + str(i): b"" for i in range(50)}).build()),
    }


def checksums():
    def crc(name, where):
        def change(made):
            for header in where:
                getattr(made.entry(name), header).update(crc=0x12345678)

        return change

    def all_zero(made):
        for entry in made.entries:
            entry.central.update(crc=0)
            entry.descriptor.update(crc=0)

    def one_right(made):
        all_zero(made)
        del made.entry("version").central["crc"], made.entry("version").descriptor["crc"]

    return {
        "crc-wrong-everywhere": ("corrupt", _changed(crc("data/0", ("central", "descriptor")))),
        "crc-wrong-of-the-pickle": ("corrupt", _changed(crc("data.pkl", ("central", "descriptor")))),
        "crc-wrong-of-the-version": ("corrupt", _changed(crc("version", ("central", "descriptor")))),
        "crc-wrong-in-one-place": ("corrupt", _changed(crc("data/0", ("central",)))),
        "crc-all-zero": ("loads", _changed(all_zero)),
        "crc-all-zero-but-one": ("corrupt", _changed(one_right)),
    }


def others():
    return {
        "other-empty": ("corrupt", b""), "other-text": ("corrupt", b"hello\n" * 1000), "other-zeros": ("corrupt", bytes(100_000)),
        "other-empty-zip": ("corrupt", Archive([]).build()), "other-elf": ("corrupt", b"\x7fELF" + bytes(1000)),
        "other-only-signature": ("corrupt", b"PK\x03\x04" + bytes(1000)), "other-tar": ("unsupported", bytes(257) + b"ustar" + bytes(600)),
        "other-gzip": ("corrupt", b"\x1f\x8b" + bytes(1000)), "other-spanned": ("corrupt", b"PK\x07\x08" + plain().build()),
        "other-raw-pickle": ("corrupt", PICKLE), "other-json": ("corrupt", json.dumps({"a": 1}).encode()),
    }  # fmt: skip


def mutations(whole: dict[str, bytes], random) -> dict[str, tuple[str, bytes]]:
    """Of whole files: cut anywhere, and with bits flipped under a checksum that was made right again."""
    cases = {}
    for name, data in whole.items():
        for size in sorted({random.randrange(len(data)) for _ in range(12)} | {1, 21, 22, len(data) - 1}):
            cases[f"cut-{name}-at-{size}"] = ("corrupt", data[:size])
    base = torch_records(PICKLE, {"0": WEIGHT})
    for number in range(40):
        changed = copy.copy(base)
        name = random.choice(["data.pkl", "data.pkl", "data.pkl", "version", "byteorder", "data/0"])
        data = bytearray(changed[name])
        for _ in range(random.randint(1, 3)):
            data[random.randrange(len(data))] ^= 1 << random.randrange(8)
        changed[name] = bytes(data)
        cases[f"mutated-{number}-{name.replace('/', '-')}"] = ("refused-or-loads", archive(changed).build())
    return cases
