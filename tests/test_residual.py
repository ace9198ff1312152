"""Equations: the ways of taking their derivatives, and what goes wrong in them."""

import warnings

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from jax.extend.core import ClosedJaxpr, Jaxpr

from opifex.derivatives import (
    bilaplacian,
    Forward,
    laplacian,
    Residual,
    residual,
    STDE,
    Taylor,
)


def relative_distance(a, b):
    a, b = (jnp.concatenate([x.ravel() for x in jax.tree.leaves(t)]) for t in (a, b))
    return float(jnp.linalg.norm(a - b) / jnp.linalg.norm(b))


@residual("x y", fields="u v")
def system(u, v, x, y, *, nu=0.1):
    return u.x * v.yy + u.xy - nu * u.lap(), v.xxy + x * v * u.y


def two_fields(key, dtype=float):
    return eqx.nn.MLP(2, 2, 3, 1, jnp.tanh, key=key, dtype=dtype)


def of(equation, derivatives):
    return eqx.tree_at(lambda r: r.derivatives, equation, derivatives)


def squared(model, points, equation=system, **parameters):
    return sum(jnp.mean(r**2) for r in equation(model, points, **parameters))


def with_way(way):
    points = jr.uniform(jr.key(1), (3, 2))
    value_and_grad = eqx.filter_value_and_grad(squared)
    run = eqx.filter_jit(lambda m: value_and_grad(m, points, of(system, way)))
    return run(two_fields(jr.key(0)))


@pytest.fixture(scope="module")
def by_nested():
    return with_way("nested")


@pytest.mark.parametrize(
    "way", ["auto", "taylor", "forward", "forward-reverse", "jet", "forward-laplacian"]
)
def test_all_ways_agree(way, by_nested):
    if way == "forward-laplacian":
        pytest.importorskip("folx")
    value, gradient = with_way(way)
    np.testing.assert_allclose(value, by_nested[0], rtol=1e-13)
    assert relative_distance(gradient, by_nested[1]) < 1e-13


@residual("x y", fields="u v")
def low(u, v, x, y, *, nu):
    return u.x * v + nu * v.xy, u.lap()


def test_transformations(key):
    """Ensembles, and forward mode and Hessians by the parameters."""
    points = jr.uniform(key, (3, 2))
    members = eqx.filter_vmap(two_fields)(jr.split(key))
    params, static = eqx.partition(members, eqx.is_array)

    def loss(params, way="taylor"):
        return squared(eqx.combine(params, static), points, of(low, way), nu=0.3)

    def run(params):
        along = jax.tree.map(jnp.cos, params)

        def slope(params):
            pairs = zip(
                *map(jax.tree.leaves, (jax.grad(loss)(params), along)), strict=True
            )
            return sum(jnp.vdot(a, b) for a, b in pairs)

        forward = jax.jvp(jax.grad(loss), (params,), (along,))
        truth = jax.jvp(jax.grad(lambda p: loss(p, "nested")), (params,), (along,))
        slopes = jax.jvp(loss, (params,), (along,))[1], slope(params)
        return loss(params), slopes, jax.grad(slope)(params), forward, truth

    value, slopes, reverse_twice, forward, truth = jax.jit(jax.vmap(run))(params)
    np.testing.assert_allclose(*slopes, rtol=1e-12)
    assert relative_distance(forward, truth) < 1e-13
    assert relative_distance(reverse_twice, truth[1]) < 1e-13
    for i in range(2):
        one = jax.tree.map(lambda x, i=i: x[i], params)
        np.testing.assert_allclose(value[i], jax.jit(loss)(one), rtol=1e-13)


def test_float32_stays_and_one_trace(key):
    traces = []

    @residual("x y", fields="u v")
    def equation(u, v, x, y, *, nu=0.1):
        traces.append(1)
        return nu * u.lap() + u * v.xyy, 2.0 * v.x

    model = two_fields(key, dtype=jnp.float32)
    step = eqx.filter_jit(eqx.filter_value_and_grad(squared))
    for i in range(3):
        points = jr.uniform(jr.key(i), (4, 2), jnp.float32)
        leaves = jax.tree.leaves(step(model, points, equation))
        assert all(x.dtype == jnp.float32 for x in leaves)
        assert len(traces) == 2  # to see what is asked for, and to compute it


def count(jaxpr, name):
    inner = [
        x.jaxpr if isinstance(x, ClosedJaxpr) else x
        for eqn in jaxpr.eqns
        for x in eqn.params.values()
        if isinstance(x, ClosedJaxpr | Jaxpr)
    ]
    here = sum(eqn.primitive.name == name for eqn in jaxpr.eqns)
    return here + sum(count(j, name) for j in inner)


@pytest.mark.parametrize(
    ("equation", "products"),
    [
        (lambda u, x, y: u + x, 3),  # three matrices
        (lambda u, x, y: u.x, 3 + 3),
        (lambda u, x, y: u.x + u.y, 3 + 2 * 3),
        # The second derivatives are zero before the first activation.
        (lambda u, x, y: u.xx, 3 + 3 + 2),
        (lambda u, x, y: u.lap() + u.x, 3 + 2 * 3 + 2),
        (lambda u, x, y: u.xy, 3 + 2 * 3 + 2),
    ],
)
def test_nothing_is_computed_unasked(key, equation, products):
    model = eqx.nn.MLP(2, "scalar", 4, 2, jnp.tanh, key=key)
    equation = Residual(equation, ("x", "y"), ("u",))
    jaxpr = jax.make_jaxpr(lambda p: equation(model, p))(jnp.ones((3, 2)))
    assert count(jaxpr.jaxpr, "dot_general") == products


@pytest.mark.parametrize("directions", ["coordinates", "rademacher"])
def test_stde(key, directions):
    model = eqx.nn.MLP(5, 1, 6, 1, jnp.tanh, key=key)
    points = jr.uniform(key, (4, 5))
    wanted = [laplacian(range(5)), (1,), (0, 2), laplacian([0, 3])]
    value, truth = Taylor()(model, points, wanted)
    random = STDE(2, directions)
    many = jax.jit(jax.vmap(lambda key: random(model, points, wanted, key)))
    same, found = many(jr.split(key, 4000))
    np.testing.assert_allclose(same[0], value, rtol=1e-13)
    for w in wanted[1:3]:
        np.testing.assert_allclose(found[w][5], truth[w], rtol=1e-12, atol=1e-15)
    for w in [wanted[0], wanted[3]]:
        off = jnp.mean(found[w], 0) - truth[w]
        deviation = jnp.std(found[w], 0)
        exact = directions == "coordinates" and len(w.terms) == 2
        assert bool(jnp.all(deviation < 1e-14 if exact else deviation > 1e-6))
        assert bool(jnp.all(jnp.abs(off) < 3 * deviation / 4000**0.5 + 1e-14))
    with pytest.raises(ValueError, match="`key`"):
        random(model, points, wanted)
    with pytest.raises(ValueError, match="Did you mean 'coordinates'"):
        STDE(2, "coordinate")
    with pytest.raises(ValueError, match="`samples`"):
        STDE(0)


def test_chunks_change_nothing(key):
    model = eqx.nn.MLP(5, 1, 6, 2, jnp.tanh, key=key)
    points = jr.uniform(key, (4, 5))
    wanted = [laplacian(range(5)), (0,), laplacian([1, 4])]

    @eqx.filter_jit
    def run(model, chunk):
        def loss(model):
            value, found = Taylor(chunk)(model, points, wanted)
            return jnp.sum(value * found[wanted[0]] ** 2), found

        return eqx.filter_value_and_grad(loss, has_aux=True)(model)

    for chunk in (2, 5):
        assert relative_distance(run(model, chunk), run(model, 32)) < 1e-14
    with pytest.raises(ValueError, match="`chunk`"):
        Taylor(0)


# Equations


def test_fields_stand_for_their_values():
    points = jnp.array([[0.3, 0.4], [-0.5, 0.2]])
    x, t = points.T
    two = np.float64(2)

    @residual("x t")
    def equation(u, x, t):
        right = (
            two * u - u * x + x * u + (2 - u) / u**2 - (1 / u) * 2**u + np.ones(2) * u
        )
        left = -u + abs(u) + jnp.where(u > 0, jnp.sin(u), jnp.maximum(u, -u.x))
        return right + left + jnp.where((0.5 < u) | (u <= 0.1), u.xt, x - u)

    u, u_x, u_xt = x * t, t, jnp.ones(2)
    right = 2 * u + (2 - u) / u**2 - (1 / u) * 2**u + u
    left = -u + abs(u) + jnp.where(u > 0, jnp.sin(u), jnp.maximum(u, -u_x))
    truth = right + left + jnp.where((0.5 < u) | (u <= 0.1), u_xt, x - u)
    found = equation(lambda p: p[0] * p[1], points)
    np.testing.assert_allclose(found, truth, rtol=1e-14)


def test_names_of_coordinates():
    points = jr.uniform(jr.key(0), (3, 2), minval=0.5)
    r, theta = points.T

    @residual("r theta")
    def polar(u, r, theta):
        same = u.rtheta - u.d("theta", "r") + u.thetatheta - u.d("theta", "theta")
        return u.rr + u.r / r + u.thetatheta / r**2, same, u.lap("r theta") - u.lap()

    harmonic = lambda p: p[0] ** 3 * jnp.cos(3 * p[1])
    for part in polar(harmonic, points):
        np.testing.assert_allclose(part, 0, atol=1e-13)

    @residual(" ".join(f"x{i}" for i in range(1, 13)))
    def many(u, *x):
        return u.x1x12x12, u.x11, u.x1x1, u.lap("x2 x12"), u.lap("x2x12")

    model = lambda p: p[0] * p[11] ** 2 + 7 * p[10] + p[0] ** 2 + p[1] ** 2
    points = jnp.arange(24.0).reshape(2, 12)
    found = jnp.stack(many(model, points))
    truth = [[2, 2], [7, 7], [2, 2], *[2 + 2 * points[:, 0]] * 2]
    np.testing.assert_allclose(found, jnp.array(truth), rtol=1e-13)


def test_biharmonic():
    points = jr.uniform(jr.key(0), (3, 3))

    @residual("x y t")
    def plate(u, x, y, t):
        return u.bilap("x y") - 25 * u, u.bilap("xy") - 25 * u, u.bilap() - 36 * u

    wave = lambda p: jnp.sin(p[0]) * jnp.cos(2 * p[1]) * jnp.sin(p[2])
    for part in plate(wave, points):
        np.testing.assert_allclose(part, 0, atol=1e-13)
    value, found = Forward()(wave, points, [bilaplacian([0, 1])])
    np.testing.assert_allclose(found[bilaplacian([0, 1])], 25 * value, rtol=1e-13)


def burgers(u, x, t, *, nu=0.01):
    return u.t + u * u.x - nu * u.xx


def raising(function):
    return residual("x t")(function)(jnp.sum, jnp.ones((3, 2)))


@pytest.mark.parametrize(
    ("act", "error", "match"),
    [
        (lambda: raising(lambda u, x, t: u.y), AttributeError, "'y' is no derivative"),
        (lambda: raising(lambda u, x, t: u.xyx), AttributeError, "'x', 't'"),
        (lambda: raising(lambda u, x, t: u.d("y")), AttributeError, "`coords`"),
        (lambda: raising(lambda u, x, t: u.lap("x y")), AttributeError, "'y'"),
        (lambda: raising(lambda u, x, t: 1.0), ValueError, "one number a point"),
        (lambda: raising(lambda u, x, t: x[:2]), ValueError, "one number a point"),
        (lambda: residual("x")(burgers), ValueError, "must take"),
        (lambda: residual("x t", fields="u v")(burgers), ValueError, "it takes 3"),
        (lambda: residual("x lap")(burgers), ValueError, "'lap'"),
        (lambda: residual("x _t")(burgers), ValueError, "'_t'"),
        (lambda: residual("x x")(burgers), ValueError, "different names"),
        (lambda: residual("x u")(burgers), ValueError, "different names"),
        (
            lambda: residual("x t", derivatives="tailor")(burgers),
            ValueError,
            "Did you mean 'taylor'",
        ),
        (
            lambda: residual("x t")(burgers)(jnp.sum, jnp.ones((3, 2)), mu=1.0),
            TypeError,
            "Known names are \\['nu'\\]",
        ),
        (
            lambda: residual("x t")(burgers)(jnp.sum, jnp.ones((3, 3))),
            ValueError,
            "`points`",
        ),
        (
            lambda: residual("x t")(burgers)(lambda p: p, jnp.ones((3, 2))),
            ValueError,
            r"`model` must map a point to 1 numbers.*got shape \(2,\)",
        ),
    ],
)
def test_bad_input(act, error, match):
    with pytest.raises(error, match=match):
        act()


@pytest.mark.parametrize(
    "kink", [jax.nn.relu, jnp.abs, lambda x: jnp.maximum(x, 0), jax.nn.leaky_relu]
)
def test_kinks_are_told(key, kink):
    model = eqx.nn.MLP(2, 1, 4, 1, kink, key=key)
    points = jr.uniform(key, (3, 2))
    with pytest.warns(UserWarning, match="piecewise linear"):
        _, found = Taylor()(model, points, [(0, 0)])
    assert not found[0, 0].any()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Taylor()(model, points, [(0,)])  # the first there is
        smooth = eqx.nn.MLP(2, 1, 4, 1, jax.nn.softplus, key=key)
        Taylor()(smooth, points, [(0, 0)])
