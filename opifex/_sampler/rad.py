from dataclasses import replace

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr

from ..geometry.base import AbstractDomain
from .adaptive import (
    AbstractAdaptive,
    asked,
    Candidates,
    check_sets,
    draw,
    first,
)
from .base import AbstractSampler, check_domains
from .density import choose, Density
from .misfit import BATCH_SIZE, Equations
from .uniform import Uniform


class RAD(AbstractAdaptive):
    """More points where the residual is larger: residual-based adaptive distribution.

    Once in `every` chunks all points of the sets in `num_candidates` are replaced by a
    draw, without replacement, from fresh candidates; the other sets are drawn anew.
    With no set in `num_candidates` these are points that are resampled at random.

    **Arguments:**

    - `domains`: where the points of each named set lie.
    - `num_points`: how many each set has.
    - `num_candidates`: out of how many they are chosen, for the sets that adapt.
    - `k`, `c`: a candidate is chosen in proportion to `|r|^k / mean(|r|^k) + c`.
        `k = c = 1` is the authors' choice.
    - `temperature`: divides the logarithm of that.
    - `min_probability`: the least probability of a candidate.
    - `every`: in how many chunks the points are replaced once; in between the residual
        is not evaluated. A chunk is as many steps as the [`Recipe`][] says.
    - `candidates`: makes the sampler that all points come from, of the domains and the
        numbers of points: [`Uniform`][], [`QuasiRandom`][], or a function of your own.
    - `residual`: by which equations the points are placed: `"sum"` for the root of the
        sum of squares of all that the set has, or the names of one or some.
    - `batch_size`: at how many points the residual is evaluated in one go, which bounds
        the memory.

    **Raises:** `ValueError` for sets that do not exist, for fewer candidates than
    points, and for a `min_probability` that so many candidates cannot have.

    ??? cite "Reference"

        C. Wu, M. Zhu, Q. Tan, Y. Kartha and L. Lu, "A comprehensive study of
        non-adaptive and residual-based adaptive sampling for physics-informed neural
        networks", Computer Methods in Applied Mechanics and Engineering 403, 2023.
    """

    domains: dict[str, AbstractDomain]
    num_points: dict[str, int]
    num_candidates: dict[str, int]
    density: Density
    start: AbstractSampler
    pool: AbstractSampler
    every: int = eqx.field(static=True)
    residual: Equations = eqx.field(static=True)
    batch_size: int = eqx.field(static=True)

    def __init__(
        self,
        domains: dict[str, AbstractDomain],
        num_points: dict[str, int],
        num_candidates: dict[str, int],
        k: int | float = 1.0,
        c: int | float = 1.0,
        *,
        temperature: int | float = 1.0,
        min_probability: int | float = 0.0,
        every: int = 1,
        candidates: Candidates = Uniform,
        residual: str | tuple[str, ...] = "sum",
        batch_size: int = BATCH_SIZE,
    ):
        check_domains(domains, num_points)
        check_sets("num_candidates", num_candidates, domains, num_points)
        self.domains = domains
        self.num_points = num_points
        self.num_candidates = num_candidates
        self.density = Density(k, c, temperature, min_probability)
        for num in num_candidates.values():
            self.density.check_floor(num)
        self.start = candidates(domains, num_points)
        self.pool = candidates(domains, num_points | num_candidates)
        self.every, self.residual, self.batch_size = asked(every, residual, batch_size)

    @property
    def adapts(self):
        return tuple(sorted(self.num_candidates))

    def init(self, key):
        count = {name: self.num_points[name] for name in self.adapts}
        return first(draw(self.start, key), count)

    def batch(self, state, key, step):
        del key, step
        return state.points

    def renew(self, state, problem, model, key):
        draw_key, choose_key = jr.split(key)
        candidates = draw(self.pool, draw_key)
        points, density = candidates, {}
        for i, name in enumerate(self.adapts):
            sizes = self.sizes(problem, model, candidates, name)
            logits = self.density.log_probability(sizes)
            num, by = self.num_points[name], jr.fold_in(choose_key, i)
            index = choose(logits, num, by)
            points = points | {name: candidates[name][index]}
            density[name] = jnp.exp(logits[index]) * logits.shape[0]
        age = {name: jnp.zeros_like(x) for name, x in state.age.items()}
        return replace(state, points=points, density=density, age=age)
