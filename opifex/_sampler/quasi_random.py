from collections.abc import Callable

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Float
from scipy.stats import qmc

from .._misc import check_count
from ..geometry.base import AbstractDomain
from .base import AbstractSampler, check_domains, PointSets


Sequence = Callable[[int, int, int], np.ndarray]


def sobol(num_points: int, dim: int, seed: int) -> np.ndarray:
    """The first points of a scrambled Sobol sequence, `(num_points, dim)`."""
    exponent = (num_points - 1).bit_length()
    return qmc.Sobol(dim, rng=seed).random_base2(exponent)[:num_points]


def halton(num_points: int, dim: int, seed: int) -> np.ndarray:
    """The first points of a scrambled Halton sequence, `(num_points, dim)`."""
    return qmc.Halton(dim, rng=seed).random(num_points)


def latin_hypercube(num_points: int, dim: int, seed: int) -> np.ndarray:
    """A Latin hypercube sample, `(num_points, dim)`."""
    return qmc.LatinHypercube(dim, rng=seed).random(num_points)


class QuasiRandom(AbstractSampler[PointSets, PointSets]):
    """Points that fill each domain more evenly than random ones do.

    The sequence is drawn once, on the host. Every chunk then shifts it by a random
    vector modulo one, which keeps its evenness and makes averages unbiased (Cranley and
    Patterson, "Randomization of number theoretic methods for multiple integration",
    SIAM Journal on Numerical Analysis 13(6), 1976).

    **Arguments:**

    - `domains`: where the points of each named set lie.
    - `num_points`: how many each set has.
    - `sequence`: [`sobol`][], [`halton`][], [`latin_hypercube`][], or any function of
        the number of points, the dimension and a seed.
    - `seed`: of the sequence.
    - `shift`: whether to shift the points anew every chunk.
    """

    domains: dict[str, AbstractDomain]
    num_points: dict[str, int]
    unit: dict[str, Float[Array, "_points _dim"]]
    shift: bool = eqx.field(static=True)

    def __init__(
        self,
        domains: dict[str, AbstractDomain],
        num_points: dict[str, int],
        *,
        sequence: Sequence = sobol,
        seed: int = 0,
        shift: bool = True,
    ):
        check_domains(domains, num_points)
        check_count("seed", seed, least=0)
        self.domains = domains
        self.num_points = num_points
        self.shift = shift
        self.unit = {
            name: jnp.asarray(
                sequence(*d.unit_shape(num_points[name]), seed + i), d.lower.dtype
            )
            for i, (name, d) in enumerate(sorted(domains.items()))
        }

    def init(self, key):
        return self._points(key)

    def batch(self, state, key, step):
        del key, step
        return state

    def resample(self, state, problem, model, key):
        del problem, model
        return self._points(key) if self.shift else state

    def _points(self, key) -> PointSets:
        points = {}
        for i, (name, domain) in enumerate(sorted(self.domains.items())):
            unit = self.unit[name]
            if self.shift:
                by = jr.uniform(jr.fold_in(key, i), (1, unit.shape[1]), unit.dtype)
                unit = (unit + by) % 1.0
            points[name] = domain.from_unit(unit, self.num_points[name])
        return points
