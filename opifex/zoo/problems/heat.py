"""Heat that spreads in the plane."""

from typing import Any

from ..._problem.conditions import Dirichlet, Initial
from ..._problem.pde import PDE
from ...derivatives import residual
from ...geometry.box import Box, Interval
from .. import references
from ..base import Benchmark
from .pinn import pinn


def heat(dtype: Any = None) -> Benchmark:
    """The heat equation on the unit square, three modes that decay each at its rate;
    the start and `u = 0` on the boundary are exact."""

    @residual("x y t")
    def equation(u, x, y, t):
        return u.t - references.HEAT_ALPHA * u.lap("x y")

    domain = Box([0, 0], [1, 1], dtype) * Interval(0, 1, dtype)
    conditions = [
        Dirichlet("boundary", exact=True),
        Initial(references.heat, exact=True),
    ]
    return pinn(
        "heat",
        "u_t = 0.02 Laplace u on the unit square, u = 0 around: three modes decay",
        PDE(domain, equation, conditions),
        references.heat_reference,
        num_points={"interior": 2000},
        steps=1500,
    )
