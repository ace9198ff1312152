"""The documented door to adaptive sampling, for loops of one's own.

Inside a [`Recipe`][] use the samplers [`RAD`][], [`RARD`][], [`R3`][] and
[`Importance`][], which are built of the same functions, keep their shapes, and are part
of the state.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import jax.random as jr
from jax.core import Tracer
from jaxtyping import Array, ArrayLike, Bool, Float

from .._custom_types import Key
from .._misc import check_count, check_number
from .._sampler.density import choose, Density, finite_size
from ..core._strict import strict


__all__ = [
    "RADConfig",
    "RADSampler",
    "RARDConfig",
    "RARDRefiner",
    "compute_sampling_distribution",
]


def __dir__():
    return __all__


# What `jnp.asarray` takes.
Numbers = ArrayLike | Sequence


def compute_sampling_distribution(
    residuals: Numbers,
    beta: int | float = 1.0,
    min_probability: int | float = 1e-6,
) -> Float[Array, " points"]:
    """With which probability to draw each point.

    **Arguments:**

    - `residuals`: one a point, `(points,)`, of any sign. Infinite ones count as the
        largest finite one; under `jax.jit` NaN does too.
    - `beta`: the probability is proportional to `|r|^beta`; zero for uniform.
    - `min_probability`: that of every point at least.

    **Returns:** probabilities that sum to one. They are equal if all residuals are
    zero.

    **Raises:** `ValueError` for residuals of another shape, for NaN outside `jax.jit`,
    and for a `min_probability` that so many points cannot have.
    """
    check_number("beta", beta, 0)
    density = Density(beta, 0.0, 1.0, min_probability)
    return _probabilities(density, _checked(residuals))


@strict
@dataclasses.dataclass(frozen=True)
class RADConfig:
    """How residuals become probabilities, and how often.

    **Arguments:**

    - `beta`: the density is `|r|^beta`, unless `k` or `c` is given.
    - `resample_frequency`: steps between two resamplings, for [`RADSampler.is_due`][].
    - `min_probability`: of every point.
    - `temperature`: divides the logarithm of the density.
    - `k`, `c`: for the published density `|r|^k / mean(|r|^k) + c`; the other one is 1
        where one alone is given.
    """

    beta: int | float = 1.0
    resample_frequency: int = 100
    min_probability: int | float = 1e-6
    temperature: int | float = 1.0
    k: int | float | None = None
    c: int | float | None = None

    def __post_init__(self):
        check_number("beta", self.beta, 0)
        check_count("resample_frequency", self.resample_frequency)
        published = self.k is not None or self.c is not None
        if published and self.beta != 1:
            raise ValueError(
                f"`beta` = {self.beta!r} has no meaning beside k={self.k!r} and "
                f"c={self.c!r}. Give `beta`, or `k` and `c`."
            )
        _ = self.density

    @property
    def density(self) -> Density:
        """The density that these settings describe."""
        k, c = self.beta, 0.0
        if self.k is not None or self.c is not None:
            k = 1.0 if self.k is None else self.k
            c = 1.0 if self.c is None else self.c
        return Density(k, c, self.temperature, self.min_probability)


class RADSampler:
    """Draws points where residuals are large: residual-based adaptive distribution.

    **Arguments:**

    - `config`: how residuals become probabilities.
    """

    def __init__(self, config: RADConfig | None = None):
        self.config = RADConfig() if config is None else config

    def compute_weights(self, residuals: Numbers) -> Float[Array, " points"]:
        """The probability of each point; they sum to one.

        **Raises:** as [`compute_sampling_distribution`][] does.
        """
        return _probabilities(self.config.density, _checked(residuals))

    def sample(
        self,
        domain_points: Numbers,
        residuals: Numbers,
        batch_size: int,
        key: Key,
    ) -> Float[Array, "batch dim"]:
        """Different points out of `domain_points`, drawn in proportion to the weights.

        **Arguments:**

        - `domain_points`: `(points, dim)`.
        - `residuals`: `(points,)`.
        - `batch_size`: how many to draw; at most as many as there are.
        - `key`: of the draw.
        """
        points, values = _checked_points("domain_points", domain_points, residuals)
        check_count("batch_size", batch_size)
        if batch_size > points.shape[0]:
            raise ValueError(
                f"`batch_size` is {batch_size}, but `domain_points` has only "
                f"{points.shape[0]} rows, and none is drawn twice. Give more points."
            )
        weights = _probabilities(self.config.density, values)
        return points[choose(jnp.log(weights), batch_size, key)]

    def is_due(self, step: int) -> bool:
        """Whether to resample after so many steps."""
        return step > 0 and step % self.config.resample_frequency == 0


@strict
@dataclasses.dataclass(frozen=True)
class RARDConfig:
    """Where points are added, and how many.

    **Arguments:**

    - `num_new_points`: how many.
    - `percentile_threshold`: of the size of the residual, between 0 and 100: new points
        lie near those that reach it.
    - `noise_scale`: how near: the standard deviation of their distance in every
        coordinate, over the extent of the domain.
    """

    num_new_points: int = 10
    percentile_threshold: int | float = 90.0
    noise_scale: int | float = 0.1

    def __post_init__(self):
        check_count("num_new_points", self.num_new_points)
        check_number("percentile_threshold", self.percentile_threshold, 0, 100)
        check_number("noise_scale", self.noise_scale, 0, open_low=True)


# Of the points to be refined around: Wu et al. (2023), section 2.3.3, and see `RARD`.
_BY_SQUARE = Density(2.0, 0.0)


class RARDRefiner:
    """Adds points where residuals are large: residual-based adaptive refinement.

    **Arguments:**

    - `config`: where, and how many.
    """

    def __init__(self, config: RARDConfig | None = None):
        self.config = RARDConfig() if config is None else config

    def identify_refinement_regions(self, residuals: Numbers) -> Bool[Array, " points"]:
        """Which points have residuals whose size reaches the percentile; at least one.

        **Raises:** as [`compute_sampling_distribution`][] does.
        """
        return self._regions(_checked(residuals))

    def refine(
        self,
        current_points: Numbers,
        residuals: Numbers,
        bounds: Numbers,
        key: Key,
    ) -> Float[Array, "more dim"]:
        """The points, followed by `num_new_points` new ones.

        A new point is a point above the percentile, drawn in proportion to its squared
        residual, and normal noise. What would lie outside is reflected at the bounds.

        **Arguments:**

        - `current_points`: `(points, dim)`.
        - `residuals`: `(points,)`.
        - `bounds`: the lower and the upper bound of every coordinate, `(dim, 2)`.
        - `key`: of the draw.
        """
        points, values = _checked_points("current_points", current_points, residuals)
        bounds = jnp.asarray(bounds, points.dtype)
        _check_bounds(bounds, points.shape[1])
        by_residual, by_noise = jr.split(key)
        logits = _BY_SQUARE.log_probability(values)
        logits = jnp.where(self._regions(values), logits, -jnp.inf)
        num = self.config.num_new_points
        parents = points[jr.categorical(by_residual, logits, shape=(num,))]
        noise = jr.normal(by_noise, parents.shape, parents.dtype)
        extent = bounds[None, :, 1] - bounds[None, :, 0]
        new = reflected(parents + self.config.noise_scale * extent * noise, bounds)
        return jnp.concatenate([points, new])

    def _regions(self, values: Float[Array, " points"]) -> Bool[Array, " points"]:
        size = finite_size(values)
        # Of the sizes themselves, so that the largest is always among them.
        threshold = jnp.percentile(
            size, jnp.asarray(self.config.percentile_threshold, size.dtype)
        )
        return size >= jnp.minimum(threshold, jnp.max(size))


def reflected(
    points: Float[Array, "points dim"], bounds: Float[Array, "dim 2"]
) -> Float[Array, "points dim"]:
    """The points folded into a box, as light between mirrors.

    Other than clipping, it leaves none on the edge, and uniform points uniform.
    """
    low, high = bounds[None, :, 0], bounds[None, :, 1]
    extent = jnp.where(high > low, high - low, 1)
    place = jnp.mod(points - low, 2 * extent)
    folded = low + jnp.where(high > low, extent - jnp.abs(place - extent), 0)
    # Against rounding alone.
    return jnp.clip(folded, low, high)


def _probabilities(
    density: Density, residuals: Float[Array, " points"]
) -> Float[Array, " points"]:
    density.check_floor(residuals.shape[0])
    # Rounding of the logarithm must not undercut the floor.
    probability = jnp.exp(density.log_probability(residuals))
    return jnp.maximum(probability, density.min_probability)


def _checked(residuals: Any) -> Float[Array, " points"]:
    """The residuals as an array, unless they are none."""
    array = jnp.asarray(residuals)
    if not jnp.issubdtype(array.dtype, jnp.inexact):
        array = array.astype(float)
    if array.ndim != 1 or array.shape[0] == 0:
        raise ValueError(
            "`residuals` must be one number a point, of shape `(points,)`, got shape "
            f"{array.shape}. Take the column, or the norm over the equations."
        )
    array = jnp.abs(array)
    if not isinstance(array, Tracer) and bool(jnp.isnan(array).any()):
        row = int(jnp.argmax(jnp.isnan(array)))
        raise ValueError(
            f"`residuals` holds NaN, first in row {row}. Go back to a model that was "
            "healthy before placing points by it."
        )
    return array


def _checked_points(argument: str, points: Any, residuals: Any) -> tuple[Array, Array]:
    points, values = jnp.asarray(points), _checked(residuals)
    if points.ndim != 2 or not jnp.issubdtype(points.dtype, jnp.floating):
        raise ValueError(
            f"`{argument}` must be floats of shape `(points, dim)`, got "
            f"{points.dtype} of shape {points.shape}."
        )
    if points.shape[0] != values.shape[0]:
        raise ValueError(
            f"`{argument}` and `residuals` must have as many rows, got "
            f"{points.shape[0]} and {values.shape[0]}."
        )
    return points, values


def _check_bounds(bounds: Array, dim: int) -> None:
    if bounds.shape != (dim, 2):
        raise ValueError(
            f"`bounds` must have the shape `(dim, 2)` = {(dim, 2)}, a lower and an "
            f"upper bound for every coordinate, got {bounds.shape}."
        )
    if isinstance(bounds, Tracer):
        return
    if not bool(jnp.all(jnp.isfinite(bounds)) & jnp.all(bounds[:, 0] <= bounds[:, 1])):
        raise ValueError(
            "`bounds` must be finite and in order, a lower and an upper bound for "
            f"every coordinate, got {bounds.tolist()}."
        )
