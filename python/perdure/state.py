"""TrainingState: everything that a training run must get back, registered once."""

import contextlib
import logging

import torch

from . import _core, rng
from .arrays import numpy
from .errors import InvalidError, InvalidTypeError
from .files import libraries
from .generators import generator_entry
from .loader import ResumableLoader
from .modules import ModuleEntry
from .optimizers import OptimizerEntry
from .policies import as_list
from .stateful_loader import is_stateful_loader, stateful_loader_functions
from .tensors import Placement, allocate
from .values import decode, decode_structure, encode

_logger = logging.getLogger("perdure")


class TrainingState:
    """Everything that a training run must get back, registered once, by name:

        state = perdure.TrainingState(model=model, optimizer=optimizer, scheduler=scheduler, epoch=0)

    Taken are: modules, optimizers, and whatever else has state_dict() and load_state_dict() (schedulers, GradScaler,
    StatefulDataLoader, classes of your own); generators (torch.Generator, numpy's Generator, RandomState and bit
    generators, random.Random); and plain values, which become attributes (state.epoch += 1). By itself it holds
    `step` (state.step += 1 at every optimizer step) and the global random state of Python, numpy, torch and every
    CUDA device.

    A module without an optimizer is refused, unless optimizer=None says that there is none.

    What DistributedDataParallel, DataParallel or torch.compile have wrapped, the whole model or parts of it, is saved
    under the names of the plain module, and fits it and any other wrapping of it. An AveragedModel has state of its
    own, and so names of its own ("n_averaged", "module.").

    A restore checks everything before it changes anything, and lists all that does not fit. Lists, dicts, tensors
    and arrays are filled in place where they fit, so that other names for them stay right; other values are
    replaced. It matches an optimizer's state by parameter names, and gives back its exact bits.
    """

    def __init__(self, **things):
        own = {"_state": _core.TrainingState(), "_things": {}, "_values": {},
               "_optimizers": _core.Optimizers(), "_encoders": [], "_ranks": Ranks(),
               }  # fmt: skip
        vars(self).update(own)
        self._state.libraries = libraries()
        rng.register(self._state)
        for name, thing in things.items():
            self.add(name, thing)

    def add(self, name: str, thing) -> None:
        """Registers one more thing. `name` is its key in the file, and an attribute of this object.

        Raises InvalidError where the name is taken or one of perdure's own ("step", "rng"), or where the thing is
        neither plain data nor something with state_dict() and load_state_dict().
        """
        if hasattr(type(self), name) and name not in ("step", "rng"):  # those two are the core's to refuse
            raise InvalidError(f"{name!r} is a name of TrainingState's own; register it under another one")
        if thing is None and "optim" in name:
            self._state.add_none(name)
        elif isinstance(thing, torch.nn.Module):
            self._add_module(name, thing)
        elif isinstance(thing, torch.optim.Optimizer):
            self._add_optimizer(name, thing)
        elif not self._add_object(name, thing):
            self._add_value(name, thing)
            return
        self._things[name] = thing

    def state_dict(self) -> dict:
        """What goes into a file, as plain data over the live tensors: {name: state, ..., "step": ..., "rng": ...}."""
        return decode(self._captured(), Placement(fallback="cpu"))

    def load_state_dict(self, state_dict: dict, strict: bool = True, only=(), rename=None, cast: bool = False) -> None:
        """Everything in `state_dict` goes back into what is registered. First all of it is checked: where anything
        does not fit, InvalidError has a table of it, says what can be done, and nothing is changed. The options are
        those of CheckpointManager.restore().
        """
        options = match_options(strict, only, rename, cast)
        value = encode(state_dict)
        with self._loading(value):
            self._state.load_state_dict(value, {}, options)

    @property
    def step(self) -> int:
        """Optimizer steps done. The loop counts it; it is the step in the names of the checkpoints."""
        return self._state.step

    @step.setter
    def step(self, value: int) -> None:
        self._state.step = int(value)

    @property
    def broken(self) -> bool:
        """A restore failed half way: what is registered is a mix, and is not saved until a restore succeeds."""
        return self._state.broken

    def _captured(self):
        self._register_rng()
        return self._state.state_dict()

    def _register_rng(self):
        rng.register(self._state)

    def _restore(self, file, options, rank: int = 0, ranks: int = 1):
        """As load_state_dict of a file that is not read yet: what fits goes straight into what is registered."""
        with self._loading(file.value), self._ranks.changed(file.ranks, rank, ranks):
            self._state.restore(file, options, allocate)

    @contextlib.contextmanager
    def _loading(self, value):
        rng.register(self._state, cuda=_has_cuda(value))
        try:
            yield
        finally:
            for encoder in self._encoders:  # what they hold may just have been replaced
                encoder.forget()
        for note in self._state.notes:
            _logger.warning("%s", note)

    def _add_module(self, name, module):
        entry = ModuleEntry(name, module, self._optimizers)
        self._entry(name, _core.Role.module, entry.state_dict, entry.load_state_dict, check=entry.check,
                    encoder=entry.encoder, live=entry.live, structure=entry.structure,
                    shards=entry.shards)  # fmt: skip

    def _add_optimizer(self, name, optimizer):
        entry = OptimizerEntry(name, optimizer)
        self._entry(name, _core.Role.optimizer, entry.state_dict, entry.load_state_dict,
                    align=entry.align, encoder=entry.encoder, live=entry.live,
                    shards=entry.shards)  # fmt: skip
        self._optimizers.add(optimizer)

    def _add_object(self, name, thing) -> bool:
        ranks = self._ranks
        if generator := generator_entry(name, thing):
            put = lambda value: ranks.is_new() or generator.load_state_dict(value)  # noqa: E731
            self._entry(name, _core.Role.other, generator.state_dict, put, check=generator.check)
            return True
        functions = stateful_loader_functions(thing) or _state_functions(thing)
        if not functions:
            if isinstance(thing, torch.utils.data.DataLoader):
                raise InvalidTypeError(
                    f"{name!r} is a DataLoader, which does not know its place: register perdure.ResumableLoader(it), "
                    "and iterate over that"
                )
            return False
        get, put = functions
        fit, check = (lambda x: x), None
        if isinstance(thing, ResumableLoader):
            fit = lambda x: thing._for_ranks(x, ranks.saved, ranks.now)  # noqa: E731
            check = lambda v: thing._misfits(fit(decode_structure(v)))  # noqa: E731
        elif is_stateful_loader(thing):
            put = ranks.unless_changed(name, put)
        self._entry(name, _core.Role.other, lambda: encode(get(), f"state[{name!r}]"),
                    lambda value: put(fit(decode(value, Placement(fallback="cpu")))), check=check)  # fmt: skip
        return True

    def _add_value(self, name, value):
        encode(value, f"state.{name}")  # what cannot be saved is said now, not at the first save
        values = self._values  # and not self: Python's collector does not see what the core holds
        self._entry(name, _core.Role.value, lambda: encode(values[name], f"state.{name}"),
                    lambda v: _put(values, name, decode(v, Placement(fallback="cpu"))))  # fmt: skip
        values[name] = value

    def _entry(
        self, name, role, get, put, check=None, align=None, encoder=None, live=None, structure=None, shards=None
    ):
        put = _named(name, put)
        self._state.add_entry(name, role, get, put, check, None, None, align, encoder, live, structure, shards)
        if encoder is not None:
            self._encoders.append(encoder)

    def __getattr__(self, name):
        for found in (vars(self).get("_values", {}), vars(self).get("_things", {})):
            if name in found:
                return found[name]
        raise AttributeError(f"nothing is registered as {name!r}")

    def __setattr__(self, name, value):
        if name == "step":
            object.__setattr__(self, name, value)
        elif name in self._values:
            self._values[name] = value
        elif name in self._things:
            raise AttributeError(
                f"{name!r} is registered as an object and cannot be replaced; restore fills it"
            )
        else:
            raise AttributeError(
                f"nothing is registered as {name!r}; register it first: state.add({name!r}, ...)"
            )

    def __dir__(self):
        return [*super().__dir__(), *self._things, *self._values]

    def __repr__(self):
        things = [f"{k}={type(v).__name__ if v is not None else None}" for k, v in self._things.items()]
        values = [f"{k}={_short(v)}" for k, v in self._values.items()]
        broken = [" broken: a restore failed half way"] if self.broken else []
        return f"TrainingState({', '.join([f'step={self.step}', *things, *values, *broken])})"


class Ranks:
    """For the time of a restore: how many ranks have saved what is restored, and how many there are."""

    def __init__(self):
        self.saved, self.rank, self.now = 1, 0, 1

    @contextlib.contextmanager
    def changed(self, saved, rank, now):
        self.saved, self.rank, self.now = saved, rank, now
        try:
            yield
        finally:
            self.saved, self.rank, self.now = 1, 0, 1

    def is_new(self) -> bool:
        """This rank was not there: what it would get is another's."""
        return self.rank >= self.saved

    def unless_changed(self, name, put):
        def put_unless_changed(value):
            if self.saved == self.now:
                return put(value)
            _logger.warning(
                "%r was one of %d ranks' and cannot be made one of %d's: its epoch begins anew", name, self.saved, self.now
            )

        return put_unless_changed


def _short(value) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"<{type(value).__name__}>"


def _named(name, put):
    """`put`, whose exceptions tell which entry it was."""

    def named(value):
        try:
            put(value)
        except Exception as error:
            raise InvalidError(
                f'"{name}" could not take its state from the file: {type(error).__name__}: {error}\n'
                "The state is a mixture now: restore it again, or start anew, before it is saved"
            ) from error

    return named


def match_options(strict, only, rename, cast) -> _core.MatchOptions:
    """What a restore does about a file that is not just what is registered; see CheckpointManager.restore()."""
    if rename is not None and not isinstance(rename, dict):
        raise InvalidTypeError('rename is a dict of names in the file to names here: {"model.old.*": "model.new.*"}')
    names = as_list(only, str)
    return _core.MatchOptions(bool(strict), names, list((rename or {}).items()), bool(cast))


def _state_functions(thing):
    if isinstance(thing, type):
        return None
    get, put = getattr(thing, "state_dict", None), getattr(thing, "load_state_dict", None)
    return (get, put) if callable(get) and callable(put) else None


def _has_cuda(value) -> bool:
    """Whether a file has the random state of CUDA devices."""
    for key, part in value.entries():
        if key.scalar() == "rng":
            return any(kind.scalar() == "cuda" for kind, _ in part.entries())
    return False


def _put(values, name, new):
    if not _fill(values[name], new):
        values[name] = new


def _fill(old, new) -> bool:
    """Gives `old` the content of `new` in place; False where it cannot be."""
    if type(old) is not type(new):
        return False
    if isinstance(old, list):
        old[:] = new
    elif type(old) in (dict, set):
        old.clear()
        old.update(new)
    elif isinstance(old, torch.Tensor):
        return _fill_tensor(old, new)
    elif numpy is not None and isinstance(old, numpy.ndarray):
        return _fill_array(old, new)
    else:
        return False
    return True


def _fill_tensor(old, new):
    if old.dtype != new.dtype or old.shape != new.shape or not old.is_leaf:
        return False
    with torch.no_grad():
        old.copy_(new)
    return True


def _fill_array(old, new):
    if old.dtype != new.dtype or old.shape != new.shape or not old.flags.writeable:
        return False
    old[...] = new
    return True
