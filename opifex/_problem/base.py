import abc
from typing import Any, Generic

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float, Inexact

from .._custom_types import Batch, Count, Key, Model, Scalar, Terms
from .._misc import squared, unknown_name


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


class Weighted(eqx.Module):
    """Points of a set that do not count alike: it stands in a batch for their array.

    A term of the set is the mean of `weight |r|^2` over its points. So weights of a
    quadrature rule have the mean one (those of points drawn with a probability `p` out
    of `n` are `1 / (n p)`), and points of weight zero do not count. Residuals are asked
    for at the points alone, and whatever else looks at the batch may read this like the
    array of the points.

    **Arguments:**

    - `points`: where.
    - `weight`: of each.
    """

    points: Inexact[Array, "points dim"]
    weight: Float[Array, " points"]

    def __check_init__(self):
        if self.weight.shape != self.points.shape[:1]:
            raise ValueError(
                "`weight` must be one number a point, got shape "
                f"{self.weight.shape} for points of shape {self.points.shape}."
            )

    @property
    def shape(self) -> tuple[int, ...]:
        return self.points.shape

    @property
    def ndim(self) -> int:
        return self.points.ndim

    def __getitem__(self, index: Any) -> Array:
        return self.points[index]


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

    def least_squares(
        self, model: Model, batch: Batch, key: Key
    ) -> tuple[dict[str, Inexact[Array, "_rows *_out"]], dict[str, Array]]:
        """The same as residuals, for optimizers that look at them: each term is the
        mean of `weight |r|^2`.

        **Arguments:** those of `terms`.

        **Returns:** by the names of the terms, the residuals, and the weights of their
        rows (one, where a name is missing).

        **Raises:** `TypeError` if the loss is no mean of squares; here, always.
        """
        del model, batch, key
        raise TypeError(
            f"`optim` looks at residuals, but the loss of `{type(self).__name__}` is "
            "not known to be a mean of squares. Give the problem a method "
            "`least_squares`, or use an optimizer that looks at the loss, such as "
            "`ssbroyden`."
        )


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
        - `batch`: sets of points `(points, dim)`, by name; without the weights of
            [`Weighted`][] sets, which the loss takes into account.

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
        residuals = self.stochastic_residuals(model, plain(batch), key)
        return mean_squares(residuals, point_weights(batch, residuals))

    def least_squares(self, model, batch, key):
        if type(self).terms is not AbstractResidualProblem.terms:
            raise TypeError(
                f"`optim` looks at residuals, but `{type(self).__name__}` has a method "
                "`terms` of its own. Give it a method `least_squares` to go with it, "
                "or leave both to the residuals."
            )
        residuals = self.stochastic_residuals(model, plain(batch), key)
        check_vectors(residuals)
        return residuals, point_weights(batch, residuals)


def check_vectors(residuals: dict[str, Array]) -> None:
    """Raises unless each of some residuals is one number a point."""
    for name, r in residuals.items():
        if r.ndim != 1:
            raise ValueError(
                "`residuals` must give one real or complex number a point, of shape "
                f"`(points,)`, got shape {r.shape} for {name!r}. Take its column."
            )


def plain(batch: Any) -> Any:
    """`batch` with the points alone of every [`Weighted`][] set."""
    if not isinstance(batch, dict):
        return batch
    points = lambda x: x.points if isinstance(x, Weighted) else x
    return {name: points(x) for name, x in batch.items()}


def weighted_sets(batch: Any) -> dict[str, Weighted]:
    """The sets of `batch` whose points carry weights."""
    sets = batch if isinstance(batch, dict) else {}
    return {name: x for name, x in sets.items() if isinstance(x, Weighted)}


def point_weights(
    batch: Any, residuals: dict[str, Array]
) -> dict[str, Float[Array, " _points"]]:
    """What each point of a residual counts, for those of [`Weighted`][] sets."""
    sets, weights = weighted_sets(batch), {}
    for name, r in residuals.items():
        own = sets.get(name.split("/")[0])
        if own is None:
            continue
        if own.weight.shape != r.shape:
            raise ValueError(
                f"The points of {name!r} carry weights of shape {own.weight.shape}, "
                f"but their residual has shape {r.shape}. Return one number a point."
            )
        weights[name] = own.weight
    unused = [name for name in sets if not any(_is_of(n, name) for n in residuals)]
    for name in unused:
        known = {n.split("/")[0] for n in residuals}
        raise ValueError(unknown_name("weights of points", name, known))
    return weights


def _is_of(term: str, name: str) -> bool:
    return term.split("/")[0] == name


def mean_squares(
    residuals: dict[str, Inexact[Array, " _points"]],
    weights: dict[str, Float[Array, " _points"]] | None = None,
) -> tuple[Terms, Aux]:
    """The terms that follow from residuals, with the numbers of their points."""
    check_vectors(residuals)
    weights = weights or {}

    def mean(name, r):
        square = squared(r)
        if name in weights:
            square = weights[name].astype(square.dtype) * square
        return jnp.mean(square)

    terms = {name: mean(name, r) for name, r in residuals.items()}
    counts = {name: jnp.array(r.size) for name, r in residuals.items()}
    return terms, Aux(counts=counts)
