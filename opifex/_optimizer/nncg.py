from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import lineax as lx
import optax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float

from .._custom_types import Count, Key, Scalar
from .._misc import check_count
from .base import check_memory, check_positive, check_precise, needed


# Hessian-vector products that are computed at a time.
_AT_A_TIME = 8
# Of the line search: those of Rathore et al.
_SLOPE, _SHORTER, _MAX_HALVINGS = 0.1, 0.5, 30


class Nystrom(NamedTuple):
    """A Hessian of low rank: `vectors diag(values) vectors^T`."""

    vectors: Float[Array, "n rank"]
    values: Float[Array, " rank"]  # from the largest; none is negative


class NNCGState(eqx.Module):
    """The preconditioner, and the direction that the next solve begins with."""

    count: Count
    vectors: Float[Array, "n rank"]
    values: Float[Array, " rank"]
    direction: Float[Array, " n"]
    length: Scalar  # of the last step, in units of its direction


def nncg(
    *,
    damping: float = 1e-4,
    rank: int = 60,
    every: int = 20,
    max_cg_steps: int = 100,
    cg_tolerance: float = 1e-8,
    seed: int = 0,
    single_precision: bool = False,
) -> optax.GradientTransformationExtraArgs:
    """NysNewton-CG: damped Newton steps by preconditioned conjugate gradients.

    It multiplies by the Hessian and forms no matrix larger than `rank` by the number of
    parameters, so it serves networks that are too large for [`ssbroyden`][]. It is made
    to finish what a first-order or quasi-Newton method has begun: far from a minimum
    the Hessian has negative curvature, and its direction is then replaced by the
    preconditioned gradient wherever it would climb.

    `update` takes `value`, `grad` and `value_fn` besides, as `optax.lbfgs` does;
    `train_step` hands them over.

    **Arguments:**

    - `damping`: what is added to the Hessian's diagonal.
    - `rank`: of the approximation of the Hessian that preconditions.
    - `every`: steps between two of them.
    - `max_cg_steps`, `cg_tolerance`: of the conjugate gradients of one step; the latter
        is relative to the gradient.
    - `seed`: of the directions in which the Hessian is probed; they are drawn from it
        and the number of the step.
    - `single_precision`: whether to accept parameters that are not float64.

    **Raises:** `ValueError` for complex parameters, for those of less than float64
    without `single_precision`, and if the preconditioner does not fit into memory.

    ??? cite "References"

        P. Rathore, W. Lei, Z. Frangella, L. Lu and M. Udell, "Challenges in training
        PINNs: a loss landscape perspective", ICML 2024 (algorithms 4 to 7).
        Z. Frangella, J. A. Tropp and M. Udell, "Randomized Nyström preconditioning",
        SIAM Journal on Matrix Analysis and Applications 44(2), 2023.
    """
    counts = {"rank": rank, "every": every, "max_cg_steps": max_cg_steps}
    for name, number in counts.items():
        check_count(name, number)
    check_positive(damping=damping, cg_tolerance=cg_tolerance)
    solver = lx.CG(rtol=cg_tolerance, atol=0.0, max_steps=max_cg_steps)
    # Begun afresh at every step, so that each length is tried from one downwards.
    search = optax.scale_by_backtracking_linesearch(
        _MAX_HALVINGS, slope_rtol=_SLOPE, decrease_factor=_SHORTER
    )

    def init(params) -> Any:
        dtype = check_precise("nncg", params, single_precision)
        size = ravel_pytree(params)[0].size
        width = min(rank, size)
        # The probes, their images, and what is made of them.
        check_memory("nncg", 5 * size * width, dtype, "Use a smaller `rank`.")
        zeros = lambda *shape: jnp.zeros(shape, dtype)
        count = jnp.zeros((), jnp.int32)
        return NNCGState(count, zeros(size, width), zeros(width), zeros(size), zeros())

    def update(updates, state, params=None, **extra) -> tuple[Any, Any]:
        value, grad, value_fn = needed("nncg", extra, "value", "grad", "value_fn")
        point, unravel = ravel_pytree(params)
        slope = ravel_pytree(updates)[0]
        gradient_fn = jax.grad(lambda point: value_fn(unravel(point)))
        hessian = jax.linearize(gradient_fn, point)[1]
        key = jr.fold_in(jr.key(seed), state.count)
        near = jax.lax.cond(
            state.count % every == 0,
            lambda: approximate(hessian, state.vectors, key),
            lambda: Nystrom(state.vectors, state.values),
        )
        damped = _symmetric(lambda x: hessian(x) + damping * x, point)
        inverse = _symmetric(lambda x: precondition(near, damping, x), point)
        start = {"preconditioner": inverse, "y0": state.direction}
        newton = lx.linear_solve(damped, -slope, solver, options=start, throw=False)
        direction = newton.value
        good = jnp.all(jnp.isfinite(direction)) & (direction @ slope < 0)
        direction = jnp.where(good, direction, -inverse.mv(slope))
        more = {"value": value, "grad": grad, "value_fn": value_fn}
        here = unravel(point)
        found: Any = search.update(unravel(direction), search.init(here), here, **more)
        step, length = found[0], found[1].learning_rate
        vectors, values = near
        return step, NNCGState(state.count + 1, vectors, values, direction, length)

    return optax.GradientTransformationExtraArgs(init, update)


def _symmetric(fn, like: Array) -> lx.FunctionLinearOperator:
    shape = jax.ShapeDtypeStruct(like.shape, like.dtype)
    return lx.FunctionLinearOperator(fn, shape, lx.positive_semidefinite_tag)


def approximate(hessian, like: Float[Array, "n rank"], key: Key) -> Nystrom:
    """The part of a Hessian that random probes see (algorithm 5 of Rathore et al.)."""
    probes = jnp.linalg.qr(jr.normal(key, like.shape, like.dtype))[0]
    width = min(_AT_A_TIME, like.shape[1])
    images = jax.lax.map(hessian, probes.T, batch_size=width).T
    eps = jnp.finfo(like.dtype).eps
    shift = eps * jnp.linalg.norm(images)
    images = images + shift * probes
    core = probes.T @ images
    values, vectors = jnp.linalg.eigh((core + core.T) / 2)
    # Negative curvature is shifted away, and taken back below.
    more = jnp.where(values[0] > 0, 0, -values[0] + shift)
    root = (images + more * probes) @ (vectors / jnp.sqrt(values + more)[None])
    left, singular, _ = jnp.linalg.svd(root, full_matrices=False)
    return Nystrom(left, jnp.maximum(singular**2 - shift - more, 0))


def precondition(near: Nystrom, damping: float, x: Float[Array, " n"]) -> Array:
    """What is close to `(H + damping)^-1 x`, times the damped least of the values."""
    inside = near.vectors.T @ x
    least = near.values[-1] + damping
    scaled = (least / (near.values + damping) - 1) * inside
    return x + near.vectors @ scaled
