"""Exact solutions of the incompressible Navier-Stokes equations, density one."""

import math
from typing import Any

import numpy as np

from ..base import Reference
from .grids import over_grid


KOVASZNAY_REYNOLDS = 40.0
TAYLOR_GREEN_NU = 0.01


def kovasznay(x: Any, y: Any) -> tuple[Any, Any, Any]:
    """The steady flow behind a grid, viscosity `1 / KOVASZNAY_REYNOLDS`.

    **Returns:** the velocities `u` and `v` and the pressure `p`.

    ??? cite "Reference"

        L. Kovasznay, "Laminar flow behind a two-dimensional grid", Mathematical
        Proceedings of the Cambridge Philosophical Society 44(1), 1948.
    """
    xp, pi = x.__array_namespace__(), math.pi
    half = KOVASZNAY_REYNOLDS / 2
    rate = half - math.sqrt(half**2 + 4 * pi**2)
    wake = xp.exp(rate * x)
    u = 1 - wake * xp.cos(2 * pi * y)
    v = rate / (2 * pi) * wake * xp.sin(2 * pi * y)
    # As a product, so that p has one value a point whatever y is.
    p = (1 - wake**2) / 2 + 0 * y
    return u, v, p


def kovasznay_reference(num: int = 81) -> Reference:
    """On `[-0.5, 1] x [-0.5, 1.5]`; given velocities leave the mean pressure free."""
    axes = {"x": np.linspace(-0.5, 1, num), "y": np.linspace(-0.5, 1.5, num)}
    return over_grid(axes, kovasznay, fields=("u", "v", "p"), free_mean=("p",))


def taylor_green(x: Any, y: Any, t: Any) -> tuple[Any, Any, Any]:
    """Decaying vortices, periodic on `[0, 2 pi]^2`, viscosity `TAYLOR_GREEN_NU`.

    **Returns:** the velocities `u` and `v` and the pressure `p`.

    ??? cite "Reference"

        G. I. Taylor and A. E. Green, "Mechanism of the production of small eddies from
        large ones", Proceedings of the Royal Society A 158(895), 1937.
    """
    xp = x.__array_namespace__()
    decay = xp.exp(-2 * TAYLOR_GREEN_NU * t)
    u = -xp.cos(x) * xp.sin(y) * decay
    v = xp.sin(x) * xp.cos(y) * decay
    return u, v, -(xp.cos(2 * x) + xp.cos(2 * y)) * decay**2 / 4


def taylor_green_reference(num_space: int = 33, num_t: int = 11) -> Reference:
    """On `[0, 2 pi]^2`, `0 <= t <= 1`; the mean pressure is free at every time."""
    side = np.linspace(0, 2 * math.pi, num_space)
    axes = {"x": side, "y": side, "t": np.linspace(0, 1, num_t)}
    return over_grid(axes, taylor_green, fields=("u", "v", "p"), free_mean=("p",))
