"""The Allen-Cahn equation of the first papers on physics-informed networks."""

import functools

import numpy as np

from ..base import Reference
from .grids import over_grid, relative_l2
from .spectral import etdrk4


ALLEN_CAHN_EPS = 1e-4
_TIMES = 101


def _start(modes: int) -> np.ndarray:
    """The coefficients of `x^2 cos(pi x)` in a cosine series, in closed form."""

    def integral(m):  # of x^2 cos(m pi x) from 0 to 1
        safe = np.where(m == 0, 1, m)
        return np.where(m == 0, 1 / 3, 2 * (-1.0) ** m / (safe * np.pi) ** 2)

    k = np.arange(modes)
    coefficients = integral(k + 1) + integral(abs(k - 1))
    coefficients[0] /= 2
    return coefficients


def solve_allen_cahn(num: int, steps: int, *, times: int = _TIMES) -> np.ndarray:
    """`u_t = 1e-4 u_xx + 5 u - 5 u^3` from `x^2 cos(pi x)`, periodic on `[-1, 1]`.

    By Fourier series and exponential Runge-Kutta steps. The start has a kink at
    `x = 1`, by which series that interpolate it converge like `num^-2` only: aliasing
    leaves wrong smooth modes, which stay. Here its exact coefficients are truncated;
    what is left out is what diffusion removes first, so that the error at later times
    falls much faster.

    **Arguments:**

    - `num`: how many points a period has.
    - `steps`: how many between two of the `times` evenly spaced times up to 1.

    **Returns:** the solution at `x = 2 i / num`, `0 <= x <= 1`, and so by symmetry
    everywhere; `(times, num // 2 + 1)`.
    """
    k = np.arange(num // 2 + 1)
    v = etdrk4(
        5 - ALLEN_CAHN_EPS * (np.pi * k) ** 2,
        lambda v: np.fft.rfft(-5 * np.fft.irfft(v, num) ** 3),
        # rfft counts the modes up to its middle half, and the first one whole.
        _start(len(k)) * np.where(k == 0, num, num / 2),
        step=1 / (times - 1) / steps,
        snapshots=times,
        steps_between=steps,
    )
    u = np.fft.irfft(v, num, axis=1)[:, : len(k)]
    x = 2 * k / num
    u[0] = x**2 * np.cos(np.pi * x)
    return u


@functools.cache
def _solution() -> tuple[np.ndarray, float]:
    """`(129, times)`, and how far a coarser computation is from it."""
    fine = solve_allen_cahn(2560, 15)[:, ::10]
    return fine.T, relative_l2(solve_allen_cahn(2048, 10)[:, ::8], fine)


def allen_cahn_reference() -> Reference:
    """On `[-1, 1]`; the error is that of a coarser computation, so a bound."""
    half, error = _solution()
    values = np.concatenate([half[:0:-1], half])
    axes = {"x": np.linspace(-1, 1, len(values)), "t": np.linspace(0, 1, _TIMES)}
    return over_grid(axes, lambda x, t: values.ravel(), error=error)
