"""From a boundary value problem to a benchmark."""

from collections.abc import Callable
from typing import Any

import jax

from ..._problem.pde import PDE
from ...neural.mlp import MLP
from ..base import Benchmark, Reference


def pinn(
    name: str,
    title: str,
    problem: PDE,
    reference: Callable[[], Reference],
    *,
    num_points: dict[str, int],
    steps: int,
    hidden: tuple[int, ...] = (20, 20, 20),
    network: Callable[..., Any] = MLP,
    num_candidates: dict[str, int] | None = None,
    sampler: str = "sobol",
    optimizer: str = "adam+ssbroyden",
    dtype: str = "float64",
) -> Benchmark:
    """The benchmark in which a network of dense layers, with the exact conditions of
    `problem` imposed on it, solves that.

    **Arguments:**

    - `problem`: the equations and the conditions.
    - `hidden`: the sizes of the hidden layers.
    - `network`: makes a network, from the sizes of all layers, `key` and `dtype`.
    - the others: those of [`Benchmark`][]; an adaptive sampler has ten candidates a
        point unless told otherwise.
    """
    fields = problem.equation.fields

    def model(key, dtype):
        sizes = (problem.features, *hidden, len(fields))
        return problem.impose(network(sizes, key=key, dtype=dtype))

    def predict(model, points):
        values = jax.vmap(model, out_axes=-1)(points)
        return {field: values[i] for i, field in enumerate(fields)}

    if num_candidates is None:
        num_candidates = {"interior": 10 * num_points["interior"]}
    return Benchmark(
        name=name,
        title=title,
        problem=problem,
        domains=problem.domains,
        num_points=num_points,
        model=model,
        predict=predict,
        reference=reference,
        num_candidates=num_candidates,
        sampler=sampler,
        optimizer=optimizer,
        steps=steps,
        dtype=dtype,
    )
