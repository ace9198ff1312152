"""Which of the models of a run is judged."""

import hashlib
import io
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr

from .._callback.base import AbstractCallback
from .._custom_types import Key
from .._misc import tree_copy, tree_where
from .._sampler.uniform import sample_each
from .._state import TrainingState
from .._validation import HeldOut, Validation
from .base import Benchmark


# With as many points held out for each that is trained on, their mean is the surer.
_HELD_OUT = 2


def held_out(benchmark: Benchmark, key: Key) -> Validation:
    """Judges a model by the loss at points that it is not trained on."""
    counts = {name: _HELD_OUT * num for name, num in benchmark.num_points.items()}
    batch = sample_each(benchmark.domains, counts, jr.fold_in(key, 2))
    return Validation(HeldOut(benchmark.problem, batch))


class Best(AbstractCallback[Any]):
    """Keeps the model of the chunk after which the validation was best, and the points
    that this was trained on; of the last one where nothing is validated.

    With few points the error of a well-trained network rises and falls from chunk to
    chunk by several times.

    **Arguments:**

    - `path`: of a file, for a run that is resumed to go on with.
    """

    path: Path = eqx.field(static=True, converter=Path)

    def init(self, state, num_chunks):
        del num_chunks
        return jax.device_get(state.sampler_state), tree_copy(self.restore(state))

    def on_chunk(self, memory, state, infos):
        del infos
        points, best = memory
        better = state.progress.plateau_count == 0
        here = (state.model, jax.tree.map(jnp.asarray, points))
        best = tree_where(better, here, best)
        if bool(jnp.any(better)):
            self._write(best)
        return (jax.device_get(state.sampler_state), best), False

    def close(self, memory, state):
        del memory, state

    def restore(self, state: TrainingState) -> tuple[Any, Any]:
        """The best model so far and the state of the sampler it was trained with; those
        of `state` before the first chunk."""
        here = (state.model, state.sampler_state)
        if not self.path.exists():
            return here
        digest, _, content = self.path.read_bytes().partition(b"\n")
        if digest != _digest(content):
            raise ValueError(
                f"{str(self.path)!r} is damaged: it does not match its digest. Put a "
                "copy in its place; or delete it, and the best model is looked for "
                "anew from here on."
            )
        return eqx.tree_deserialise_leaves(io.BytesIO(content), here)

    def _write(self, best: tuple[Any, Any]) -> None:
        """Complete or not at all: a line with the digest of the rest, and the rest."""
        content, unfinished = io.BytesIO(), self.path.with_suffix(".part.eqx")
        eqx.tree_serialise_leaves(content, best)
        written = content.getvalue()
        unfinished.write_bytes(_digest(written) + b"\n" + written)
        unfinished.replace(self.path)


def _digest(content: bytes) -> bytes:
    return hashlib.sha256(content).hexdigest().encode()
