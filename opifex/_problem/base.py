import abc
from typing import Any, Generic

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Inexact

from .._custom_types import Batch, Count, Key, Model, Scalar, Terms
from .._misc import squared


class Aux(eqx.Module):
    """What a problem reports beside the terms of its loss."""

    counts: dict[str, Count | Scalar] = eqx.field(default_factory=dict)
    """How many points each term is the mean of. Terms that are not named count equally.
    Gradient accumulation weights the microbatches by it."""
    metrics: Terms = eqx.field(default_factory=dict)
    """Numbers for the history; they do not enter the loss."""
    model: Any = None
    """The model with its buffers (batch statistics, ...) updated, or `None` where there
    are none. Its trained arrays are ignored."""


class AbstractProblem(eqx.Module, Generic[Model, Batch]):
    """What is being solved: how wrong a model is on a batch."""

    @abc.abstractmethod
    def terms(self, model: Model, batch: Batch, key: Key) -> tuple[Terms, Aux]:
        """The parts of the loss, by name; the loss is their weighted sum.

        The weights are not the problem's business but the weighting's.

        **Arguments:**

        - `model`: the pytree being trained.
        - `batch`: what the sampler hands out.
        - `key`: for a stochastic loss (dropout, ...); its own at every step.

        **Returns:** real scalars, each a mean over points (so that a microbatch means
        the same), and an [`Aux`][].
        """


class AbstractResidualProblem(AbstractProblem[Model, dict[str, Array]]):
    """A problem whose loss is the mean square of residuals at points.

    The loss, its named terms and the density of an adaptive sampler all follow from
    `residuals`.
    """

    @abc.abstractmethod
    def residuals(
        self, model: Model, batch: dict[str, Array]
    ) -> dict[str, Inexact[Array, " _points"]]:
        """By how much each equation fails at each of its points.

        **Arguments:**

        - `model`: the pytree being trained.
        - `batch`: sets of points `(points, dim)`, by name.

        **Returns:** one vector an equation, named after the set of points it was
        evaluated on: `"interior"`, or `"interior/continuity"` where several equations
        share a set. Real or complex.
        """

    def stochastic_residuals(
        self, model: Model, batch: dict[str, Array], key: Key
    ) -> dict[str, Inexact[Array, " _points"]]:
        """The residuals that are trained on: estimates of `residuals` that may draw
        random numbers (to estimate an operator, ...); the same unless said otherwise.
        """
        del key
        return self.residuals(model, batch)

    def terms(self, model, batch, key):
        return mean_squares(self.stochastic_residuals(model, batch, key))


def check_vectors(residuals: dict[str, Array]) -> None:
    """Raises unless each of some residuals is one number a point."""
    for name, r in residuals.items():
        if r.ndim != 1:
            raise ValueError(
                "`residuals` must give one real or complex number a point, of shape "
                f"`(points,)`, got shape {r.shape} for {name!r}. Take its column."
            )


def mean_squares(residuals: dict[str, Inexact[Array, " _points"]]) -> tuple[Terms, Aux]:
    """The terms that follow from residuals, with the numbers of their points."""
    check_vectors(residuals)
    terms = {name: jnp.mean(squared(r)) for name, r in residuals.items()}
    counts = {name: jnp.array(r.size) for name, r in residuals.items()}
    return terms, Aux(counts=counts)
