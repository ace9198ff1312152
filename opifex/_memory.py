"""What to say where a chunk does not fit into memory."""

import re
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.tree_util as jtu

from ._ensemble import Ensemble
from ._optimizer.memory import device_memory
from ._recipe import Recipe
from ._state import TrainingState


_ASKED = re.compile(r"allocat\w* ([\d.]+) ?([KMGTP]?)i?B?(?:ytes)?\b", re.IGNORECASE)
_UNITS = ("", "K", "M", "G", "T", "P")
# Of the memory of a device, what is left after all that does not grow with the batch.
_SHARE = 0.8


def advice_on_memory(
    error: BaseException, chunk: Callable, state: TrainingState
) -> str | None:
    """How much memory was asked for, the batch that would fit, and how to ask for
    less; `None` unless `error` is that by which XLA refuses memory.

    What is asked for is taken to be in proportion to the batch.
    """
    refused = isinstance(error, jax.errors.JaxRuntimeError)
    if not refused or "RESOURCE_EXHAUSTED" not in str(error):
        return None
    asked, there = _asked(str(error)), device_memory()
    if asked is None or asked <= _SHARE * there:
        return f"A chunk did not fit into memory. {_remedy(chunk, state, 0.5)}"
    share = _SHARE * there / asked
    return (
        f"A chunk asked for {_gigabytes(asked)} of memory at once, and the device has "
        f"{_gigabytes(there)}. {_remedy(chunk, state, share)}"
    )


def _asked(message: str) -> float | None:
    found = _ASKED.search(message)
    if found is None:
        return None
    return float(found[1]) * 1024.0 ** _UNITS.index(found[2].upper())


def _remedy(chunk: Callable, state: TrainingState, share: float) -> str:
    members = ""
    if isinstance(chunk, Ensemble):
        members = " Fewer members at a time (`batch_size` of `Ensemble`) need less too."
        chunk, state = chunk.chunk, _first(state)
    if not isinstance(chunk, Recipe):
        return f"About {share:.2g} of its batch would fit.{members}"
    sizes = _batch_sizes(chunk, state)
    fitting = {name: max(int(share * size), 1) for name, size in sizes.items()}
    parts = -(-chunk.accumulate // share)
    return (
        f"The batch has {sizes}; about {fitting} would fit. Reduce the points of "
        f"`sampler`, or set `accumulate={parts:.0f}` or more, by which the gradient is "
        f"computed in so many pieces.{members}"
    )


def _batch_sizes(recipe: Recipe, state: TrainingState) -> dict[str, int]:
    """The leading axis of each array of a batch, by its path."""

    def batch(state) -> Any:
        key = state.key_for("batch")
        return recipe.sampler.batch(state.sampler_state, key, state.step)

    leaves = jtu.tree_leaves_with_path(eqx.filter_eval_shape(batch, state))
    return {
        jtu.keystr(path, simple=True, separator="/"): x.shape[0]
        for path, x in leaves
        if getattr(x, "shape", ())
    }


def _first(states: TrainingState) -> TrainingState:
    return jtu.tree_map(lambda x: x[0] if eqx.is_array(x) else x, states)


def _gigabytes(count: int | float) -> str:
    return f"{count / 1e9:.3g} GB"
