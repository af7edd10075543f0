"""Train in one language, go on in the other: optimizers, modules, schedules and random numbers cross unharmed.

The C++ side is the program `crossing` (tests/cpp/torch/crossing.cpp); PERDURE_CROSSING names it.
The Python side uses torch.save and torch.load as everybody does.
"""

import collections
import math
import os
import re
import subprocess

import numpy
import pytest
import torch

SPECS = [
    "SGD,lr=0.05",
    "SGD,lr=0.05,momentum=0.9",
    "SGD,lr=0.05,momentum=0.9,nesterov=1,weight_decay=0.01",
    "SGD,lr=0.05,momentum=0.8,dampening=0.3",
    "Adam,lr=0.01",
    "Adam,lr=0.02,beta1=0.8,beta2=0.95,amsgrad=1,weight_decay=0.1",
    "AdamW,lr=0.01",
    "AdamW,lr=0.02,beta1=0.85,eps=1e-6,amsgrad=1,weight_decay=0.2",
    "RMSprop,lr=0.01",
    "RMSprop,lr=0.005,alpha=0.9,momentum=0.5,centered=1,weight_decay=0.01",
    "Adagrad,lr=0.05",
    "Adagrad,lr=0.05,lr_decay=0.1,initial_accumulator_value=0.2,weight_decay=0.01",
    "LBFGS,lr=0.1,max_iter=3,history_size=4",
    "LBFGS,lr=0.5,max_iter=4,history_size=10,strong_wolfe=1",
]


@pytest.fixture(scope="module")
def crossing():
    """Calls the C++ program; what it refuses is a RuntimeError with its text. One process serves all of the tests."""
    program = os.environ.get("PERDURE_CROSSING")
    if not program:
        pytest.fail("PERDURE_CROSSING is not set: it names the program 'crossing' of the C++ tests' build directory")
    process = subprocess.Popen([program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def run(*arguments):
        process.stdin.write("\t".join(map(str, arguments)) + "\n")
        process.stdin.flush()
        lines = list(iter(process.stdout.readline, "done\n")) if process.poll() is None else [""]
        if lines:
            raise RuntimeError("".join(lines) or "the program crossing is gone")

    yield run
    process.stdin.close()
    assert process.wait(timeout=60) == 0


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


# --- The same model, data and noise as in crossing.cpp ---------------------------------------------------------


def numbers(count, a, b, n):
    return torch.arange(count).mul(a).add(b).remainder(n).to(torch.float64)


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1 = torch.nn.Linear(4, 6, bias=False)  # before a norm its gradient would be rounding noise
        self.norm = torch.nn.BatchNorm1d(6)
        self.fc2 = torch.nn.Linear(6, 2)
        with torch.no_grad():
            for k, p in enumerate(self.parameters()):
                p.copy_(numbers(p.numel(), 37, 11 * k, 97).sub(48).div(97).reshape(p.shape))

    def forward(self, x):
        return self.fc2(torch.tanh(self.norm(self.fc1(x))))


def make_optimizer(spec, net):
    name, *items = spec.split(",")
    options = {key: float(value) for key, value in (item.split("=") for item in items)}
    for key in ("amsgrad", "nesterov", "centered"):
        if key in options:
            options[key] = bool(options[key])
    if name in ("Adam", "AdamW"):
        options["betas"] = (options.pop("beta1", 0.9), options.pop("beta2", 0.999))
    if name == "LBFGS":
        options |= {key: int(options[key]) for key in ("max_iter", "history_size")}
        if options.pop("strong_wolfe", False):
            options["line_search_fn"] = "strong_wolfe"
    return getattr(torch.optim, name)(net.parameters(), **options)


def python_train(spec, source, target, steps, parts=("model", "optimizer", "scheduler", "rng")):
    net = Net()
    optimizer = make_optimizer(spec, net)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 3, 0.5)
    torch.manual_seed(0)
    step = 0
    if source != "-":
        state = torch.load(source)
        for part, thing in (("model", net), ("optimizer", optimizer), ("scheduler", scheduler)):
            if part in parts:
                thing.load_state_dict(state[part])
        if "rng" in parts:
            torch.set_rng_state(state["rng"])
        step = state["step"]
    for _ in range(steps):
        x = numbers(32, 29, 13 * step, 101).sub(50).div(50).float().reshape(8, 4)
        y = numbers(16, 17, 7 * step, 53).div(53).float().reshape(8, 2)
        x = x + 0.1 * torch.randn(8, 4)

        def closure(x=x, y=y):
            optimizer.zero_grad()
            loss = torch.nn.functional.mse_loss(net(x), y)
            loss.backward()
            return loss

        optimizer.step(closure)
        scheduler.step()
        step += 1
    state = {"model": net.state_dict(), "optimizer": optimizer.state_dict(), "scheduler": scheduler.state_dict()}
    torch.save({**state, "rng": torch.get_rng_state(), "step": step}, target)


@pytest.fixture
def trainers(crossing):
    return {"python": python_train, "c++": lambda *arguments: crossing("train", *arguments)}


def flat(value, path=()):
    """Every leaf of a state as {path: leaf}."""
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, (list, tuple)):
        items = enumerate(value)
    else:
        return {path: value}
    return {p: leaf for key, child in items for p, leaf in flat(child, (*path, key)).items()}


def optimizer_state(state):
    """With LBFGS's step length as a number, which Python's line search leaves as a tensor."""
    states = state["optimizer"]["state"]
    return {number: {**own, "t": float(own["t"])} if "t" in own else own for number, own in states.items()}


def assert_same_bits(a, b):
    a, b = flat(a), flat(b)
    assert a.keys() == b.keys()
    for path, leaf in a.items():
        if isinstance(leaf, torch.Tensor):
            assert leaf.dtype == b[path].dtype and leaf.shape == b[path].shape, path
            assert torch.equal(leaf, b[path]), path
        else:
            assert leaf == b[path] and type(leaf) is type(b[path]), path


def assert_close(a, b):
    torch.testing.assert_close(dict(a["model"]), dict(b["model"]), rtol=2e-5, atol=2e-6)
    torch.testing.assert_close(optimizer_state(a), optimizer_state(b), rtol=2e-4, atol=2e-6)
    assert a["scheduler"]["last_epoch"] == b["scheduler"]["last_epoch"]
    assert a["scheduler"]["_last_lr"] == b["scheduler"]["_last_lr"]
    assert torch.equal(a["rng"], b["rng"])
    assert a["step"] == b["step"]


# --- Crossing ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("first, second", [("python", "c++"), ("c++", "python")])
def test_going_on_in_the_other_language(trainers, tmp_path, spec, first, second):
    middle, stayed, crossed = tmp_path / "middle.pt", tmp_path / "stayed.pt", tmp_path / "crossed.pt"
    trainers[first](spec, "-", middle, 4)
    trainers[first](spec, middle, stayed, 5)
    trainers[second](spec, middle, crossed, 5)
    assert_close(torch.load(stayed), torch.load(crossed))


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("language", ["python", "c++"])
def test_going_on_in_the_same_language_gives_the_same_bits(trainers, tmp_path, spec, language):
    middle, whole, resumed = tmp_path / "middle.pt", tmp_path / "whole.pt", tmp_path / "resumed.pt"
    trainers[language](spec, "-", whole, 9)
    trainers[language](spec, "-", middle, 4)
    trainers[language](spec, middle, resumed, 5)
    assert_same_bits(torch.load(whole), torch.load(resumed))


@pytest.mark.parametrize("spec", SPECS)
def test_there_and_back_again(trainers, tmp_path, spec):
    """Zero steps in the other language change no bit of what both have."""
    middle, there, back = tmp_path / "middle.pt", tmp_path / "there.pt", tmp_path / "back.pt"
    trainers["python"](spec, "-", middle, 4)
    trainers["c++"](spec, middle, there, 0)
    trainers["python"](spec, there, back, 0)
    before, after = torch.load(middle), torch.load(back)
    for group in before["optimizer"]["param_groups"]:
        group.pop("initial_lr")  # the scheduler's note in Python's groups; base_lrs has it too
    for group in after["optimizer"]["param_groups"]:
        assert group.pop("initial_lr", None) is None
    for key, option in flat(before["optimizer"]["param_groups"]).items():
        assert flat(after["optimizer"]["param_groups"])[key] == option
    assert_same_bits(optimizer_state(before), optimizer_state(after))
    assert_same_bits(dict(before["model"]), dict(after["model"]))
    assert_same_bits(before["rng"], after["rng"])
    assert before["scheduler"] == after["scheduler"]


@pytest.mark.parametrize("left_out", ["model", "optimizer", "scheduler", "rng"])
def test_the_comparison_sees_what_is_left_out(trainers, tmp_path, left_out):
    spec = "SGD,lr=0.05,momentum=0.9"
    middle, stayed, crossed = tmp_path / "middle.pt", tmp_path / "stayed.pt", tmp_path / "crossed.pt"
    trainers["c++"](spec, "-", middle, 4)
    trainers["c++"](spec, middle, stayed, 5)
    python_train(spec, middle, crossed, 5, {"model", "optimizer", "scheduler", "rng"} - {left_out})
    with pytest.raises(AssertionError):
        assert_close(torch.load(stayed), torch.load(crossed))


# --- Schedulers --------------------------------------------------------------------------------------------------

SCHEDULES = [
    "StepLR,step_size=1,gamma=0.99",
    "StepLR,step_size=7,gamma=0.7",
    "ReduceLROnPlateau",
    "ReduceLROnPlateau,factor=0.5,patience=0",
    "ReduceLROnPlateau,factor=0.7,patience=2,threshold=0.05,cooldown=3,min_lr=0.001",
    "ReduceLROnPlateau,factor=0.3,patience=1,max=1,cooldown=1,min_lr=0.02,min_lr2=0.001",
    "ReduceLROnPlateau,factor=0.9,patience=3,abs=1,threshold=0.1,eps=0.002",
    "ReduceLROnPlateau,factor=0.9,patience=3,max=1,abs=1,threshold=0.01",
    "ReduceLROnPlateau,factor=0.9,patience=1,threshold=1",
]


def some_metrics(count, seed):
    """A noisy descent with leaps, infinities and NaN."""
    random = numpy.random.default_rng(seed)
    metrics = 1 / (1 + 0.05 * numpy.arange(count)) + 0.1 * random.standard_normal(count)
    for odd in (math.inf, -math.inf, math.nan, 0.0, -0.0):
        metrics[random.integers(count, size=max(1, count // 50)) if odd != -math.inf else count - 5] = odd
    return metrics.tolist()


def python_schedule(spec, source, target, metrics):
    groups = [{"params": torch.ones(1, requires_grad=True), "lr": lr} for lr in (0.1, 0.03)]
    optimizer = torch.optim.SGD(groups)
    name, *items = spec.split(",")
    options = {key: float(value) for key, value in (item.split("=") for item in items)}
    options |= {key: int(options[key]) for key in ("step_size", "patience", "cooldown") if key in options}
    if name == "ReduceLROnPlateau":
        options["mode"] = "max" if options.pop("max", 0) else "min"
        options["threshold_mode"] = "abs" if options.pop("abs", 0) else "rel"
        if "min_lr2" in options:
            options["min_lr"] = [options["min_lr"], options.pop("min_lr2")]
    scheduler = getattr(torch.optim.lr_scheduler, name)(optimizer, **options)
    if source != "-":
        state = torch.load(source)
        scheduler.load_state_dict(state["scheduler"])
        optimizer.load_state_dict(state["optimizer"])
    rates = []
    for metric in torch.load(metrics):
        optimizer.step()
        scheduler.step(*[metric][: name != "StepLR"])
        rates += scheduler.get_last_lr()
    state = {"scheduler": scheduler.state_dict(), "optimizer": optimizer.state_dict(), "rates": rates}
    torch.save(state, target)


@pytest.fixture
def schedulers(crossing):
    return {"python": python_schedule, "c++": lambda *arguments: crossing("schedule", *arguments)}


def learning_rates(path):
    return [group["lr"] for group in torch.load(path)["optimizer"]["param_groups"]]


@pytest.mark.parametrize("spec", SCHEDULES)
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_schedulers_are_pythons(schedulers, tmp_path, spec, seed):
    torch.save(some_metrics(400, seed), tmp_path / "metrics.pt")
    for language, run in schedulers.items():
        run(spec, "-", tmp_path / language, tmp_path / "metrics.pt")
    ours, theirs = torch.load(tmp_path / "c++"), torch.load(tmp_path / "python")
    assert ours["rates"] == theirs["rates"] and len(set(ours["rates"])) > 2
    assert ours["scheduler"] == theirs["scheduler"]
    assert list(ours["scheduler"]) == list(theirs["scheduler"])
    assert learning_rates(tmp_path / "c++") == learning_rates(tmp_path / "python")


@pytest.mark.parametrize("spec", SCHEDULES)
@pytest.mark.parametrize("first", ["python", "c++"])
@pytest.mark.parametrize("second", ["python", "c++"])
def test_a_scheduler_goes_on_in_either_language(schedulers, tmp_path, spec, first, second):
    metrics = some_metrics(150, 4)
    torch.save(metrics, tmp_path / "metrics.pt")
    schedulers["python"](spec, "-", tmp_path / "whole.pt", tmp_path / "metrics.pt")
    whole = torch.load(tmp_path / "whole.pt")
    for stop in (0, 1, 20, 77):
        torch.save(metrics[:stop], tmp_path / "before.pt")
        torch.save(metrics[stop:], tmp_path / "after.pt")
        schedulers[first](spec, "-", tmp_path / "middle.pt", tmp_path / "before.pt")
        other = spec.split(",")[0] + (",step_size=2" if "StepLR" in spec else "")  # the arguments are the file's
        schedulers[second](other, tmp_path / "middle.pt", tmp_path / "rest.pt", tmp_path / "after.pt")
        rest = torch.load(tmp_path / "rest.pt")
        assert rest["scheduler"] == whole["scheduler"]
        assert rest["rates"] == whole["rates"][2 * stop :]


@pytest.mark.parametrize("changes, text", [
    ({"factor": None}, '"factor"'),
    ({"mode": "least"}, 'mode "least" is neither'),
    ({"threshold_mode": "soft"}, 'threshold_mode "soft" is neither'),
    ({"default_min_lr": None, "min_lrs": [0.0]}, "min_lrs has 1 numbers in the file, the optimizer here 2 groups"),
    ({"patience": "long"}, '"patience"'),
    ({"num_bad_epochs": ...}, '"num_bad_epochs" is missing'),
])  # fmt: skip
def test_the_state_of_a_plateau_scheduler_that_is_none_is_refused(crossing, tmp_path, changes, text):
    torch.save([1.0], tmp_path / "metrics.pt")
    python_schedule("ReduceLROnPlateau", "-", tmp_path / "in.pt", tmp_path / "metrics.pt")
    state = torch.load(tmp_path / "in.pt")
    for key, value in changes.items():
        if value is ...:
            del state["scheduler"][key]
        else:
            state["scheduler"][key] = value
    torch.save(state, tmp_path / "in.pt")
    with pytest.raises(RuntimeError, match=re.escape(text)):
        crossing("schedule", "ReduceLROnPlateau", tmp_path / "in.pt", tmp_path / "out.pt", tmp_path / "metrics.pt")


@pytest.mark.parametrize("spec, text", [
    ("ReduceLROnPlateau,factor=1", "factor is 1.0, it has to be below 1"),
    ("ReduceLROnPlateau,min_lr2=0,min_lr3=0", "min_lr has 3 numbers"),
    ("StepLR,step_size=0", "step_size is 0"),
])  # fmt: skip
def test_arguments_that_no_scheduler_has_are_refused(crossing, tmp_path, spec, text):
    torch.save([1.0], tmp_path / "metrics.pt")
    with pytest.raises(RuntimeError, match=re.escape(text)):
        crossing("schedule", spec, "-", tmp_path / "out.pt", tmp_path / "metrics.pt")


def test_one_scheduler_does_not_take_the_state_of_another(crossing, tmp_path):
    torch.save([1.0], tmp_path / "metrics.pt")
    crossing("schedule", "ReduceLROnPlateau", "-", tmp_path / "plateau.pt", tmp_path / "metrics.pt")
    crossing("schedule", "StepLR", "-", tmp_path / "step.pt", tmp_path / "metrics.pt")
    for spec, source in (("StepLR", "plateau.pt"), ("ReduceLROnPlateau", "step.pt")):
        with pytest.raises(RuntimeError, match="is missing"):
            crossing("schedule", spec, tmp_path / source, tmp_path / "out.pt", tmp_path / "metrics.pt")


def test_step_lr_takes_the_state_of_libtorchs(trainers, schedulers, tmp_path):
    trainers["c++"]("SGD,lr=0.1", "-", tmp_path / "libtorch.pt", 4)
    torch.save([], tmp_path / "metrics.pt")
    schedulers["c++"]("StepLR", "-", tmp_path / "in.pt", tmp_path / "metrics.pt")
    state = torch.load(tmp_path / "in.pt") | {"scheduler": torch.load(tmp_path / "libtorch.pt")["scheduler"]}
    torch.save(state, tmp_path / "in.pt")
    schedulers["c++"]("StepLR", tmp_path / "in.pt", tmp_path / "out.pt", tmp_path / "metrics.pt")
    got = torch.load(tmp_path / "out.pt")["scheduler"]
    assert (got["step_size"], got["gamma"], got["base_lrs"]) == (3, 0.5, [0.1, 0.03])
    assert (got["last_epoch"], got["_step_count"]) == (3, 4)


# --- Form ----------------------------------------------------------------------------------------------------------


def test_module_state_has_pythons_form(trainers, tmp_path):
    trainers["c++"]("SGD,lr=0.1", "-", tmp_path / "a.pt", 0)
    ours, theirs = torch.load(tmp_path / "a.pt")["model"], Net().state_dict()
    assert isinstance(ours, collections.OrderedDict)
    assert list(ours) == list(theirs)
    assert ours._metadata == theirs._metadata
    assert type(ours._metadata) is type(theirs._metadata) and list(ours._metadata) == list(theirs._metadata)
    assert_same_bits(dict(ours), dict(theirs))
    assert all(type(t) is torch.Tensor and not t.requires_grad for t in ours.values())


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("steps", [0, 2])
def test_optimizer_state_has_pythons_form(trainers, tmp_path, spec, steps):
    trainers["c++"](spec, "-", tmp_path / "c.pt", steps)
    trainers["python"](spec, "-", tmp_path / "p.pt", steps)
    ours, theirs = (torch.load(tmp_path / name) for name in ("c.pt", "p.pt"))
    assert list(ours["optimizer"]) == list(theirs["optimizer"])
    for a, b in zip(ours["optimizer"]["param_groups"], theirs["optimizer"]["param_groups"], strict=True):
        b.pop("initial_lr")
        assert list(a) == list(b)
        assert {k: v for k, v in a.items() if k != "lr"} == {k: v for k, v in b.items() if k != "lr"}
    ours, theirs = flat(optimizer_state(ours)), flat(optimizer_state(theirs))
    assert list(ours) == list(theirs)
    for path, leaf in theirs.items():
        mine = ours[path]
        assert type(mine) is type(leaf), path
        if isinstance(leaf, torch.Tensor):
            assert (mine.dtype, mine.shape, mine.stride()) == (leaf.dtype, leaf.shape, leaf.stride()), path


def test_generator_state_has_pythons_bytes(trainers, tmp_path):
    trainers["c++"]("SGD,lr=0.1", "-", tmp_path / "a.pt", 0)
    torch.manual_seed(0)
    assert torch.equal(torch.load(tmp_path / "a.pt")["rng"], torch.get_rng_state())


# --- What cannot cross is refused ----------------------------------------------------------------------------------


def refusal(crossing, tmp_path, spec, change):
    python_train("Adam,lr=0.01", "-", tmp_path / "in.pt", 2)
    state = torch.load(tmp_path / "in.pt")
    change(state["optimizer"])
    torch.save(state, tmp_path / "in.pt")
    with pytest.raises(RuntimeError) as error:
        crossing("train", spec, tmp_path / "in.pt", tmp_path / "out.pt", 1)
    assert not (tmp_path / "out.pt").exists()
    return str(error.value)


@pytest.mark.parametrize("option", ["maximize", "differentiable", "capturable"])
def test_options_that_libtorch_lacks_are_refused(crossing, tmp_path, option):
    text = refusal(crossing, tmp_path, "Adam,lr=0.01", lambda o: o["param_groups"][0].update({option: True}))
    assert f'"{option}" is True' in text and "param_groups[0]" in text


def test_another_class_is_refused(crossing, tmp_path):
    text = refusal(crossing, tmp_path, "AdamW,lr=0.01", lambda o: None)
    assert "state of Adam" in text and "is AdamW" in text


def test_a_missing_moment_is_refused(crossing, tmp_path):
    text = refusal(crossing, tmp_path, "Adam,lr=0.01", lambda o: o["state"][1].pop("exp_avg_sq"))
    assert 'state[1]: "exp_avg_sq" is missing' in text


# --- Values and tensors -----------------------------------------------------------------------------------------


DTYPES = [
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.complex128, torch.complex64, torch.complex32,
    torch.int64, torch.int32, torch.int16, torch.int8, torch.uint64, torch.uint32, torch.uint16, torch.uint8, torch.bool,
    torch.float8_e4m3fn, torch.float8_e4m3fnuz, torch.float8_e5m2, torch.float8_e5m2fnuz, torch.float8_e8m0fnu,
    torch.float4_e2m1fn_x2, torch.bits8, torch.bits16, torch.bits1x8, torch.bits2x4, torch.bits4x2,
]  # fmt: skip


def raw(tensor):
    """The elements' bytes."""
    return bytes(torch.empty(0, dtype=torch.uint8).set_(tensor.untyped_storage())), tensor.storage_offset(), tensor.stride()


@pytest.mark.parametrize("command", ["echo", "tensors"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_tensors_of_every_dtype(crossing, tmp_path, command, dtype):
    storage = torch.arange(12 * dtype.itemsize).mul(37).add(11).remainder(256).to(torch.uint8).untyped_storage()
    whole = torch.empty(0, dtype=dtype).set_(storage, 0, (3, 4), (4, 1))
    part = torch.empty(0, dtype=dtype).set_(storage, 1, (3,), (4,))
    torch.save({"whole": whole, "part": part, "none": whole[:0]}, tmp_path / "in.pt")
    crossing(command, tmp_path / "in.pt", tmp_path / "out.pt")
    got = torch.load(tmp_path / "out.pt")
    for name, tensor in (("whole", whole), ("part", part)):
        assert got[name].dtype == dtype and got[name].shape == tensor.shape
        assert raw(got[name]) == raw(tensor)
    assert got["whole"].untyped_storage().data_ptr() == got["part"].untyped_storage().data_ptr()
    assert got["none"].shape == (0, 4)


@pytest.mark.parametrize("command", ["echo", "tensors"])
def test_tensor_properties(crossing, tmp_path, command):
    z = torch.view_as_complex(torch.randn(5, 2))
    torch.save(
        {
            "scalar": torch.tensor(2.5),
            "grad": torch.ones(3, requires_grad=True),
            "conj": z.conj(),
            "neg": z.clone().conj().imag,
            "strided": torch.arange(24.0).reshape(2, 3, 4).permute(2, 0, 1),
        },
        tmp_path / "in.pt",
    )
    crossing(command, tmp_path / "in.pt", tmp_path / "out.pt")
    got = torch.load(tmp_path / "out.pt")
    assert got["scalar"].shape == () and got["scalar"] == 2.5
    assert got["grad"].requires_grad and not got["scalar"].requires_grad
    assert got["conj"].is_conj() and torch.equal(got["conj"], z.conj())
    assert got["neg"].is_neg() and torch.equal(got["neg"], z.conj().imag)
    assert got["strided"].stride() == (1, 12, 4) and got["strided"][3, 1, 2] == 23


def test_plain_values_through_cpp(crossing, tmp_path):
    value = {
        "none": None, "bools": [True, False], "ints": (0, -1, 2**40, 2**100), "floats": [0.5, -0.0, float("inf")],
        "complex": 1 + 2j, "text": "gr\u00fc\u00df", "bytes": b"\x00\xff", "bytearray": bytearray(b"ab"), "set": {1, 2},
        "size": torch.Size([2, 3]), "dtype": torch.bfloat16, "device": torch.device("cpu"), 7: "int key",
        "ordered": collections.OrderedDict(b=1, a=2), "counter": collections.Counter("aab"),
    }
    torch.save(value, tmp_path / "in.pt")
    for command in ("echo", "tensors"):
        crossing(command, tmp_path / "in.pt", tmp_path / "out.pt")
        got = torch.load(tmp_path / "out.pt")
        assert got == value and list(got) == list(value)
        assert [type(v) for v in got.values()] == [type(v) for v in value.values()]
