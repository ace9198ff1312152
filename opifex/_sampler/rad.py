import math

import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, Int

from .._custom_types import Key
from .._misc import check_count, squared, unknown_name
from .._problem.base import AbstractResidualProblem, check_vectors
from ..geometry.base import AbstractDomain
from .base import AbstractSampler, check_domains, PointSets
from .uniform import sample_each


def rad_logits(
    residual: Float[Array, " n"], *, k: float = 1.0, c: float = 1.0
) -> Float[Array, " n"]:
    """The log-density of the residual-based adaptive distribution.

    `log(|r|^k / mean(|r|^k) + c)`, equation (2) of Wu et al. (2023). Residuals that
    are NaN or infinite count as the largest finite one.
    """
    size = jnp.abs(residual)
    largest = jnp.max(jnp.where(jnp.isfinite(size), size, 0))
    size = jnp.where(jnp.isfinite(size), size, largest)
    # Scaled by the largest, so that the power neither overflows nor vanishes.
    power = (size / jnp.where(largest > 0, largest, 1)) ** k
    mean = jnp.mean(power)
    return jnp.log(jnp.where(mean > 0, power / jnp.where(mean > 0, mean, 1), 1) + c)


def choose(logits: Float[Array, " n"], num: int, key: Key) -> Int[Array, " num"]:
    """`num` distinct indices, drawn without replacement in proportion to `exp(logits)`.

    By Gumbel's top-k (Kool, van Hoof and Welling, "Stochastic beams and where to find
    them", ICML 2019).
    """
    gumbel = jr.gumbel(key, logits.shape, logits.dtype)
    return jax.lax.top_k(logits + gumbel, num)[1]


class RAD(AbstractSampler[PointSets, PointSets]):
    """More points where the residual is larger: residual-based adaptive distribution.

    Once a chunk all points of the sets in `num_candidates` are replaced by a draw from
    fresh uniform candidates; the other sets are drawn anew, uniformly.

    **Arguments:**

    - `domains`: where the points of each named set lie.
    - `num_points`: how many each set has.
    - `num_candidates`: out of how many they are chosen, for the sets that adapt.
    - `k`, `c`: of [`rad_logits`][]. `k = c = 1` is the authors' choice.

    ??? cite "Reference"

        C. Wu, M. Zhu, Q. Tan, Y. Kartha and L. Lu, "A comprehensive study of
        non-adaptive and residual-based adaptive sampling for physics-informed neural
        networks", Computer Methods in Applied Mechanics and Engineering 403, 2023.
    """

    domains: dict[str, AbstractDomain]
    num_points: dict[str, int]
    num_candidates: dict[str, int]
    k: float = 1.0
    c: float = 1.0

    def __check_init__(self):
        check_domains(self.domains, self.num_points)
        for name, count in self.num_candidates.items():
            if name not in self.domains:
                raise ValueError(unknown_name("num_candidates", name, self.domains))
            check_count(f"num_candidates[{name!r}]", count, least=self.num_points[name])
        if not (math.isfinite(self.k) and self.k >= 0 and self.c >= 0):
            raise ValueError(
                f"`k` and `c` must not be negative, got k={self.k!r}, c={self.c!r}."
            )

    def init(self, key):
        return sample_each(self.domains, self.num_points, key)

    def batch(self, state, key, step):
        del key, step
        return state

    def resample(self, state, problem, model, key):
        if not isinstance(problem, AbstractResidualProblem):
            raise TypeError(
                "`RAD` places points by their residuals, so `problem` must be an "
                f"`AbstractResidualProblem`, got {type(problem).__name__}. Use "
                "`Uniform` or `QuasiRandom` instead."
            )
        new_key, choose_key = jr.split(key)
        candidates = sample_each(
            self.domains, self.num_points | self.num_candidates, new_key
        )
        residuals = problem.residuals(model, candidates)
        check_vectors(residuals)
        points = candidates
        for i, name in enumerate(sorted(self.num_candidates)):
            logits = rad_logits(_density(residuals, name), k=self.k, c=self.c)
            index = choose(logits, self.num_points[name], jr.fold_in(choose_key, i))
            points = points | {name: candidates[name][index]}
        return points


def _density(residuals: dict[str, Array], name: str) -> Array:
    # Equations that share a set of points are named "set/equation".
    own = [squared(r) for n, r in residuals.items() if n.split("/")[0] == name]
    if not own:
        known = {n.split("/")[0] for n in residuals}
        raise ValueError(unknown_name("num_candidates", name, known))
    return jnp.sqrt(sum(own[1:], own[0]))
