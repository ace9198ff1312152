from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._custom_types import Model
from .._misc import squared, unknown_name
from .._problem.base import AbstractResidualProblem, check_vectors
from .base import PointSets


Equations = str | tuple[str, ...]

# How many points a residual is evaluated at in one go, unless told otherwise.
BATCH_SIZE = 8192


def misfit(
    problem: AbstractResidualProblem,
    model: Model,
    points: PointSets,
    name: str,
    equations: Equations = "sum",
    batch_size: int = BATCH_SIZE,
) -> Float[Array, " points"]:
    """How badly the equations of one set fail at each of its points.

    **Arguments:**

    - `points`: all sets; those of `name` are looked at.
    - `equations`: the residuals that count, by name. Of several it is the root of the
        sum of their squares. `"sum"` takes all that the set has; so do sets that have
        none of those that are named.
    - `batch_size`: at how many points at most in one go. More are looked at in blocks
        of equal size one after the other, the last filled up with copies.
    """

    def at(block):
        residuals = problem.residuals(model, points | {name: block})
        check_vectors(residuals)
        return _size(residuals, name, equations, block.shape[0])

    return in_blocks(at, points[name], batch_size)


def in_blocks(
    function: Any, points: Float[Array, "points dim"], batch_size: int
) -> Float[Array, " points"]:
    """`function` of at most `batch_size` rows at a time."""
    size = points.shape[0]
    blocks = -(-size // batch_size)
    if blocks == 1:
        return function(points)
    rows = -(-size // blocks)
    index = jnp.arange(blocks * rows) % size
    out = jax.lax.map(function, points[index.reshape(blocks, rows)])
    return out.reshape(-1)[:size]


def checked_problem(kind: str, problem: Any) -> AbstractResidualProblem:
    """`problem`, unless a sampler cannot ask it for residuals."""
    if not isinstance(problem, AbstractResidualProblem):
        raise TypeError(
            f"`{kind}` places points by their residuals, so `problem` must be an "
            f"`AbstractResidualProblem`, got {type(problem).__name__}. Use `Uniform` "
            "or `QuasiRandom` instead."
        )
    return problem


def _size(
    residuals: dict[str, Array], name: str, equations: Equations, size: int
) -> Float[Array, " points"]:
    own = _chosen(residuals, name, equations)
    for term, r in own.items():
        if r.shape[0] != size:
            raise ValueError(
                f"`residuals` gave {r.shape[0]} numbers for {term!r}, but the set "
                f"{name!r} has {size} points. Return one number a point."
            )
    values = list(own.values())
    if len(values) == 1:
        return jnp.abs(values[0])
    squares = [squared(r) for r in values]
    return jnp.sqrt(sum(squares[1:], squares[0]))


def _chosen(
    residuals: dict[str, Array], name: str, equations: Equations
) -> dict[str, Array]:
    # Equations that share a set of points are named "set/equation".
    own = {n: r for n, r in residuals.items() if n.split("/")[0] == name}
    if not own:
        known = {n.split("/")[0] for n in residuals}
        raise ValueError(unknown_name("num_candidates", name, known))
    if equations == "sum":
        return own
    wanted = (equations,) if isinstance(equations, str) else equations
    for one in wanted:
        if one not in residuals:
            raise ValueError(unknown_name("residual", one, residuals))
    return {n: own[n] for n in wanted if n in own} or own
