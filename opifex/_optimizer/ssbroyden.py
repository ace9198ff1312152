from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float

from .._custom_types import Count, Flag, Scalar
from .._misc import check_count
from .base import check_memory, check_precise, needed
from .search import search_line


_REMEDY = (
    "Use a method that forms no such matrix: `lbfgs()`, `nncg()`, or "
    '`levenberg_marquardt(method="iterative")`.'
)


class QuasiNewtonState(eqx.Module):
    """The inverse Hessian, and what its next update needs."""

    inverse: Float[Array, "n n"]
    point: Float[Array, " n"]
    grad: Float[Array, " n"]
    value: Scalar
    direction: Float[Array, " n"]
    updates: Count  # of `inverse`, since it was last the identity
    reached: Scalar  # the value that the line search left


class Pair(NamedTuple):
    """What the coefficients of an update follow from; the letters are Urban et al.'s,
    with `B` the inverse of the inverse Hessian `H`."""

    n: int
    first: Flag  # whether `H` is still the identity
    h: Scalar  # y'Hy / y's
    b: Scalar  # s'Bs / y's


Coefficients = Callable[[Pair], tuple[Scalar, Scalar]]
"""Gives `tau` and `phi` of the update
`H <- (H - H y y' H / y'Hy + phi y'Hy v v') / tau + s s' / y's`."""


def ssbroyden(
    *, max_linesearch_steps: int = 20, single_precision: bool = False
) -> optax.GradientTransformationExtraArgs:
    """Self-scaled Broyden with full memory, and a line search on values of the loss.

    A quasi-Newton method for networks of a few thousand parameters in float64; memory
    and time grow with the square of their number. The loss may change between steps
    (new points): the inverse Hessian is kept, and the pair that straddles the change is
    left out of it, as is a pair without positive curvature.

    `update` takes `value`, `grad` and `value_fn` besides, as `optax.lbfgs` does;
    `train_step` hands them over.

    **Arguments:**

    - `max_linesearch_steps`: evaluations of the loss a step, at the most.
    - `single_precision`: whether to accept parameters that are not float64.

    **Raises:** `ValueError` for complex parameters, for those of less than float64
    without `single_precision`, and if the inverse Hessian does not fit into memory.

    ??? cite "References"

        M. Al-Baali, "Numerical experience with a class of self-scaling quasi-Newton
        algorithms", Journal of Optimization Theory and Applications 96, 1998.
        J. F. Urban, P. Stefanou and J. A. Pons, "Unveiling the optimization process of
        physics informed neural networks", Journal of Computational Physics 523, 2025.
    """
    return dense_quasi_newton(
        "ssbroyden", _broyden, max_linesearch_steps, single_precision
    )


def dense_quasi_newton(
    name: str,
    coefficients: Coefficients,
    max_linesearch_steps: int,
    single_precision: bool,
) -> optax.GradientTransformationExtraArgs:
    """The method of the Broyden class with these coefficients; see [`ssbroyden`][]."""
    check_count("max_linesearch_steps", max_linesearch_steps)

    def init(params) -> Any:
        check_precise(name, params, single_precision)
        flat = ravel_pytree(params)[0]
        # The old and the new matrix, and what is added.
        check_memory(name, 3 * flat.size**2, flat.dtype, _REMEDY)
        zeros, count = jnp.zeros_like(flat), jnp.zeros((), jnp.int32)
        identity = jnp.eye(flat.size, dtype=flat.dtype)
        none = zeros[0]
        return QuasiNewtonState(identity, zeros, zeros, none, zeros, count, none)

    def update(updates, state, params=None, **extra) -> tuple[Any, Any]:
        value, value_fn = needed(name, extra, "value", "value_fn")
        flat, unravel = ravel_pytree(updates)
        point = ravel_pytree(params)[0]
        at = lambda point: value_fn(unravel(point))
        change = _change(coefficients, state, point, flat, value, at)
        direction = -change.times(state.inverse @ flat, flat)
        # What is not positive definite may lead uphill: begin again. (It is symmetric
        # to the last bit; a factorisation would cost more than a hundred updates.)
        good = (flat @ direction < 0) & jnp.all(jnp.isfinite(direction))
        good = good & jnp.all(change.diagonal(state.inverse) > 0) & ~_is_stuck(state)
        count = jnp.where(good, state.updates + change.usable, 0)
        identity = jnp.eye(flat.size, dtype=flat.dtype)
        inverse = jnp.where(good, change.of(state.inverse), identity)
        direction = jnp.where(count == 0, -flat, direction)
        slope = flat @ direction
        # Of the identity only the direction is to be trusted.
        size = jnp.where(count == 0, jnp.minimum(1, 1 / jnp.linalg.norm(flat)), 1)
        found = search_line(
            lambda t: at(point + t * direction),
            value,
            slope,
            size,
            max_linesearch_steps,
        )
        return unravel(found.size * direction), QuasiNewtonState(
            inverse, point, flat, value, direction, count, found.value
        )

    return optax.GradientTransformationExtraArgs(init, update)


def _is_stuck(state: QuasiNewtonState) -> Flag:
    """Whether the search found nothing, where the slope promised more than rounding."""
    promised = -(state.grad @ state.direction)
    resolved = jnp.sqrt(jnp.finfo(promised.dtype).eps) * jnp.abs(state.value)
    moved = state.reached < state.value
    return (state.updates > 0) & ~moved & (promised > resolved)


class _Change(NamedTuple):
    """An update of the inverse Hessian, of rank two, or none."""

    usable: Flag
    tau: Scalar
    # What is added is `along u u' + across v v'`: a sum of squares stays symmetric to
    # the last bit, where a rounding would grow with every division by `tau`.
    along: Scalar
    across: Scalar
    u: Float[Array, " n"]
    v: Float[Array, " n"]

    def of(self, inverse: Array) -> Float[Array, "n n"]:
        """The new inverse Hessian, in one pass over the old one."""
        along = self.along * jnp.outer(self.u, self.u)
        return inverse / self.tau + (along + self.across * jnp.outer(self.v, self.v))

    def diagonal(self, inverse: Array) -> Float[Array, " n"]:
        """That of the new inverse Hessian."""
        more = self.along * self.u**2 + self.across * self.v**2
        return jnp.diagonal(inverse) / self.tau + more

    def times(self, hx: Array, x: Array) -> Float[Array, " n"]:
        """The new inverse Hessian times `x`, where the old one gives `hx`."""
        along, across = self.along * (self.u @ x), self.across * (self.v @ x)
        return hx / self.tau + along * self.u + across * self.v


def _change(coefficients, state, point, grad, value, value_at) -> _Change:
    s, y = point - state.point, grad - state.grad
    eps = jnp.finfo(s.dtype).eps
    curved = y @ s > eps * jnp.linalg.norm(s) * jnp.linalg.norm(y)
    equal = lambda a, b: jnp.abs(a - b) <= jnp.sqrt(eps) * jnp.abs(b)
    # The line search left its value at this very point. Another one is that of another
    # loss, unless the step was shortened since: then the point before it tells.
    same = jax.lax.cond(
        equal(value, state.reached),
        lambda: jnp.array(True),
        lambda: equal(value_at(state.point), state.value),
    )
    hy = state.inverse @ y
    rho, yhy = 1 / (y @ s), y @ hy
    # The state of `init` holds no point yet, and so has no direction.
    usable = curved & same & (yhy > 0) & jnp.any(state.direction != 0)
    # The step is `alpha` times the direction -H g, so B s is `alpha` times -g.
    alpha = (s @ state.direction) / (state.direction @ state.direction)
    b = -alpha * rho * (s @ state.grad)
    tau, phi = coefficients(Pair(s.size, state.updates == 0, rho * yhy, b))
    # Zeros, not a factor of zero: what is not usable may be infinite.
    safe = lambda x: jnp.where(usable, x, 0)
    h, p, q = safe(rho * yhy), safe(hy / jnp.sqrt(yhy)), safe(jnp.sqrt(rho) * s)
    tau, phi = jnp.where(usable, tau, 1), safe(phi)
    # The coefficients of p p', of p q' + q p', and of q q'; then those of the axes.
    pp, pq, qq = (phi - 1) / tau, -phi * jnp.sqrt(h) / tau, phi * h / tau + 1
    angle = 0.5 * jnp.arctan2(2 * pq, pp - qq)
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    return _Change(
        usable,
        tau,
        pp * cos**2 + 2 * pq * cos * sin + qq * sin**2,
        pp * sin**2 - 2 * pq * cos * sin + qq * cos**2,
        cos * p + sin * q,
        cos * q - sin * p,
    )


def _broyden(pair: Pair) -> tuple[Scalar, Scalar]:
    h, b = pair.h, pair.b
    a = jnp.maximum(b * h - 1, jnp.finfo(h.dtype).eps)  # >= 0 by Cauchy-Schwarz
    c = jnp.sqrt(a / (1 + a))
    rho_minus = jnp.minimum(1, h * (1 - c))
    theta = jnp.maximum((rho_minus - 1) / a, jnp.minimum(1 / rho_minus, (1 - b) / b))
    sigma = 1 + a * theta
    # In one dimension `sigma` is one, and any power of it.
    root, inv_b = sigma ** (1 / (1 - max(pair.n, 2))), jnp.minimum(1, 1 / b)
    tau = jnp.where(
        theta <= 0,
        jnp.minimum(inv_b * root, sigma),
        inv_b * jnp.minimum(root, 1 / jnp.where(theta > 0, theta, 1)),
    )
    return jnp.where(pair.first, h / sigma, tau), (1 - theta) / sigma
