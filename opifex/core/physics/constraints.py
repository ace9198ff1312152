"""What must hold for the values of a model, whatever the equation.

Each constraint is a function of the values `(points, fields)` and of the points
`(points, dim)`, that vanishes where it holds.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


Values = Float[Array, "points fields"]
Points = Float[Array, "points dim"]


def density_positivity(values: Values, points: Points) -> Float[Array, " points"]:
    """By how much a density is negative."""
    del points
    return jax.nn.relu(-values[:, 0])


def normalization(values: Values, points: Points) -> Float[Array, " 1"]:
    """By how much the integral of a density differs from one.

    The integral is the mean over the points times the volume of the box that they span,
    so they must fill a box evenly.
    """
    volume = jnp.prod(jnp.max(points, axis=0) - jnp.min(points, axis=0))
    return jnp.mean(values[:, :1], axis=0) * volume - 1


CONSTRAINTS: dict[str, Callable[[Values, Points], Array]] = {
    f.__name__: f for f in (density_positivity, normalization)
}
