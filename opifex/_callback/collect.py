from collections.abc import Callable
from typing import Any

import jax.tree_util as jtu
import numpy as np

from .._state import StepInfo
from .base import AbstractCallback


class Collect(AbstractCallback[None]):
    """Hands the infos of every chunk to a function: `Collect(chunks.append)`.

    **Arguments:**

    - `receive`: called with a [`StepInfo`][] of NumPy arrays. Its answer is ignored.
    """

    receive: Callable[[StepInfo], Any]

    def init(self, state, num_chunks):
        del state, num_chunks

    def on_chunk(self, memory, state, infos):
        del state
        self.receive(infos)
        return memory, False

    def close(self, memory, state):
        del memory, state


def join(chunks: list[StepInfo]) -> StepInfo:
    """The infos of consecutive chunks as one, along the axis of the steps."""
    if not chunks:
        raise ValueError("`chunks` is empty: no chunk was run.")
    axis = chunks[0].loss.ndim - 1
    return jtu.tree_map(lambda *parts: np.concatenate(parts, axis=axis), *chunks)
