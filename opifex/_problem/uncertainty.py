"""How well the data determine the coefficients of an inverse problem."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float

from .._misc import Frozen
from .base import AbstractResidualProblem, plain
from .coefficients import Inverse


# So many times are the variances of the terms worked out anew from their residuals. For
# Burgers' equation with an unknown viscosity they stood still to four digits after two.
_ROUNDS = 6

# Columns of the Jacobian at a time: what is held in memory beside it.
_AT_A_TIME = 16


def coefficient_errors(
    problem: AbstractResidualProblem, model: Any, batch: dict[str, Array]
) -> dict[str, Float[Array, "..."]]:
    """One standard deviation of each coefficient of an [`Inverse`][] model.

    The parameters of the network are fitted too, so they count as unknowns ("nuisance
    parameters"): with `J_k` the Jacobian of the residuals of the term `k` by all
    parameters, their covariance is that of Gauss and Newton,

        C = (sum_k J_k^T J_k / s_k^2)^-1,

    and the standard deviation of a coefficient follows from `C` through its transform,
    to first order. The variance of each term is taken from its own residuals `r_k` at
    its `n_k` points, `s_k^2 = |r_k|^2 / (n_k - t_k)`, where `t_k`, the trace of `C
    J_k^T J_k / s_k^2`, is how many parameters the term determines; both are iterated.
    For a linear model with one term this is the formula of the textbooks. Weights of
    terms cancel.

    What it covers: noise that is independent from point to point, in a model that is
    trained to its minimum and is nearly linear within the error bar. What it does not:
    an equation that is wrong, correlated noise, several minima, training that has not
    converged, and what the network cannot represent. Where a term has no more points
    than it determines parameters, its variance is not known, and the error bar is only
    a rough one. The memory is that of `points x parameters` numbers.

    **Arguments:**

    - `problem`: whose residuals were trained on.
    - `model`: as trained.
    - `batch`: the points it was trained on.

    **Returns:** by name, an array of the shape of the coefficient; no name at all for a
    model without coefficients.

    ??? cite "References"

        G. A. F. Seber and C. J. Wild, "Nonlinear Regression", Wiley 1989, chapters 2
        and 5. D. M. Bates and D. G. Watts, "Nonlinear Regression Analysis and Its
        Applications", Wiley 1988, chapter 2. The variances by term: K.-R. Koch,
        "Parameter Estimation and Hypothesis Testing in Linear Models", Springer 1999,
        section 3.6.
    """
    if not isinstance(model, Inverse) or not model.coefficients:
        return {}
    return _errors(problem, model, plain(batch))


@eqx.filter_jit
def _errors(problem, model: Inverse, batch) -> dict[str, Array]:
    is_frozen = lambda x: isinstance(x, Frozen)
    free = lambda x: not is_frozen(x) and eqx.is_inexact_array(x)
    spec = jtu.tree_map(free, model, is_leaf=is_frozen)
    params, rest = eqx.partition(model, spec)
    flat, unravel = ravel_pytree(params)
    full = lambda flat: eqx.combine(unravel(flat), rest)
    terms = lambda flat: {
        name: _real(r) for name, r in problem.residuals(full(flat), batch).items()
    }
    root = _root(terms(flat), _jacobians(terms, flat))
    gradients = jax.jacrev(lambda flat: full(flat).values)(flat)

    def error(gradient):
        rows = gradient.reshape(-1, flat.size)
        spread = jax.scipy.linalg.solve_triangular(root, rows.T, trans="T")
        return jnp.linalg.norm(spread, axis=0).reshape(gradient.shape[:-1])

    return {name: error(gradient) for name, gradient in gradients.items()}


def _jacobians(terms, flat: Float[Array, " n"]) -> dict[str, Array]:
    """Of each term, the Jacobian, or its triangular factor if that is smaller."""

    def column(i):
        unit = jnp.zeros_like(flat).at[i].set(1)
        return jax.jvp(terms, (flat,), (unit,))[1]

    indices = jnp.arange(flat.size, dtype=jnp.int32)
    columns = jax.lax.map(column, indices, batch_size=_AT_A_TIME)
    return {name: _factor(c.T) for name, c in columns.items()}


def _root(residuals: dict[str, Array], jacobians: dict[str, Array]) -> Array:
    """The triangular `R` of which `R^T R` is the inverse of the covariance."""
    names = sorted(residuals)
    eps = jnp.finfo(jacobians[names[0]].dtype).eps
    squares = jnp.stack([jnp.sum(residuals[n] ** 2) for n in names])
    counts = jnp.array([residuals[n].size for n in names], squares.dtype)
    stack = [jacobians[n] for n in names]

    def scaled(variances):
        return [j / jnp.sqrt(v) for j, v in zip(stack, variances, strict=True)]

    def root(variances):
        parts = scaled(variances)
        size = jnp.sqrt(sum(jnp.sum(p**2) for p in parts))
        # As much as rounding adds anyway: what nothing determines gets a finite error.
        ridge = 10 * eps * size * jnp.eye(parts[0].shape[1], dtype=size.dtype)
        return jnp.linalg.qr(jnp.concatenate([*parts, ridge]), mode="r")

    def refine(_, variances):
        r = root(variances)
        solve = lambda p: jax.scipy.linalg.solve_triangular(r, p.T, trans="T")
        traces = jnp.stack([jnp.sum(solve(p) ** 2) for p in scaled(variances)])
        return bounded(squares / jnp.maximum(counts - traces, 1))

    def bounded(variances):
        # A term that holds to rounding must not outweigh the others beyond it.
        least = jnp.maximum(eps**2 * jnp.max(variances), jnp.finfo(eps.dtype).tiny)
        return jnp.maximum(variances, least)

    start = bounded(squares / counts)
    return root(jax.lax.fori_loop(0, _ROUNDS, refine, start))


def _factor(jacobian: Float[Array, "rows n"]) -> Float[Array, "_rows n"]:
    rows, n = jacobian.shape
    return jnp.linalg.qr(jacobian, mode="r") if rows > n else jacobian


def _real(residual: Array) -> Float[Array, " _rows"]:
    if not jnp.iscomplexobj(residual):
        return residual
    return jnp.concatenate([residual.real, residual.imag])
