"""Laplacians in many dimensions, estimated from a few directions."""

from collections.abc import Callable

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float

from .._custom_types import Key
from .._misc import check_count, unknown_name
from ._wanted import Collapsed, coordinates_of_laplacian, Wanted
from .base import AbstractDerivatives
from .taylor import propagate, seeds_of


class STDE(AbstractDerivatives):
    """An unbiased estimate of each Laplacian from `samples` random directions.

    The directions are the same for all points and anew for every key. All other
    derivatives are exact, by [`Taylor`][]. The mean of the squared residual exceeds
    that of the exact one by the variance of the estimate.

    **Arguments:**

    - `samples`: how many directions.
    - `directions`: `"coordinates"`, drawn without replacement (nothing is left to
        chance if all are drawn), or `"rademacher"`, vectors of random signs, better
        where the second derivatives by single coordinates differ much from each other.

    ??? cite "Reference"

        Z. Shi, Z. Hu, M. Lin and K. Kawaguchi, "Stochastic Taylor derivative estimator:
        Efficient amortization for arbitrary differential operators", NeurIPS 2024. For
        random signs: M. F. Hutchinson, "A stochastic estimator of the trace of the
        influence matrix", Communications in Statistics 19(2), 1990.
    """

    samples: int = eqx.field(static=True)
    directions: str = eqx.field(static=True, default="coordinates")

    def __check_init__(self):
        check_count("samples", self.samples)
        if self.directions not in _DIRECTIONS:
            raise ValueError(unknown_name("directions", self.directions, _DIRECTIONS))

    def __call__(self, function, points, wanted, key=None):
        if key is None:
            raise ValueError(
                "`key` is needed for random derivatives: give a key to the residual, "
                "or let a `PDE` problem do so."
            )
        wanted = list(wanted)
        dim = points.shape[1]
        seeds = seeds_of([w for w in wanted if not coordinates_of_laplacian(w)], points)
        standing: dict[Wanted, Wanted] = {}
        for n, w in enumerate(wanted):
            over = coordinates_of_laplacian(w)
            if not over:
                standing[w] = w
                continue
            first = dim + n * self.samples
            drawn = self._draw(over, dim, points.dtype, jr.fold_in(key, n))
            seeds |= {(first + i,): v[:, None] for i, v in enumerate(drawn)}
            standing[w] = Collapsed(
                tuple(((first + i,) * 2, 1.0) for i in range(len(drawn)))
            )
        value, found = propagate(function, points, standing.values(), seeds)
        return value, {w: found[s] for w, s in standing.items()}

    def _draw(self, over: tuple[int, ...], dim: int, dtype, key: Key) -> list[Array]:
        samples = self.samples
        if self.directions == "coordinates":
            samples = min(samples, len(over))
        among = _DIRECTIONS[self.directions](len(over), samples, key).astype(dtype)
        directions = jnp.zeros((samples, dim), dtype)
        return list(directions.at[:, jnp.asarray(over)].set(among))


def _coordinates(dim: int, samples: int, key: Key) -> Float[Array, "samples dim"]:
    # Scaled so that the sum over the sample stands for the sum over all.
    chosen = jr.choice(key, dim, (samples,), replace=False)
    return jnp.sqrt(dim / samples) * jnp.eye(dim)[chosen]


def _rademacher(dim: int, samples: int, key: Key) -> Float[Array, "samples dim"]:
    return jr.rademacher(key, (samples, dim), float) / jnp.sqrt(1.0 * samples)


_DIRECTIONS: dict[str, Callable[..., Array]] = {
    "coordinates": _coordinates,
    "rademacher": _rademacher,
}
