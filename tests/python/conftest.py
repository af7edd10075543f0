import os
import signal

import hypothesis
import pytest
import torch

import perdure

torch.set_num_threads(1)
# Of whoever is started in the background, as by nohup, it may be ignored, and then also by the programs under test.
signal.signal(signal.SIGINT, signal.default_int_handler)
hypothesis.settings.register_profile(
    "perdure", deadline=None, max_examples=int(os.environ.get("PERDURE_EXAMPLES", "150"))
)
hypothesis.settings.load_profile("perdure")


@pytest.fixture
def path(tmp_path):
    return tmp_path / "cp.pt"


@pytest.fixture
def saved_and_loaded(path):
    """A function: saves with perdure, loads with perdure."""

    def there_and_back(state, **options):
        perdure.save(state, path)
        return perdure.load(path, **options)

    return there_and_back


def damage(path, at=None):
    """Flips a bit in the largest record of a checkpoint (its middle, or `at`)."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2 if at is None else at] ^= 1
    path.write_bytes(data)
