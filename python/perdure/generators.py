"""Random number generators of one's own as part of a TrainingState."""

import random
import sys

import torch

from .errors import InvalidTypeError
from .tensors import Placement
from .values import decode, encode


def generator_entry(name, thing):
    """A GeneratorEntry for a generator object; None where `thing` is none."""
    _refuse(name, thing)
    functions = generator_functions(thing)
    return functions and GeneratorEntry(name, thing, *functions)


class GeneratorEntry:
    """One generator. It is filled, never replaced: a loader or a transform has it, too."""

    def __init__(self, name, thing, get, put):
        self._name, self._kind, self._get, self._put = name, type(thing).__name__, get, put

    def state_dict(self):
        return encode(self._get(), f"state[{self._name!r}]")

    def load_state_dict(self, value):
        self._put(decode(value, Placement("cpu")))

    def check(self, value) -> list[str]:
        saved, own = decode(value, Placement("meta")), self._get()
        if type(saved) is not type(own):
            return [f"a {type(saved).__name__} in the file, where the state of a {self._kind} is wanted"]
        theirs, ours = _what(saved), _what(own)
        return [f"the state of {theirs} in the file, of {ours} in this program"] if theirs != ours else []


def _what(state) -> str:
    """What kind of generator a state is of, as far as one sees it."""
    if isinstance(state, dict):
        return str(state.get("bit_generator", "no generator"))
    if isinstance(state, torch.Tensor):
        return f"a generator with {state.numel()} bytes"
    return type(state).__name__


def _refuse(name, thing):
    if isinstance(thing, random.SystemRandom):
        raise InvalidTypeError(
            f"{name!r} is a random.SystemRandom: it draws from the operating system and has no state, so a run could "
            "not go on exactly. Use random.Random"
        )
    numpy = sys.modules.get("numpy")
    if thing is random or (numpy is not None and thing is getattr(numpy, "random", None)):
        raise InvalidTypeError(
            f"{name!r} is the module {thing.__name__}: its global generator is part of every TrainingState by itself"
        )


def generator_functions(thing):
    """(get, put) of its state; None where `thing` is no generator."""
    if isinstance(thing, torch.Generator):
        return thing.get_state, thing.set_state
    if isinstance(thing, random.Random):
        return thing.getstate, thing.setstate
    numpy = sys.modules.get("numpy")
    if numpy is None:
        return None
    if isinstance(thing, numpy.random.RandomState):
        return lambda: thing.get_state(legacy=False), thing.set_state
    if isinstance(thing, numpy.random.Generator):
        thing = thing.bit_generator
    if isinstance(thing, numpy.random.BitGenerator):
        return lambda: _bit_generator_state(thing), lambda state: _put_bit_generator_state(thing, state)
    return None


def _bit_generator_state(bit_generator) -> dict:
    """numpy's own state, and in "seed_seq" what spawn() goes on from."""
    seeds = getattr(bit_generator, "seed_seq", None)
    own = {"seed_seq": seeds.state} if type(seeds).__name__ == "SeedSequence" else {}
    return {**bit_generator.state, **own}


def _put_bit_generator_state(bit_generator, state) -> None:
    numbers = {key: x for key, x in state.items() if key != "seed_seq"}
    if "seed_seq" not in state or not isinstance(bit_generator.__reduce__()[2], tuple):  # numpy before 2.0 has no way
        bit_generator.state = numbers
        return
    seeds = sys.modules["numpy"].random.SeedSequence(**state["seed_seq"])
    bit_generator.__setstate__((numbers, seeds))
