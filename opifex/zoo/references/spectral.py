"""Time stepping of stiff semilinear equations whose linear part is diagonal."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np


class _Coefficients(NamedTuple):
    whole: np.ndarray  # exp(h L)
    half: np.ndarray  # exp(h L / 2)
    stage: np.ndarray  # the four weights below carry the factor h
    first: np.ndarray
    middle: np.ndarray
    last: np.ndarray


def _coefficients(linear: np.ndarray, step: float, nodes: int = 64) -> _Coefficients:
    """Means over circles of radius one about `h L`, where no digits cancel."""
    circle = np.exp(2j * np.pi * (np.arange(nodes) + 0.5) / nodes)
    z = step * linear[:, None] + circle
    e = np.exp(z)

    def mean(values):
        values = step * values.mean(axis=1)
        return values if np.iscomplexobj(linear) else values.real

    return _Coefficients(
        whole=np.exp(step * linear),
        half=np.exp(step * linear / 2),
        stage=mean((np.exp(z / 2) - 1) / z),
        first=mean((-4 - z + e * (4 - 3 * z + z**2)) / z**3),
        middle=mean(2 * (2 + z + e * (z - 2)) / z**3),
        last=mean((-4 - 3 * z - z**2 + e * (4 - z)) / z**3),
    )


def etdrk4(
    linear: np.ndarray,
    nonlinear: Callable[[np.ndarray], np.ndarray],
    start: np.ndarray,
    *,
    step: float,
    snapshots: int,
    steps_between: int,
) -> np.ndarray:
    """Solves `v' = L v + N(v)` by exponential Runge-Kutta steps of fourth order.

    **Arguments:**

    - `linear`: the diagonal of `L`, `(modes,)`, real or complex.
    - `nonlinear`: the function `N`, of a vector of modes.
    - `start`: the modes at time zero.
    - `step`: the time step.
    - `snapshots`: how many states to return, the first included.
    - `steps_between`: how many steps lie between two of them.

    **Returns:** the states, `(snapshots, modes)`.

    ??? cite "Reference"

        A.-K. Kassam and L. N. Trefethen, "Fourth-order time-stepping for stiff PDEs",
        SIAM J. Sci. Comput. 26(4), 2005, equations (25)-(29) and section 4.
    """
    c = _coefficients(linear, step)
    v, states = start, [start]
    for _ in range(snapshots - 1):
        for _ in range(steps_between):
            at_v = nonlinear(v)
            half = c.half * v
            a = half + c.stage * at_v
            at_a = nonlinear(a)
            at_b = nonlinear(half + c.stage * at_a)
            at_c = nonlinear(c.half * a + c.stage * (2 * at_b - at_v))
            v = c.whole * v + c.first * at_v + c.middle * (at_a + at_b) + c.last * at_c
        states.append(v)
    return np.stack(states)
