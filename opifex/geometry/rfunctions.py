"""Functions whose zeros and signs combine as sets do, and distances made of them.

See V. L. Rvachev, T. I. Sheiko, V. Shapiro and I. Tsukanov, "Transfinite interpolation
over implicitly defined sets", Computer Aided Geometric Design 18(3), 2001, and
A. Biswas and V. Shapiro, "Approximate distance fields with non-vanishing gradients",
Graphical Models 66(3), 2004.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

from .._custom_types import Scalar
from .._misc import safe_sqrt


def both(f: Scalar, g: Scalar) -> Scalar:
    """Positive where `f` and `g` are; zero to first order as the one that vanishes."""
    return f + g - safe_sqrt(f * f + g * g)


def either(f: Scalar, g: Scalar) -> Scalar:
    """Positive where `f` or `g` is; zero to first order as the one that vanishes."""
    return f + g + safe_sqrt(f * f + g * g)


def fold(f: Float[Array, "*n"], tolerance: Scalar) -> Float[Array, "*n"]:
    """The absolute value, but signed within `tolerance` of zero.

    So that the gradient at a boundary point is that of the inside, to whichever side
    rounding has moved the point.
    """
    return jnp.where(f > -tolerance, f, -f)


def trim(
    f: Float[Array, "*n"], t: Float[Array, "*n"], length: Float[Array, "*n"]
) -> Float[Array, "*n"]:
    """`sqrt(f^2 + (sqrt(t^2 + f^4) - t)^2 / 4)`: zero where `f` is and `t >= 0`.

    `f` must not be negative, except for rounding. Where `t > 0` the same function is
    written as `f` times a root, for it to have derivatives also at `f = 0`. `length`
    makes `f^4` as long as `t^2`.
    """
    root = safe_sqrt(t * t + (f * f / length) ** 2)
    on = t > 0
    ratio = (f / length) ** 2 * f / (2 * jnp.where(on, root + t, 1))
    outside = safe_sqrt(f * f + ((root - t) / 2) ** 2)
    return jnp.where(on, f * jnp.sqrt(1 + ratio * ratio), outside)


def join(distances: Float[Array, " n"]) -> Scalar:
    """Zero where any is, to first order as that one: `1 / sum(1 / distances)`."""
    while distances.shape[0] > 1:
        half = distances.shape[0] // 2
        f, g = distances[:half], distances[half : 2 * half]
        total = _size(f) + _size(g)
        apart = total > 0
        pairs = jnp.where(apart, f * g / jnp.where(apart, total, 1), 0)
        distances = jnp.concatenate([pairs, distances[2 * half :]])
    return distances[0]


def _size(f: Array) -> Array:
    # Rounding may have made one slightly negative, and then their sum vanish.
    return jnp.where(f < 0, -f, f)
