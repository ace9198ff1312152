"""The documented loss, and the problem behind it."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest

import opifex as opx
from opifex._problem.physics_informed import PhysicsInformed
from opifex.core.physics.losses import (
    physics_batch,
    PhysicsInformedLoss,
    PhysicsLossConfig,
    WEIGHTINGS,
)
from opifex.derivatives import residual
from opifex.neural import MLP


def heat_by_hand(model_fn, x, t):
    """As in the user's document: nested `jax.grad` on rows of one point."""
    at = lambda x, t: model_fn(jnp.array([x, t]).reshape(1, -1))
    u_t = jax.grad(lambda t: at(x, t))(t)
    u_xx = jax.grad(jax.grad(lambda x: at(x, t)))(x)
    return u_t - 0.1 * u_xx


@residual("x t")
def heat(u, x, t):
    return u.t - 0.1 * u.xx


def exact(points):
    """Solves the heat equation above."""
    x, t = points.T
    return (jnp.exp(-0.1 * jnp.pi**2 * t) * jnp.sin(jnp.pi * x))[:, None]


POINTS = jr.uniform(jr.key(0), (12, 2))
KNOWN = {
    "data": (POINTS[:3], jnp.ones((3, 1))),
    "boundary": (jnp.array([[0.0, 0.3], [1.0, 0.2]]), jnp.zeros((2, 1))),
    "initial": (jnp.array([[0.5, 0.0]]), jnp.ones((1, 1))),
}


def test_the_parts_are_mean_squares_with_their_weights():
    config = PhysicsLossConfig(
        physics_weight=2.0, boundary_weight=3.0, initial_weight=5.0, data_weight=7.0
    )
    wrong = lambda p: exact(p) + 0.5 * p[:, 1:] ** 2  # leaves t over
    terms = PhysicsInformedLoss(heat, config=config).terms(wrong, POINTS, **KNOWN)
    known = {k: np.mean(np.square(wrong(x) - y)) for k, (x, y) in KNOWN.items()}
    expected = {
        "interior": 2 * np.mean(np.square(POINTS[:, 1])),
        "boundary": 3 * known["boundary"],
        "initial": 5 * known["initial"],
        "data": 7 * known["data"],
    }
    assert sorted(terms) == sorted(expected)
    for name, value in expected.items():
        np.testing.assert_allclose(terms[name], value, rtol=1e-12, atol=1e-28)
    loss = PhysicsInformedLoss(heat_by_hand, config=config)
    np.testing.assert_allclose(
        loss(wrong, POINTS, **KNOWN), sum(expected.values()), rtol=1e-12
    )


@pytest.mark.parametrize("batched", [True, False])
def test_both_ways_to_write_an_equation_agree(batched, key):
    net = MLP((2, 8, 8, 1), key=key)
    model = jax.vmap(net) if batched else net
    losses = [PhysicsInformedLoss(r, batched=batched) for r in (heat, heat_by_hand)]
    value, other = (jax.jit(lambda p, loss=f: loss(model, p))(POINTS) for f in losses)
    np.testing.assert_allclose(value, other, rtol=1e-13)
    batch = physics_batch(POINTS)
    grads = [
        eqx.filter_grad(lambda m, f=f: f.problem.terms(m, batch, key)[0]["interior"])
        for f in (
            PhysicsInformedLoss(heat, batched=False),
            PhysicsInformedLoss(heat_by_hand, batched=False),
        )
    ]
    a, b = (jax.flatten_util.ravel_pytree(g(net))[0] for g in grads)
    np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-13)


def test_named_equations_are_those_of_the_zoo():
    points = jnp.stack([jnp.linspace(-0.9, 0.9, 9), jnp.linspace(0.1, 0.9, 9)], axis=1)
    solution = lambda p: jnp.sin(jnp.pi * p[:, :1]) * jnp.exp(-p[:, 1:])
    loss = PhysicsInformedLoss("diffusion")
    np.testing.assert_allclose(loss(solution, points), 0, atol=1e-24)
    assert loss(lambda p: 1.1 * solution(p), points) > 1e-3


def test_constraints_vanish_where_they_hold():
    points = jnp.linspace(0, 2, 401)[:, None]
    density = lambda p: jnp.ones_like(p) / 2 + 0.3 * jnp.cos(jnp.pi * p)
    names = ["density_positivity", "normalization"]
    loss = PhysicsInformedLoss(constraints=names)
    terms = loss.terms(density, points)
    assert terms["interior/density_positivity"] == 0
    np.testing.assert_allclose(terms["interior/normalization"], 0, atol=1e-5)
    terms = loss.terms(lambda p: density(p) - 0.5, points)
    # The mean of relu(-0.3 cos)^2, and the integral of -0.5 over [0, 2] missing.
    np.testing.assert_allclose(
        terms["interior/density_positivity"], 0.09 / 4, rtol=1e-2
    )
    np.testing.assert_allclose(terms["interior/normalization"], 1, rtol=1e-2)
    own = PhysicsInformedLoss(constraints={"bounded": lambda u, p: u[:, 0] - 1})
    np.testing.assert_allclose(own(lambda p: 0 * p, points), 1, rtol=1e-12)


@pytest.mark.parametrize("name", [None, "grad_norm_balance", "softadapt"])
def test_training_with_a_weighting(name, key):
    config = PhysicsLossConfig()
    if name is not None:
        config = PhysicsLossConfig(adaptive_weighting=True, weighting=name)
    loss = PhysicsInformedLoss(heat_by_hand, config=config, batched=False)
    assert isinstance(loss.problem, PhysicsInformed)
    batch = physics_batch(POINTS, boundary=KNOWN["boundary"], initial=KNOWN["initial"])
    recipe = opx.Recipe(
        loss.problem,
        optax.adam(1e-2),
        opx.Fixed(batch),
        weighting=loss.weighting,
        steps=10,
    )
    state = recipe.init(MLP((2, 8, 1), key=key), key=key)
    before = loss.problem.terms(state.model, batch, key)[0]
    state = opx.fit(recipe, state, num_chunks=2)
    after = loss.problem.terms(state.model, batch, key)[0]
    assert sum(after.values()) < sum(before.values())
    _, infos = recipe(state)
    weights = np.array([infos.weights[n][-1] for n in ("interior", "boundary")])
    assert np.isfinite(weights).all() and (name is None) == bool((weights == 1).all())


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: PhysicsLossConfig(physics_wieght=1.0), TypeError, "physics_weight"),
        (lambda: PhysicsLossConfig(data_weight=-1.0), ValueError, "data_weight"),
        (lambda: PhysicsLossConfig(data_weight=np.nan), ValueError, "data_weight"),
        (lambda: PhysicsLossConfig(weighting="softadap"), ValueError, "'softadapt'"),
        (lambda: PhysicsInformedLoss("burger"), ValueError, "'burgers'"),
        (
            lambda: PhysicsInformedLoss(constraints=["normalisation"]),
            ValueError,
            "'normalization'",
        ),
        (
            lambda: PhysicsInformedLoss(heat)(exact, POINTS, data=(POINTS, POINTS)),
            ValueError,
            "targets",
        ),
    ],
)
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_every_weighting_can_be_had():
    for name in WEIGHTINGS:
        config = PhysicsLossConfig(adaptive_weighting=True, weighting=name)
        assert isinstance(
            PhysicsInformedLoss(heat, config=config).weighting, opx.AbstractWeighting
        )
        assert isinstance(PhysicsInformedLoss(heat).weighting, opx.Static)
