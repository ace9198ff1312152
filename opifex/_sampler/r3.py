from dataclasses import replace

import equinox as eqx
import jax.numpy as jnp

from .._misc import unknown_name
from ..geometry.base import AbstractDomain
from .adaptive import AbstractAdaptive, asked, Candidates, draw, first
from .base import AbstractSampler, check_domains
from .density import finite_size
from .misfit import BATCH_SIZE, Equations
from .uniform import Uniform


class R3(AbstractAdaptive):
    """Retains the points with large residuals, releases and resamples the others.

    Points of the sets in `names` whose `|r|` exceeds its mean over the set stay; the
    others are drawn anew. So points gather where the residual is large and are let go
    once it is not, and no candidates are looked at. The authors do so at every step;
    here it is done once in `every` chunks. The density that is noted is that of the
    candidates, one.

    **Arguments:**

    - `domains`: where the points of each named set lie.
    - `num_points`: how many each set has.
    - `names`: the sets that adapt. The others are drawn anew.
    - the others: as in [`RAD`][].

    **Raises:** `ValueError` for sets that do not exist.

    ??? cite "Reference"

        A. Daw, J. Bu, S. Wang, P. Perdikaris and A. Karpatne, "Mitigating propagation
        failures in physics-informed neural networks using retain-resample-release (R3)
        sampling", ICML 2023, algorithm 1.
    """

    domains: dict[str, AbstractDomain]
    num_points: dict[str, int]
    names: tuple[str, ...] = eqx.field(static=True)
    pool: AbstractSampler
    every: int = eqx.field(static=True)
    residual: Equations = eqx.field(static=True)
    batch_size: int = eqx.field(static=True)

    def __init__(
        self,
        domains: dict[str, AbstractDomain],
        num_points: dict[str, int],
        names: tuple[str, ...],
        *,
        every: int = 1,
        candidates: Candidates = Uniform,
        residual: str | tuple[str, ...] = "sum",
        batch_size: int = BATCH_SIZE,
    ):
        check_domains(domains, num_points)
        if isinstance(names, str) or not names:
            raise ValueError(
                f"`names` must be a tuple of sets, not empty, got {names!r}."
            )
        for name in names:
            if name not in domains:
                raise ValueError(unknown_name("names", name, domains))
        self.domains = domains
        self.num_points = num_points
        self.names = tuple(sorted(set(names)))
        self.pool = candidates(domains, num_points)
        self.every, self.residual, self.batch_size = asked(every, residual, batch_size)

    @property
    def adapts(self):
        return self.names

    def init(self, key):
        count = {name: self.num_points[name] for name in self.names}
        return first(draw(self.pool, key), count)

    def batch(self, state, key, step):
        del key, step
        return state.points

    def renew(self, state, problem, model, key):
        fresh = draw(self.pool, key)
        points, age = fresh, {}
        for name in self.names:
            old = state.points[name]
            size = finite_size(self.sizes(problem, model, state.points, name))
            stays = size > jnp.mean(size)
            points = points | {name: jnp.where(stays[:, None], old, fresh[name])}
            age[name] = jnp.where(stays, state.age[name], 0)
        return replace(state, points=points, age=age)
