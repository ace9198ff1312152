import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree

from .._custom_types import Count, Scalar
from .._misc import check_count, unknown_name
from .base import check_positive, check_precise
from .gauss_newton import dense, iterative, num_rows
from .residuals import needed_squares


_METHODS = ("auto", "dense", "iterative")
# A Cholesky factor of that size takes about a second of one core, and a Jacobian of so
# many entries two GiB in float64.
_LARGE, _LARGE_JACOBIAN = 4096, 2**28


class LevenbergMarquardtState(eqx.Module):
    """How much the next step is damped."""

    count: Count
    damping: Scalar


def levenberg_marquardt(
    *,
    method: str = "auto",
    damping: float = 1e-3,
    max_trials: int = 8,
    max_cg_steps: int = 200,
    cg_tolerance: float = 1e-8,
    single_precision: bool = False,
) -> optax.GradientTransformationExtraArgs:
    """Levenberg-Marquardt: damped Gauss-Newton steps on the vector of residuals.

    A step minimises `|r + J d|^2 + damping |d|^2`. It is taken if the loss falls; else
    it is tried anew with more damping. How well the linear model foretold the loss
    (the gain ratio) decides about the damping of the next.

    `update` takes `value` and `value_fn` besides, the latter a [`SumOfSquares`][].
    `train_step` hands them over, for problems whose loss is a mean of squares.

    **Arguments:**

    - `method`: `"dense"` factors a matrix as large as the number of parameters or of
        residuals, whichever is smaller; `"iterative"` forms none, and takes conjugate
        gradients instead; `"auto"` is dense up to a size of 4096 and a Jacobian of
        2^28 entries.
    - `damping`: of the first step, relative to the curvature along the gradient.
    - `max_trials`: how often a step is tried at the most; if none served, none is taken
        and the next begins with the damping of the last.
    - `max_cg_steps`, `cg_tolerance`: of the conjugate gradients of one trial; the
        latter is relative to the gradient.
    - `single_precision`: whether to accept parameters that are not float64.

    **Raises:** `ValueError` for complex parameters, for those of less than float64
    without `single_precision`, and if the matrices do not fit into memory.

    ??? cite "References"

        D. W. Marquardt, "An algorithm for least-squares estimation of nonlinear
        parameters", Journal of the Society for Industrial and Applied Mathematics
        11(2), 1963.
        K. Madsen, H. B. Nielsen and O. Tingleff, "Methods for non-linear least squares
        problems", 2nd edition, Technical University of Denmark, 2004 (algorithm 3.16
        and equation 2.21 for the damping).
    """
    if method not in _METHODS:
        raise ValueError(unknown_name("method", method, _METHODS))
    check_count("max_trials", max_trials)
    check_count("max_cg_steps", max_cg_steps)
    check_positive(damping=damping, cg_tolerance=cg_tolerance)
    name = "levenberg_marquardt"

    def init(params) -> Any:
        dtype = check_precise(name, params, single_precision)
        count = jnp.zeros((), jnp.int32)
        return LevenbergMarquardtState(count, jnp.full((), damping, dtype))

    def linearised(params, squares):
        if method == "dense" or method == "auto" and _is_small(params, squares):
            remedy = f'Use `{name}(method="iterative")`, or fewer points.'
            return dense(name, "auto", remedy, params, squares)
        return iterative(params, squares, max_cg_steps, cg_tolerance)

    def update(updates, state, params=None, **extra) -> tuple[Any, Any]:
        del updates
        value, value_fn = needed_squares(name, extra)
        point, unravel = ravel_pytree(params)
        value, eps = value.astype(point.dtype), jnp.finfo(point.dtype).eps
        system = linearised(params, value_fn)
        curvature = _curvature(system)
        first = jnp.where(state.count == 0, state.damping * curvature, state.damping)

        def trial(carry):
            tried, damping, growth, *_ = carry
            step = system.solve(damping)
            fallen = value - value_fn(unravel(point + step)).astype(point.dtype)
            along = system.forward(step)
            foretold = -(2 * system.gradient @ step + along @ along)
            usable = jnp.isfinite(fallen) & (foretold > 0)
            gain = jnp.where(usable, fallen / jnp.where(usable, foretold, 1), -1)
            shrunk = damping * jnp.maximum(1 / 3, 1 - (2 * gain - 1) ** 3)
            damping = jnp.where(gain > 0, shrunk, damping * growth)
            damping = jnp.clip(damping, eps * curvature, curvature / eps)
            # Nothing is left to gain that rounding would not hide.
            done = (gain > 0) | (foretold <= eps * value)
            return tried + 1, damping, 2 * growth, gain, step, done

        def unserved(carry):
            return (carry[0] < max_trials) & ~carry[-1]

        start = (jnp.zeros((), jnp.int32), first, jnp.full_like(first, 2))
        start = (*start, jnp.zeros_like(first), jnp.zeros_like(point), jnp.array(False))
        _, damping, _, gain, step, _ = jax.lax.while_loop(unserved, trial, start)
        step = jnp.where(gain > 0, step, 0)
        return unravel(step), LevenbergMarquardtState(state.count + 1, damping)

    return optax.GradientTransformationExtraArgs(init, update)


def _is_small(params, squares) -> bool:
    """Whether a dense system is worth it."""
    sizes = num_rows(params, squares), ravel_pytree(params)[0].size
    return min(sizes) <= _LARGE and math.prod(sizes) <= _LARGE_JACOBIAN


def _curvature(system) -> Scalar:
    """That of the squares along the gradient: between the least and the largest."""
    along = system.forward(system.gradient)
    size = system.gradient @ system.gradient
    return jnp.where(size > 0, along @ along / jnp.where(size > 0, size, 1), 1)
