"""The documented door to the learned optimizer."""

from .._optimizer.learned.network import Weights as Weights
from .._optimizer.learned.pes import meta_train as meta_train, Task as Task
from .._optimizer.learned.storage import (
    load_provenance as load_provenance,
    load_weights as load_weights,
    save_weights as save_weights,
)
from .._optimizer.learned.transformation import MetaOptimizer as MetaOptimizer


__all__ = [
    "load_provenance",
    "load_weights",
    "meta_train",
    "MetaOptimizer",
    "save_weights",
    "Task",
    "Weights",
]


def __dir__():
    return __all__
