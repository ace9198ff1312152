"""Equations of diffusion with closed solutions.

Here and in its neighbours a solution takes and gives arrays of NumPy or of JAX, of any
shape, one a coordinate.
"""

import math
from typing import Any

import numpy as np

from ..base import Reference
from .grids import over_grid


HEAT_ALPHA = 0.02
# (m, n, amplitude) of sin(m pi x) sin(n pi y)
HEAT_MODES = ((1, 1, 1.0), (2, 3, 0.5), (4, 1, 0.25))


def diffusion(x: Any, t: Any) -> Any:
    """The solution of `u_t = u_xx + diffusion_source` on `-1 <= x <= 1`, `t >= 0`.

    `u = 0` at both ends and `u(x, 0) = sin(pi x)`.

    ??? cite "Reference"

        C. Wu, M. Zhu, Q. Tan, Y. Kartha and L. Lu, "A comprehensive study of
        non-adaptive and residual-based adaptive sampling for physics-informed neural
        networks", Computer Methods in Applied Mechanics and Engineering 403, 2023,
        section 3.2.
    """
    xp = x.__array_namespace__()
    return xp.sin(math.pi * x) * xp.exp(-t)


def diffusion_source(x: Any, t: Any) -> Any:
    """What drives [`diffusion`][]."""
    xp = x.__array_namespace__()
    return (math.pi**2 - 1) * xp.sin(math.pi * x) * xp.exp(-t)


def diffusion_reference(num_x: int = 201, num_t: int = 101) -> Reference:
    axes = {"x": np.linspace(-1, 1, num_x), "t": np.linspace(0, 1, num_t)}
    return over_grid(axes, diffusion)


def heat(x: Any, y: Any, t: Any) -> Any:
    """A sum of modes that solves `u_t = HEAT_ALPHA (u_xx + u_yy)` on the unit square.

    `u = 0` on the boundary; every mode decays at its own rate.
    """
    xp = x.__array_namespace__()
    terms = [
        amplitude
        * xp.sin(m * math.pi * x)
        * xp.sin(n * math.pi * y)
        * xp.exp(-HEAT_ALPHA * math.pi**2 * (m**2 + n**2) * t)
        for m, n, amplitude in HEAT_MODES
    ]
    return sum(terms[1:], terms[0])


def heat_reference(num_space: int = 41, num_t: int = 21) -> Reference:
    """On the unit square, `0 <= t <= 1`."""
    side = np.linspace(0, 1, num_space)
    return over_grid({"x": side, "y": side, "t": np.linspace(0, 1, num_t)}, heat)
