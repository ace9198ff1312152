import equinox as eqx
import jax.numpy as jnp

from ..geometry.base import AbstractDomain
from .adaptive import asked, Candidates
from .density import choose, Density
from .growing import AbstractGrowing, Growth
from .misfit import BATCH_SIZE, Equations
from .uniform import Uniform


class RARD(AbstractGrowing):
    """Adds points drawn by their residuals: adaptive refinement with distribution.

    Training begins with `num_initial` points; once in `every` chunks `num_new` are
    added, until there are `num_points`. All arrays have their final size from the
    start: points not there yet have the weight zero, see [`Weighted`][].

    **Arguments:**

    - `domains`: where the points of each named set lie.
    - `num_points`: how many each set has in the end.
    - `num_candidates`: out of how many the new points are chosen, for the sets that
        adapt. The others are drawn anew once in `every` chunks.
    - `k`, `c`: as in [`RAD`][]; `k = 2`, `c = 0` is the authors' choice.
    - `num_initial`, `num_new`: for each set that adapts.
    - the others: as in [`RAD`][].

    **Raises:** as [`RAD`][] does.

    ??? cite "Reference"

        C. Wu, M. Zhu, Q. Tan, Y. Kartha and L. Lu, "A comprehensive study of
        non-adaptive and residual-based adaptive sampling for physics-informed neural
        networks", Computer Methods in Applied Mechanics and Engineering 403, 2023,
        algorithm 4.
    """

    growth: Growth
    density: Density
    every: int = eqx.field(static=True)
    residual: Equations = eqx.field(static=True)
    batch_size: int = eqx.field(static=True)

    def __init__(
        self,
        domains: dict[str, AbstractDomain],
        num_points: dict[str, int],
        num_candidates: dict[str, int],
        k: int | float = 2.0,
        c: int | float = 0.0,
        *,
        num_initial: dict[str, int],
        num_new: dict[str, int],
        temperature: int | float = 1.0,
        min_probability: int | float = 0.0,
        every: int = 1,
        candidates: Candidates = Uniform,
        residual: str | tuple[str, ...] = "sum",
        batch_size: int = BATCH_SIZE,
    ):
        self.growth = Growth(
            domains, num_points, num_candidates, num_initial, num_new, candidates
        )
        self.density = Density(k, c, temperature, min_probability)
        for num in num_candidates.values():
            self.density.check_floor(num)
        self.every, self.residual, self.batch_size = asked(every, residual, batch_size)

    def pick(self, sizes, num, key):
        logits = self.density.log_probability(sizes)
        index = choose(logits, num, key)
        return index, jnp.exp(logits[index]) * logits.shape[0]
