"""Every value kind, dtype, stride form and sharing, from torch.save to perdure and from perdure to torch.load."""

import collections
import contextlib
import io
import subprocess
import zipfile

import numpy as np
import pytest
import states
import torch
from hypothesis import given
from hypothesis import strategies as st
from states import DTYPES, assert_same, tensor_facts
from torch.utils.serialization import config

import perdure

pytestmark = pytest.mark.filterwarnings("ignore:ComplexHalf", "ignore:TypedStorage")
MATRIX = [pytest.param(d, s, id=f"{d}-{s}") for d in DTYPES for s in states.SHARINGS]


@contextlib.contextmanager
def calculated_offsets():
    config.load.calculate_storage_offsets = True
    try:
        yield
    finally:
        config.load.calculate_storage_offsets = False


def assert_sound_zip(path):
    assert zipfile.ZipFile(path).testzip() is None
    done = subprocess.run(["unzip", "-tqq", str(path)], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")


def assert_same_on_meta(found, state):
    """Shapes, strides and dtypes of all tensors, in order; no data."""

    def facts(x):
        return [tensor_facts(t)[:4] for t in tensors_of(x)]

    assert all(t.is_meta for t in tensors_of(found))
    assert facts(found) == facts(state)


def tensors_of(x):
    if isinstance(x, torch.Tensor):
        return [x]
    if isinstance(x, dict):
        return [t for v in x.values() for t in tensors_of(v)]
    return [t for v in x for t in tensors_of(v)] if isinstance(x, (list, tuple)) else []


def assert_torch_loads(path, state):
    """torch.load in each of its ways."""
    assert_same(torch.load(path), state)
    assert_same(torch.load(path, mmap=True), state)
    assert_same_on_meta(torch.load(path, map_location="meta"), state)
    with calculated_offsets():
        assert_same(torch.load(path), state)


@pytest.mark.parametrize("dtype, sharing", MATRIX)
def test_torch_save_to_perdure(path, dtype, sharing):
    state = states.SHARINGS[sharing](DTYPES[dtype])
    torch.save(state, path)
    assert_same(perdure.load(path), state)


@pytest.mark.parametrize("dtype, sharing", MATRIX)
def test_perdure_to_torch_load(path, dtype, sharing):
    state = states.SHARINGS[sharing](DTYPES[dtype])
    perdure.save(state, path)
    assert_same(perdure.load(path), state)
    assert_same_on_meta(perdure.load(path, map_location="meta"), state)
    assert_torch_loads(path, state)
    assert_sound_zip(path)


def test_matrix_is_all_of_torchs_dtypes():
    """A dtype that a new torch can load must be added to DTYPES (or refused knowingly: quantized and sub-byte)."""
    refused = ("torch.q", "torch.int", "torch.uint")
    known = {str(d) for d in DTYPES.values()}
    others = {str(d) for d in vars(torch).values() if isinstance(d, torch.dtype)} - known
    assert len(known) == 27
    assert all(name.startswith(refused) for name in others), others


@pytest.mark.parametrize("kind", states.plain_values())
def test_plain_values(path, kind):
    state = {"x": states.plain_values()[kind]}
    torch.save(state, path)
    assert_same(perdure.load(path), state)
    perdure.save(state, path)
    assert_same(perdure.load(path), state)
    assert_same(torch.load(path), state)
    assert_sound_zip(path)


def test_all_plain_values_in_one_file(path):
    state = states.plain_values()
    perdure.save(state, path)
    assert_same(perdure.load(path), state)
    assert_same(torch.load(path), state)


@pytest.mark.parametrize("dtype", ["complex64", "complex128", "complex32"])
def test_lazy_bits(path, dtype):
    x = states.make(DTYPES[dtype], (4, 4), (4, 1))
    state = {
        "conj": x.conj(),
        "x": x,
        "neg": x.conj().imag,
        "neg alone": states.make(DTYPES[dtype], (4,), (1,)).conj().imag,
    }
    assert state["conj"].is_conj() and state["neg"].is_neg()
    perdure.save(state, path)
    assert_same(perdure.load(path), state)
    assert_same(torch.load(path), state)
    del state["neg"]  # the same storage under two dtypes: torch.save refuses that, perdure does not
    torch.save(state, path)
    assert_same(perdure.load(path), state)


@pytest.mark.parametrize("dtype", sorted(states.V3))
def test_gradient_that_no_torch_load_takes(path, dtype):
    x = (
        torch.ones(4).to(DTYPES[dtype.removeprefix("torch.")])
        if "float4" not in dtype
        else states.make(torch.float4_e2m1fn_x2, (4,), (1,))
    )
    with pytest.raises(perdure.InvalidError, match="detach"):
        perdure.save({"x": x.requires_grad_()}, path)
    perdure.save({"x": torch.nn.Parameter(x.detach())}, path)
    assert torch.load(path)["x"].requires_grad


def test_one_storage_under_two_dtypes(path):
    x = torch.arange(8, dtype=torch.float32)
    state = {"floats": x, "bits": x.view(torch.int32), "bytes": x.view(torch.uint8)[2:7]}
    perdure.save(state, path)
    assert_same(perdure.load(path), state)
    assert_same(torch.load(path), state)


def test_lone_view_is_trimmed(path):
    perdure.save({"x": torch.arange(10**6)[1000:1010]}, path)
    assert path.stat().st_size < 10_000
    assert perdure.load(path)["x"].tolist() == list(range(1000, 1010))


def test_tied_weights_stay_tied(path):
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 4))
    model[1].weight = model[0].weight
    perdure.save(model.state_dict(), path)
    loaded = perdure.load(path)
    loaded["0.weight"].fill_(7)
    assert loaded["1.weight"].unique().tolist() == [7]


def test_bare_values(path):
    for state in (3, None, "x", torch.ones(2), [], torch.nn.Parameter(torch.ones(2))):
        perdure.save(state, path)
        assert_same(perdure.load(path), state)
        assert_same(torch.load(path), state)


def test_whole_training_state(path):
    model = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.BatchNorm2d(2))
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(2, 1, 5, 5)).sum().backward()
    optimizer.step()
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [3, 4])
    state = {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "scheduler": scheduler.state_dict(),
    }
    perdure.save(state, path)
    assert_same(perdure.load(path), state)
    loaded = torch.load(path)
    assert_same(loaded, state)
    model.load_state_dict(loaded["model"])
    optimizer.load_state_dict(loaded["optimizer"])


# numpy

NUMPY_DTYPES = [o + d for d in "i2 i4 i8 u2 u4 u8 f2 f4 f8 c8 c16".split() for o in "<>"] + ["b1", "i1", "u1"]
NUMPY_FORMS = {
    "contiguous": lambda a: a,
    "transposed": lambda a: a.T,
    "reversed": lambda a: a[::-1, ::-2],
    "strided": lambda a: a[::2, 1::3],
    "broadcast": lambda a: np.broadcast_to(a[0], (3, 6)),
    "empty": lambda a: a[:, :0],
    "scalar array": lambda a: a[1, 2, ...],
    "fortran": np.asfortranarray,
}


@pytest.mark.parametrize("form", NUMPY_FORMS)
@pytest.mark.parametrize("dtype", NUMPY_DTYPES)
def test_numpy_arrays(saved_and_loaded, dtype, form):
    array = NUMPY_FORMS[form](np.arange(24).reshape(4, 6).astype(dtype))
    loaded = saved_and_loaded({"x": array})["x"]
    assert type(loaded) is np.ndarray and loaded.dtype.str == array.dtype.str
    assert loaded.shape == array.shape and loaded.tobytes() == array.tobytes()
    assert loaded.flags.writeable


@pytest.mark.parametrize("dtype", NUMPY_DTYPES)
def test_numpy_scalars(saved_and_loaded, dtype):
    scalar = np.dtype(dtype).type(1)
    loaded = saved_and_loaded([scalar, scalar])
    assert type(loaded[0]) is type(scalar) and loaded[0] == scalar


def test_numpy_form_for_other_readers(path):
    perdure.save({"x": np.array([1.5, 2.5], ">f4"), "n": np.int64(3)}, path)
    loaded = torch.load(path)
    assert loaded["x"].keys() == {"__perdure__", "dtype", "data"}
    assert (loaded["x"]["__perdure__"], loaded["x"]["dtype"]) == ("numpy.ndarray", ">f4")
    assert loaded["x"]["data"].tolist() == [1.5, 2.5]
    assert loaded["n"]["__perdure__"] == "numpy.scalar" and loaded["n"]["data"].item() == 3


def test_numpy_identity_and_nan_bits(saved_and_loaded):
    array = np.array([0x7FF0000000000001, 0xFFF8000000000123], np.uint64).view(np.float64)
    loaded = saved_and_loaded([array, array, array.astype(">f8")])
    assert loaded[0] is loaded[1]
    assert loaded[0].tobytes() == array.tobytes()


def test_numpy_random_state(saved_and_loaded):
    np.random.seed(5)
    np.random.standard_normal()
    loaded = saved_and_loaded(
        {"numpy": np.random.get_state(), "new": np.random.default_rng(3).bit_generator.state}
    )
    expected = np.random.standard_normal(3)
    np.random.set_state(loaded["numpy"])
    assert np.random.standard_normal(3).tobytes() == expected.tobytes()
    generator = np.random.default_rng(0)
    generator.bit_generator.state = loaded["new"]
    assert generator.integers(10**9) == np.random.default_rng(3).integers(10**9)


def test_foreign_dict_with_our_key_stays_a_dict(path):
    state = {"x": {"__perdure__": "something", "n": 1}}
    torch.save(state, path)
    assert_same(perdure.load(path), state)


# load's options, file objects

STATE = {"epoch": 3, "model": {"w": torch.arange(4.0), "b": torch.ones(2)}, "list": [torch.zeros(3), 5]}


def test_keys(saved_and_loaded):
    loaded = saved_and_loaded(STATE, keys=["epoch", ("model", "w")])
    assert_same(loaded, {"epoch": 3, "model": {"w": torch.arange(4.0)}})


def test_keys_read_nothing_else(path):
    """Damage outside of what is asked for is not even seen."""
    perdure.save({"bad": torch.full((100_000,), 7, dtype=torch.uint8), "good": torch.ones(3)}, path)
    data = bytearray(path.read_bytes())
    data[data.index(b"\x07" * 64) + 50] ^= 1
    path.write_bytes(data)
    assert perdure.load(path, keys=["good"])["good"].tolist() == [1, 1, 1]
    with pytest.raises(perdure.CorruptionError, match="bad"):
        perdure.load(path)


def test_keys_that_are_not_there(path):
    perdure.save(STATE, path)
    with pytest.raises(perdure.InvalidError, match="nowhere"):
        perdure.load(path, keys=[("model", "nowhere")])
    with pytest.raises(perdure.InvalidError, match="list of keys"):
        perdure.load(path, keys="model")


def test_map_location(path):
    perdure.save(STATE, path)
    for where in (
        "cpu",
        torch.device("cpu"),
        {"cuda:0": "cpu"},
        lambda storage, location: storage,
        lambda s, location: None,
    ):
        assert_same(perdure.load(path, map_location=where), STATE)
    assert perdure.load(path, map_location=torch.device("meta"))["model"]["w"].is_meta


def cuda_file(path):
    """A file whose tensors say that they are from cuda:0, as torch.save writes it on a machine with a GPU."""
    buffer = io.BytesIO()
    torch.save({"w": torch.arange(4.0)}, buffer)
    source = zipfile.ZipFile(buffer)
    with zipfile.ZipFile(path, "w") as out:
        for name in source.namelist():
            data = source.read(name)
            if name.endswith("data.pkl"):
                data = data.replace(b"X\x03\x00\x00\x00cpu", b"X\x06\x00\x00\x00cuda:0")
            if "serialization_id" not in name and not name.endswith(
                (".format_version", ".storage_alignment")
            ):
                out.writestr(name, data)
    return path


@pytest.mark.skipif(torch.cuda.is_available(), reason="is about machines without CUDA")
def test_device_that_is_not_there(path):
    cuda_file(path)
    with pytest.raises(perdure.InvalidError, match='cuda:0.*map_location="cpu"'):
        perdure.load(path)
    assert perdure.load(path, map_location="cpu")["w"].tolist() == [0, 1, 2, 3]
    assert perdure.load(path, map_location={"cuda:0": "cpu"})["w"].tolist() == [0, 1, 2, 3]
    seen = []
    perdure.load(path, map_location=lambda storage, location: seen.append(location) or storage)
    assert seen == ["cuda:0"]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_cuda_tensors(path):
    state = {"w": torch.arange(4.0, device="cuda:0"), "lr": torch.tensor(0.1, device="cuda:0")}
    perdure.save(state, path)
    loaded = perdure.load(path)
    assert loaded["w"].device == torch.device("cuda:0") and loaded["w"].tolist() == [0, 1, 2, 3]
    assert torch.load(path)["w"].is_cuda
    assert not perdure.load(path, map_location="cpu")["w"].is_cuda


def test_meta_tensors(saved_and_loaded, path):
    loaded = saved_and_loaded({"x": torch.empty(3, 4, device="meta"), "y": torch.ones(2)})
    assert loaded["x"].is_meta and loaded["x"].shape == (3, 4) and loaded["y"].tolist() == [1, 1]
    assert torch.load(path)["x"].is_meta


def test_file_objects(path):
    buffer = io.BytesIO()
    perdure.save(STATE, buffer)
    buffer.seek(0)
    assert_same(perdure.load(buffer), STATE)
    buffer.seek(0)
    assert_same(torch.load(buffer), STATE)
    with open(path, "wb") as file:
        perdure.save(STATE, file)
    with open(path, "rb") as file:
        assert_same(perdure.load(file), STATE)
    assert_same(perdure.load(path), STATE)
    buffer.seek(0)
    assert perdure.verify(buffer).good


@pytest.mark.parametrize(
    "kind", [str, lambda p: p, lambda p: str(p).encode()], ids=["str", "pathlib", "bytes"]
)
def test_paths(path, kind):
    perdure.save(STATE, kind(path))
    assert_same(perdure.load(kind(path)), STATE)
    assert perdure.verify(kind(path)).good


def test_calls_of_torch_load_can_stay_as_they_are(path):
    torch.save({"epoch": 3, "weight": torch.ones(3)}, path)
    for options in (
        {"weights_only": True},
        {"weights_only": False, "map_location": torch.device("cpu")},
        {"weights_only": None, "mmap": None},
        {"weights_only": True, "mmap": True, "map_location": "cpu"},
    ):
        ours, theirs = perdure.load(path, **options), torch.load(path, **options)
        assert ours["epoch"] == theirs["epoch"] and torch.equal(ours["weight"], theirs["weight"])
    torch.save({"layer": torch.nn.Linear(1, 1)}, path)
    with pytest.raises(perdure.UnsupportedError, match=r"\['layer'\].*Linear"):
        perdure.load(path, weights_only=False)  # does not mean that what is in a file is executed


def test_loaded_tensors_are_ordinary(saved_and_loaded):
    loaded = saved_and_loaded(STATE)
    loaded["model"]["w"].add_(1).requires_grad_().sum().backward()
    loaded["list"][0].resize_(100).fill_(1)


# random nested states

scalars = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**150), 2**150), st.floats(), st.complex_numbers(), st.binary(max_size=20),
    st.text(st.characters(codec=None), max_size=20), st.sampled_from([torch.float32, torch.device("cpu"), torch.strided]),
)  # fmt: skip
keys = st.one_of(
    st.text(max_size=8),
    st.integers(),
    st.none(),
    st.floats(allow_nan=False),
    st.tuples(st.integers(), st.text(max_size=3)),
)


@st.composite
def tensors(draw):
    name = draw(st.sampled_from(sorted(DTYPES)))
    form = draw(st.sampled_from(sorted(states.FORMS)))
    return states.make(DTYPES[name], *states.FORMS[form], seed=draw(st.integers(0, 3)))


nested = st.recursive(
    scalars | tensors(),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.lists(inner, max_size=4).map(tuple),
        st.lists(inner, min_size=1, max_size=2).map(lambda x: [x, x[0], x]),
        st.dictionaries(keys, inner, max_size=4),
        st.dictionaries(st.text(max_size=3), inner, max_size=3).map(collections.OrderedDict),
    ),
    max_leaves=15,
)


@given(nested)
def test_random_states(tmp_path_factory, state):
    path = tmp_path_factory.mktemp("random") / "cp.pt"
    perdure.save(state, path)
    assert_same(perdure.load(path), state)
    assert_same(torch.load(path), state)
    torch.save(state, path)
    assert_same(perdure.load(path), state)
    buffer = io.BytesIO()
    perdure.save(state, buffer)
    perdure.save(state, path)
    assert len(buffer.getvalue()) == path.stat().st_size
