"""Points that carry weights, in the loss and under every weighting."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest

import opifex as opx
from opifex._problem.base import Weighted

from .helpers import bits, WEIGHTINGS


class Fit(opx.AbstractResidualProblem):
    """A polynomial that is to be a sine inside and to vanish at the ends."""

    def residuals(self, model, batch):
        value = lambda x: model[0] * x + model[1] * x**2
        x = batch["interior"][:, 0]
        return {
            "interior": value(x) - jnp.sin(x),
            "boundary": value(batch["boundary"][:, 0]),
        }


START = jnp.array([0.3, 0.2])
X = jnp.linspace(-0.9, 0.9, 8)[:, None]
ENDS = jnp.array([[-1.0], [1.0], [-1.0], [1.0]])
TERMS = ("ones", "grad_norm_balance", "relobralo")
POINTS = ("causal", "residual_attention", "self_adaptive", "augmented_lagrangian")


@pytest.mark.parametrize(
    ("name", "accumulate"),
    [
        *((name, 1) for name in TERMS + POINTS),
        ("ones", 2),
        ("product", 2),
        (POINTS[-1], 2),
    ],
)
def test_weights_are_multiplicities(name, accumulate):
    # Points of weight 1.5 and 0.5 are those that are there three times and once, to
    # every weighting; the same everywhere in the parts of time that `Causal` looks at.
    left, right = X[:4], X[4:]
    weight = jnp.repeat(jnp.array([0.5, 1.5]), 8)
    weighted = Weighted(jnp.concatenate([left, left, right, right]), weight)
    results = []
    for interior in (weighted, jnp.concatenate([left, right, right, right])):
        recipe = opx.Recipe(
            Fit(),
            optax.sgd(1e-2),
            opx.Fixed({"interior": interior, "boundary": ENDS}),
            opx.NoRecovery(),
            WEIGHTINGS[name](),
            accumulate=accumulate,
            steps=6,
        )
        state = recipe.init(START, key=jr.key(0))
        state, infos = eqx.filter_jit(recipe)(state)
        results.append((state.model, infos.loss, infos.terms))
    for a, b in zip(bits(results[0]), bits(results[1]), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-11)


def test_weights_enter_the_tangent_kernel():
    weight = jnp.linspace(0.2, 1.8, 8)
    sampler = opx.Fixed({"interior": Weighted(X, weight), "boundary": ENDS})
    weighting = opx.NTK(every=1)
    recipe = opx.Recipe(Fit(), optax.sgd(0.0), sampler, weighting=weighting, steps=1)
    state, _ = eqx.filter_jit(recipe)(recipe.init(START, key=jr.key(0)))
    x = np.asarray(X[:, 0])
    inside, ends = np.sum(weight * (x**2 + x**4)), 4 * 2.0
    found = state.weighting_state
    np.testing.assert_allclose(found["interior"], (inside + ends) / inside)
    np.testing.assert_allclose(found["boundary"], (inside + ends) / ends)


def test_weights_of_a_pde_are_a_quadrature():
    # The mean of the squared residual over the domain, by the rule of Gauss.
    @opx.residual("x y")
    def equation(u, x, y):
        return u.x - y

    square = opx.Box([0.0, 0.0], [1.0, 2.0])
    problem = opx.PDE(square, equation, free="boundary")
    points, weight = square.quadrature(64)
    batch = {"interior": Weighted(points, weight * weight.shape[0] / square.measure)}
    model = lambda p: jnp.array([p[0] ** 2])
    term = jax.jit(lambda: problem.terms(model, batch, jr.key(0))[0]["interior"])()
    # The mean of (2 x - y)^2 over [0, 1] x [0, 2].
    np.testing.assert_allclose(term, 4 / 3 - 2 + 4 / 3, rtol=1e-12)


class Own(Fit):
    def terms(self, model, batch, key):
        return super().terms(model, batch, key)


class Short(Fit):
    def residuals(self, model, batch):
        return {name: r[1:] for name, r in super().residuals(model, batch).items()}


class Ends(Fit):
    def residuals(self, model, batch):
        return {"boundary": super().residuals(model, batch)["boundary"]}


def started(problem, batch=None):
    batch = (
        {"interior": Weighted(X, X[:, 0]), "boundary": ENDS} if batch is None else batch
    )
    recipe = opx.Recipe(problem, optax.sgd(0.1), opx.Fixed(batch))
    return recipe(recipe.init(jnp.ones(2), key=jr.key(0)))


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: Weighted(X, X[1:, 0]), "weight"),
        (lambda: started(Own()), r"\['interior'\] carry weights, but `Own`.*`RAD`"),
        (lambda: started(Short()), r"'interior' carry weights of shape \(8,\).*\(7,\)"),
        (lambda: started(Ends()), "'interior' in `weights of points`"),
    ],
)
def test_bad_input(call, match):
    with pytest.raises((ValueError, TypeError), match=match):
        call()
