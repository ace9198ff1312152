from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree

from .._custom_types import Scalar
from .._misc import check_count, unknown_name
from .base import check_positive, check_precise
from .gauss_newton import dense
from .residuals import needed_squares


_FORMS = ("auto", "parameters", "residuals")


class ENGDState(eqx.Module):
    """The length of the last step, in units of the natural gradient."""

    length: Scalar


def engd(
    *,
    damping: float = 1e-10,
    form: str = "auto",
    max_halvings: int = 30,
    single_precision: bool = False,
) -> optax.GradientTransformationExtraArgs:
    """Energy natural gradient descent, damped, with a line search.

    The direction is `-(G + damping)^-1 J^T r`, where `r` are the residuals, `J` their
    derivatives, and `G = J^T J` is the Gram matrix of the tangent space in the inner
    product of the loss. (For losses that are squares it is the Gauss-Newton matrix.)
    The step is the first lowest of those 1, 1/2, 1/4, ... as long; none if all climb.

    `update` takes `value` and `value_fn` besides, as that of [`levenberg_marquardt`][].

    **Arguments:**

    - `damping`: what is added to the diagonal, in units of the loss over the squared
        parameters. Without any, the matrix is singular to rounding.
    - `form`: `"parameters"` solves with a matrix as large as there are parameters;
        `"residuals"` with one as large as there are residuals, by the identity of
        Woodbury; `"auto"` with the smaller.
    - `max_halvings`: of the step.
    - `single_precision`: whether to accept parameters that are not float64.

    **Raises:** as [`levenberg_marquardt`][].

    ??? cite "References"

        J. Müller and M. Zeinhofer, "Achieving high accuracy with PINNs via energy
        natural gradient descent", ICML 2023 (the method, and steps of powers of 1/2).
        A. Guzmán-Cordero, F. Dangel, G. Goldshlager and M. Zeinhofer, "Improving energy
        natural gradient descent through Woodbury, momentum, and randomization",
        arXiv:2505.12149, 2025 (the damping, and the form in the space of residuals).
    """
    if form not in _FORMS:
        raise ValueError(unknown_name("form", form, _FORMS))
    check_count("max_halvings", max_halvings)
    check_positive(damping=damping)
    remedy = (
        'Use `levenberg_marquardt(method="iterative")`, or `form="residuals"` with '
        "fewer points."
    )

    def init(params) -> Any:
        dtype = check_precise("engd", params, single_precision)
        return ENGDState(jnp.zeros((), dtype))

    def update(updates, state, params=None, **extra) -> tuple[Any, Any]:
        del updates, state
        value, value_fn = needed_squares("engd", extra)
        point, unravel = ravel_pytree(params)
        system = dense("engd", form, remedy, params, value_fn)
        natural = system.solve(jnp.full((), damping, point.dtype))
        # Where rounding spoils the factor, the gradient is what is left.
        good = jnp.all(jnp.isfinite(natural)) & (natural @ system.gradient < 0)
        direction = jnp.where(good, natural, -system.gradient)
        loss = lambda length: value_fn(unravel(point + length * direction))
        length = _first_lowest(loss, value, max_halvings, point.dtype)
        return unravel(length * direction), ENGDState(length)

    return optax.GradientTransformationExtraArgs(init, update)


def _first_lowest(loss, value: Scalar, max_halvings: int, dtype: Any) -> Scalar:
    """The first minimum below `value` along 1, 1/2, 1/4, ...; 0 if there is none."""

    def finite(length):
        new = loss(length)
        return jnp.where(jnp.isfinite(new), new, jnp.inf)

    def climbs_or_falls(carry):
        halvings, *_, done = carry
        return (halvings < max_halvings) & ~done

    def halve(carry):
        halvings, length, best, lowest, _ = carry
        new = finite(length / 2)
        done = (lowest < value) & (new >= lowest)
        better = new < lowest
        best = jnp.where(better, length / 2, best)
        return halvings + 1, length / 2, best, jnp.minimum(new, lowest), done

    one = jnp.ones((), dtype)
    start = (jnp.zeros((), jnp.int32), one, one, finite(one), jnp.array(False))
    *_, best, lowest, _ = jax.lax.while_loop(climbs_or_falls, halve, start)
    return jnp.where(lowest < value, best, 0)
