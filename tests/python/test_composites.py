"""Sparse, quantized and nested tensors, and those with attributes: as torch itself loads and saves them."""

import io
import os
import subprocess
import zipfile

import pytest
import torch

import perdure
from states import assert_same

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # "beta", "prototype", "deprecated": all of them
torch.manual_seed(0)
DENSE = torch.randn(4, 6) * (torch.rand(4, 6) > 0.5)


def with_attributes(tensor, **attributes):
    vars(tensor).update(attributes)
    return tensor


def uncoalesced():
    indices = torch.tensor([[0, 0, 2], [1, 1, 3]])
    return torch.sparse_coo_tensor(indices, torch.tensor([1.0, 2.0, 3.0]), (4, 6))


CASES = {
    "coo": lambda: DENSE.to_sparse(),
    "coo-uncoalesced": uncoalesced,
    "coo-hybrid": lambda: torch.randn(3, 4, 2).to_sparse(2),
    "coo-empty": lambda: torch.zeros(3, 4).to_sparse(),
    "coo-complex": lambda: torch.complex(DENSE, DENSE).to_sparse(),
    "coo-bool": lambda: DENSE.bool().to_sparse(),
    "csr": lambda: DENSE.to_sparse_csr(),
    "csr-int32": lambda: torch.sparse_csr_tensor(
        torch.tensor([0, 1, 2], dtype=torch.int32), torch.tensor([1, 0], dtype=torch.int32), torch.ones(2), (2, 2)
    ),
    "csr-batched": lambda: torch.stack([torch.eye(3), torch.eye(3)]).to_sparse_csr(),
    "csc": lambda: DENSE.to_sparse_csc(),
    "bsr": lambda: DENSE.to_sparse_bsr((2, 3)),
    "bsc": lambda: DENSE.to_sparse_bsc((2, 3)),
    "qint8": lambda: torch.quantize_per_tensor(DENSE, 0.1, 3, torch.qint8),
    "quint8": lambda: torch.quantize_per_tensor(DENSE, 0.25, 128, torch.quint8),
    "qint32": lambda: torch.quantize_per_tensor(DENSE, 1e-3, 0, torch.qint32),
    "quantized-view": lambda: torch.quantize_per_tensor(DENSE, 0.1, 3, torch.qint8).t()[1:3],
    "per-channel": lambda: torch.quantize_per_channel(
        DENSE, torch.rand(4).double() + 0.1, torch.arange(4), 0, torch.qint8
    ),
    "per-channel-1": lambda: torch.quantize_per_channel(
        DENSE, torch.rand(6).double() + 0.1, torch.arange(6), 1, torch.quint8
    ),
    "nested": lambda: torch.nested.nested_tensor([torch.randn(2, 3), torch.randn(4, 3)]),
    "nested-empty": lambda: torch.nested.nested_tensor([torch.randn(0, 3), torch.randn(4, 3)]),
    "jagged": lambda: torch.nested.nested_tensor([torch.randn(2, 3), torch.randn(4, 3)], layout=torch.jagged),
    "jagged-lengths": lambda: torch.nested.nested_tensor_from_jagged(
        torch.randn(8, 2), offsets=torch.tensor([0, 3, 8]), lengths=torch.tensor([2, 4])
    ),
    "jagged-transposed": lambda: torch.nested.nested_tensor(
        [torch.randn(2, 3), torch.randn(4, 3)], layout=torch.jagged
    ).transpose(1, 2),
    "attributes": lambda: with_attributes(torch.randn(3), note="a", parts=[1, 2.5], other=torch.ones(2)),
    "attributes-fp8": lambda: with_attributes(torch.zeros(3, dtype=torch.float8_e4m3fn), scale=0.5),
    "attributes-sparse": lambda: with_attributes(DENSE.to_sparse(), note="sparse"),
    "attributes-quantized": lambda: with_attributes(torch.quantize_per_tensor(DENSE, 0.1, 3, torch.qint8), k=1),
    "parameter-attributes": lambda: with_attributes(torch.nn.Parameter(torch.randn(3)), fan=2),
    "parameter-sparse": lambda: torch.nn.Parameter(DENSE.to_sparse()),
    "parameter-frozen": lambda: with_attributes(torch.nn.Parameter(DENSE.to_sparse_csr(), requires_grad=False), a=None),
}


def parts_of(x):
    """What makes up a tensor, by torch's own accessors."""
    attributes = {k: v for k, v in vars(x).items() if not k.startswith("_")}
    head = (type(x).__name__, str(x.layout), x.dtype, x.is_leaf and x.requires_grad, attributes)
    data = x.detach()
    if x.layout is torch.sparse_coo:
        return head, data.shape, data.is_coalesced(), data._indices(), data._values()
    if x.layout in (torch.sparse_csr, torch.sparse_bsr):
        return head, data.shape, data.crow_indices(), data.col_indices(), data.values()
    if x.layout in (torch.sparse_csc, torch.sparse_bsc):
        return head, data.shape, data.ccol_indices(), data.row_indices(), data.values()
    if x.is_quantized and x.qscheme() == torch.per_tensor_affine:
        return head, data.int_repr(), x.q_scale(), x.q_zero_point(), x.stride()
    if x.is_quantized:
        return head, data.int_repr(), x.q_per_channel_scales(), x.q_per_channel_zero_points(), x.q_per_channel_axis()
    if x.layout is torch.jagged:
        return head, x._values.detach(), x._offsets, x._lengths, x._ragged_idx
    if x.is_nested:
        return head, list(data.unbind())
    return head, data


def plain(parts):
    """Without what the compiler has noted on a tensor."""
    if isinstance(parts, torch.Tensor):
        alias = torch.empty(0, dtype=parts.dtype)
        return alias.set_(parts.untyped_storage(), parts.storage_offset(), parts.size(), parts.stride())
    if isinstance(parts, (list, tuple)) and not isinstance(parts, torch.Size):
        return [plain(part) for part in parts]
    if isinstance(parts, dict):
        return {key: plain(part) for key, part in parts.items()}
    return parts


def assert_equal(a, b):
    assert_same(plain(parts_of(a)), plain(parts_of(b)))


@pytest.mark.parametrize("name", CASES)
class TestComposite:
    def test_what_torch_saves_is_loaded(self, name, path):
        torch.save({"x": CASES[name]()}, path)
        expected = torch.load(path, weights_only=False)["x"]
        assert_equal(perdure.load(path)["x"], expected)
        assert perdure.verify(path).good

    def test_what_perdure_saves_torch_loads(self, name, path):
        x = CASES[name]()
        perdure.save({"x": x, "again": x}, path)
        report = perdure.verify(path)
        assert report.good and report.tensors > 0
        loaded = torch.load(path)
        assert_equal(loaded["x"], x)
        assert loaded["again"] is loaded["x"]
        mine = perdure.load(path)
        assert_equal(mine["x"], x)
        assert mine["again"] is mine["x"]

    def test_it_is_the_same_file_after_a_load(self, name, path, tmp_path):
        perdure.save({"x": CASES[name]()}, path)
        perdure.save(perdure.load(path), tmp_path / "again.pt")
        perdure.save(torch.load(path), tmp_path / "torch.pt")
        assert_equal(torch.load(tmp_path / "again.pt")["x"], torch.load(path)["x"])
        assert_equal(torch.load(tmp_path / "torch.pt")["x"], torch.load(path)["x"])

    def test_its_parts_are_shown(self, name, path):
        perdure.save({"x": CASES[name]()}, path)
        shown = subprocess.run(
            [os.environ["PERDURE_CLI"], "show", path], capture_output=True, text=True, check=True
        ).stdout
        parts = ("values", "int_repr", "buffer", "data", "tensor")
        assert "opaque" not in shown and any(f"\n  {part} " in shown for part in parts)

    def test_a_damaged_part_is_named(self, name, path):
        perdure.save({"x": CASES[name]()}, path)
        data = bytearray(path.read_bytes())
        records = list(tensor_records(data))
        for begin in records:
            data[begin] ^= 1
        path.write_bytes(data)
        found = perdure.verify(path).findings
        assert len(found) == len(records) and all(each.tensor.startswith("state['x']['") for each in found)


def tensor_records(data):
    """Where the bytes of each tensor begin."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        for info in archive.infolist():
            if info.filename.startswith("archive/data/") and info.file_size:
                at = info.header_offset
                sizes = (int.from_bytes(data[at + i : at + i + 2], "little") for i in (26, 28))  # of name and extra
                yield at + 30 + sum(sizes)


def test_shared_memory_stays_shared(saved_and_loaded):
    values = torch.ones(3)
    sparse = torch.sparse_coo_tensor(torch.tensor([[0, 1, 2]]), values, (5,))
    quantized = torch.quantize_per_tensor(torch.ones(4, 4), 0.1, 0, torch.qint8)
    loaded = saved_and_loaded({"values": values, "sparse": sparse, "q": quantized, "row": quantized[1]})
    loaded["values"].fill_(7)
    assert loaded["sparse"]._values().tolist() == [7, 7, 7]
    assert loaded["q"].data_ptr() + 4 == loaded["row"].data_ptr()


def test_in_a_module_and_its_optimizer(tmp_path):
    class Net(torch.nn.Module):
        def __init__(self, fill):
            super().__init__()
            self.register_buffer("mask", (torch.eye(3) * fill).to_sparse())
            self.register_buffer("graph", (torch.eye(3) * fill).to_sparse_csr())
            self.fc = torch.nn.Linear(3, 3)

    def state(fill):
        net = Net(fill)
        return net, perdure.TrainingState(model=net, optimizer=torch.optim.SGD(net.fc.parameters(), lr=0.1))

    net, training = state(2)
    with perdure.CheckpointManager(tmp_path) as checkpoints:
        training.step += 1
        checkpoints.save(training)
        checkpoints.wait()
        other, restored = state(3)
        checkpoints.restore(restored)
    assert_equal(other.mask, net.mask)
    assert_equal(other.graph, net.graph)
    assert_same(other.fc.weight, net.fc.weight)


@pytest.mark.parametrize("capture", ["eager", "overlapped"])
def test_an_attribute_on_the_state_of_an_optimizer(tmp_path, capture):
    def training(seed):
        torch.manual_seed(seed)
        model = torch.nn.Linear(3, 2)
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
        model(torch.ones(1, 3)).sum().backward()
        optimizer.step()
        return optimizer.state[model.weight], perdure.TrainingState(model=model, optimizer=optimizer)

    slots, state = training(0)
    slots["exp_avg"].note = "mine"
    with perdure.CheckpointManager(tmp_path, capture=capture) as checkpoints:
        state.step += 1
        checkpoints.save(state)
        checkpoints.wait()
        _, other = training(1)
        checkpoints.restore(other)
    restored = next(iter(other.optimizer.state.values()))
    assert_same(plain(restored["exp_avg"]), plain(slots["exp_avg"]))
    assert restored["exp_avg"].note == "mine"


class TestWhatCannotBe:
    def test_a_class_of_ones_own_is_named_and_shown(self, path):
        class Mine(torch.Tensor):
            pass

        Mine.__module__, Mine.__qualname__ = "test_composites", "Mine"
        globals()["Mine"] = Mine
        torch.save({"x": torch.ones(3).as_subclass(Mine)}, path)
        with pytest.raises(perdure.UnsupportedError, match=r"state\['x'\] is a <'test_composites'.'Mine'"):
            perdure.load(path)
        shown = subprocess.run([os.environ["PERDURE_CLI"], "show", path], capture_output=True, text=True).stdout
        assert "test_composites.Mine(...)" in shown and "float32" in shown
        with pytest.raises(perdure.InvalidError, match=r"state\['x'\]"):
            perdure.save({"x": torch.ones(3).as_subclass(Mine)}, path)

    def test_four_bits(self, path):
        x = torch.quantize_per_channel(
            torch.randn(2, 4), torch.ones(2), torch.zeros(2), 0, torch.quint4x2
        )  # fmt: skip
        with pytest.raises(perdure.InvalidError, match="quint4x2"):
            perdure.save({"x": x}, path)

    def test_integers_that_are_two_things(self, path):
        quantized = torch.quantize_per_tensor(torch.ones(4), 0.1, 0, torch.qint8)
        integers = torch.empty(0, dtype=torch.int8).set_(quantized.untyped_storage(), 0, (4,), (1,))
        with pytest.raises(perdure.InvalidError, match="shares its memory with a quantized tensor"):
            perdure.save({"q": quantized, "i": integers}, path)

    @pytest.mark.parametrize(
        "x",
        [
            torch.sparse_coo_tensor(torch.tensor([[9]]), torch.ones(1), (3,), check_invariants=False),
            torch.sparse_csr_tensor(
                torch.tensor([0, 5]), torch.tensor([0]), torch.ones(1), (1, 3), check_invariants=False
            ),
        ],
        ids=["coo", "csr"],
    )
    def test_indices_that_reach_outside(self, x, path):
        torch.save({"x": x}, path)
        with pytest.raises(perdure.UnsupportedError, match="parts do not fit each other"):
            perdure.load(path)

    @pytest.mark.parametrize("change", ["sizes", "strides", "offsets"])
    def test_nested_that_reaches_outside(self, change, path):
        good = torch.nested.nested_tensor([torch.ones(2, 3), torch.ones(4, 3)])
        names = ("buffer", "sizes", "strides", "offsets")
        parts = dict(zip(names, good._reduce_ex_internal(2)[1]))
        parts[change] = parts[change] + 1
        value = {"form": "nested", **parts}
        with pytest.raises(perdure.UnsupportedError, match="reaches outside"):
            perdure.composites.put_together(dict(value))
        parts[change] = parts[change] - 9
        with pytest.raises(perdure.UnsupportedError, match="reaches outside"):
            perdure.composites.put_together({"form": "nested", **parts})

    @pytest.mark.parametrize("offsets", [[0, 9], [-1, 2], [2, 1], []])
    def test_jagged_that_reaches_outside(self, offsets):
        parts = {"values": torch.ones(4, 2), "offsets": torch.tensor(offsets), "lengths": None}
        more = {"ragged_idx": 1, "metadata": {}, "requires_grad": False}
        with pytest.raises(perdure.UnsupportedError, match="do not fit each other"):
            perdure.composites.put_together({"form": "jagged", **parts, **more})
