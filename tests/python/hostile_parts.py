"""Zip files and pickles put together from parts, each of which may lie. Written against APPNOTE.TXT and pickletools, not
with the code under test."""

import dataclasses
import os
import pathlib
import struct
import zlib

# ---- what a case may be, but for bytes (a file) and a dict of names (a folder)


@dataclasses.dataclass
class Sparse:
    """A file that is longer than what there is in it."""

    head: bytes
    size: int


@dataclasses.dataclass
class Link:
    target: str


class Pipe:
    """Whoever opens it waits for ever."""


def write(path: pathlib.Path, what) -> None:
    if isinstance(what, dict):
        path.mkdir()
        for name, inside in what.items():
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            write(path / name, inside)
    elif isinstance(what, Link):
        path.symlink_to(what.target)
    elif isinstance(what, Pipe):
        os.mkfifo(path)
    elif isinstance(what, Sparse):
        path.write_bytes(what.head)
        os.truncate(path, what.size)
    else:
        path.write_bytes(what)

# ---- zip: the fields of each header, in their order, with their widths

LOCAL = {
    "signature": "I", "needed": "H", "flags": "H", "method": "H", "time": "H", "date": "H", "crc": "I",
    "compressed": "I", "size": "I", "name_size": "H", "extra_size": "H",
}  # fmt: skip
CENTRAL = {
    "signature": "I", "made_by": "H", "needed": "H", "flags": "H", "method": "H", "time": "H", "date": "H", "crc": "I",
    "compressed": "I", "size": "I", "name_size": "H", "extra_size": "H", "comment_size": "H", "disk": "H",
    "internal": "H", "external": "I", "offset": "I",
}  # fmt: skip
DESCRIPTOR = {"signature": "I", "crc": "I", "compressed": "I", "size": "I"}
END64 = {
    "signature": "I", "record_size": "Q", "made_by": "H", "needed": "H", "disk": "I", "directory_disk": "I",
    "count_here": "Q", "count": "Q", "size": "Q", "offset": "Q",
}  # fmt: skip
LOCATOR = {"signature": "I", "disk": "I", "end64": "Q", "disks": "I"}
END = {
    "signature": "I", "disk": "H", "directory_disk": "H", "count_here": "H", "count": "H", "size": "I", "offset": "I",
    "comment_size": "H",
}  # fmt: skip
WIDTHS = {"H": 16, "I": 32, "Q": 64}
# Nobody reads these: whatever is in them, the content is the same.
MEANINGLESS = {"made_by", "needed", "time", "date", "internal", "external"}


def header(fields: dict, values: dict) -> bytes:
    masked = [values.get(name, 0) & ((1 << WIDTHS[code]) - 1) for name, code in fields.items()]
    return struct.pack("<" + "".join(fields.values()), *masked)


@dataclasses.dataclass
class Entry:
    """A record. `local`, `central` and `descriptor` say where a header differs from the truth."""

    name: bytes
    data: bytes = b""
    streamed: bool = True  # as torch writes it: sizes and CRC follow the data
    local: dict = dataclasses.field(default_factory=dict)
    central: dict = dataclasses.field(default_factory=dict)
    descriptor: dict = dataclasses.field(default_factory=dict)
    local_name: bytes | None = None
    local_extra: bytes = b""
    central_extra: bytes = b""
    before: bytes = b""  # bytes in front of it that belong to nobody
    wide_descriptor: bool = False
    stored: bool = True
    listed: bool = True

    def truth(self) -> dict:
        size, crc = len(self.data), zlib.crc32(self.data)
        flags = 0x0808 if self.streamed else 0x0800
        return {"flags": flags, "crc": crc, "compressed": size, "size": size, "name_size": len(self.name)}

    def local_bytes(self) -> bytes:
        truth = self.truth() | {"signature": 0x04034B50, "extra_size": len(self.local_extra)}
        name = self.name if self.local_name is None else self.local_name
        truth["name_size"] = len(name)
        if self.streamed:
            truth |= {"crc": 0, "compressed": 0, "size": 0}
        out = header(LOCAL, truth | self.local) + name + self.local_extra + self.data
        return out + self.descriptor_bytes() if self.streamed else out

    def descriptor_bytes(self) -> bytes:
        fields = DESCRIPTOR | ({"compressed": "Q", "size": "Q"} if self.wide_descriptor else {})
        return header(fields, self.truth() | {"signature": 0x08074B50} | self.descriptor)

    def central_bytes(self, offset: int) -> bytes:
        truth = self.truth() | {"signature": 0x02014B50, "offset": offset, "extra_size": len(self.central_extra)}
        return header(CENTRAL, truth | self.central) + self.name + self.central_extra


@dataclasses.dataclass
class Archive:
    """A file. `end`, `end64` and `locator` say where the end records differ from the truth."""

    entries: list[Entry]
    end: dict = dataclasses.field(default_factory=dict)
    end64: dict = dataclasses.field(default_factory=dict)
    locator: dict = dataclasses.field(default_factory=dict)
    with_zip64: bool = True
    before_directory: bytes = b""
    before_end: bytes = b""
    comment: bytes = b""
    after: bytes = b""

    def entry(self, name: str) -> Entry:
        return next(e for e in self.entries if e.name == b"archive/" + name.encode())

    def build(self) -> bytes:
        out, directory, count = b"", b"", 0
        for entry in self.entries:
            out += entry.before
            offset = len(out)
            if entry.stored:
                out += entry.local_bytes()
            if entry.listed:
                directory += entry.central_bytes(offset)
                count += 1
        out += self.before_directory
        truth = {"count_here": count, "count": count, "size": len(directory), "offset": len(out)}
        return out + directory + self.before_end + self.tail(truth, len(out + directory + self.before_end))

    def tail(self, truth: dict, at: int) -> bytes:
        out = b""
        if self.with_zip64:
            out += header(END64, truth | {"signature": 0x06064B50, "record_size": 44} | self.end64)
            out += header(LOCATOR, {"signature": 0x07064B50, "end64": at, "disks": 1} | self.locator)
        out += header(END, truth | {"signature": 0x06054B50, "comment_size": len(self.comment)} | self.end)
        return out + self.comment + self.after


def archive(records: dict[str, bytes], streamed: bool = True) -> Archive:
    return Archive([Entry(b"archive/" + name.encode(), data, streamed) for name, data in records.items()])


def torch_records(pickle: bytes, storages: dict[str, bytes] | None = None) -> dict[str, bytes]:
    storages = {"0": bytes(12), "1": bytes(16)} if storages is None else storages
    return {
        "data.pkl": pickle,
        "byteorder": b"little",
        **{f"data/{key}": data for key, data in storages.items()},
        "version": b"3\n",
    }


def torch_file(pickle: bytes, storages: dict[str, bytes] | None = None) -> bytes:
    return archive(torch_records(pickle, storages)).build()


# ---- pickle: the words of a data.pkl

MARK, EMPTY_DICT, EMPTY_LIST, EMPTY_TUPLE, NONE, TRUE, FALSE = b"(", b"}", b"]", b")", b"N", b"\x88", b"\x89"


def pickle(body: bytes, protocol: int = 2) -> bytes:
    return bytes([0x80, protocol]) + body + b"."


def string(text: str | bytes) -> bytes:
    data = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text
    return b"X" + struct.pack("<I", len(data)) + data


def integer(x: int) -> bytes:
    data = x.to_bytes(x.bit_length() // 8 + 1, "little", signed=True)
    if len(data) < 256:
        return b"\x8a" + bytes([len(data)]) + data
    return b"\x8b" + struct.pack("<I", len(data)) + data


def items(*parts: bytes) -> bytes:
    return MARK + b"".join(parts) + b"t"


def integers(*numbers: int) -> bytes:
    return items(*map(integer, numbers))


def listed(*parts: bytes) -> bytes:
    return EMPTY_LIST + MARK + b"".join(parts) + b"e"


def mapped(*parts: bytes) -> bytes:
    return EMPTY_DICT + MARK + b"".join(parts) + b"u"


def named(module: str, name: str) -> bytes:
    return b"c" + module.encode() + b"\n" + name.encode() + b"\n"


def call(module: str, name: str, *arguments: bytes) -> bytes:
    return named(module, name) + items(*arguments) + b"R"


def storage(key="0", count=3, kind="FloatStorage", module="torch", device="cpu") -> bytes:
    return items(string("storage"), named(module, kind), string(key), string(device), integer(count)) + b"Q"


HOOKS = call("collections", "OrderedDict")


def tensor(of=None, offset=0, size=(3,), stride=(1,), rest=(FALSE, HOOKS), function="_rebuild_tensor_v2") -> bytes:
    geometry = (integer(offset), integers(*size), integers(*stride))
    return call("torch._utils", function, storage() if of is None else of, *geometry, *rest)


def put(index: int) -> bytes:
    return b"r" + struct.pack("<I", index)


def get(index: int) -> bytes:
    return b"j" + struct.pack("<I", index)
