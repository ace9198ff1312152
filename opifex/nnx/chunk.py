from collections.abc import Callable
from dataclasses import replace
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array

from .._custom_types import Count, Scalar, Terms
from .._recipe import Recipe
from .._state import StepInfo, TrainingState


Measure = Callable[[Any], dict[str, Array]]


class Epochs(eqx.Module):
    """A chunk that is a whole number of epochs, and measures the model at its end.

    What was measured is a metric of the last step, and NaN at the others.

    **Arguments:**

    - `recipe`: whose `steps` are those of all the epochs.
    - `epochs`: how many.
    - `last`: the number of the last epoch of the run, at which everything is measured.
    - `measures`: maps the model to named numbers; each with how many epochs lie between
        two measurements.
    """

    recipe: Recipe
    epochs: int = eqx.field(static=True)
    last: Count
    measures: tuple[tuple[Measure, int], ...]

    def __call__(self, start: TrainingState) -> tuple[TrainingState, StepInfo]:
        state, infos = self.recipe(start)
        epoch = start.progress.epoch + self.epochs
        progress = replace(state.progress, epoch=epoch)
        state = replace(state, progress=progress)
        found: Terms = {}
        for measure, every in self.measures:
            due = (epoch % every == 0) | (epoch == self.last)
            found |= self._if_due(due, measure, state.model)
        columns = {
            name: jnp.full(infos.loss.shape, jnp.nan, value.dtype).at[-1].set(value)
            for name, value in found.items()
        }
        # (`replace` would check the shapes, which are those of a single step.)
        metrics = infos.metrics | columns
        return state, eqx.tree_at(lambda i: i.metrics, infos, metrics)

    def _if_due(self, due: Array, measure: Measure, model: Any) -> Terms:
        shapes = eqx.filter_eval_shape(measure, model)
        arrays, static = eqx.partition(model, eqx.is_array)
        nothing = {n: jnp.full((), jnp.nan, s.dtype) for n, s in shapes.items()}
        return jax.lax.cond(
            due, lambda x: measure(eqx.combine(x, static)), lambda x: nothing, arrays
        )


VAL_LOSS = "val_loss"


def measured_loss(state: TrainingState, infos: StepInfo) -> Scalar:
    """What a chunk measured on the validation data; NaN if it did not."""
    del state
    return infos.metrics[VAL_LOSS][-1].astype(float)
