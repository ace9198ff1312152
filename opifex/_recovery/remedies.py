import enum

import jax.numpy as jnp
from jaxtyping import Array, Float

from .._custom_types import Scalar


class Remedy(enum.Enum):
    """What a way back to known-good ground does besides, so that the same fault does
    not come again."""

    CLIP = "the bound of the gradient norm is lowered"
    SHORTEN = "the steps are shortened"
    REDRAW = "parameters are partly drawn anew"


def toward_quantile(
    old: Scalar | float, seen: Float[Array, ""] | float, quantile: float
) -> Scalar:
    """A running quantile, moved by a new value.

    By stochastic approximation with steps of a tenth (H. Robbins and S. Monro, "A
    stochastic approximation method", Annals of Mathematical Statistics 22(3), 1951).
    """
    return old + jnp.where(seen > old, 0.1 * quantile, 0.1 * (quantile - 1))
