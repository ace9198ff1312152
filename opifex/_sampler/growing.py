import abc
from collections.abc import Callable, Iterable
from dataclasses import replace

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from equinox import AbstractVar
from jaxtyping import Array, Float, Int

from .._custom_types import Key, Model
from .._misc import check_count
from .._problem.base import AbstractProblem, Weighted
from ..geometry.base import AbstractDomain
from .adaptive import AbstractAdaptive, Candidates, check_sets, draw, first, Placed
from .base import AbstractSampler, check_domains, PointSets


class Growth(eqx.Module):
    """A pool of points that is filled up in the course of a run.

    The arrays are as large as they will ever be. Points that are not there yet are
    copies of the first ones, and weigh nothing.

    **Arguments:** as in [`RARD`][].
    """

    num_points: dict[str, int]
    num_initial: dict[str, int]
    num_new: dict[str, int]
    start: AbstractSampler
    pool: AbstractSampler

    def __init__(
        self,
        domains: dict[str, AbstractDomain],
        num_points: dict[str, int],
        num_candidates: dict[str, int],
        num_initial: dict[str, int],
        num_new: dict[str, int],
        candidates: Candidates,
    ):
        check_domains(domains, num_points)
        check_sets("num_candidates", num_candidates, domains)
        for argument, counts in (("num_initial", num_initial), ("num_new", num_new)):
            check_sets(argument, counts, num_candidates)
            for name in num_candidates:
                check_count(f"{argument}[{name!r}]", counts.get(name))
        for name, num in num_candidates.items():
            _check_most("num_initial", name, num_initial[name], num_points[name])
            _check_most("num_new", name, num_new[name], num)
        self.num_points = num_points
        self.num_initial = num_initial
        self.num_new = num_new
        self.start = candidates(domains, num_points | num_initial)
        self.pool = candidates(domains, num_points | num_candidates)

    def init(self, key: Key) -> Placed:
        points = draw(self.start, key)
        for name, num in self.num_initial.items():
            index = jnp.arange(self.num_points[name]) % num
            points = points | {name: points[name][index]}
        return first(points, self.num_initial)

    def batch(self, state: Placed) -> dict[str, Array | Weighted]:
        """The points; those not there yet without weight, the mean of all being one."""
        batch: dict[str, Array | Weighted] = dict(state.points)
        for name, count in state.count.items():
            points = state.points[name]
            there = jnp.arange(points.shape[0], dtype=count.dtype) < count
            weight = points.shape[0] / count.astype(points.dtype)
            batch[name] = Weighted(points, jnp.where(there, weight, 0))
        return batch

    def grow(
        self,
        state: Placed,
        pick: Callable[[PointSets, str, Key], tuple[Array, Array]],
        key: Key,
    ) -> Placed:
        """Adds points to every set that has room left.

        **Arguments:**

        - `pick`: maps candidates (of all sets), the name of a set and a key to the
            indices of its new points and their densities.
        """
        draw_key, pick_key = jr.split(key)
        candidates = draw(self.pool, draw_key)
        # The sets that do not adapt are drawn anew.
        state = replace(state, points=candidates | _only(state.points, state.count))
        for i, name in enumerate(sorted(state.count)):
            own = jr.fold_in(pick_key, i)

            def add(state=state, name=name, own=own):
                index, density = pick(candidates, name, own)
                return _added(state, name, candidates[name][index], density)

            room = state.count[name] < self.num_points[name]
            state = jax.lax.cond(room, add, lambda state=state: state)
        return state


class AbstractGrowing(AbstractAdaptive):
    """Adds points where the residual is large, and takes none away."""

    growth: AbstractVar[Growth]

    @abc.abstractmethod
    def pick(
        self, sizes: Float[Array, " n"], num: int, key: Key
    ) -> tuple[Int[Array, " num"], Float[Array, " num"]]:
        """Which candidates to add, of those with residuals of some sizes, and how
        likely each was to be chosen, over the mean."""

    @property
    def num_points(self) -> dict[str, int]:
        return self.growth.num_points

    @property
    def adapts(self):
        return tuple(sorted(self.growth.num_initial))

    def init(self, key):
        return self.growth.init(key)

    def batch(self, state, key, step):
        del key, step
        return self.growth.batch(state)

    def renew(self, state: Placed, problem: AbstractProblem, model: Model, key: Key):
        def pick(candidates, name, key):
            sizes = self.sizes(problem, model, candidates, name)
            return self.pick(sizes, self.growth.num_new[name], key)

        return self.growth.grow(state, pick, key)


def _added(state: Placed, name: str, new: Array, density: Array) -> Placed:
    """The state with points added to one set; what it has no room for is left out."""
    count = state.count[name]
    at = count + jnp.arange(new.shape[0], dtype=count.dtype)
    place = lambda x, values: x.at[at].set(values, mode="drop")
    points, size = state.points[name], state.points[name].shape[0]
    age = state.age[name]
    return replace(
        state,
        points=state.points | {name: place(points, new)},
        density=state.density | {name: place(state.density[name], density)},
        age=state.age | {name: place(age, jnp.zeros_like(at))},
        count=state.count | {name: jnp.minimum(count + at.shape[0], size)},
    )


def _only(points: PointSets, names: Iterable[str]) -> PointSets:
    return {name: points[name] for name in names}


def _check_most(argument: str, name: str, count: int, most: int) -> None:
    if count > most:
        raise ValueError(
            f"`{argument}[{name!r}]` must be at most {most}, got {count}. There is no "
            "room for more."
        )
