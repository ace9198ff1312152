"""What the methods share that look at the vector of residuals."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import lineax as lx
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PyTree

from .._custom_types import Scalar
from .base import check_memory
from .residuals import AbstractSquares


class Linearised(NamedTuple):
    """Residuals `r + J d` near some parameters, and who minimises their squares."""

    gradient: Float[Array, " n"]
    """`J^T r`: half the gradient of `|r|^2`."""
    forward: Callable[[Float[Array, " n"]], Float[Array, " m"]]
    """Maps `d` to `J d`."""
    solve: Callable[[Scalar], Float[Array, " n"]]
    """Maps a damping to the `d` that minimises `|r + J d|^2 + damping |d|^2`."""


def num_rows(params: PyTree, squares: AbstractSquares) -> int:
    """How many residuals there are."""
    return jax.eval_shape(squares.residuals, params).size


def dense(
    name: str, form: str, remedy: str, params: PyTree, squares: AbstractSquares
) -> Linearised:
    """By Cholesky factors of a matrix, as large as there are parameters (`form` is
    `"parameters"`) or residuals (`"residuals"`, by the identity of Woodbury); the
    smaller of the two for `"auto"`. They are equal but for rounding."""
    num_residuals, num_params = num_rows(params, squares), ravel_pytree(params)[0].size
    if form == "auto":
        form = "parameters" if num_params <= num_residuals else "residuals"
    of_parameters = form == "parameters"
    size = num_params if of_parameters else num_residuals
    # The Jacobian and a copy that is scaled; the matrix and its factor.
    numbers = 2 * num_residuals * num_params + 2 * size**2
    check_memory(name, numbers, ravel_pytree(params)[0].dtype, remedy)
    residuals, jacobian = squares.residuals(params), squares.jacobian(params)
    gradient = jacobian.T @ residuals
    gram = jacobian.T @ jacobian if of_parameters else jacobian @ jacobian.T

    def solve(damping):
        damped = gram + damping * jnp.eye(size, dtype=gram.dtype)
        factor = jax.scipy.linalg.cho_factor(damped)
        if of_parameters:
            return -jax.scipy.linalg.cho_solve(factor, gradient)
        return -jacobian.T @ jax.scipy.linalg.cho_solve(factor, residuals)

    return Linearised(gradient, lambda d: jacobian @ d, solve)


def iterative(
    params: PyTree, squares: AbstractSquares, max_steps: int, tolerance: float
) -> Linearised:
    """By conjugate gradients on the normal equations; no matrix is formed."""
    point, unravel = ravel_pytree(params)
    flat_fn = lambda point: squares.residuals(unravel(point))
    residuals, forward = jax.linearize(flat_fn, point)
    transpose = jax.linear_transpose(forward, point)
    backward = lambda v: transpose(v)[0]
    gradient = backward(residuals)

    def solve(damping):
        operator = lx.FunctionLinearOperator(
            lambda d: backward(forward(d)) + damping * d,
            jax.eval_shape(lambda: point),
            lx.positive_semidefinite_tag,
        )
        solver = lx.CG(rtol=tolerance, atol=0.0, max_steps=max_steps)
        return -lx.linear_solve(operator, gradient, solver, throw=False).value

    return Linearised(gradient, forward, solve)
