"""Waves with closed solutions."""

import math
from typing import Any

import numpy as np

from ..base import Reference
from .grids import over_grid


ADVECTION_SPEED = 30.0
WAVE_SPEED = 2.0


def advection(x: Any, t: Any) -> Any:
    """The solution of `u_t + 30 u_x = 0`, periodic on `[0, 2 pi]`, `u(x, 0) = sin x`.

    ??? cite "Reference"

        A. Krishnapriyan, A. Gholami, S. Zhe, R. Kirby and M. Mahoney, "Characterizing
        possible failure modes in physics-informed neural networks", NeurIPS 2021,
        section 3.1.
    """
    return x.__array_namespace__().sin(x - ADVECTION_SPEED * t)


def advection_reference(num_x: int = 256, num_t: int = 101) -> Reference:
    x = np.linspace(0, 2 * math.pi, num_x)
    return over_grid({"x": x, "t": np.linspace(0, 1, num_t)}, advection)


def wave(x: Any, t: Any) -> Any:
    """The solution of `u_tt = 4 u_xx` on `0 <= x <= 1`, `u = 0` at both ends.

    `u(x, 0) = sin(pi x) + sin(4 pi x) / 2`, `u_t(x, 0) = 0`; as in Wu et al. (2023),
    section 3.2 (see [`diffusion`][]).
    """
    xp, pi = x.__array_namespace__(), math.pi
    slow = xp.sin(pi * x) * xp.cos(WAVE_SPEED * pi * t)
    fast = xp.sin(4 * pi * x) * xp.cos(4 * WAVE_SPEED * pi * t)
    return slow + 0.5 * fast


def wave_reference(num_x: int = 201, num_t: int = 201) -> Reference:
    axes = {"x": np.linspace(0, 1, num_x), "t": np.linspace(0, 1, num_t)}
    return over_grid(axes, wave)
