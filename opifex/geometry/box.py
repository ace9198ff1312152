from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, ArrayLike, Float

from .._misc import check_finite
from .base import AbstractDomain


class Box(AbstractDomain):
    """The points between two corners.

    A coordinate whose bounds are equal is held fixed, so a face, an edge or an initial
    time is a `Box` too: `Box([-1, 0], [1, 0])` is the line `t = 0` over `[-1, 1]`.
    """

    lower: Float[Array, " dim"]
    upper: Float[Array, " dim"]

    def __init__(
        self,
        lower: ArrayLike | Sequence[float],
        upper: ArrayLike | Sequence[float],
        dtype: Any = None,
    ):
        """**Arguments:**

        - `lower`, `upper`: opposite corners, one number a coordinate.
        - `dtype`: of the points; the default float unless given.
        """
        dtype = jnp.result_type(float) if dtype is None else dtype
        # Through NumPy, so that lists of numbers do as well as arrays.
        self.lower = jnp.asarray(np.asarray(lower), dtype)
        self.upper = jnp.asarray(np.asarray(upper), dtype)

    def __check_init__(self):
        if self.lower.shape != self.upper.shape or self.lower.ndim != 1:
            raise ValueError(
                "`lower` and `upper` must be vectors of one length, got shapes "
                f"{self.lower.shape} and {self.upper.shape}."
            )
        check_finite("lower", self.lower)
        check_finite("upper", self.upper)
        traced = isinstance(self.lower, Tracer) or isinstance(self.upper, Tracer)
        if not traced and np.any(np.asarray(self.lower) > np.asarray(self.upper)):
            raise ValueError(
                f"`lower` must not exceed `upper`, got {self.lower} and {self.upper}."
            )

    def from_unit(self, unit):
        return self.lower[None] + unit * (self.upper - self.lower)[None]
