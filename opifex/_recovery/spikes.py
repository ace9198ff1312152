from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from .._custom_types import Count, Flag, Scalar


class Spikes(NamedTuple):
    """Which norm of a gradient is a spike, by the norms before it.

    One beyond `factor` times their running `quantile`, which is followed in the
    logarithm by stochastic approximation with steps of a tenth (H. Robbins and S.
    Monro, "A stochastic approximation method", Annals of Mathematical Statistics 22(3),
    1951). Before `after` norms that cannot be trusted: it then begins at the largest of
    them, and a spike is a norm beyond the cube of `factor` times it.
    """

    quantile: float
    factor: float
    after: int

    def followed(
        self,
        level: Scalar,
        norm: Float[Array, ""],
        observed: Count,
        *,
        anew: Flag | bool = False,
    ) -> Scalar:
        """The logarithm of the quantile, moved by a norm.

        **Arguments:**

        - `level`: the logarithm so far.
        - `norm`: the new one, positive.
        - `observed`: how many there were before it.
        - `anew`: whether to begin at this one, as if it were the first.
        """
        log = jnp.log(jnp.where(norm > 0, norm, 1)).astype(level.dtype)
        rise = jnp.where(log > level, 0.1 * self.quantile, 0.1 * (self.quantile - 1))
        moved = level + rise
        early = observed < self.after
        begins = anew | (observed == 0) | (early & (log > moved))
        return jnp.where(begins, log, moved)

    def bound(self, level: Scalar, observed: Count) -> Scalar:
        """Above this a norm is a spike, after `observed` norms; infinite after none."""
        power = jnp.where(observed >= self.after, 1, 3)
        bound = self.factor**power * jnp.exp(level)
        return jnp.where(observed > 0, bound, jnp.inf)
