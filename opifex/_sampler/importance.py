from dataclasses import replace

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr

from .._problem.base import Weighted
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
from .density import Density, stratified
from .misfit import BATCH_SIZE, Equations
from .uniform import Uniform


class Importance(AbstractAdaptive):
    """Small batches out of a large pool, without bias: importance sampling.

    At every step `num_points` are drawn from a pool of `num_pool`, with replacement,
    each with a probability `p` that follows the residuals as they were when the pool
    was last looked at. Its weight is `1 / (num_pool p)` (see [`Weighted`][]), so that
    the expectation of the loss is the plain mean over the pool, and that of its
    gradient likewise: other than with [`RAD`][], what is minimised stays the same, and
    the points only make the estimate of it scatter less.

    **Arguments:**

    - `domains`: where the points of each named set lie.
    - `num_points`: how many each set has in a batch.
    - `num_pool`: from how many they are drawn, for the sets that adapt.
    - `k`, `c`, `temperature`, `min_probability`: as in [`RAD`][]. Either `c` or
        `min_probability` must be positive: it is what bounds the weights.
    - `every`: in how many chunks the residuals are looked at once. The sets that do not
        adapt are drawn anew then.
    - `fresh`: whether the pool too is drawn anew then, or stays that of the beginning.
    - the others: as in [`RAD`][].

    **Raises:** as [`RAD`][] does, and `ValueError` for weights without a bound.

    ??? cite "Reference"

        M. A. Nabian, R. J. Gladstone and H. Meidani, "Efficient training of
        physics-informed neural networks via importance sampling", Computer-Aided Civil
        and Infrastructure Engineering 36(8), 2021.
    """

    domains: dict[str, AbstractDomain]
    num_points: dict[str, int]
    num_pool: dict[str, int]
    density: Density
    pool: AbstractSampler
    every: int = eqx.field(static=True)
    fresh: bool = eqx.field(static=True)
    residual: Equations = eqx.field(static=True)
    batch_size: int = eqx.field(static=True)

    def __init__(
        self,
        domains: dict[str, AbstractDomain],
        num_points: dict[str, int],
        num_pool: dict[str, int],
        k: int | float = 1.0,
        c: int | float = 1.0,
        *,
        temperature: int | float = 1.0,
        min_probability: int | float = 0.0,
        every: int = 1,
        fresh: bool = True,
        candidates: Candidates = Uniform,
        residual: str | tuple[str, ...] = "sum",
        batch_size: int = BATCH_SIZE,
    ):
        check_domains(domains, num_points)
        check_sets("num_pool", num_pool, domains, num_points)
        self.density = Density(k, c, temperature, min_probability)
        for num in num_pool.values():
            self.density.check_floor(num)
        if c == 0 and min_probability == 0:
            raise ValueError(
                f"`c` and `min_probability` are both {c!r}, so the weights `1 / (n p)` "
                "have no bound. Give one of them a positive value."
            )
        self.domains = domains
        self.num_points = num_points
        self.num_pool = num_pool
        self.pool = candidates(domains, num_points | num_pool)
        self.every, self.residual, self.batch_size = asked(every, residual, batch_size)
        self.fresh = fresh

    @property
    def adapts(self):
        return tuple(sorted(self.num_pool))

    def init(self, key):
        return first(draw(self.pool, key), self.num_pool)

    def batch(self, state, key, step):
        del step
        batch: dict = dict(state.points)
        for i, name in enumerate(self.adapts):
            density, num = state.density[name], self.num_points[name]
            index = stratified(density, num, jr.fold_in(key, i))
            batch[name] = Weighted(state.points[name][index], 1 / density[index])
        return batch

    def renew(self, state, problem, model, key):
        points, age = draw(self.pool, key), {}
        if self.fresh:
            age = {name: jnp.zeros_like(x) for name, x in state.age.items()}
        else:
            points = points | {name: state.points[name] for name in self.adapts}
        density = {}
        for name in self.adapts:
            sizes = self.sizes(problem, model, points, name)
            logits = self.density.log_probability(sizes)
            density[name] = jnp.exp(logits) * logits.shape[0]
        return replace(state, points=points, density=density, age=age or state.age)
