from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._custom_types import Key, Scalar
from .._problem.base import AbstractResidualProblem
from ..geometry.base import AbstractDomain


class Reference(eqx.Module):
    """The true solution on a grid, and how true it is."""

    axes: dict[str, Float[Array, " _n"]]  # the grid, by coordinate, in order
    values: Float[Array, "*grid"]
    error: float = eqx.field(static=True)  # relative L2 error of `values`

    @property
    def points(self) -> Float[Array, "points dim"]:
        grid = jnp.meshgrid(*self.axes.values(), indexing="ij")
        return jnp.stack([x.ravel() for x in grid], axis=1)


class Benchmark(eqx.Module):
    """A problem with everything that is needed to solve it and to judge the answer.

    **Arguments:**

    - `name`: on the command line.
    - `title`: one line for people.
    - `problem`: the residuals.
    - `domains`, `num_points`: the sets of points that they are evaluated on.
    - `model`: makes a network, from a key and a dtype.
    - `predict`: evaluates a network at points `(points, dim)`.
    - `reference`: computes the true solution.
    - `num_candidates`: for the sets that an adaptive sampler places.
    - `sampler`, `optimizer`, `steps`, `dtype`: what serves it best, by the names of the
        command line.
    """

    name: str = eqx.field(static=True)
    title: str = eqx.field(static=True)
    problem: AbstractResidualProblem
    domains: dict[str, AbstractDomain]
    num_points: dict[str, int] = eqx.field(static=True)
    model: Callable[[Key, Any], Any]
    predict: Callable[[Any, Float[Array, "points dim"]], Float[Array, " points"]]
    reference: Callable[[], Reference]
    num_candidates: dict[str, int] = eqx.field(static=True)
    sampler: str = eqx.field(static=True)
    optimizer: str = eqx.field(static=True)
    steps: int = eqx.field(static=True)
    dtype: str = eqx.field(static=True)

    def rel_l2(self, model: Any, reference: Reference) -> Scalar:
        """The error of a network over the grid, relative to the solution, in L2."""
        error = self.on_grid(model, reference) - reference.values
        return jnp.linalg.norm(error.ravel()) / jnp.linalg.norm(
            reference.values.ravel()
        )

    def on_grid(self, model: Any, reference: Reference) -> Float[Array, "*grid"]:
        """The values of a network on the grid of the reference, in its precision."""
        dtype = next(iter(self.domains.values())).lower.dtype
        values = self.predict(model, reference.points.astype(dtype))
        return values.astype(reference.values.dtype).reshape(reference.values.shape)
