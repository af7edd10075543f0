"""A plugin of pytest's, for Lightning's own tests: every Trainer and Fabric saves and loads with perdure.

    git clone --branch 2.6.5 https://github.com/Lightning-AI/pytorch-lightning
    cd pytorch-lightning/tests/tests_pytorch
    PERDURE_IO=CheckpointIO PYTHONPATH=.../tests/python:../.. python -m pytest -p perdure_in_lightning checkpointing models

docs/lightning.md says what comes of it.
"""

import os

import lightning.fabric.strategies.strategy as fabric
import lightning.pytorch.strategies.strategy as pytorch

import perdure.lightning

if "PERDURE_IO" in os.environ:
    kind = getattr(perdure.lightning, os.environ["PERDURE_IO"])
    for module in (fabric, pytorch):
        assert module.TorchCheckpointIO  # its name, as of Lightning 2.6
        module.TorchCheckpointIO = kind
