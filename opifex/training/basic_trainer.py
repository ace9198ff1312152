"""The documented door to the trainers."""

from ..nnx.trainers import (
    BasicTrainer as BasicTrainer,
    ModularTrainer as ModularTrainer,
)


__all__ = [
    "BasicTrainer",
    "ModularTrainer",
]


def __dir__():
    return __all__
