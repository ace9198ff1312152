"""Poisson's and Helmholtz' equations in the plane."""

from typing import Any

from ..._problem.conditions import Dirichlet
from ..._problem.pde import PDE
from ...derivatives import residual
from ...geometry.ball import Disc
from ...geometry.box import Box
from ...geometry.polygon import Polygon
from .. import references
from ..base import Benchmark
from .pinn import pinn
from .scaled import scaled


def poisson(dtype: Any = None) -> Benchmark:
    """Poisson's equation on the unit square, solved by one wave; `u = 0` exactly."""

    @residual("x y")
    def equation(u, x, y):
        return u.lap() + references.poisson_source(x, y)

    square = Box([0, 0], [1, 1], dtype)
    return pinn(
        "poisson",
        "-Laplace u = f on the unit square, u = 0 around: sin(pi x) sin(pi y)",
        PDE(square, equation, [Dirichlet("boundary", exact=True)]),
        references.poisson_reference,
        num_points={"interior": 1000},
        hidden=(20, 20),
        steps=4000,
    )


def poisson_disc(dtype: Any = None) -> Benchmark:
    """Poisson's equation on the unit disc; `u = 0` exactly."""

    @residual("x y")
    def equation(u, x, y):
        return u.lap() + references.disc_source(x, y)

    disc = Disc([0, 0], 1, dtype)
    return pinn(
        "poisson-disc",
        "-Laplace u = f on the unit disc, u = 0 around: (1 - r^2) exp(x) cos(y)",
        PDE(disc, equation, [Dirichlet("boundary", exact=True)]),
        references.disc_reference,
        num_points={"interior": 1000},
        hidden=(20, 20),
        steps=2000,
    )


def poisson_l_shape(dtype: Any = None) -> Benchmark:
    """Poisson's equation on an L, whose solution has no second derivatives at the inner
    corner.

    `u = 0` is not exact but weighted: the distance to the boundary has a Laplacian that
    grows as `1 / r` towards every corner, and training on random points explodes there.
    """

    @residual("x y")
    def equation(u, x, y):
        return u.lap() + 1

    corners = [[0, 0], [1, 0], [1, 1], [-1, 1], [-1, -1], [0, -1]]
    shape = Polygon(corners, dtype=dtype)
    return pinn(
        "poisson-l-shape",
        "-Laplace u = 1 on an L, u = 0 around: not smooth at the inner corner",
        PDE(shape, equation, [Dirichlet("boundary", weight=1000)]),
        references.l_shape_reference,
        num_points={"interior": 1500, "boundary": 500},
        sampler="rad",
        steps=2500,
    )


def helmholtz(dtype: Any = None) -> Benchmark:
    """The Helmholtz equation with `k = 1`, solved by a wave four times as short in `y`
    as in `x`; `u = 0` exactly."""

    @residual("x y")
    def equation(u, x, y):
        return u.lap() + u - references.helmholtz_source(x, y)

    square = Box([-1, -1], [1, 1], dtype)
    return pinn(
        "helmholtz",
        "Laplace u + u = f on a square, u = 0 around: sin(pi x) sin(4 pi y)",
        PDE(square, equation, [Dirichlet("boundary", exact=True)]),
        references.helmholtz_reference,
        num_points={"interior": 2000},
        network=scaled(2, 8),  # as the source, four times as fast in y
        steps=5500,
    )
