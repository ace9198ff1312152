"""Incompressible flow in the plane, density one."""

import math
from typing import Any

from ..._problem.conditions import Dirichlet, Initial, Periodic
from ..._problem.pde import PDE
from ...derivatives import residual
from ...geometry.box import Box, Interval
from .. import references
from ..base import Benchmark
from .pinn import pinn


def kovasznay(dtype: Any = None) -> Benchmark:
    """The steady flow behind a grid, Reynolds number 40; the velocities are given on
    the boundary, the pressure nowhere."""
    nu = 1 / references.KOVASZNAY_REYNOLDS

    @residual("x y", fields="u v p")
    def equation(u, v, p, x, y):
        return (
            u * u.x + v * u.y + p.x - nu * u.lap(),
            u * v.x + v * v.y + p.y - nu * v.lap(),
            u.x + v.y,
        )

    given = [lambda x, y, i=i: references.kovasznay(x, y)[i] for i in range(2)]
    conditions = [
        Dirichlet("boundary", value, field=field, weight=10)
        for field, value in zip("uv", given, strict=True)
    ]
    return pinn(
        "kovasznay",
        "steady Navier-Stokes behind a grid, Re = 40: the velocity on the boundary",
        PDE(Box([-0.5, -0.5], [1, 1.5], dtype), equation, conditions),
        references.kovasznay_reference,
        num_points={"interior": 2000, "boundary": 400},
        steps=6500,
    )


def taylor_green(dtype: Any = None) -> Benchmark:
    """Decaying vortices; periodic, and with the given start, exactly."""
    nu = references.TAYLOR_GREEN_NU

    @residual("x y t", fields="u v p")
    def equation(u, v, p, x, y, t):
        return (
            u.t + u * u.x + v * u.y + p.x - nu * u.lap("x y"),
            v.t + u * v.x + v * v.y + p.y - nu * v.lap("x y"),
            u.x + v.y,
        )

    begin = [lambda x, y, t, i=i: references.taylor_green(x, y, t)[i] for i in range(2)]
    conditions = [
        Periodic(*sides, field=field, exact=True)
        for field in "uvp"
        for sides in (("left", "right"), ("bottom", "top"))
    ]
    conditions += [
        Initial(value, field=field, exact=True)
        for field, value in zip("uv", begin, strict=True)
    ]
    side = 2 * math.pi
    domain = Box([0, 0], [side, side], dtype) * Interval(0, 1, dtype)
    return pinn(
        "taylor-green",
        "Navier-Stokes, nu = 0.01, periodic: four vortices decay",
        PDE(domain, equation, conditions),
        references.taylor_green_reference,
        num_points={"interior": 2000},
        steps=8500,
    )
