"""Single steps, for those who write their own loop."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array

from .._problem.base import AbstractProblem
from .._problem.composed import Composed
from .._problem.supervised import Pairs
from .._recipe import Recipe
from .._recovery.base import recover
from .._sampler.minibatch import Minibatch
from .._state import StepInfo, TrainingState
from .._step import train_step
from .given import Sets


@eqx.filter_jit
def one_step(
    recipe: Recipe, state: TrainingState, batch: Any
) -> tuple[TrainingState, StepInfo]:
    """One step of a recipe on a batch that it did not draw."""
    proposed, info = train_step(
        recipe.problem,
        recipe.optim,
        state,
        batch,
        weighting=recipe.weighting,
        trainable=recipe.trainable,
    )
    return recover(recipe.recovery, state, proposed, info)


@eqx.filter_jit
def loss_of(problem: AbstractProblem, model: Any, batch: Any) -> Array:
    """The loss on a batch in evaluation mode."""
    if isinstance(problem, Composed):
        problem = problem.quiet
    terms, _ = problem.terms(model, batch, jax.random.key(0))
    return jnp.sum(jnp.stack(list(terms.values())))


def whole_batch(sets: Sets, interior: bool) -> dict[str, Any]:
    """All rows at once, as the samplers of the trainers hand out some."""
    batch: dict[str, Any] = {name: data.pairs for name, data in sets.known.items()}
    if interior:
        batch["interior"] = sets.train.inputs
    if sets.train.targets is not None:
        batch["data"] = Pairs(sets.train.inputs, sets.train.targets)
    return batch


def no_data() -> Minibatch:
    """A sampler that keeps what those of the trainers keep, for want of data."""
    return Minibatch(jnp.zeros((1, 1)), jnp.zeros((1, 1)), 1)
