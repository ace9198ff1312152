"""What is measured of a model at the end of an epoch."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array

from .._misc import safe_sqrt, squared
from .._problem.base import AbstractProblem
from .._problem.extra_terms import AbstractRowTerm, Seen
from .._problem.physics_informed import PhysicsInformed
from .._problem.supervised import Pairs
from .chunk import VAL_LOSS
from .models import predict


class HeldOutLoss(eqx.Module):
    """The sum of the terms of a problem on a batch."""

    problem: AbstractProblem
    batch: Any

    def __call__(self, model: Any) -> dict[str, Array]:
        terms, _ = self.problem.terms(model, self.batch, jax.random.key(0))
        return {VAL_LOSS: jnp.sum(jnp.stack(list(terms.values())))}


class Residual(eqx.Module):
    """The root of the mean square of what an equation leaves over."""

    physics: PhysicsInformed
    points: Array

    def __call__(self, model: Any) -> dict[str, Array]:
        residuals = self.physics.residuals(model, {"interior": self.points})
        squares = jnp.concatenate([squared(r) for r in residuals.values()])
        return {"physics_residual": safe_sqrt(jnp.mean(squares))}


class Metrics(eqx.Module):
    """Metrics of the predictions for some rows.

    **Arguments:**

    - `pairs`: the rows.
    - `errors`: functions of predictions and targets, by name.
    - `rows`: terms whose mean over the rows is reported, by name.
    - `predict`: maps the model and inputs to the predictions.
    """

    pairs: Pairs
    errors: dict[str, Callable[[Array, Array], Array]]
    rows: dict[str, AbstractRowTerm]
    predict: Callable[[Any, Any], Array] = predict

    def __call__(self, model: Any) -> dict[str, Array]:
        see = lambda x: self.predict(model, x)
        answer, target = see(self.pairs.inputs), self.pairs.targets
        found = {name: error(answer, target) for name, error in self.errors.items()}
        seen = Seen(see, self.pairs.inputs, answer, target)
        return found | {n: jnp.mean(term(seen)) for n, term in self.rows.items()}


def _mean_square(answer: Array, target: Array) -> Array:
    return jnp.mean(squared(answer - target))


def _mean_absolute(answer: Array, target: Array) -> Array:
    return jnp.mean(jnp.abs(answer - target))


def _largest(answer: Array, target: Array) -> Array:
    return jnp.max(jnp.abs(answer - target))


def _relative(answer: Array, target: Array) -> Array:
    """In the 2-norm over everything."""
    size = jnp.sum(squared(target))
    error = jnp.sum(squared(answer - target))
    return safe_sqrt(error / jnp.maximum(size, jnp.finfo(size.dtype).tiny))


ERRORS: dict[str, Callable[[Array, Array], Array]] = {
    "mse": _mean_square,
    "mae": _mean_absolute,
    "max_error": _largest,
    "relative_l2": _relative,
}
