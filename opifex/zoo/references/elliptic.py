"""Poisson's and Helmholtz' equations with closed solutions."""

import math
from typing import Any

import numpy as np

from ..base import Reference
from .grids import EPSILON, over_grid, tensor_points


HELMHOLTZ_WAVES = (1, 4)


def poisson(x: Any, y: Any) -> Any:
    """The solution of `-u_xx - u_yy = poisson_source` on the unit square, 0 around."""
    xp = x.__array_namespace__()
    return xp.sin(math.pi * x) * xp.sin(math.pi * y)


def poisson_source(x: Any, y: Any) -> Any:
    return 2 * math.pi**2 * poisson(x, y)


def poisson_reference(num: int = 101) -> Reference:
    side = np.linspace(0, 1, num)
    return over_grid({"x": side, "y": side}, poisson)


def disc(x: Any, y: Any) -> Any:
    """The solution of `-u_xx - u_yy = disc_source` on the unit disc, 0 around.

    A harmonic function times `1 - r^2`: no polynomial, and of no symmetry in `x`.
    """
    xp = x.__array_namespace__()
    return (1 - x**2 - y**2) * xp.exp(x) * xp.cos(y)


def disc_source(x: Any, y: Any) -> Any:
    xp = x.__array_namespace__()
    return 4 * xp.exp(x) * ((1 + x) * xp.cos(y) - y * xp.sin(y))


def disc_reference(num: int = 101) -> Reference:
    """At the points of a square grid that lie in the disc."""
    side = np.linspace(-1, 1, num)
    points = tensor_points({"x": side, "y": side})
    points = points[np.linalg.norm(points, axis=1) <= 1]
    return Reference(points, {"u": disc(*points.T)}, EPSILON)


def helmholtz(x: Any, y: Any) -> Any:
    """The solution of `u_xx + u_yy + u = helmholtz_source` on `[-1, 1]^2`, 0 around.

    ??? cite "Reference"

        S. Wang, Y. Teng and P. Perdikaris, "Understanding and mitigating gradient flow
        pathologies in physics-informed neural networks", SIAM J. Sci. Comput. 43(5),
        2021, section 4.1.
    """
    xp, (m, n) = x.__array_namespace__(), HELMHOLTZ_WAVES
    return xp.sin(m * math.pi * x) * xp.sin(n * math.pi * y)


def helmholtz_source(x: Any, y: Any) -> Any:
    m, n = HELMHOLTZ_WAVES
    return (1 - math.pi**2 * (m**2 + n**2)) * helmholtz(x, y)


def helmholtz_reference(num: int = 161) -> Reference:
    side = np.linspace(-1, 1, num)
    return over_grid({"x": side, "y": side}, helmholtz)
