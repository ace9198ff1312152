"""Poisson's equation in many dimensions."""

from typing import Any

import jax.numpy as jnp

from ..._problem.conditions import Dirichlet
from ..._problem.pde import PDE
from ...derivatives import residual, STDE
from ...geometry.ball import Ball
from ...geometry.box import Box
from .. import references
from ..base import Benchmark
from ..references.many_dims import POISSON_ND, TWO_BODY_DIM
from .pinn import pinn


def poisson_10d(dtype: Any = None) -> Benchmark:
    """Poisson's equation on the unit cube of ten dimensions, given on its faces."""
    dim = POISSON_ND

    @residual(_names(dim))
    def equation(u, *x):
        return u.lap() + references.poisson_nd_source(jnp.stack(x, axis=-1))

    given = lambda *x: references.poisson_nd(jnp.stack(x, axis=-1))
    return pinn(
        "poisson-10d",
        "-Laplace u = f on a cube of ten dimensions, given around: sum sin(pi x_i / 2)",
        PDE(Box([0] * dim, [1] * dim, dtype), equation, [Dirichlet("boundary", given)]),
        references.poisson_nd_reference,
        num_points={"interior": 1000, "boundary": 1000},
        hidden=(20, 20),
        steps=3000,
    )


def two_body_100d(dtype: Any = None) -> Benchmark:
    """Poisson's equation on the unit ball of a hundred dimensions, where neighbouring
    coordinates interact; `u = 0` exactly, the Laplacian from 16 directions."""
    dim = TWO_BODY_DIM

    @residual(_names(dim), derivatives=STDE(16))
    def equation(u, *x):
        return u.lap() + references.two_body_source(jnp.stack(x, axis=-1))

    ball = Ball([0] * dim, 1, dtype)
    return pinn(
        "two-body-100d",
        "-Laplace u = f on a ball of a hundred dimensions, u = 0 around, by STDE",
        PDE(ball, equation, [Dirichlet("boundary", exact=True)]),
        references.two_body_reference,
        num_points={"interior": 256},
        hidden=(64, 64, 64),
        sampler="uniform",
        optimizer="adam",
        steps=5000,
        dtype="float32",
    )


def _names(dim: int) -> str:
    return " ".join(f"x{i}" for i in range(dim))
