import math

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, Int

from .._custom_types import Key


class Density(eqx.Module):
    """How likely each candidate is to be chosen, given its residual.

    `p` is proportional to `(|r|^k / mean(|r|^k) + c)^(1 / temperature)`, raised where
    it would fall below `min_probability`.

    **Arguments:** as in [`RAD`][].
    """

    k: int | float = 1.0
    c: int | float = 1.0
    temperature: int | float = 1.0
    min_probability: int | float = 0.0

    def __check_init__(self):
        # Written so that NaN is caught too.
        if not (0 <= self.k < math.inf and 0 <= self.c < math.inf):
            raise ValueError(
                "`k` and `c` must be finite and not negative, got "
                f"k={self.k!r}, c={self.c!r}."
            )
        if not 0 < self.temperature < math.inf:
            raise ValueError(
                f"`temperature` must be positive, got {self.temperature!r}. One leaves "
                "the density as it is; a large one flattens it."
            )
        if not 0 <= self.min_probability <= 1:
            raise ValueError(
                "`min_probability` must lie between zero and one, got "
                f"{self.min_probability!r}."
            )

    def check_floor(self, num: int) -> None:
        """Raises if `num` candidates cannot all have the least probability."""
        # A floor of exactly `1 / num` is met, whatever the rounding.
        if self.min_probability * num > 1 + 1e-12:
            raise ValueError(
                f"`min_probability` = {self.min_probability!r} cannot be met by {num} "
                "candidates, whose probabilities sum to one. Make it at most "
                f"{1 / num:.3g}."
            )

    def log_probability(self, residual: Float[Array, " n"]) -> Float[Array, " n"]:
        """The logarithm of the probability of each candidate."""
        logits = rad_logits(residual, k=self.k, c=self.c) / self.temperature
        if self.min_probability == 0:
            return jax.nn.log_softmax(logits)
        return jnp.log(floored(jax.nn.softmax(logits), self.min_probability))


def rad_logits(
    residual: Float[Array, " n"], *, k: int | float = 1.0, c: int | float = 1.0
) -> Float[Array, " n"]:
    """The log-density of the residual-based adaptive distribution.

    `log(|r|^k / mean(|r|^k) + c)`, equation (2) of Wu et al. (2023), see [`RAD`][].
    Residuals that are NaN or infinite count as the largest finite one.
    """
    size = finite_size(residual)
    if k == 0:
        return jnp.full_like(size, math.log(1 + c))
    largest = jnp.max(size)
    # Relative to the largest, by logarithms, so that nothing overflows or vanishes:
    # compiled, a division may be a product with a reciprocal that is too small.
    share = jnp.log(size) - jnp.log(jnp.where(largest > 0, largest, 1))
    power = jnp.exp(k * share)
    mean = jnp.mean(power)
    return jnp.log(jnp.where(mean > 0, power / jnp.where(mean > 0, mean, 1), 1) + c)


def finite_size(residual: Float[Array, " n"]) -> Float[Array, " n"]:
    """`|residual|`, the largest finite one where it is NaN or infinite."""
    size = jnp.abs(residual)
    largest = jnp.max(jnp.where(jnp.isfinite(size), size, 0))
    return jnp.where(jnp.isfinite(size), size, largest)


def floored(probability: Float[Array, " n"], least: int | float) -> Float[Array, " n"]:
    """The probabilities `max(least, s p)`, with the `s` for which they sum to one.

    So those above the floor keep their proportions. `n least` must be at most one.
    """
    size = probability.shape[0]
    order = jnp.sort(probability, descending=True)
    # With the `j` largest above the floor, `s = (1 - (n - j) least) / (their sum)`. The
    # `j` for which the `j`-th is above are those up to the one that is looked for.
    below = size - 1 - jnp.arange(size)
    scale = (1 - least * below.astype(order.dtype)) / jnp.cumsum(order)
    count = jnp.sum(scale * order >= least)
    scale = jnp.where(count > 0, scale[jnp.maximum(count - 1, 0)], 0)
    return jnp.maximum(scale * probability, least)


def choose(logits: Float[Array, " n"], num: int, key: Key) -> Int[Array, " num"]:
    """`num` distinct indices, drawn without replacement in proportion to `exp(logits)`.

    By Gumbel's top-k (Kool, van Hoof and Welling, "Stochastic beams and where to find
    them", ICML 2019).
    """
    gumbel = jr.gumbel(key, logits.shape, logits.dtype)
    return jax.lax.top_k(logits + gumbel, num)[1]


def stratified(
    probability: Float[Array, " n"], num: int, key: Key
) -> Int[Array, " num"]:
    """`num` indices, drawn with replacement: on average `i` comes `num p_i` times.

    One from each of `num` parts of equal probability, so that the numbers scatter less
    than those of independent draws (Douc and Cappe, "Comparison of resampling schemes
    for particle filtering", ISPA 2005, section 2.3).
    """
    total = jnp.cumsum(probability)
    within = jr.uniform(key, (num,), probability.dtype)
    place = (jnp.arange(num, dtype=probability.dtype) + within) / num * total[-1]
    index = jnp.searchsorted(total, place, side="right")
    return jnp.minimum(index, probability.shape[0] - 1)
