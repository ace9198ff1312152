"""`-u_xx - u_yy = 1` on an L, which has no closed solution, to rounding.

The L is `[-1, 1]^2` without `x > 0, y < 0`; its re-entrant corner is the origin. Three
kinds of functions make up the solution, and all solve the equation exactly:

- at each of the six corners, the one that the corner dictates. `u = 0` along two edges
  at an angle which is a multiple of `pi / 2` needs an `r^2 log r` beside `-r^2 / 4`;
- about the origin, `r^(2 k / 3) sin(2 k theta / 3)`, which are zero on its two edges;
- polynomials in `z = x + i y`.

The coefficients of the last two are fitted to `u = 0` on the boundary. The difference
to the true solution is harmonic, so that it is nowhere larger than on the boundary.

??? cite "Reference"

    L. Fox, P. Henrici and C. Moler, "Approximations and bounds for eigenvalues of
    elliptic operators", SIAM J. Numer. Anal. 4(1), 1967 (the L and its corner);
    P. Grisvard, "Elliptic Problems in Nonsmooth Domains", 1985, chapter 4 (the
    logarithms).
"""

import functools

import numpy as np

from ..base import Reference
from .grids import tensor_points


_CORNERS = np.array([0, 1, 1 + 1j, -1 + 1j, -1 - 1j, -1j])
_RADIUS = np.sqrt(2)  # of the L about the origin: keeps the powers below one
_NUM_SINGULAR, _NUM_SMOOTH, _NUM_FITTED = 60, 60, 200  # the last one: on each edge


def _angle(z: np.ndarray) -> np.ndarray:
    """Between 0 and `3 pi / 2` in the L: the cut runs through the missing quarter."""
    return np.angle(z * np.exp(-0.75j * np.pi)) + 0.75 * np.pi


def _square_log(z: np.ndarray, angle: np.ndarray) -> np.ndarray:
    """The imaginary part of `z^2 log z`, which is 0 at 0."""
    r = np.where(z == 0, 1, abs(z))
    return abs(z) ** 2 * (np.log(r) * np.sin(2 * angle) + angle * np.cos(2 * angle))


def _dictated(z: np.ndarray) -> np.ndarray:
    """`-Laplace = 1`, with the right logarithm at every corner."""
    u = -(abs(z) ** 2) / 4 - _square_log(z, _angle(z)) / (3 * np.pi)
    for corner, after in zip(_CORNERS[1:], np.roll(_CORNERS, -1)[1:], strict=True):
        # The edge that leaves the corner, counterclockwise, becomes the real axis.
        w = (z - corner) * abs(after - corner) / (after - corner)
        u = u - _square_log(w, np.angle(w)) / np.pi
    return u


def _fitted(z: np.ndarray, singular: int, smooth: int) -> np.ndarray:
    """The harmonic functions to be combined, `(points, functions)`."""
    r, angle, z = abs(z) / _RADIUS, _angle(z), z / _RADIUS
    # Every third one is a polynomial.
    powers = [2 * k / 3 for k in range(1, singular + 1) if k % 3]
    columns = [r**power * np.sin(power * angle) for power in powers]
    columns += [np.real(z**n) for n in range(smooth + 1)]
    columns += [np.imag(z**n) for n in range(1, smooth + 1)]
    return np.stack(columns, axis=1)


def _boundary(num: int) -> np.ndarray:
    """Points on all six edges, denser towards the corners."""
    s = (1 - np.cos(np.pi * (np.arange(num) + 0.5) / num)) / 2
    ends = np.roll(_CORNERS, -1)
    return np.concatenate(
        [a + (b - a) * s for a, b in zip(_CORNERS, ends, strict=True)]
    )


@functools.cache
def _coefficients(singular: int, smooth: int) -> np.ndarray:
    z = _boundary(_NUM_FITTED)
    matrix = _fitted(z, singular, smooth)
    return np.linalg.lstsq(matrix, -_dictated(z), rcond=1e-14)[0]


def l_shape(
    x: np.ndarray,
    y: np.ndarray,
    *,
    singular: int = _NUM_SINGULAR,
    smooth: int = _NUM_SMOOTH,
) -> np.ndarray:
    """The solution at points of the closed L, which are vectors of one length.

    **Arguments:**

    - `singular`, `smooth`: how many functions to combine; the defaults give it to
        rounding.
    """
    z = x + 1j * y
    functions = _fitted(z, singular, smooth)
    return _dictated(z) + functions @ _coefficients(singular, smooth)


def l_shape_error(num: int = 1777, **options: int) -> float:
    """The largest error, by the maximum principle: measured on the boundary."""
    z = _boundary(num)
    return float(abs(l_shape(np.real(z), np.imag(z), **options)).max())


def l_shape_reference(num: int = 101, **options: int) -> Reference:
    """At the points of a square grid that lie in the L."""
    side = np.linspace(-1, 1, num)
    x, y = tensor_points({"x": side, "y": side}).T
    inside = (x <= 0) | (y >= 0)
    x, y = x[inside], y[inside]
    u = l_shape(x, y, **options)
    error = l_shape_error(**options) / float(np.sqrt(np.mean(u**2)))
    return Reference(np.stack([x, y], axis=1), {"u": u}, error)
