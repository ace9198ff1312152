"""Diffusion, reaction and vibration in one dimension of space."""

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


def diffusion(dtype: Any = None) -> Benchmark:
    """Diffusion with a source, of the comparison of samplers by Wu et al. (2023)."""

    @residual("x t")
    def equation(u, x, t):
        return u.t - u.xx - references.diffusion_source(x, t)

    start = lambda x, t: jnp.sin(jnp.pi * x)
    return pinn(
        "diffusion",
        "u_t = u_xx + f, u = 0 at both ends: sin(pi x) exp(-t)",
        PDE(
            Interval(-1, 1, dtype) * Interval(0, 1, dtype),
            equation,
            [Dirichlet("boundary", exact=True), Initial(start, exact=True)],
        ),
        references.diffusion_reference,
        num_points={"interior": 500},
        hidden=(16, 16),
        steps=1500,
    )


def allen_cahn(dtype: Any = None) -> Benchmark:
    """Allen and Cahn's equation, where two phases part with sharp fronts.

    Periodic, from `x^2 cos(pi x)`, whose slope jumps at `x = 1`: as in Raissi et al.,
    see [`burgers`][]. The start is not exact but weighted: `u(x, 0) + t N(x, t)` with a
    smooth network would keep that jump for good.
    """

    @residual("x t")
    def equation(u, x, t):
        return u.t - references.ALLEN_CAHN_EPS * u.xx + 5 * (u**3 - u)

    start = lambda x, t: x**2 * jnp.cos(jnp.pi * x)
    return pinn(
        "allen-cahn",
        "u_t = 1e-4 u_xx + 5 (u - u^3), periodic: two phases part with sharp fronts",
        PDE(
            Interval(-1, 1, dtype) * Interval(0, 1, dtype),
            equation,
            [Periodic("left", "right", exact=True), Initial(start, weight=10)],
        ),
        references.allen_cahn_reference,
        num_points={"interior": 4000, "initial": 500},
        sampler="rad",
        steps=7500,
    )


def wave(dtype: Any = None) -> Benchmark:
    """A string that vibrates in two modes, one four times as fast as the other."""

    @residual("x t")
    def equation(u, x, t):
        return u.tt - references.WAVE_SPEED**2 * u.xx

    start = lambda x, t: jnp.sin(jnp.pi * x) + 0.5 * jnp.sin(4 * jnp.pi * x)
    return pinn(
        "wave",
        "u_tt = 4 u_xx, u = 0 at both ends: a string that vibrates in two modes",
        PDE(
            Interval(0, 1, dtype) * Interval(0, 1, dtype),
            equation,
            [
                Dirichlet("boundary", exact=True),
                Initial(start, exact=True),
                Initial(0.0, order=1, exact=True),
            ],
        ),
        references.wave_reference,
        num_points={"interior": 1000},
        network=sines(6, 12),  # the fast mode, in radians by half a side
        sampler="rad",
        steps=2500,
    )
