import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Float

from ._custom_types import AnyArray, Scalar
from ._misc import array_library, check_count
from ._problem.base import AbstractProblem
from ._recovery.base import went_back
from ._results import RESULTS
from ._state import StepInfo, TrainingState


def training_loss(state: TrainingState, infos: StepInfo) -> Float[AnyArray, "..."]:
    """The mean loss over the steps of a chunk that were kept.

    NaN if none was, or if the run went back: what was measured before says nothing
    about `state`.
    """
    xp = array_library(infos.loss)
    kept = xp.asarray(infos.result == RESULTS.successful)
    count = xp.sum(kept, axis=-1).astype(infos.loss.dtype)
    usable = (count > 0) & ~went_back(state, infos)
    total = xp.sum(infos.loss, axis=-1, where=kept)
    return total / xp.where(usable, count, xp.nan).astype(count.dtype)


class HeldOut(eqx.Module):
    """The loss of a problem, all weights one, on a batch that is not trained on."""

    problem: AbstractProblem
    batch: Any

    def __call__(self, state: TrainingState, infos: StepInfo) -> Scalar:
        del infos
        key = state.key_for("loss")
        terms, _ = self.problem.terms(state.model, self.batch, key)
        return jnp.sum(jnp.stack(list(terms.values())))


class Validation(eqx.Module):
    """By which number a run is judged, and when it is no longer worth going on.

    **Arguments:**

    - `loss`: maps the state after a chunk and the infos of its steps to a scalar, the
        lower the better: [`HeldOut`][]`(problem, batch)`, [`training_loss`][], or a
        function of your own.
    - `every`: how many chunks lie between two validations.
    - `patience`: how many validations without improvement end the run.
    - `min_delta`: what counts as improvement.
    - `shorten_after`: so many validations in a row without improvement, and every so
        many more, shorten the steps for good, whatever the optimizer is.
    - `factor`: by which.
    """

    loss: Callable[[TrainingState, StepInfo], Scalar] = training_loss
    every: int = eqx.field(static=True, default=1)
    patience: int | float = eqx.field(static=True, default=math.inf)
    min_delta: int | float = eqx.field(static=True, default=0.0)
    shorten_after: int | float = eqx.field(static=True, default=math.inf)
    factor: int | float = eqx.field(static=True, default=0.5)

    def __check_init__(self):
        check_count("every", self.every)
        for name in ("patience", "shorten_after"):
            if getattr(self, name) != math.inf:
                check_count(name, getattr(self, name))
        if not 0 < self.factor < 1:
            raise ValueError(f"`factor` must lie between 0 and 1, got {self.factor!r}.")
        if not 0 <= self.min_delta < math.inf:
            raise ValueError(
                f"`min_delta` must not be negative, got {self.min_delta!r}."
            )

    def __call__(self, state: TrainingState, infos: StepInfo) -> TrainingState:
        """`state`, with the loss and the plateau noted in its `progress`, and shorter
        steps if it is time for them."""
        state = observe(state, self.loss(state, infos), min_delta=self.min_delta)
        if self.shorten_after == math.inf:
            return state
        count, scale = state.progress.plateau_count, state.step_scale
        due = (count > 0) & (count % self.shorten_after == 0)
        return replace(state, step_scale=jnp.where(due, self.factor * scale, scale))


def observe(
    state: TrainingState, loss: Float[AnyArray, ""], *, min_delta: int | float = 0.0
) -> TrainingState:
    """Notes a validation loss in the `progress` of `state`.

    **Arguments:**

    - `state`: after a chunk.
    - `loss`: of its model. NaN is no improvement.
    - `min_delta`: by how much it must lie below the best to count.
    """
    progress = state.progress
    if jnp.shape(loss) != jnp.shape(state.step):
        raise ValueError(
            f"`loss` must be a scalar, got shape {jnp.shape(loss)}. Take the mean."
        )
    loss = jnp.asarray(loss, progress.best_val_loss.dtype)
    better = loss < progress.best_val_loss - min_delta
    progress = replace(
        progress,
        best_val_loss=jnp.where(better, loss, progress.best_val_loss),
        plateau_count=jnp.where(better, 0, progress.plateau_count + 1),
    )
    return replace(state, progress=progress)
