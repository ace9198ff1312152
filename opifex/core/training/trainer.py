"""The documented door to the trainer."""

from ...nnx.trainers import Trainer as Trainer


__all__ = [
    "Trainer",
]


def __dir__():
    return __all__
