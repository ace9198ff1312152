"""The Korteweg-de Vries equation in which Zabusky and Kruskal found solitons."""

import functools
from collections.abc import Callable

import numpy as np

from ..base import Reference
from .grids import over_grid, relative_l2
from .spectral import etdrk4


KDV_DISPERSION = 0.022**2
_TIMES = 101


def solve_kdv(
    start: Callable[[np.ndarray], np.ndarray],
    num: int,
    steps: int,
    *,
    times: int = _TIMES,
) -> np.ndarray:
    """`u_t + u u_x + 0.022^2 u_xxx = 0`, periodic on `[-1, 1]`, `0 <= t <= 1`.

    By Fourier series whose products are free of aliasing (the rule of two thirds) and
    exponential Runge-Kutta steps.

    **Arguments:**

    - `start`: the solution at time zero, a function of `x`.
    - `num`: how many points, `-1 + 2 i / num`.
    - `steps`: how many between two of the `times` evenly spaced times.

    **Returns:** the solution, `(times, num)`.

    ??? cite "Reference"

        N. J. Zabusky and M. D. Kruskal, "Interaction of solitons in a collisionless
        plasma and the recurrence of initial states", Physical Review Letters 15(6),
        1965.
    """
    modes = num // 3 + 1
    k = np.pi * np.arange(modes)
    x = -1 + 2 * np.arange(num) / num

    def nonlinear(v):
        return -0.5j * k * np.fft.rfft(np.fft.irfft(v, num) ** 2)[:modes]

    v = etdrk4(
        1j * KDV_DISPERSION * k**3,
        nonlinear,
        np.fft.rfft(start(x))[:modes],
        step=1 / (times - 1) / steps,
        snapshots=times,
        steps_between=steps,
    )
    return np.fft.irfft(v, num, axis=1)


@functools.cache
def _solution() -> tuple[np.ndarray, float]:
    """`(256, times)`, and how far a coarser computation is from it."""
    cosine = lambda x: np.cos(np.pi * x)
    fine = solve_kdv(cosine, 512, 200)[:, ::2]
    # 384 and 512 points share every third and every fourth.
    coarse = solve_kdv(cosine, 384, 100)[:, ::3]
    return fine.T, relative_l2(coarse, fine[:, ::2])


def kdv_reference() -> Reference:
    """`u(x, 0) = cos(pi x)`; the error is that of a coarser computation, so a bound."""
    values, error = _solution()
    x = -1 + 2 * np.arange(len(values)) / len(values)
    axes = {"x": x, "t": np.linspace(0, 1, _TIMES)}
    return over_grid(axes, lambda x, t: values.ravel(), error=error)
