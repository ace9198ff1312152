import abc
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from equinox import AbstractVar
from jaxtyping import Array, Float, Int

from .._custom_types import Count, Key, Model
from .._misc import check_count, unknown_name
from .._problem.base import AbstractProblem, Weighted
from ..geometry.base import AbstractDomain
from .base import AbstractSampler, PointSets
from .misfit import checked_problem, Equations, misfit


Candidates = Callable[
    [dict[str, AbstractDomain], dict[str, int]], AbstractSampler[Any, PointSets]
]


class Placed(eqx.Module):
    """What an adaptive sampler knows of its points: its state. The dictionaries but the
    first are of the sets that adapt.

    **Attributes:**

    - `points`: all sets.
    - `density`: how likely each point was to be chosen when it was placed, over the
        mean of all there were to choose from.
    - `age`: for how many chunks each point has been there.
    - `count`: how many of the points, from the first on, are in use.
    - `chunks`: how many have ended.
    """

    points: PointSets
    density: dict[str, Float[Array, " _points"]]
    age: dict[str, Int[Array, " _points"]]
    count: dict[str, Count]
    chunks: Count


class AbstractAdaptive(AbstractSampler[Placed, dict[str, Array | Weighted]]):
    """Places the points of some sets by their residuals, once in `every` chunks."""

    residual: AbstractVar[Equations]
    batch_size: AbstractVar[int]
    every: AbstractVar[int]

    @abc.abstractmethod
    def renew(
        self, state: Placed, problem: AbstractProblem, model: Model, key: Key
    ) -> Placed:
        """The state with its points renewed; `state` is a chunk older already."""

    def resample(self, state, problem, model, key):
        older = replace(
            state,
            age={name: age + 1 for name, age in state.age.items()},
            chunks=state.chunks + 1,
        )
        renew = lambda: self.renew(older, problem, model, key)
        if self.every == 1:
            return renew()
        # So that the residual is not evaluated in vain.
        return jax.lax.cond(older.chunks % self.every == 0, renew, lambda: older)

    def sizes(
        self, problem: AbstractProblem, model: Model, points: PointSets, name: str
    ) -> Float[Array, " points"]:
        """The size of the residual at each point of a set."""
        problem = checked_problem(type(self).__name__, problem)
        sizes = misfit(problem, model, points, name, self.residual, self.batch_size)
        return jax.lax.stop_gradient(sizes).astype(points[name].dtype)


def first(points: PointSets, count: dict[str, int]) -> Placed:
    """The state to begin with, `count` points of each set that adapts in use."""
    sizes = {name: points[name].shape[0] for name in count}
    return Placed(
        points=points,
        density={n: jnp.ones(size, points[n].dtype) for n, size in sizes.items()},
        age={n: jnp.zeros(size, jnp.int32) for n, size in sizes.items()},
        count={n: jnp.full((), num, jnp.int32) for n, num in count.items()},
        chunks=jnp.zeros((), jnp.int32),
    )


def draw(sampler: AbstractSampler[Any, PointSets], key: Key) -> PointSets:
    """Points of a sampler that knows nothing of residuals."""
    return sampler.batch(sampler.init(key), key, jnp.zeros((), jnp.int32))


def asked(every: Any, residual: Any, batch_size: Any) -> tuple[int, Equations, int]:
    """How often, about which equations and at how many points in one go a sampler asks
    for residuals. Raises unless these are two counts, and a name or several."""
    check_count("every", every)
    check_count("batch_size", batch_size)
    if isinstance(residual, str):
        return every, residual, batch_size
    if isinstance(residual, tuple | list) and residual:
        if all(isinstance(name, str) for name in residual):
            return every, tuple(residual), batch_size
    raise ValueError(
        '`residual` must be "sum", the name of a residual or a tuple of names, got '
        f"{residual!r}."
    )


def check_sets(
    argument: str,
    counts: dict[str, int],
    known: dict[str, Any],
    least: dict[str, int] | int = 1,
) -> None:
    """Raises unless `counts` gives known sets enough points."""
    for name, count in counts.items():
        if name not in known:
            raise ValueError(unknown_name(argument, name, known))
        bound = least[name] if isinstance(least, dict) else least
        check_count(f"{argument}[{name!r}]", count, least=bound)
