"""Problems in which a profile is carried along, in one dimension of space."""

import math
from typing import Any

import jax.numpy as jnp

from ..._problem.conditions import Dirichlet, Initial, Periodic
from ..._problem.pde import PDE
from ...derivatives import residual
from ...geometry.box import Interval
from .. import references
from ..base import Benchmark
from .pinn import pinn
from .scaled import sines


def burgers(dtype: Any = None) -> Benchmark:
    """Burgers' equation with `nu = 0.01 / pi`, where a shock forms at `x = 0`.

    As in the first papers on physics-informed networks; the ansatz is that of Wu et al.
    (2023), section 4.

    ??? cite "Reference"

        M. Raissi, P. Perdikaris and G. E. Karniadakis, "Physics-informed neural
        networks", Journal of Computational Physics 378, 2019, appendix A.
    """

    @residual("x t")
    def equation(u, x, t):
        return u.t + u * u.x - references.NU * u.xx

    start = lambda x, t: -jnp.sin(jnp.pi * x)
    conditions = [Dirichlet("boundary", exact=True), Initial(start, exact=True)]
    return pinn(
        "burgers",
        "u_t + u u_x = nu u_xx, nu = 0.01/pi: a shock forms at x = 0",
        PDE(_strip(-1, 1, dtype), equation, conditions),
        references.burgers_reference,
        num_points={"interior": 4000},
        sampler="rad",
        steps=12000,
    )


def kdv(dtype: Any = None) -> Benchmark:
    """Korteweg and de Vries' equation, where a cosine breaks up into solitons.

    The same as in Zabusky and Kruskal, see [`solve_kdv`][], with half their period and
    up to time one.
    """

    @residual("x t")
    def equation(u, x, t):
        return u.t + u * u.x + references.KDV_DISPERSION * u.xxx

    start = lambda x, t: jnp.cos(jnp.pi * x)
    conditions = [Periodic("left", "right", exact=True), Initial(start, exact=True)]
    return pinn(
        "kdv",
        "u_t + u u_x + 0.022^2 u_xxx = 0, periodic: a cosine breaks up into solitons",
        PDE(_strip(-1, 1, dtype), equation, conditions),
        references.kdv_reference,
        num_points={"interior": 2000},
        sampler="rad",
        steps=4500,
    )


def advection(dtype: Any = None) -> Benchmark:
    """Advection at speed 30, at which plain networks fail (Krishnapriyan et al., see
    [`opifex.zoo.references.advection`][]); hence sines, and time in a scale of its own.
    """

    @residual("x t")
    def equation(u, x, t):
        return u.t + references.ADVECTION_SPEED * u.x

    start = lambda x, t: jnp.sin(x)
    conditions = [Periodic("left", "right", exact=True), Initial(start, exact=True)]
    return pinn(
        "advection",
        "u_t + 30 u_x = 0, periodic: a sine goes round almost five times",
        PDE(_strip(0, 2 * math.pi, dtype), equation, conditions),
        references.advection_reference,
        num_points={"interior": 2000},
        network=sines(1, 1, 15),  # half a unit of time is 15 radians
        sampler="rad",
        steps=2500,
    )


def _strip(start: int | float, end: int | float, dtype: Any) -> Any:
    """An interval of space during one unit of time."""
    return Interval(start, end, dtype) * Interval(0, 1, dtype)
