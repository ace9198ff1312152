import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import opifex as opx
from opifex._problem.operator import (
    coarsen,
    Normalised,
    operator_problem,
    relative_h1,
    unit_gaussian,
    UnitGaussian,
)
from opifex.neural import FNO


def test_normalisation_is_that_of_each_channel_and_undone():
    rng = np.random.default_rng(0)
    x = rng.normal([3.0, -100.0], [0.5, 20.0], (40, 16, 2))
    unit = unit_gaussian(x)
    np.testing.assert_allclose(unit.mean, x.mean((0, 1)), rtol=1e-12)
    np.testing.assert_allclose(unit.std, x.std((0, 1)), rtol=1e-12)
    z = eqx.filter_jit(unit.encode)(jnp.asarray(x))
    np.testing.assert_allclose(z.mean((0, 1)), 0, atol=1e-12)
    np.testing.assert_allclose(z.std((0, 1)), 1, rtol=1e-12)
    np.testing.assert_allclose(unit.decode(z), x, rtol=1e-12)
    # Any grid, and the precision of the data that come in.
    assert unit.encode(jnp.ones((3, 5, 7, 2), jnp.float32)).dtype == jnp.float32


def sine_pairs(rows, grid):
    """`a sin 2 pi x` to `2 a cos 2 pi x + 5`: a mode times a complex number."""
    a = jnp.linspace(1.0, 2.0, rows)[:, None, None]
    x = jnp.asarray(2 * np.pi * np.arange(grid) / grid)[None, :, None]
    return a * jnp.sin(x), 2 * a * jnp.cos(x) + 5


def test_the_loss_is_that_of_decoded_predictions(key):
    inputs, targets = sine_pairs(6, 16)
    problem = operator_problem(inputs, targets)
    constant = lambda x: jnp.zeros_like(x)  # decoded: the mean of all targets
    terms, _ = problem.terms(constant, opx.Pairs(inputs, targets), key)
    mean = np.mean(targets)
    per_row = np.linalg.norm(mean - targets, axis=1) / np.linalg.norm(targets, axis=1)
    np.testing.assert_allclose(terms["data"], per_row.mean(), rtol=1e-12)
    assert isinstance(problem.apply, Normalised)


def test_an_operator_is_learned_on_one_grid_and_serves_another(key):
    inputs, targets = sine_pairs(16, 32)
    coarse = [coarsen(x, 2, periodic=True) for x in (inputs, targets)]
    problem = operator_problem(*coarse, metrics={"h1": relative_h1(periodic=True)})
    model = FNO(1, 1, 1, width=4, modes=2, num_layers=1, project_sizes=(), key=key)
    sampler = opx.Minibatch(*coarse, batch_size=8)
    recipe = opx.Recipe(problem, optax.adam(0.02), sampler, steps=200)
    state = opx.fit(recipe, recipe.init(model, key=key), num_chunks=3)
    # The normalisation belongs to the problem and is not trained.
    assert state.model.lift[0].weight.shape == (2, 4)
    np.testing.assert_array_equal(
        recipe.problem.apply.outputs.mean, unit_gaussian(coarse[1]).mean
    )
    test = lambda x, y: problem.terms(state.model, opx.Pairs(x, y), key)
    terms, aux = test(inputs, targets)
    assert terms["data"] < 0.02 and aux.metrics["h1"] < 0.1
    on_coarse, _ = test(*coarse)
    np.testing.assert_allclose(terms["data"], on_coarse["data"], rtol=0.1)


def h1(u, length):
    """By the closed form of the slopes: `u` is a pair (values, slopes)."""
    values, *slopes = u
    return np.sqrt(sum(np.sum(np.square(p)) for p in (values, *slopes)))


@pytest.mark.parametrize("n", [16, 17])
def test_h1_of_periodic_functions_is_exact(n):
    length, i = 2.0, np.arange(n)
    x, y = np.meshgrid(2 * np.pi * i / n, 2 * np.pi * i / n, indexing="ij")
    k = 2 * np.pi / length
    sin, cos = np.sin, np.cos
    u = [sin(x) * cos(2 * y), k * cos(x) * cos(2 * y), -2 * k * sin(x) * sin(2 * y)]
    e = [0.1 * cos(3 * x), -0.3 * k * sin(3 * x), np.zeros_like(x)]
    expected = h1(e, length) / h1(u, length)
    loss = relative_h1(periodic=True, length=length)
    target, error = (jnp.asarray(f[0])[None, ..., None] for f in (u, e))
    pair = jnp.concatenate([target + error, target]), jnp.repeat(target, 2, 0)
    np.testing.assert_allclose(jax.jit(loss)(*pair), [expected, 0], atol=1e-13)
    # At a prediction that is right the slope of the norm is taken as zero.
    assert bool(jnp.all(jax.grad(lambda p: loss(p, target)[0])(target) == 0))


def test_h1_of_other_functions_is_of_second_order():
    def found(n):
        x = np.linspace(0, 1, n)
        u, e = np.exp(x), 0.1 * np.cos(2 * x)
        arrays = (jnp.asarray(f)[None, :, None] for f in (u + e, u))
        return float(relative_h1(periodic=False)(*arrays)[0])

    # Integrals: e^2 + e'^2 = 0.01 (cos^2 + 4 sin^2), u^2 + u'^2 = 2 exp(2 x).
    error = 0.01 * (2.5 - 1.5 * np.sin(4) / 4)
    exact = np.sqrt(error / (np.exp(2) - 1))
    # Sums over the grid are of first order: the exact slopes give what they tend to.
    x = np.linspace(0, 1, 401)
    sums = np.sqrt(
        0.01
        * np.sum(np.cos(2 * x) ** 2 + 4 * np.sin(2 * x) ** 2)
        / np.sum(2 * np.exp(2 * x))
    )
    np.testing.assert_allclose(sums, exact, rtol=5e-3)
    np.testing.assert_allclose(found(401), sums, rtol=1e-5)
    straight = jnp.linspace(0, 3, 4)[None, :, None]  # slope 3, also at the ends
    ratio = relative_h1(periodic=False)(2 * straight, straight)
    np.testing.assert_allclose(ratio, 1.0, rtol=1e-14)


def test_coarsened_functions_keep_the_points_of_their_grid():
    n = np.arange(2 * 12).reshape(2, 12, 1)
    np.testing.assert_array_equal(coarsen(n, 3, periodic=True)[0, :, 0], [0, 3, 6, 9])
    square = np.arange(13 * 13).reshape(1, 13, 13, 1)
    kept = coarsen(square, 4, periodic=False)[0, ..., 0]
    np.testing.assert_array_equal(kept[0], [0, 4, 8, 12])
    np.testing.assert_array_equal(kept[:, -1], [12, 64, 116, 168])


@pytest.mark.parametrize(
    "make, message",
    [
        (
            lambda: unit_gaussian(np.ones((4, 5, 1))),
            "A channel of `values` is constant",
        ),
        (lambda: unit_gaussian(np.ones(4)), r"\(rows, \*grid, channels\)"),
        (lambda: unit_gaussian(np.full((2, 3, 1), np.nan)), "`values` holds NaN"),
        (
            lambda: UnitGaussian(jnp.zeros(2), jnp.ones(2)).encode(jnp.ones((4, 3))),
            r"2 channels were normalised, got an array of shape \(4, 3\)",
        ),
        (lambda: relative_h1(periodic=True, length=0), "`length` must be positive"),
        (
            lambda: relative_h1(periodic=False)(*[jnp.ones((1, 2, 1))] * 2),
            "three points an axis, got 2",
        ),
        (lambda: coarsen(np.ones((1, 9, 1)), 2, periodic=True), "`stride` must divide"),
        (lambda: coarsen(np.ones((1, 9, 1)), 3, periodic=False), "intervals .8."),
        (lambda: coarsen(np.ones((1, 8, 1)), 0, periodic=True), "`stride` must be"),
    ],
)
def test_bad_input(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_the_problem_is_a_pytree(key):
    inputs, targets = sine_pairs(4, 8)
    problem = operator_problem(inputs, targets)
    model = FNO(1, 1, 1, width=2, modes=2, num_layers=1, project_sizes=(2,), key=key)
    loss = lambda model, pairs: problem.terms(model, pairs, key)[0]["data"]
    grads = eqx.filter_jit(eqx.filter_grad(loss))(model, opx.Pairs(inputs, targets))
    step = 1e-6
    moved = lambda s: eqx.tree_at(
        lambda m: m.lift[0].bias, model, model.lift[0].bias.at[0].add(s)
    )
    pairs = opx.Pairs(inputs, targets)
    slope = (loss(moved(step), pairs) - loss(moved(-step), pairs)) / (2 * step)
    np.testing.assert_allclose(grads.lift[0].bias[0], slope, rtol=1e-6)
