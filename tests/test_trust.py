"""Small loss, wrong solution: what is said about a model beside its loss."""

import logging

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from opifex._problem.conditions import Dirichlet, Initial, Measured
from opifex._problem.conservation import mass
from opifex._problem.pde import PDE
from opifex._trust import trust
from opifex.derivatives import residual
from opifex.geometry import Interval


class Sines(eqx.Module):
    """`sum_j c_j sin(j pi x)`."""

    c: jax.Array

    def __call__(self, p):
        j = jnp.arange(1, self.c.size + 1, dtype=p.dtype)
        return jnp.sum(self.c * jnp.sin(j * jnp.pi * p))[None]


def source(x):
    return jnp.pi**2 * (jnp.sin(jnp.pi * x) + 16 * jnp.sin(4 * jnp.pi * x))


@residual("x")
def poisson(u, x):
    return u.xx + source(x)


POISSON = PDE(Interval(0.0, 1.0), poisson, [Dirichlet("boundary")])


def solved(points):
    """The sines that fit the equation at some points, least in norm."""
    wave = jnp.pi * jnp.arange(1.0, 25.0)
    matrix = wave[None] ** 2 * jnp.sin(wave[None] * points[:, None])
    return Sines(jnp.linalg.lstsq(matrix, source(points))[0])


@pytest.mark.parametrize("num, warned", [(6, True), (60, False)])
def test_warns_of_a_model_that_fits_its_points_alone(num, warned, caplog):
    points = jnp.linspace(0.02, 0.97, num)
    model = solved(points)
    batch = {"interior": points[:, None], "boundary": jnp.array([[0.0], [1.0]])}
    assert sum(POISSON.terms(model, batch, jr.key(0))[0].values()) < 1e-20
    with caplog.at_level(logging.WARNING, logger="opifex"):
        found = trust(POISSON, model, batch, jr.key(1), 200)
    assert ("Small loss, wrong solution?" in caplog.text) == warned
    assert (found["residual_ratio"] > 10) == warned
    x = jnp.linspace(0, 1, 101)[:, None]
    truth = jnp.sin(jnp.pi * x) + jnp.sin(4 * jnp.pi * x)
    wrong = jnp.linalg.norm(jax.vmap(model)(x) - truth) / jnp.linalg.norm(truth)
    assert (wrong > 0.1) if warned else (wrong < 1e-10)


def test_what_is_reported():
    @residual("x t")
    def advection(u, x, t):
        return u.t + u.x

    conditions = [
        Dirichlet("left", 3.0, weight=100),
        Initial(lambda x, t: x, exact=True),
    ]
    seen = Measured(jnp.array([[0.5, 1.0], [1.0, 0.0]]), jnp.zeros(2), weight=9)
    problem = PDE(
        Interval(0.0, 1.0) * Interval(0.0, 2.0),
        advection,
        conditions,
        measured=[seen],
        conserved=[mass("x t", weight=4)],
        free="right",
    )
    # u = x + t * 1, whose residual is 2 everywhere.
    model = problem.impose(lambda z: jnp.ones(1))
    found = trust(problem, model, {"interior": jnp.ones((3, 2))}, jr.key(0))
    size = lambda rms, largest: {"rms": rms, "max": largest}
    expected = {
        "residual_ratio": 1.0,
        "residual": {"interior": size(2.0, 2.0)},
        "training_residual": {"interior": size(2.0, 2.0)},
        "measured": {"data": size((3.25 / 2) ** 0.5, 1.5)},
        # t, at 65 times from 0 to 2.
        "drift": {"mass": size(float(np.sqrt(np.mean(np.linspace(0, 2, 65) ** 2))), 2)},
    }
    conditions = found.pop("conditions")
    jax.tree_util.tree_map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12), found, expected
    )
    # |t - 3| over the left end, by a thousand random times; without weights.
    np.testing.assert_allclose(conditions["left/u"]["rms"], (13 / 3) ** 0.5, rtol=0.05)
    np.testing.assert_allclose(conditions["left/u"]["max"], 3, rtol=0.05)
    assert conditions["initial/u"]["max"] < 1e-15
    batch = {"interior": jnp.ones((3, 2))}
    under_jit = jax.jit(lambda key: trust(problem, model, batch, key))
    np.testing.assert_allclose(under_jit(jr.key(0))["residual_ratio"], 1.0)


def test_bad_number():
    with pytest.raises(ValueError, match="`num_points` must be a whole number"):
        trust(POISSON, solved(jnp.ones(3)), {}, jr.key(0), 0)
