"""A line search that looks at values of the loss alone."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from .._custom_types import Count, Flag, Scalar


# A step is long enough if it takes off a tenth of the slope, and short enough if it
# gains a ten-thousandth of what the slope promises: as in scipy and in optax.
_CURVATURE, _DECREASE = 0.9, 1e-4
# Bounds on the ratio of a trial to the one before.
_SHORTEN, _HALVE, _LENGTHEN = 0.1, 0.5, 4.0


class Found(NamedTuple):
    """How far to go, and the value there."""

    size: Scalar
    value: Scalar


class _Search(NamedTuple):
    trial: Scalar
    best: Scalar
    best_value: Scalar
    evaluations: Count
    done: Flag


def search_line(
    value_at: Callable[[Scalar], Scalar],
    value: Scalar,
    slope: Scalar,
    first: Scalar,
    max_evaluations: int,
) -> Found:
    """How far to go along a line on which the value falls.

    The step meets the first Wolfe condition, and the second by what a parabola through
    the values says of the slope: a gradient costs several values, and the one at the
    end is not known to be of use, for the loss may change before the next step. So
    whoever needs `y @ s > 0` has to look.

    **Arguments:**

    - `value_at`: the value by the length of the step.
    - `value`, `slope`: at the start; the slope is negative.
    - `first`: the length to begin with.
    - `max_evaluations`: of `value_at`.

    **Returns:** a length of zero if no value was better.
    """

    def go_on(state: _Search) -> Any:
        return ~state.done & (state.evaluations < max_evaluations)

    def step(state: _Search) -> _Search:
        t = state.trial
        found = value_at(t).astype(value.dtype)
        bend = found - value - t * slope  # half the curvature, times t^2
        ok = found <= value + _DECREASE * t * slope
        better = ok & (found < state.best_value)
        bottom = -slope * t**2 / jnp.where(bend > 0, 2 * bend, jnp.inf)
        longer = jnp.clip(
            jnp.where(bend > 0, bottom, jnp.inf), 1 / _HALVE * t, _LENGTHEN * t
        )
        # Written so that a value that is not finite shortens the step.
        shorter = jnp.clip(
            jnp.where(jnp.isfinite(found), bottom, 0), _SHORTEN * t, _HALVE * t
        )
        flat = 2 * bend >= (_CURVATURE - 1) * t * slope
        return _Search(
            trial=jnp.where(ok, longer, shorter),
            best=jnp.where(better, t, state.best),
            best_value=jnp.where(better, found, state.best_value),
            evaluations=state.evaluations + 1,
            done=jnp.where(state.best > 0, ~better | flat, ok & flat),
        )

    zero = jnp.zeros_like(value)
    hopeless = ~(jnp.isfinite(value) & (slope < 0))
    start = _Search(
        first.astype(value.dtype), zero, value, jnp.zeros((), jnp.int32), hopeless
    )
    end = jax.lax.while_loop(go_on, step, start)
    return Found(end.best, end.best_value)
