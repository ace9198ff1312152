"""How far a learned optimizer is trusted."""

import equinox as eqx
import jax.numpy as jnp

from ..._custom_types import Count, Scalar


# In steps. Long enough that what is left of noise in the mean is small.
WINDOW = 50
# By how many times its size a loss may exceed the best: in the mean, and once.
RISE, LEAP = 0.25, 9.0
# Of the trust. A little is added, lest it stay at zero for good.
CUT, HEAL, FLOOR = 0.25, 1.5, 0.001
# Of the best, by window: what is minimised may change (points, weights of terms).
FORGET = 0.02


class Trust(eqx.Module):
    """The trust, and the losses that it rests on.

    A learned step whose trust is 1 is taken as it is, and one whose trust is 0 is
    Adam's.
    """

    trust: Scalar
    best: Scalar  # least mean loss of a window, but for what was forgotten
    level: Scalar  # mean loss of the last whole window; at first, the first loss
    total: Scalar
    count: Count  # losses in `total`

    @staticmethod
    def start() -> "Trust":
        dtype = jnp.result_type(float)
        one, none = jnp.ones((), dtype), jnp.full((), jnp.inf, dtype)
        return Trust(one, none, none, 0 * one, jnp.zeros((), jnp.int32))

    def saw(self, value: Scalar) -> tuple["Trust", Scalar]:
        """The trust after another loss, and the trend in it: the change of the loss
        since the last window, over the sum of both, between -1 and 1.

        The trust is cut by every loss that leaps above the best, and by every window
        whose mean rose above the best. It heals by every window whose mean is the best.
        """
        value = value.astype(self.level.dtype)
        finite = jnp.isfinite(value)
        level = jnp.where(jnp.isfinite(self.level), self.level, value)
        best = jnp.where(jnp.isfinite(self.best), self.best, value)
        above = lambda x, times: ~(x <= best + times * jnp.abs(best))
        # What is not finite would stay in the mean for good.
        total = self.total + jnp.where(finite, value, best + LEAP * jnp.abs(best))
        mean = total / (self.count + 1).astype(total.dtype)
        done = self.count + 1 == WINDOW
        cut = above(value, LEAP) | (done & above(mean, RISE))
        healed = jnp.minimum(HEAL * self.trust + FLOOR, 1)
        trust = jnp.where(done & (mean < best), healed, self.trust)
        forgotten = jnp.minimum(mean, best + FORGET * jnp.abs(best))
        seen = Trust(
            jnp.where(cut, CUT * self.trust, trust),
            jnp.where(done, forgotten, best),
            jnp.where(done, mean, level),
            jnp.where(done, 0, total),
            jnp.where(done, 0, self.count + 1),
        )
        tiny = jnp.finfo(level.dtype).tiny
        trend = (value - level) / (jnp.abs(value) + jnp.abs(level) + tiny)
        return seen, jnp.where(finite & jnp.isfinite(level), trend, 1)
