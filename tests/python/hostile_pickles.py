"""Pickles that mean harm: name -> (what must happen, the body of a data.pkl with everything around it)."""

import struct

from hostile_parts import (
    EMPTY_DICT, EMPTY_LIST, EMPTY_TUPLE, FALSE, HOOKS, MARK, NONE, TRUE, call, get, integer, integers, items, listed,
    mapped, named, pickle, put, storage, string, tensor,
)  # fmt: skip

U32, U64 = 2**32 - 1, 2**64 - 1


def pickles(canary) -> dict[str, tuple[str, bytes]]:
    """Every class. `canary` is a path that a file would make if anything in it were ever executed."""
    found = {}
    for part in (opcodes, stacks, frames, memos, depths, lengths, texts, geometries, storages, containers):
        found |= part()
    return found | calls(str(canary)) | instances() | forms()


# ---- nothing but the closed list of opcodes


def opcodes():
    """Each opcode that no PyTorch file needs, where it would be legal."""
    arguments = {
        "int": b"I1\n", "long": b"L1L\n", "float": b"F1.5\n", "string": b"S'a'\n", "unicode": b"Va\n",
        "inst": b"(ios\nsystem\n", "obj": b"(cos\nsystem\no", "persid": b"P1\n", "put": b"Np0\n", "get": b"Np0\ng0\n",
        "pop": b"NN0", "pop-mark": b"N(NN1", "dup": b"N2\x86", "list": b"(NNl", "dict": b"(NNd",
        "ext1": b"\x82\x01", "ext2": b"\x83\x01\x00", "ext4": b"\x84\x01\x00\x00\x00",
        "next-buffer": b"\x97", "readonly-buffer": b"C\x01a\x98",
    }  # fmt: skip
    cases = {f"opcode-{name}": ("unsupported", pickle(body)) for name, body in arguments.items()}
    for code in (0x00, 0x20, 0x7F, 0x99, 0xFF):
        cases[f"opcode-{code:02x}"] = ("unsupported", pickle(bytes([code])))
    for protocol in (0, 1, 6, 255):
        cases[f"protocol-{protocol}"] = ("unsupported", pickle(NONE, protocol))
    return cases | {
        "protocol-none": ("corrupt", b"N."),
        "protocol-twice": ("corrupt", pickle(b"\x80\x02N")),
        "empty": ("corrupt", b""),
        "only-protocol": ("corrupt", b"\x80\x02"),
        "only-stop": ("corrupt", b"\x80\x02."),
        "after-stop": ("corrupt", pickle(NONE) + b"\x00"),
        "two-pickles": ("corrupt", pickle(NONE) + pickle(call("os", "system", string("id")))),
    }


def stacks():
    underflows = {
        "append": b"a", "appends": b"e", "setitem": b"}Ns", "setitems": b"u", "tuple1": b"\x85", "tuple3": b"NN\x87",
        "tuple": b"t", "reduce": b"R", "newobj": b"\x81", "newobj-ex": b"NN\x92", "build": b"b", "persistent": b"Q",
        "additems": b"\x90", "frozenset": b"\x91", "put": b"q\x00", "stack-global": b"\x93", "memoize": b"\x94",
        "past-a-mark": b"N(\x85t",
    }  # fmt: skip
    cases = {f"stack-{name}": ("corrupt", pickle(body, 4)) for name, body in underflows.items()}
    return cases | {
        "stack-two-values": ("corrupt", pickle(b"NN")),
        "stack-mark-left": ("corrupt", pickle(b"(N")),
        "stack-many-marks": ("corrupt", pickle(MARK * 100_000)),
    }


def frames():
    """What CPython's two unpicklers disagree on."""

    def framed(size, body):
        return b"\x80\x04\x95" + struct.pack("<Q", size) + body

    return {
        "frame-exact": ("None", framed(2, b"N.")),
        "frame-short": ("corrupt", framed(3, b"N") + b"X\x01\x00\x00\x00a0."),
        "frame-straddled": ("corrupt", framed(3, b"]X\x02\x00\x00\x00aba.")),
        "frame-too-long": ("corrupt", framed(5, b"N.")),
        "frame-huge": ("corrupt", framed(2**63, b"N.")),
        "frame-all-ones": ("corrupt", framed(U64, b"N.")),
        "frame-in-frame": ("corrupt", framed(11, b"\x95" + struct.pack("<Q", 2) + b"N.")),
        "frame-empty": ("None", framed(0, b"N.")),
        "frames-many-empty": ("None", b"\x80\x04" + (b"\x95" + bytes(8)) * 10_000 + b"N."),
        "frame-ends-after-stop": ("corrupt", framed(4, b"N.NN")),
        "frame-cut": ("corrupt", b"\x80\x04\x95\x02\x00"),
    }


# ---- bombs


def memos():
    laughs = EMPTY_LIST + put(0) + b"".join(EMPTY_LIST + MARK + get(i) * 10 + b"e" + put(i + 1) for i in range(40))
    tuples = EMPTY_TUPLE + put(0) + b"".join(items(*[get(i)] * 10) + put(i + 1) for i in range(40))
    keys = integer(1) + put(0) + b"".join(items(get(i), get(i)) + put(i + 1) for i in range(60))
    text = string("x" * 5000) + put(0)
    laughs_of_calls = HOOKS + put(0) + b"".join(
        call("collections", "OrderedDict", listed(*[items(integer(j), get(i)) for j in range(10)])) + put(i + 1)
        for i in range(40)
    )  # fmt: skip
    return {
        "bomb-laughs": ("unsupported", pickle(items(laughs))),
        "bomb-laughs-of-tuples": ("unsupported", pickle(items(tuples))),
        "bomb-laughs-of-calls": ("unsupported", pickle(items(laughs_of_calls))),
        "bomb-tuple-key": ("refused", pickle(EMPTY_DICT + keys + NONE + b"s")),
        "bomb-text-often": ("loads", pickle(listed(text, *[get(0)] * 2000))),
        "bomb-bytes-often": ("loads", pickle(listed(call("_codecs", "encode", text, string("latin1")) + put(1), *[get(1)] * 2000))),
        "bomb-shape-often": ("unsupported", pickle(listed(integers(*[1] * 2000) + put(0), *[
            call("torch", "Size", get(0)) for _ in range(2000)]))),
        "memo-never-put": ("corrupt", pickle(get(7))),
        "memo-index-huge": ("corrupt", pickle(NONE + put(U32))),
        "memo-index-million": ("corrupt", pickle(NONE + put(1_000_000))),
        "memo-list-in-itself": ("unsupported", pickle(EMPTY_LIST + put(0) + get(0) + b"a")),
        "memo-tuple-in-itself": ("unsupported", pickle(EMPTY_LIST + put(0) + MARK + get(0) + b"t" + b"a")),
        "memo-dict-in-itself": ("unsupported", pickle(EMPTY_DICT + put(0) + NONE + get(0) + b"s")),
        "memo-changed-after-use": ("unsupported", pickle(EMPTY_LIST + put(0) + b"\x85" + put(1) + get(0) + NONE + b"a" + b"\x86")),
        "memo-put-again": ("loads", pickle(listed(integer(1) + put(0), get(0), integer(2) + put(0), get(0)))),
    }  # fmt: skip


def depths():
    deep = 100_000
    return {
        "deep-lists": ("unsupported", pickle(EMPTY_LIST * deep + b"a" * (deep - 1))),
        "deep-tuples": ("unsupported", pickle(NONE + b"\x85" * deep)),
        "deep-dicts": ("unsupported", pickle((EMPTY_DICT + NONE) * deep + NONE + b"s" * deep)),
        "deep-501": ("refused", pickle(EMPTY_LIST * 513 + b"a" * 512)),
        "deep-400": ("loads", pickle(EMPTY_LIST * 400 + b"a" * 399)),
        "deep-499": ("loads", pickle(EMPTY_LIST * 499 + b"a" * 498)),
        "deep-tuples-600": ("unsupported", pickle(NONE + b"\x85" * 600)),
        "deep-states": ("unsupported", pickle(items(NONE + b"".join(
            put(i) + named("m", "c") + EMPTY_TUPLE + b"R" + get(i) + b"b" for i in range(2000))))),
        "wide-list": ("loads", pickle(listed(*[NONE] * 200_000))),
        "wide-lists": ("loads", pickle(listed(*[EMPTY_LIST] * 100_000))),
        "wide-dict": ("loads", pickle(mapped(*[integer(i) + NONE for i in range(50_000)]))),
        "wide-appends": ("loads", pickle(EMPTY_LIST + (NONE + b"a") * 200_000)),
        "wide-setitems": ("loads", pickle(EMPTY_DICT + b"".join(integer(i) + NONE + b"s" for i in range(50_000)))),
        "wide-keys-that-collide": ("loads", pickle(mapped(*[b"C\xc7" + key + NONE for key in colliding_keys(9)], ), 3)),
    }  # fmt: skip


def colliding_keys(bits: int):
    """2**bits byte strings of which libstdc++'s std::hash makes one number, whatever it is seeded with: of two blocks of
    MurmurHash64A, a difference in the top bit of the first is undone by that of the second. Behind a prefix of 1 byte."""
    mul, mask = 0xC6A4A7935BD1E995, 2**64 - 1
    inverse = pow(mul, -1, 2**64)

    def unmixed(x):  # what the hash makes `x` of
        x = x * inverse & mask
        return struct.pack("<Q", (x ^ x >> 47) * inverse & mask)

    pairs = [[unmixed(x) + unmixed(x), unmixed(x ^ 1 << 63) + unmixed(x ^ 1 << 63)] for x in range(1, bits + 1)]
    for number in range(2**bits):
        key = bytes(7) + b"".join(pair[number >> i & 1] for i, pair in enumerate(pairs))
        yield key.ljust(0xC7, b"\0")


# ---- lengths that lie


def lengths():
    """Each opcode with a length, of too much, of all ones, and of the most that is still positive."""
    codes = {
        "binunicode": (b"X", "I"), "binunicode8": (b"\x8d", "Q"), "short-binunicode": (b"\x8c", "B"),
        "binstring": (b"T", "I"), "short-binstring": (b"U", "B"), "binbytes": (b"B", "I"), "binbytes8": (b"\x8e", "Q"),
        "short-binbytes": (b"C", "B"), "bytearray8": (b"\x96", "Q"), "long1": (b"\x8a", "B"), "long4": (b"\x8b", "I"),
    }  # fmt: skip
    cases = {}
    for name, (code, width) in codes.items():
        most = 2 ** (8 * struct.calcsize(width)) - 1
        for what, length in {"one-more": 5, "half": most // 2, "half-and-one": most // 2 + 1, "all-ones": most}.items():
            cases[f"length-{name}-{what}"] = ("corrupt", b"\x80\x05" + code + struct.pack("<" + width, length) + b"abc.")
    return cases | {
        "length-global-without-end": ("corrupt", b"\x80\x02cos\nsystem"),
        "length-global-long": ("unsupported", pickle(named("m" * 100_000, "n" * 100_000))),
        "length-int-of-0-bytes": ("loads", pickle(b"\x8a\x00")),
        "length-int-of-a-million-bytes": ("loads", pickle(integer(-(1 << 8_000_000)))),
        "length-int-many": ("loads", pickle(listed(integer(1 << 2000) + put(0), *[get(0)] * 1000))),
        "length-long-text": ("loads", pickle(string("y" * 5_000_000))),
    }


def texts():
    bad = {"lone-byte": b"\xff", "overlong": b"\xc0\x80", "cut": b"a\xe2\x82", "above-10ffff": b"\xf4\x90\x80\x80"}
    cases = {f"text-{name}": ("corrupt", pickle(string(data))) for name, data in bad.items()}
    cases |= {f"text-key-{name}": ("corrupt", pickle(mapped(string(data), NONE))) for name, data in bad.items()}
    odd = {"surrogate": "\ud800", "nul": "a\0b", "escape": "\x1b]0;pwned\x07\x1b[2J", "bidi": "\u202egnp.exe", "empty": ""}
    cases |= {f"text-{name}": ("loads", pickle(mapped(string(text), string(text)))) for name, text in odd.items()}
    return cases | {
        "text-latin1-above": ("corrupt", pickle(call("_codecs", "encode", string("\u0100"), string("latin1")))),
        "text-encode-other": ("corrupt", pickle(call("_codecs", "encode", string("a"), string("rot13")))),
        "text-global-no-utf8": ("unsupported", pickle(b"c\xff\xfe\n\xff\n")),
        "text-global-escape": ("unsupported", pickle(b"c\x1b[2J\nx\n")),
    }


# ---- tensors that reach outside


def geometries():
    far = 2**62
    bad = {
        "negative-size": dict(size=(-1,)), "negative-stride": dict(stride=(-1,)), "negative-offset": dict(offset=-1),
        "one-too-far": dict(size=(4,)), "offset-too-far": dict(offset=1), "offset-huge": dict(offset=2**63 - 1),
        "stride-too-far": dict(size=(2,), stride=(3,)), "size-huge": dict(size=(2**63 - 1,)),
        "size-times-stride-wraps": dict(size=(5,), stride=(far,)), "two-wrap": dict(size=(far, far), stride=(far, 1)),
        "numel-wraps": dict(size=(2**32, 2**32, 1), stride=(0, 0, 0)), "sizes-without-strides": dict(stride=()),
        "strides-without-sizes": dict(size=()), "empty-and-wraps": dict(size=(far, 8, 0), stride=(1, 1, 1)),
    }  # fmt: skip
    cases = {f"geometry-{name}": ("corrupt", pickle(tensor(**change))) for name, change in bad.items()}
    return cases | {
        "geometry-size-not-int": ("corrupt", pickle(tensor(size=()).replace(items(), items(string("3")), 1))),
        "geometry-size-beyond-64-bits": ("corrupt", pickle(tensor(size=(2**64,)))),
        "geometry-expanded": ("loads", pickle(tensor(size=(1000, 1000), stride=(0, 0)))),
        "geometry-expanded-huge": ("refused-or-loads", pickle(tensor(size=(2**61,), stride=(0,)))),
        "geometry-overlapping": ("loads", pickle(tensor(size=(2, 2), stride=(1, 1)))),
        "geometry-70-dimensions": ("loads", pickle(tensor(size=(1,) * 70, stride=(1,) * 70))),
        "geometry-empty": ("loads", pickle(tensor(size=(0, 5), stride=(5, 1)))),
        "geometry-empty-far-offset": ("refused-or-loads", pickle(tensor(offset=100, size=(0,)))),
        "geometry-meta-huge": ("refused-or-loads", pickle(call(
            "torch._utils", "_rebuild_meta_tensor_no_storage", named("torch", "float32"), integers(2**40), integers(1), FALSE))),
        "geometry-meta-wraps": ("corrupt", pickle(call(
            "torch._utils", "_rebuild_meta_tensor_no_storage", named("torch", "float32"), integers(2**62), integers(4), FALSE))),
        "geometry-requires-grad-of-ints": ("refused-or-loads", pickle(tensor(storage(count=3, kind="IntStorage"), rest=(TRUE, HOOKS)))),
        "geometry-conj-of-floats": ("corrupt", pickle(tensor(rest=(FALSE, HOOKS, mapped(string("conj"), TRUE))))),
        "geometry-unknown-flag": ("unsupported", pickle(tensor(rest=(FALSE, HOOKS, mapped(string("zero"), TRUE))))),
        "geometry-v3-wider-than-the-record": ("corrupt", pickle(tensor(
            storage(kind="UntypedStorage", module="torch.storage", count=12), rest=(FALSE, HOOKS, named("torch", "float64")),
            function="_rebuild_tensor_v3"))),
        "geometry-v3-dtype-unknown": ("unsupported", pickle(tensor(
            storage(kind="UntypedStorage", module="torch.storage", count=12), rest=(FALSE, HOOKS, named("torch", "float1")),
            function="_rebuild_tensor_v3"))),
    }  # fmt: skip


def storages():
    """CVE-2026-24747: what a storage says of itself, and what its record has."""
    counts = {"none": 0, "fewer": 2, "more": 4, "negative": -1, "huge": 2**62, "wraps": 2**62 + 3, "beyond": 2**64 + 3}
    cases = {f"storage-count-{name}": ("corrupt", pickle(tensor(storage(count=n)))) for name, n in counts.items()}
    nameless = items(string("storage"), string("FloatStorage"), string("0"), string("cpu"), integer(3)) + b"Q"
    return cases | {
        "storage-wider-type": ("corrupt", pickle(tensor(storage(kind="DoubleStorage")))),
        "storage-missing": ("corrupt", pickle(tensor(storage(key="7")))),
        "storage-path": ("corrupt", pickle(tensor(storage(key="../data.pkl")))),
        "storage-absolute": ("corrupt", pickle(tensor(storage(key="/etc/passwd")))),
        "storage-key-with-nul": ("corrupt", pickle(tensor(storage(key="0\0")))),
        "storage-key-long": ("corrupt", pickle(tensor(storage(key="0" * 100_000)))),
        "storage-class-unknown": ("unsupported", pickle(tensor(storage(kind="system", module="os")))),
        "storage-class-no-name": ("corrupt", pickle(tensor(nameless))),
        "storage-no-tuple": ("corrupt", pickle(tensor(string("0") + b"Q"))),
        "storage-too-few-fields": ("corrupt", pickle(tensor(items(string("storage")) + b"Q"))),
        "storage-other-word": ("corrupt", pickle(tensor(items(string("module"), *[NONE] * 4) + b"Q"))),
        "storage-alone": ("unsupported", pickle(storage())),
        "storage-device-odd": ("invalid", pickle(tensor(storage(device="cuda:99999999999999999999")))),
        "storage-device-no-such": ("invalid", pickle(tensor(storage(device="os.system")))),
        "storage-device-escape": ("corrupt", pickle(tensor(storage(device="\x1b[2J")))),
        "storage-device-surrogate": ("corrupt", pickle(tensor(storage(device="\ud800")))),
        "storage-device-long": ("corrupt", pickle(tensor(storage(device="x" * 100_000)))),
        "storage-class-no-utf8": ("unsupported", pickle(tensor().replace(b"FloatStorage", b"\xff\x1b[2J", 1))),
        "storage-class-long": ("unsupported", pickle(tensor().replace(b"FloatStorage", b"x" * 100_000, 1))),
        "storage-two-types": ("corrupt", pickle(listed(tensor(), tensor(storage(kind="IntStorage"))))),
        "storage-two-devices": ("refused-or-loads", pickle(listed(tensor(), tensor(storage(device="meta"))))),
    }


def containers():
    """CVE-2026-24747: items set in what is no dict, appended to what is no list, states set in what has none."""
    targets = {
        "none": NONE, "int": integer(1), "text": string("a"), "tuple": items(NONE), "tensor": tensor(),
        "size": call("torch", "Size", integers(1)), "storage": storage(), "global": named("torch", "float32"),
    }  # fmt: skip
    cases = {}
    for name, target in targets.items():
        kind = "corrupt" if name in ("int", "text", "tuple") else "refused"
        cases[f"set-in-{name}"] = (kind, pickle(target + NONE + NONE + b"s"))
        cases[f"sets-in-{name}"] = (kind, pickle(target + MARK + NONE + NONE + b"u"))
        cases[f"append-to-{name}"] = (kind, pickle(target + NONE + b"a"))
        cases[f"appends-to-{name}"] = (kind, pickle(target + MARK + NONE + b"e"))
        cases[f"build-of-{name}"] = (kind, pickle(target + EMPTY_DICT + b"b"))
        cases[f"add-to-{name}"] = (kind, pickle(target + MARK + NONE + b"\x90", 4))
    return cases | {
        "set-in-list": ("corrupt", pickle(EMPTY_LIST + integer(0) + NONE + b"s")),
        "sets-in-list": ("corrupt", pickle(EMPTY_LIST + MARK + integer(0) + NONE + b"u")),
        "append-to-dict": ("corrupt", pickle(EMPTY_DICT + NONE + b"a")),
        "append-to-ordered-dict": ("corrupt", pickle(HOOKS + NONE + b"a")),
        "build-of-list": ("corrupt", pickle(EMPTY_LIST + EMPTY_DICT + b"b")),
        "build-of-dict": ("corrupt", pickle(EMPTY_DICT + EMPTY_DICT + b"b")),
        "build-no-dict": ("corrupt", pickle(HOOKS + NONE + b"b")),
        "build-twice": ("corrupt", pickle(HOOKS + EMPTY_DICT + b"b" + EMPTY_DICT + b"b")),
        "sets-odd": ("corrupt", pickle(EMPTY_DICT + MARK + NONE + b"u")),
        "dict-key-twice": ("corrupt", pickle(mapped(string("a"), integer(1), string("a"), integer(2)))),
        "dict-key-twice-as-python-sees-it": ("corrupt", pickle(mapped(integer(1), NONE, TRUE, NONE))),
        "dict-key-list": ("corrupt", pickle(mapped(EMPTY_LIST, NONE))),
        "dict-key-dict": ("corrupt", pickle(mapped(EMPTY_DICT, NONE))),
        "dict-key-tensor": ("corrupt", pickle(mapped(tensor(), NONE))),
        "dict-key-nan": ("loads", pickle(mapped(b"G\x7f\xf8" + bytes(6), NONE))),
        "set-of-lists": ("corrupt", pickle(b"\x8f" + MARK + EMPTY_LIST + b"\x90", 4)),
        "set-twice": ("corrupt", pickle(b"\x8f" + MARK + integer(1) + TRUE + b"\x90", 4)),
        "ordered-dict-of-no-pairs": ("corrupt", pickle(call("collections", "OrderedDict", listed(integer(1))))),
        "counter-of-list": ("corrupt", pickle(call("collections", "Counter", EMPTY_LIST))),
        "size-of-text": ("corrupt", pickle(call("torch", "Size", string("a")))),
        "complex-of-text": ("corrupt", pickle(call("builtins", "complex", string("a"), string("b")))),
        "bytes-of-a-number": ("corrupt", pickle(call("builtins", "bytes", integer(2**40)))),
        "bytearray-of-a-number": ("corrupt", pickle(call("builtins", "bytearray", integer(2**40)))),
        "bytes-of-a-number-2": ("corrupt", pickle(call("__builtin__", "bytearray", integer(2**40)))),
        "call-without-tuple": ("corrupt", pickle(named("collections", "OrderedDict") + NONE + b"R")),
        "call-of-a-number": ("unsupported", pickle(integer(1) + EMPTY_TUPLE + b"R")),
    }


# ---- what would be executed


def calls(canary: str):
    """CVE-2025-32434 and its kin: whatever a pickle calls is not called."""
    shell = string(f"touch {canary}")
    opened = items(string(canary), string("w"))
    nested = call("builtins", "getattr", call("builtins", "__import__", string("os")), string("system"))
    targets = {
        "os-system": call("os", "system", shell), "posix-system": call("posix", "system", shell),
        "nt-system": call("nt", "system", shell), "subprocess": call("subprocess", "call", listed(string("touch"), string(canary))),
        "eval": call("builtins", "eval", string(f"open({canary!r}, 'w')")), "exec": call("builtins", "exec", string(f"open({canary!r}, 'w')")),
        "python2-eval": call("__builtin__", "eval", string(f"open({canary!r}, 'w')")),
        "open": named("builtins", "open") + opened + b"R", "io-open": named("io", "open") + opened + b"R",
        "getattr-chain": nested + items(shell) + b"R",
        "dotted-name": call("torch", "serialization.os.system", shell),
        "stack-global": string("os") + string("system") + b"\x93" + items(shell) + b"R",
        "stack-global-dotted": string("torch") + string("_utils.os.system") + b"\x93" + items(shell) + b"R",
        "runpy": call("runpy", "run_path", string(canary)), "torch-load": call("torch", "load", string("/etc/passwd")),
        "torch-hub": call("torch.hub", "load", string("a/b"), string("c")),
        "torch-from-file": call("torch", "from_file", string("/etc/passwd"), TRUE, integer(10)),
        "torch-jit": call("torch.jit", "load", string(canary)),
        "storage-from-buffer": call("torch.storage", "_load_from_bytes", b"B\x04\x00\x00\x00abcd"),
        "copyreg": call("copyreg", "_reconstructor", named("builtins", "object"), named("builtins", "object"), NONE),
        "newobj": named("subprocess", "Popen") + items(listed(string("touch"), string(canary))) + b"\x81",
        "newobj-ex": named("subprocess", "Popen") + items(string(f"touch {canary}")) + mapped(string("shell"), TRUE) + b"\x92",
        "build-setstate": call("builtins", "object") + mapped(string("__setstate__"), named("os", "system")) + b"b" + shell + b"b",
        "hooks": call("torch._utils", "_rebuild_parameter", tensor(), TRUE, call("os", "system", shell)),
        "key": mapped(call("os", "system", shell), NONE), "metadata": HOOKS + mapped(string("a"), call("os", "system", shell)) + b"b",
        "rebuild-from-type": call("torch._tensor", "_rebuild_from_type_v2", named("os", "system"), named("torch", "Tensor"), items(shell), NONE),
    }  # fmt: skip
    loose = {"hooks", "build-setstate"}  # of these only what is not executed counts: see test_hostile
    return {
        f"call-{name}": ("refused-or-loads" if name in loose else "unsupported", pickle(body, 5))
        for name, body in targets.items()
    }


def instances():
    """Objects that PyTorch itself would rebuild, with arguments that nobody checks."""
    floats = storage()
    quantizer = items(named("torch", "per_tensor_affine"), b"G" + struct.pack(">d", 0.1), integer(0))
    indices = tensor(storage(key="1", count=2, kind="LongStorage"), size=(1, 2), stride=(2, 1))
    sparse = items(indices, tensor(size=(2,)), integers(2))
    return {
        "qtensor-stride": ("unsupported", pickle(call(
            "torch._utils", "_rebuild_qtensor", floats, integer(0), integers(2, 2), integers(10**9, 1), quantizer, FALSE, HOOKS))),
        "sparse-indices": ("unsupported", pickle(call("torch._utils", "_rebuild_sparse_tensor", named("torch", "sparse_coo"), sparse))),
        "sparse-csr": ("unsupported", pickle(call("torch._utils", "_rebuild_sparse_csr_tensor", named("torch", "sparse_csr"), sparse))),
        "nested-tensor": ("refused-or-loads", pickle(call("torch._utils", "_rebuild_nested_tensor", tensor(), tensor(), tensor(), tensor()))),
        "wrapper-subclass": ("unsupported", pickle(call("torch._utils", "_rebuild_wrapper_subclass", *[NONE] * 8))),
        "device-tensor-from-numpy": ("unsupported", pickle(call("torch._utils", "_rebuild_device_tensor_from_numpy", *[NONE] * 4))),
        "numpy-array": ("unsupported", pickle(call("numpy.core.multiarray", "_reconstruct", named("numpy", "ndarray"), integers(0), b"C\x01b"), 3)),
        "newobj-without-build": ("unsupported", pickle(named("torch._C", "_TensorBase") + EMPTY_TUPLE + b"\x81", 2)),
        "newobj-of-tensor": ("unsupported", pickle(named("torch", "Tensor") + EMPTY_TUPLE + b"\x81")),
        "newobj-of-set": ("unsupported", pickle(named("builtins", "set") + items(listed(integer(1))) + b"\x81")),
        "newobj-of-ordered-dict": ("unsupported", pickle(named("collections", "OrderedDict") + EMPTY_TUPLE + b"\x81")),
        "tensor-too-few-arguments": ("corrupt", pickle(call("torch._utils", "_rebuild_tensor_v2", floats))),
        "tensor-of-nothing": ("corrupt", pickle(call("torch._utils", "_rebuild_tensor_v2", NONE, *[NONE] * 5))),
        "parameter-of-nothing": ("corrupt", pickle(call("torch._utils", "_rebuild_parameter", NONE, TRUE, HOOKS))),
        "parameter-of-a-list": ("corrupt", pickle(call("torch._utils", "_rebuild_parameter", EMPTY_LIST, TRUE, HOOKS))),
        "parameter-with-state": ("loads", pickle(call("torch._utils", "_rebuild_parameter_with_state", tensor(), TRUE, HOOKS, EMPTY_DICT))),
        "device-odd": ("corrupt", pickle(call("torch", "device", string("\x1b[2J")))),
        "device-surrogate": ("corrupt", pickle(call("torch", "device", string("\ud800")))),
        "device-no-such": ("unsupported", pickle(call("torch", "device", string("os.system")))),
        "device-index-huge": ("unsupported", pickle(call("torch", "device", string("cuda"), integer(2**62)))),
        "layout-no-such": ("unsupported", pickle(call("torch.serialization", "_get_layout", string("os.system")))),
        "layout-a-function": ("unsupported", pickle(call("torch.serialization", "_get_layout", string("torch.load")))),
        "layout-a-module": ("unsupported", pickle(call("torch.serialization", "_get_layout", string("torch.os")))),
        "layout-dunder": ("unsupported", pickle(call("torch.serialization", "_get_layout", string("torch.__dict__")))),
        "layout-surrogate": ("corrupt", pickle(call("torch.serialization", "_get_layout", string("\ud800")))),
        "layout-good": ("loads", pickle(call("torch.serialization", "_get_layout", string("torch.strided")))),
        "dtype-no-utf8": ("unsupported", pickle(tensor(
            storage(kind="UntypedStorage", module="torch.storage", count=12), rest=(FALSE, HOOKS, b"ctorch\n\xff\x1b[2J\n"),
            function="_rebuild_tensor_v3"))),
    }  # fmt: skip


def forms():
    """Dicts that nearly are numpy arrays (docs/format.md, "NumPy, as plain data"): then they are dicts."""

    def form(dtype="<f4", kind="numpy.ndarray", data=None, more=b""):
        text = (lambda x: x if isinstance(x, bytes) else string(x))
        data = tensor() if data is None else data
        return mapped(string("__perdure__"), text(kind), string("dtype"), text(dtype), string("data"), data, more)

    halves = tensor(storage(count=6, kind="BFloat16Storage"), size=(6,))
    variants = {
        "good": form(), "big-endian": form(">f4"), "wider": form(">f8"), "narrower": form(">f2"), "odd-order": form("xf4"),
        "objects": form("|O8"), "text": form("<U1"), "void": form("|V4"), "no-dtype": form(""), "dtype-no-text": form(NONE),
        "kind-no-text": form(kind=integer(1)), "kind-other": form(kind="numpy.load"), "kind-a-tensor": form(kind=tensor()),
        "kind-an-array": form(kind=form()), "data-no-tensor": form(data=NONE), "data-a-list": form(data=listed(NONE)),
        "bfloat16": form(data=halves), "more": form(more=string("x") + NONE), "scalar-of-many": form(kind="numpy.scalar"),
        "meta": form(data=call("torch._utils", "_rebuild_meta_tensor_no_storage", named("torch", "float32"), integers(3), integers(1), FALSE)),
        "expanded": form(data=tensor(size=(100, 100), stride=(0, 0))),
    }  # fmt: skip
    kinds = {"meta": "refused-or-loads"}
    return {f"form-{name}": (kinds.get(name, "loads"), pickle(body)) for name, body in variants.items()}
