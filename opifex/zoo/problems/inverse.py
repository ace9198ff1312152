"""Problems in which a coefficient is to be found, from measured values."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from ..._problem.coefficients import Inverse, Positive
from ..._problem.conditions import Dirichlet, Initial, Measured
from ..._problem.pde import PDE
from ...derivatives import residual
from ...geometry.box import Interval
from .. import references
from ..base import Benchmark
from .pinn import pinn


def burgers_inverse(dtype: Any = None) -> Benchmark:
    """The viscosity of Burgers' equation, from 2000 values with errors of 1 %.

    The initial and the boundary values are known and imposed, otherwise than in the
    paper. The viscosity starts three times too large. See [`burgers_observations`][].

    ??? cite "Reference"

        M. Raissi, P. Perdikaris and G. E. Karniadakis, "Physics-informed neural
        networks", Journal of Computational Physics 378, 2019, section 4.1.1.
    """

    @residual("x t")
    def equation(u, x, t, *, nu):
        return u.t + u * u.x - nu * u.xx

    start = lambda x, t: -jnp.sin(jnp.pi * x)
    problem = PDE(
        Interval(-1, 1, dtype) * Interval(0, 1, dtype),
        equation,
        [Dirichlet("boundary", exact=True), Initial(start, exact=True)],
        measured=[measured(references.burgers_observations(), "u", 30.0, dtype)],
    )
    base = pinn(
        "burgers-inverse",
        "the viscosity of Burgers' equation from 2000 values with errors of 1 %",
        problem,
        references.burgers_reference,
        num_points={"interior": 2000},
        sampler="rad",
        steps=1250,
    )

    def model(key, dtype):
        nu = Positive(jnp.asarray(3 * references.NU, dtype))
        return Inverse(base.model(key, dtype), {"nu": nu})

    return dataclasses.replace(base, model=model, coefficients={"nu": references.NU})


def diffusion_reaction_inverse(dtype: Any = None) -> Benchmark:
    """The rate of a reaction, a function, from eight exact values of the solution.

    `0.01 u'' - k(x) u = sin(2 pi x)`, `u(0) = u(1) = 0`. The second output of the
    network is the logarithm of `k`, which so is positive. See [`diffusion_reaction`][].
    """

    @residual("x", fields="u log_k")
    def equation(u, log_k, x):
        reaction = jnp.exp(log_k.value) * u
        return references.DIFFUSION_REACTION_D * u.xx - reaction - source(x)

    source = lambda x: jnp.sin(2 * jnp.pi * x)
    observed = references.diffusion_reaction_observations()
    base = pinn(
        "diffusion-reaction-inverse",
        "k(x) in 0.01 u'' - k(x) u = sin(2 pi x), from 8 values of u",
        PDE(
            Interval(0, 1, dtype),
            equation,
            [Dirichlet("boundary", field="u", exact=True)],
            measured=[measured(observed, "u", 100.0, dtype)],
        ),
        references.diffusion_reaction_reference,
        num_points={"interior": 256},
        hidden=(20, 20),
        steps=1500,
    )

    def predict(model, points):
        u, log_k = jax.vmap(model, out_axes=-1)(points)
        return {"u": u, "k": jnp.exp(log_k)}

    return dataclasses.replace(base, predict=predict)


def measured(
    observed: references.Observations, field: str, weight: float, dtype: Any
) -> Measured:
    """Observations of a field as a part of a problem in some dtype."""
    cast = lambda x: x if dtype is None else x.astype(dtype)
    points, values = cast(observed.points), cast(observed.values[field])
    return Measured(points, values, field=field, weight=weight)
