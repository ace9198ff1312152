"""Unknown coefficients: transforms, training, error bars."""

import equinox as eqx
import jax
import jax.flatten_util
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest

import opifex as opx
from opifex._problem.coefficients import (
    Bounded,
    Free,
    Inverse,
    Positive,
    separately,
)
from opifex._problem.conditions import Dirichlet, Measured, Robin
from opifex._problem.pde import PDE
from opifex._problem.uncertainty import coefficient_errors
from opifex.derivatives import residual
from opifex.geometry import Interval
from tests.helpers import bits


UNIT = Interval(0.0, 1.0)


@residual("x")
def growth(u, x, *, rate):
    return u.x - rate * u


class Polynomial(eqx.Module):
    """`sum_i c_i x^i`: a model that is linear in its parameters."""

    c: jax.Array

    def __call__(self, p):
        powers = [p[0] ** i for i in range(self.c.size)]
        return jnp.sum(self.c * jnp.stack(powers))[None]


def test_transforms():
    for coefficient in (Free(2.5), Positive(2.5), Bounded(1, 3, 2.5)):
        np.testing.assert_allclose(coefficient.value, 2.5, rtol=1e-15)
        assert coefficient.value.dtype == jnp.float64
    move = lambda c, by: eqx.tree_at(lambda c: c.raw, c, c.raw + by).value
    np.testing.assert_allclose(move(Positive(1e-3), 1.0), 1e-3 * jnp.e, rtol=1e-14)
    # A logistic function of the logarithm of 3 is 3/4 of the way.
    np.testing.assert_allclose(move(Bounded(1, 3), jnp.log(3.0)), 2.5, rtol=1e-14)
    assert move(Positive(2.0), -1e3) >= 0 and 1 <= move(Bounded(1, 3), -1e3) <= 3
    np.testing.assert_allclose(Positive(jnp.array([1.0, 4.0])).value, [1.0, 4.0])
    assert Positive(jnp.ones((), jnp.float32)).value.dtype == jnp.float32


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: Positive(0.0), "`start` must be positive, got 0.0"),
        (lambda: Positive(jnp.array([1.0, -2.0])), "`start` must be positive"),
        (lambda: Positive(float("nan")), "`start` holds NaN"),
        (lambda: Free(float("inf")), "`start` holds NaN or an infinity"),
        (lambda: Bounded(0, 1, 1.0), "`start` must lie between 0 and 1, got 1.0"),
        (lambda: Bounded(1, 1), "`lower` must be less than `upper`"),
        (lambda: Bounded(0, float("inf")), "both finite, got 0 and inf"),
    ],
)
def test_bad_start(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_bad_model():
    problem = PDE(UNIT, growth, [Dirichlet("left", 1.0, exact=True)], free="right")
    inverse = Inverse(lambda z: z, {"rate": Free(1.0)})
    with pytest.raises(TypeError, match=r"`Inverse\(problem.impose\(network\)"):
        problem.impose(inverse)
    with pytest.raises(TypeError, match="must be `Free`, `Positive` or `Bounded`"):
        Inverse.__check_init__(eqx.tree_at(lambda m: m.coefficients, inverse, {"a": 1}))


def test_coefficient_of_a_condition():
    # -u' = h (u - 1/2) at the left end, with h unknown.
    condition = Robin("left", a=lambda x, *, h: h, value=lambda x, *, h: 0.5 * h)
    equation = residual("x")(lambda u, x: u.xx)
    problem = PDE(UNIT, equation, [condition], free="right")
    model = Inverse(lambda p: 3 + 2 * p, {"h": Free(0.7)})
    batch = {"interior": jnp.ones((2, 1)), "left": jnp.zeros((1, 1))}
    found = problem.residuals(model, batch)["left/u+u_n"]
    np.testing.assert_allclose(found, 0.7 * 3 - 2 - 0.5 * 0.7, rtol=1e-14)


def imposed():
    """A problem with an exact condition, and the start of a model of it."""
    problem = PDE(UNIT, growth, [Dirichlet("left", 1.0, exact=True)], free="right")
    start = Polynomial(jnp.array([0.1, 0.2]))
    return problem, Inverse(problem.impose(start), {"rate": Positive(2.0)})


@pytest.mark.parametrize("optim", [opx.ssbroyden(), optax.adamw(0.1, weight_decay=0.1)])
def test_what_is_frozen_stays(optim):
    problem, model = imposed()
    points = {"interior": jnp.linspace(0.1, 0.9, 5)[:, None]}
    recipe = opx.Recipe(problem, optim, opx.Fixed(points), steps=3)
    end = eqx.filter_jit(lambda s: recipe(s)[0])(recipe.init(model, key=jr.key(0)))
    frozen = lambda m: (m.network.ansatz, m.coefficients["rate"].scale)
    assert len(bits(frozen(model))) >= 3
    for before, after in zip(bits(frozen(model)), bits(frozen(end.model)), strict=True):
        np.testing.assert_array_equal(before, after)
    assert end.model.coefficients["rate"].raw != 0
    assert jnp.all(end.model.network.network.c != model.network.network.c)


def test_two_learning_rates():
    _, model = imposed()
    optim = separately(optax.sgd(1.0), optax.sgd(0.01))
    params = eqx.filter(model, opx.trainable(model))
    ones = jax.tree_util.tree_map(jnp.ones_like, params)
    updates, _ = optim.update(ones, optim.init(params), params)
    np.testing.assert_array_equal(updates.network.network.c, [-1.0, -1.0])
    np.testing.assert_array_equal(updates.coefficients["rate"].raw, -0.01)
    with pytest.raises(TypeError, match="is for an `Inverse` model"):
        optim.init(params.network)


class Regression(opx.AbstractResidualProblem):
    """`y = c_0 + c_1 x + a z`: linear in all its unknowns."""

    y: jax.Array

    def residuals(self, model, batch):
        x, z = batch["data"].T
        line = jax.vmap(model.network)(x[:, None])[:, 0]
        return {"data": line + model.values["a"] * z - self.y}


@pytest.mark.parametrize("kind", [Free, Positive, lambda a: Bounded(0, 2, a)])
def test_error_of_a_linear_model_is_that_of_the_textbook(kind, key):
    x, z, noise = jr.normal(key, (3, 30))
    design = np.stack([np.ones(30), x, z], 1)
    y = design @ np.array([0.3, -0.2, 0.8]) + 0.1 * np.asarray(noise)
    best, rss, *_ = np.linalg.lstsq(design, y)
    covariance = rss[0] / (30 - 3) * np.linalg.inv(design.T @ design)
    model = Inverse(Polynomial(jnp.asarray(best[:2])), {"a": kind(best[2])})
    batch = {"data": jnp.stack([x, z], 1)}
    found = coefficient_errors(Regression(jnp.asarray(y)), model, batch)
    np.testing.assert_allclose(found["a"], covariance[2, 2] ** 0.5, rtol=1e-9)
    # Weights of terms cancel: ten times the residual is the same estimate.
    network = Polynomial(10 * jnp.asarray(best[:2]))
    scaled = Inverse(network, {"a": Free(10 * best[2])})
    ten = coefficient_errors(Regression(10 * jnp.asarray(y)), scaled, batch)
    np.testing.assert_allclose(ten["a"], 10 * found["a"], rtol=1e-9)


def test_no_coefficients_no_errors():
    assert coefficient_errors(imposed()[0], imposed()[1].network, {}) == {}


def test_error_bars_are_calibrated():
    """Over 300 draws of the noise, in a problem with network and equation."""
    truth, sigma = 1.5, 0.02
    x = jnp.linspace(0.0, 1.0, 25)[:, None]
    batch = {"interior": jnp.linspace(0.0, 1.0, 30)[:, None]}

    def fitted(values):
        seen = Measured(x, values, name="data")
        problem = PDE(UNIT, growth, measured=[seen], free="boundary")
        start = Inverse(Polynomial(jnp.ones(7)), {"rate": Positive(0.5)})
        params, rest = eqx.partition(start, opx.trainable(start))
        flat, unravel = jax.flatten_util.ravel_pytree(params)
        model = lambda flat: eqx.combine(unravel(flat), rest)

        def wrong(flat):
            r = problem.residuals(model(flat), batch)
            return jnp.concatenate([30 * r["interior"], r["data"]])

        def step(_, flat):
            return flat - jnp.linalg.lstsq(jax.jacfwd(wrong)(flat), wrong(flat))[0]

        best = model(jax.lax.fori_loop(0, 12, step, flat))
        error = coefficient_errors(problem, best, batch)["rate"]
        return best.values["rate"], error

    noise = sigma * jr.normal(jr.key(3), (300, 25))
    values = jnp.exp(truth * x[:, 0])[None] + noise
    rates, errors = eqx.filter_jit(jax.vmap(fitted))(values)
    spread = jnp.std(rates)
    # The standard error of `spread` is 4 %, that of the coverage 0.027.
    np.testing.assert_allclose(jnp.mean(errors), spread, rtol=0.15)
    covered = jnp.mean(jnp.abs(rates - truth) < errors)
    assert 0.60 < covered < 0.76
    np.testing.assert_allclose(jnp.mean(rates), truth, atol=4 * spread / 300**0.5)
