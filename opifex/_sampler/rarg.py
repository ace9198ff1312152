import equinox as eqx
import jax
import jax.numpy as jnp

from ..geometry.base import AbstractDomain
from .adaptive import asked, Candidates
from .density import finite_size
from .growing import AbstractGrowing, Growth
from .misfit import BATCH_SIZE, Equations
from .uniform import Uniform


class RARG(AbstractGrowing):
    """Adds the points with the largest residuals: greedy adaptive refinement.

    In all else like [`RARD`][]. The density that is noted is `|r| / mean(|r|)`.

    ??? cite "References"

        L. Lu, X. Meng, Z. Mao and G. E. Karniadakis, "DeepXDE: a deep learning library
        for solving differential equations", SIAM Review 63(1), 2021, procedure 2.2;
        Wu et al. (2023), algorithm 2, see [`RARD`][].
    """

    growth: Growth
    every: int = eqx.field(static=True)
    residual: Equations = eqx.field(static=True)
    batch_size: int = eqx.field(static=True)

    def __init__(
        self,
        domains: dict[str, AbstractDomain],
        num_points: dict[str, int],
        num_candidates: dict[str, int],
        *,
        num_initial: dict[str, int],
        num_new: dict[str, int],
        every: int = 1,
        candidates: Candidates = Uniform,
        residual: str | tuple[str, ...] = "sum",
        batch_size: int = BATCH_SIZE,
    ):
        self.growth = Growth(
            domains, num_points, num_candidates, num_initial, num_new, candidates
        )
        self.every, self.residual, self.batch_size = asked(every, residual, batch_size)

    def pick(self, sizes, num, key):
        del key
        sizes = finite_size(sizes)
        largest, index = jax.lax.top_k(sizes, num)
        mean = jnp.mean(sizes)
        return index, jnp.where(mean > 0, largest / jnp.where(mean > 0, mean, 1), 1)
