import abc
import enum
from collections.abc import Callable, Mapping
from typing import Generic, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
from jaxtyping import Array, Float, Inexact, PyTree

from .._custom_types import Count, Key, Terms, WeightingState
from .._misc import squared, tree_allfinite, tree_where
from .._problem.base import AbstractProblem, AbstractResidualProblem


class Needs(enum.Enum):
    """What a weighting looks at, beside the values of the terms."""

    TERM_GRADIENTS = "the gradient of every term"
    POINT_GRADIENTS = "the gradient of the residual at single points"
    RESIDUALS = "the residual at every point"
    FIXED_POINTS = "the same points at every step"


class Pointwise(eqx.Module):
    """What makes of the residuals `r` of a term its part of the loss, the mean over its
    points of `weights |r|^2 + Re(conj(multipliers) r)`.

    An array that is missing is one (zero, for the multipliers); a scalar is the same
    at all points.
    """

    weights: dict[str, Float[Array, "..."]] = eqx.field(default_factory=dict)
    multipliers: dict[str, Inexact[Array, "..."]] = eqx.field(default_factory=dict)

    def means(self, residuals: dict[str, Array]) -> Terms:
        """By name, the part of the loss before its weight as a term."""
        return {n: jnp.mean(self._density(n, r)) for n, r in residuals.items()}

    def _density(self, name: str, r: Array) -> Array:
        density = squared(r)
        if name in self.weights:
            density = self.weights[name].astype(density.dtype) * density
        if name in self.multipliers:
            multiplier = jnp.conj(self.multipliers[name]).astype(r.dtype)
            density = density + jnp.real(multiplier * r)
        return density

    def block(self, i: Count, num_blocks: int) -> "Pointwise":
        """The part for the `i`-th of equally many consecutive points."""

        def take(x):
            return x if x.ndim == 0 else x.reshape(num_blocks, -1)[i]

        return jtu.tree_map(take, self)

    def times(self, other: "Pointwise") -> "Pointwise":
        """Weights multiply, multipliers add."""
        weights = dict(self.weights)
        for name, w in other.weights.items():
            weights[name] = weights[name] * w if name in weights else w
        multipliers = dict(self.multipliers)
        for name, m in other.multipliers.items():
            multipliers[name] = multipliers[name] + m if name in multipliers else m
        return Pointwise(weights, multipliers)


class Observed(NamedTuple):
    """What was seen at one step, at the model before the update."""

    step: Count
    terms: Terms
    """The terms without any weight: for residuals, their mean squares."""
    residuals: dict[str, Array]
    """One vector a term, under [`Needs`][]`.RESIDUALS`; else empty."""
    batch: PyTree
    key: Key
    """That of the loss: fold something in before use."""
    term_gradients: Callable[[], dict[str, PyTree]]
    """By name, the gradient of each term, before its weight as a term, with respect to
    the trained parameters. It costs one backward pass a term, when called."""
    point_gradients: Callable[[int], Terms]
    """By name, the sum over the points `x_j` of `|d r(x_j) / d parameters|^2`; from at
    most so many points of each term, evenly spaced among all. It costs one backward
    pass a point."""


class AbstractWeighting(eqx.Module, Generic[WeightingState]):
    """How much each term, and each point, counts. Weights are constants under
    differentiation.

    The weights of a term come from the state alone, that is from earlier steps, so all
    microbatches share them and a line search sees them frozen. Weights of points may
    follow from the residuals of the step itself: [`Pointwise`][] is worked out once a
    step, and is frozen from then on.
    """

    @property
    @abc.abstractmethod
    def needs(self) -> frozenset[Needs]:
        """What it looks at. What is not declared is not computed."""

    @property
    @abc.abstractmethod
    def every(self) -> int:
        """In how many steps `update` is called once, beginning with step 0; nothing
        that it asks for is computed at the others."""

    @abc.abstractmethod
    def init(self, terms: Mapping[str, jax.ShapeDtypeStruct]) -> WeightingState:
        """What is remembered between steps: a pytree of arrays.

        `terms` gives the shape and dtype of each term of the loss; those of its vector
        of residuals under [`Needs`][]`.RESIDUALS`.
        """

    def weights(self, state: WeightingState, terms: Terms) -> Terms:
        """A weight for every one of `terms`, of its dtype; one unless said otherwise.

        Raises if a name was given that no term has.
        """
        del state
        return {name: jnp.ones((), value.dtype) for name, value in terms.items()}

    def at_points(
        self, state: WeightingState, residuals: dict[str, Array], batch: PyTree
    ) -> Pointwise:
        """The weights of single points. Called only under [`Needs`][]`.RESIDUALS`.

        Raises if a name was given that no term has.
        """
        del state, residuals, batch
        return Pointwise()

    def metrics(self, state: WeightingState) -> Terms:
        """What is worth recording."""
        del state
        return {}

    @abc.abstractmethod
    def update(self, state: WeightingState, observed: Observed) -> WeightingState:
        """The state for the next step, of the same shapes and dtypes."""


def renew(
    weighting: AbstractWeighting, state: WeightingState, observed: Observed
) -> WeightingState:
    """The state after a step: updated, if an update is due.

    An update that is not finite is not made, for a recovery keeps the weights when it
    turns down the step that they were taken from.
    """
    if not jtu.tree_leaves(state):
        return state

    def update():
        new = weighting.update(state, observed)
        return tree_where(tree_allfinite(new), new, state)

    if weighting.every == 1:
        return update()
    return jax.lax.cond(observed.step % weighting.every == 0, update, lambda: state)


def check_needs(weighting: AbstractWeighting, problem: AbstractProblem) -> None:
    """Raises unless `problem` has what `weighting` looks at."""
    wanted = weighting.needs & {Needs.RESIDUALS, Needs.POINT_GRADIENTS}
    if not wanted:
        return
    kind, given = type(weighting).__name__, type(problem).__name__
    what = " and ".join(sorted(need.value for need in wanted))
    if not isinstance(problem, AbstractResidualProblem):
        raise TypeError(
            f"`weighting` is `{kind}`, which needs {what}, so `problem` must be an "
            f"`AbstractResidualProblem`, got `{given}`. Use a weighting of whole "
            "terms, such as `Static` or `GradNormBalance`."
        )
    if type(problem).terms is not AbstractResidualProblem.terms:
        raise TypeError(
            f"`weighting` is `{kind}`, which needs {what}, but `{given}` has a method "
            "`terms` of its own, which would be passed over. Return these terms from "
            "`residuals`, or use a weighting of whole terms."
        )
