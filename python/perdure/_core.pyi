"""
The C++ core of perdure. Use the package perdure, not this module: it may change at any time.
"""

from collections.abc import Callable, Mapping, Sequence
import enum
import os
import pathlib
from typing import Annotated

import torch


class Kind(enum.Enum):
    none = 0

    boolean = 1

    integer = 2

    real = 3

    complex = 4

    string = 5

    bytes = 6

    bytearray = 7

    list = 8

    tuple = 9

    set = 10

    size = 11

    dict = 12

    ordered_dict = 13

    counter = 14

    dtype = 15

    device = 16

    layout = 17

    tensor = 18

    composite = 19

    opaque = 20

class Value:
    @staticmethod
    def of_none() -> Value: ...

    @staticmethod
    def of_boolean(arg: bool, /) -> Value: ...

    @staticmethod
    def of_integer(arg: int, /) -> Value: ...

    @staticmethod
    def of_big_integer(arg: bytes, /) -> Value: ...

    @staticmethod
    def of_real(arg: float, /) -> Value: ...

    @staticmethod
    def of_complex(arg: complex, /) -> Value: ...

    @staticmethod
    def of_string(arg: bytes, /) -> Value: ...

    @staticmethod
    def of_bytes(arg: bytes, /) -> Value: ...

    @staticmethod
    def of_bytearray(arg: bytes, /) -> Value: ...

    @staticmethod
    def of_list(arg: Sequence[Value], /) -> Value: ...

    @staticmethod
    def of_tuple(arg: Sequence[Value], /) -> Value: ...

    @staticmethod
    def of_set(arg: Sequence[Value], /) -> Value: ...

    @staticmethod
    def of_size(arg: Sequence[int], /) -> Value: ...

    @staticmethod
    def of_mapping(kind: Kind, entries: Sequence[tuple[Value, Value]], attributes: Value | None = None) -> Value: ...

    @staticmethod
    def of_dtype(arg: str, /) -> Value: ...

    @staticmethod
    def of_device(arg: str, /) -> Value: ...

    @staticmethod
    def of_layout(arg: str, /) -> Value: ...

    @staticmethod
    def of_tensor(storage: Storage, dtype: str, shape: Sequence[int], strides: Sequence[int], storage_offset: int, requires_grad: bool = False, parameter: bool = False, conj: bool = False, neg: bool = False, live: bool = False) -> Value: ...

    @property
    def kind(self) -> Kind: ...

    @property
    def kind_name(self) -> str: ...

    def scalar(self) -> object: ...

    def name(self) -> object: ...

    def items(self) -> list[Value]: ...

    def entries(self) -> list[tuple[Value, Value]]: ...

    def attributes(self) -> object: ...

    def as_tensor(self) -> Tensor: ...

    @property
    def identity(self) -> int: ...

    def __len__(self) -> int: ...

    def __repr__(self) -> str: ...

class Storage:
    def __init__(self, address: int, size: int, device: str = 'cpu', owner: object | None = None) -> None: ...

    def set_data(self, address: int, owner: object | None) -> None: ...

    @property
    def owner(self) -> object: ...

    def tensor(self) -> Annotated[torch.Tensor, dict(dtype='uint8')]: ...

    @property
    def size(self) -> int: ...

    @property
    def device(self) -> str: ...

    @device.setter
    def device(self, arg: str, /) -> None: ...

    @property
    def record(self) -> int: ...

    @property
    def address(self) -> int: ...

    @property
    def identity(self) -> int: ...

class Liveness(enum.Enum):
    detached = 0

    live = 1

    stepped = 2

class Tensor:
    @property
    def storage(self) -> Storage: ...

    @property
    def dtype(self) -> str: ...

    @property
    def shape(self) -> list[int]: ...

    @property
    def strides(self) -> list[int]: ...

    @property
    def storage_offset(self) -> int: ...

    @property
    def requires_grad(self) -> bool: ...

    @property
    def parameter(self) -> bool: ...

    @property
    def conj(self) -> bool: ...

    @property
    def neg(self) -> bool: ...

    @property
    def liveness(self) -> Liveness: ...

def encode(object: object | None, root: str) -> Value: ...

class Optimizers:
    def __init__(self) -> None: ...

    def add(self, arg: object, /) -> None: ...

class EntryEncoder:
    def encode(self, state_dict: object | None) -> Value: ...

    def versions(self) -> list[int]: ...

    def forget(self) -> None: ...

class ModuleEncoder(EntryEncoder):
    def __init__(self, module: object, root: str, optimizers: Optimizers) -> None: ...

class OptimizerEncoder(EntryEncoder):
    def __init__(self, optimizer: object, root: str) -> None: ...

class OptimizerInfo:
    def __init__(self) -> None: ...

    @property
    def class_name(self) -> str: ...

    @class_name.setter
    def class_name(self, arg: str, /) -> None: ...

    @property
    def param_names(self) -> list[list[str]]: ...

    @param_names.setter
    def param_names(self, arg: Sequence[Sequence[str]], /) -> None: ...

class CheckpointInfo:
    def __init__(self) -> None: ...

    @property
    def format_version(self) -> int: ...

    @property
    def step(self) -> int: ...

    @property
    def generation(self) -> int: ...

    @property
    def parent(self) -> int: ...

    @property
    def metrics(self) -> dict[str, float]: ...

    @property
    def created(self) -> float: ...

    @property
    def reason(self) -> str: ...

    @property
    def writer(self) -> str: ...

    @property
    def libraries(self) -> dict[str, str]: ...

    @libraries.setter
    def libraries(self, arg: Mapping[str, str], /) -> None: ...

    @property
    def optimizers(self) -> dict[str, OptimizerInfo]: ...

class Finding:
    @property
    def record(self) -> str: ...

    @property
    def tensor(self) -> str: ...

    @property
    def offset(self) -> int: ...

    @property
    def what(self) -> str: ...

class VerifyState(enum.Enum):
    good = 0

    unchecked = 1

    damaged = 2

class VerifyReport:
    @property
    def path(self) -> str: ...

    @property
    def state(self) -> VerifyState: ...

    @property
    def bytes(self) -> int: ...

    @property
    def tensors(self) -> int: ...

    @property
    def findings(self) -> list[Finding]: ...

def verify(path: str | os.PathLike) -> VerifyReport: ...

def verify_bytes(bytes: bytes, name: str) -> VerifyReport: ...

class Lost:
    @property
    def path(self) -> str: ...

    @property
    def dtype(self) -> str: ...

    @property
    def shape(self) -> list[int]: ...

    @property
    def why(self) -> str: ...

class RepairReport:
    @property
    def path(self) -> str: ...

    @property
    def tensors(self) -> int: ...

    @property
    def bytes(self) -> int: ...

    @property
    def lost(self) -> list[Lost]: ...

    @property
    def notes(self) -> list[str]: ...

def repair(file: str | os.PathLike, out: str | os.PathLike, like: str | os.PathLike, force: bool) -> RepairReport: ...

class FileFormat(enum.Enum):
    torch = 0

    safetensors = 1

    dcp = 2

class ConvertOptions:
    def __init__(self) -> None: ...

    @property
    def to(self) -> FileFormat | None: ...

    @to.setter
    def to(self, arg: FileFormat | None, /) -> None: ...

    @property
    def only(self) -> list[str]: ...

    @only.setter
    def only(self, arg: Sequence[str], /) -> None: ...

    @property
    def rename(self) -> list[tuple[str, str]]: ...

    @rename.setter
    def rename(self, arg: Sequence[tuple[str, str]], /) -> None: ...

    def set_dtype(self, arg: str, /) -> None: ...

    @property
    def strip_optimizer(self) -> bool: ...

    @strip_optimizer.setter
    def strip_optimizer(self, arg: bool, /) -> None: ...

    @property
    def rest(self) -> bool: ...

    @rest.setter
    def rest(self, arg: bool, /) -> None: ...

    @property
    def max_shard_size(self) -> int: ...

    @max_shard_size.setter
    def max_shard_size(self, arg: int, /) -> None: ...

    @property
    def force(self) -> bool: ...

    @force.setter
    def force(self, arg: bool, /) -> None: ...

class ConvertReport:
    @property
    def path(self) -> pathlib.Path: ...

    @property
    def rest(self) -> pathlib.Path: ...

    @property
    def format(self) -> FileFormat: ...

    @property
    def tensors(self) -> int: ...

    @property
    def bytes(self) -> int: ...

    @property
    def left_out(self) -> list[str]: ...

def convert(in_: str | os.PathLike, out: str | os.PathLike, options: ConvertOptions, progress: object | None) -> ConvertReport: ...

class CheckpointFile:
    @staticmethod
    def open(path: str | os.PathLike, allow_opaque: bool = False) -> CheckpointFile: ...

    @staticmethod
    def open_bytes(bytes: bytes, name: str, allow_opaque: bool = False) -> CheckpointFile: ...

    @property
    def name(self) -> str: ...

    @property
    def size(self) -> int: ...

    @property
    def format(self) -> str: ...

    @property
    def value(self) -> Value: ...

    @property
    def info(self) -> CheckpointInfo | None: ...

    @property
    def metadata(self) -> dict[str, str]: ...

    def has_checksums(self) -> bool: ...

    def read_all(self, value: Value, allocate: Callable) -> None: ...

    def map_all(self, value: Value, verify: bool) -> None: ...

class Entry:
    @property
    def name(self) -> object: ...

    @property
    def value(self) -> Value: ...

def entries(file: CheckpointFile, pattern: str) -> list[Entry]: ...

def save(path: str | os.PathLike, state: Value) -> None: ...

def write_to(sink: Callable, state: Value, info: CheckpointInfo) -> None: ...

def select(state: Value, keys: Sequence[Sequence[Value]]) -> Value: ...

class Figures:
    @property
    def elements(self) -> int: ...

    @property
    def nan(self) -> int: ...

    @property
    def pos_inf(self) -> int: ...

    @property
    def neg_inf(self) -> int: ...

    @property
    def zeros(self) -> int: ...

    @property
    def min(self) -> Value: ...

    @property
    def max(self) -> Value: ...

    @property
    def mean(self) -> Value: ...

    @property
    def rms(self) -> Value: ...

    @property
    def norm(self) -> Value: ...

class TensorStats:
    @property
    def name(self) -> object: ...

    @property
    def dtype(self) -> str: ...

    @property
    def shape(self) -> list[int]: ...

    @property
    def figures(self) -> Figures: ...

    @property
    def same_as(self) -> object: ...

    @property
    def parameter(self) -> object: ...

    @property
    def problem(self) -> str: ...

class GroupStats:
    @property
    def name(self) -> object: ...

    @property
    def depth(self) -> int: ...

    @property
    def tensors(self) -> int: ...

    @property
    def figures(self) -> Figures: ...

class MomentumStats:
    @property
    def parameter(self) -> object: ...

    @property
    def optimizer(self) -> object: ...

    @property
    def weight(self) -> int | None: ...

    @property
    def momentum(self) -> list[int]: ...

class StatsReport:
    @property
    def path(self) -> str: ...

    @property
    def bytes(self) -> int: ...

    @property
    def tensors(self) -> list[TensorStats]: ...

    @property
    def groups(self) -> list[GroupStats]: ...

    @property
    def momentum(self) -> list[MomentumStats]: ...

def stats(path: str | os.PathLike, pattern: str) -> StatsReport: ...

class Distance:
    @property
    def elements(self) -> int: ...

    @property
    def changed(self) -> int: ...

    @property
    def beyond(self) -> int: ...

    @property
    def max_absolute(self) -> float: ...

    @property
    def max_relative(self) -> float: ...

    @property
    def max_ulp(self) -> int | None: ...

    @property
    def cosine(self) -> float | None: ...

class DifferenceKind(enum.Enum):
    added = 0

    removed = 1

    value = 2

    tensor = 3

class Difference:
    @property
    def what(self) -> DifferenceKind: ...

    @property
    def name(self) -> object: ...

    @property
    def before(self) -> object: ...

    @property
    def after(self) -> object: ...

    @property
    def distance(self) -> Distance | None: ...

class DiffReport:
    @property
    def path_a(self) -> str: ...

    @property
    def path_b(self) -> str: ...

    @property
    def differences(self) -> list[Difference]: ...

    @property
    def tensors(self) -> int: ...

    @property
    def by_checksum(self) -> int: ...

    @property
    def within_tolerance(self) -> int: ...

    @property
    def values(self) -> int: ...

    @property
    def prefix(self) -> str: ...

    @property
    def prefix_in_second(self) -> bool: ...

def diff(a: str | os.PathLike, b: str | os.PathLike, pattern: str, atol: float, rtol: float, full: bool) -> DiffReport: ...

class Role(enum.Enum):
    value = 0

    module = 1

    optimizer = 2

    other = 3

class MatchOptions:
    def __init__(self, strict: bool, only: Sequence[str], rename: Sequence[tuple[str, str]], cast: bool) -> None: ...

class TrainingState:
    def __init__(self) -> None: ...

    @property
    def step(self) -> int: ...

    @step.setter
    def step(self, arg: int, /) -> None: ...

    @property
    def libraries(self) -> dict[str, str]: ...

    @libraries.setter
    def libraries(self, arg: Mapping[str, str], /) -> None: ...

    def add_entry(self, name: str, role: Role, state_dict: Callable[[], Value], load_state_dict: Callable[[Value], None], check: Callable[[Value], Sequence[str]] | None, parameters: Callable[[], Sequence[tuple[int, str]]] | None, describe: Callable[[Sequence[tuple[int, str]]], OptimizerInfo] | None, align: Callable[[Value, OptimizerInfo, Sequence[tuple[int, str]], bool], tuple[Value, Sequence[str], Sequence[str]]] | None, encoder: object | None = None, live: Callable[[], Value] | None = None, structure: Callable[[], Value] | None = None) -> None: ...

    def add_none(self, arg: str, /) -> None: ...

    def add_rng(self, arg0: str, arg1: Callable[[], Value], arg2: Callable[[Value], None], /) -> None: ...

    def state_dict(self) -> Value: ...

    def optimizers(self) -> dict[str, OptimizerInfo]: ...

    def load_state_dict(self, value: Value, recorded: Mapping[str, OptimizerInfo], options: MatchOptions) -> None: ...

    def restore(self, file: CheckpointFile, options: MatchOptions, allocate: Callable) -> None: ...

    @property
    def broken(self) -> bool: ...

    @property
    def notes(self) -> list[str]: ...

def match_optimizer(class_name: str, groups: Sequence[tuple[Value, Sequence[tuple[Sequence[str], str, Sequence[int]]]]], state: Callable[[int], Value], in_file: Value, recorded: OptimizerInfo, strict: bool) -> tuple[Value, list[str], list[str]]: ...

class Mode(enum.Enum):
    min = 0

    max = 1

class OnError(enum.Enum):
    warn = 0

    raise_error = 1

class Capture(enum.Enum):
    eager = 0

    overlapped = 1

    checked = 2

class WhenBusy(enum.Enum):
    wait = 0

    skip = 1

class Best:
    def __init__(self, arg0: str, arg1: Mode, arg2: int, /) -> None: ...

class Checkpoint:
    @property
    def path(self) -> pathlib.Path: ...

    @property
    def size(self) -> int: ...

    @property
    def info(self) -> CheckpointInfo: ...

class ListedCheckpoint:
    @property
    def checkpoint(self) -> Checkpoint: ...

    @property
    def problem(self) -> str: ...

class PlannedCheckpoint:
    @property
    def checkpoint(self) -> Checkpoint: ...

    @property
    def reasons(self) -> list[str]: ...

def list_checkpoints(directory: str | os.PathLike) -> list[ListedCheckpoint]: ...

class SaveStats:
    @property
    def bytes(self) -> int: ...

    @property
    def stalled(self) -> float: ...

    @property
    def fence_waited(self) -> float: ...

    @property
    def copied(self) -> float: ...

    @property
    def written(self) -> float: ...

    @property
    def durable(self) -> float: ...

class SaveHandle:
    def done(self) -> bool: ...

    def wait(self, arg: float, /) -> bool: ...

    def skipped(self) -> bool: ...

    def error(self) -> object: ...

    def checkpoint(self) -> Checkpoint | None: ...

    def stats(self) -> SaveStats: ...

    def progress(self) -> float: ...

class CheckpointManager:
    def __init__(self, directory: str | os.PathLike, options: dict) -> None: ...

    def restore(self, step: int | None, path: str | os.PathLike | None, take: Callable) -> Checkpoint | None: ...

    def save(self, state: TrainingState, metrics: Mapping[str, float]) -> SaveHandle: ...

    def prepare(self, state: TrainingState) -> None: ...

    def fence(self) -> None: ...

    def should_save(self, step: int) -> bool: ...

    @property
    def preempted(self) -> bool: ...

    @property
    def interval(self) -> float | None: ...

    def progress(self) -> float: ...

    def pin(self, step: int, reason: str) -> None: ...

    def unpin(self, step: int) -> None: ...

    def retention_plan(self) -> list[PlannedCheckpoint]: ...

    def prune(self) -> list[PlannedCheckpoint]: ...

    def idle(self, timeout: float) -> bool: ...

    def checkpoints(self) -> list[Checkpoint]: ...

    def latest_step(self) -> int | None: ...

    def best_step(self, metric: str) -> int | None: ...

    def all_steps(self) -> list[int]: ...

    @property
    def directory(self) -> pathlib.Path: ...

    def wait(self) -> None: ...

    def close(self) -> None: ...

def retention_plan(directory: str | os.PathLike, keep_last: int, keep_best: Sequence[Best], every_steps: int, every_seconds: float) -> list[PlannedCheckpoint]: ...

def read_history(directory: str | os.PathLike) -> list[Value]: ...

def watched_signals() -> list[int]:
    """The signals that save_on_signal has this process watch now."""

def watch_signals_in_child(signals: Sequence[int], parent: int) -> None:
    """
    In a worker process: ignores `signals`, unless they come from the process `parent`.
    """
