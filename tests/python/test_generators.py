"""Generators of one's own: the numbers after a restore are those that would have come."""

import random

import numpy
import pytest
import torch

import perdure


class Loud(random.Random):
    """A subclass, with the state of its base."""


class Counting(random.Random):
    """A subclass with a state of its own."""

    def __init__(self, seed):
        self.drawn = []
        super().__init__(seed)

    def random(self):
        self.drawn.append(super().random())
        return self.drawn[-1]

    def getstate(self):
        return {"base": super().getstate(), "drawn": list(self.drawn)}

    def setstate(self, state):
        super().setstate(state["base"])
        self.drawn = state["drawn"]


def numpys(bits):
    return lambda seed: numpy.random.Generator(bits(seed))


def by_python(generator):
    values = list(range(9))
    generator.shuffle(values)
    return generator.random(), generator.gauss(0, 1), generator.getrandbits(70), values


def by_numpy(generator):  # an odd number of 32-bit draws: half of a word waits for the next one
    drawn = generator.integers(9, size=3, dtype=numpy.int32)
    return drawn.tolist(), generator.normal(), generator.permutation(9).tolist()


def by_legacy_numpy(generator):  # one Gaussian is kept back
    return generator.randint(9, size=3).tolist(), generator.randn(), generator.permutation(9).tolist()


def by_torch(generator):
    return torch.rand(2, generator=generator).tolist(), torch.randn(17, generator=generator).tolist()


def by_spawning(generator):
    return [by_numpy(child) for child in generator.spawn(2)], by_numpy(generator)


GENERATORS = {
    "torch.Generator": (lambda seed: torch.Generator().manual_seed(seed), by_torch),
    "PCG64": (numpys(numpy.random.PCG64), by_numpy),
    "PCG64DXSM": (numpys(numpy.random.PCG64DXSM), by_numpy),
    "Philox": (numpys(numpy.random.Philox), by_numpy),
    "Philox with a key": (numpys(lambda seed: numpy.random.Philox(key=seed)), by_numpy),
    "SFC64": (numpys(numpy.random.SFC64), by_numpy),
    "MT19937": (numpys(numpy.random.MT19937), by_numpy),
    "a bit generator": (numpy.random.PCG64, lambda bits: bits.random_raw(3).tolist()),
    "spawned": (lambda seed: numpy.random.default_rng(seed).spawn(3)[2], by_numpy),
    "spawning": (numpy.random.default_rng, by_spawning),
    "spawned and spawning": (lambda seed: numpy.random.default_rng(seed).spawn(3)[2], by_spawning),
    "seeded by the system": (lambda seed: numpy.random.default_rng(), by_spawning),
    "RandomState": (numpy.random.RandomState, by_legacy_numpy),
    "RandomState of a PCG64": (lambda seed: numpy.random.RandomState(numpy.random.PCG64(seed)), by_legacy_numpy),
    "random.Random": (random.Random, by_python),
    "a subclass": (Loud, by_python),
    "a subclass with a state of its own": (Counting, by_python),
}


def saved(state, directory):
    with perdure.CheckpointManager(directory) as checkpoints:
        checkpoints.save(state)
    return directory


def restored(state, directory):
    with perdure.CheckpointManager(directory) as checkpoints:
        checkpoints.restore(state)


def test_every_bit_generator_of_numpy_is_here():
    base = numpy.random.BitGenerator
    own = {c.__name__ for c in vars(numpy.random).values() if isinstance(c, type) and issubclass(c, base)}
    assert own - {"BitGenerator"} <= GENERATORS.keys(), "add it to this file"


@pytest.mark.parametrize("name", GENERATORS)
def test_the_same_numbers(tmp_path, name):
    make, draw = GENERATORS[name]
    first, second = make(1), make(2)
    draw(first)
    saved(perdure.TrainingState(generator=first), tmp_path)
    expected = [draw(first) for _ in range(3)]
    state = perdure.TrainingState(generator=second)
    restored(state, tmp_path)
    assert state.generator is second and [draw(second) for _ in range(3)] == expected


def test_several(tmp_path):
    def make(seed):
        return {name: make(seed) for name, (make, _) in GENERATORS.items()}

    first, second = make(1), make(2)
    saved(perdure.TrainingState(**first), tmp_path)
    restored(perdure.TrainingState(**second), tmp_path)
    for name, (_, draw) in GENERATORS.items():
        assert draw(first[name]) == draw(second[name]), name


@pytest.mark.parametrize(
    "thing, words",
    [
        (random.SystemRandom(), ["'noise'", "no state", "random.Random"]),
        (random, ["'noise'", "by itself"]),
        (numpy.random, ["'noise'", "by itself"]),
    ],
)
def test_what_has_no_state(thing, words):
    with pytest.raises(perdure.InvalidError) as caught:
        perdure.TrainingState(noise=thing)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    "saves, takes, words",
    [
        (numpy.random.default_rng(1), numpys(numpy.random.Philox)(1), "the state of PCG64 in the file, of Philox"),
        (random.Random(1), numpy.random.default_rng(1), "a tuple in the file, where the state of a Generator"),
        (torch.zeros(16, dtype=torch.uint8), torch.Generator(), "a generator with 16 bytes in the file"),
    ],
)
def test_another_generator_is_refused(tmp_path, saves, takes, words):
    saved(perdure.TrainingState(noise=saves, epoch=1), tmp_path)
    state = perdure.TrainingState(noise=takes, epoch=0)
    with pytest.raises(perdure.InvalidError, match=f"noise: .*{words}"):
        restored(state, tmp_path)
    assert state.epoch == 0 and not state.broken
