"""Equations with conditions: every residual against one worked out by hand."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest

import opifex as opx
from opifex._problem.base import check_vectors
from opifex._problem.coefficients import Free, Inverse
from opifex._problem.conditions import (
    Dirichlet,
    Initial,
    Measured,
    Neumann,
    part_of,
    Periodic,
    Robin,
)
from opifex._problem.pde import PDE
from opifex.derivatives import residual
from opifex.geometry import Box, Disc, Interval
from opifex.neural.mlp import MLP


SQUARE = Box([0.5, 0.0], [2.0, 1.0])
DISC = Disc([1.0, 0.0], 0.5)
TIME = Interval(0.25, 1.0)


@residual("x y")
def laplace(u, x, y):
    return u.lap()


@residual("x t")
def heat(u, x, t):
    return u.t - u.xx


@residual("x y t")
def heat_2d(u, x, y, t):
    return u.t - u.lap("x y")


@residual("x t", fields="u v")
def pair(u, v, x, t):
    return u.t + v.x, v.t + u.x


# A model, an equation on its domain, a condition, and by how much the model fails it:
# the last worked out by hand, of the coordinates.
plane = lambda p: (p[0] ** 2 + 3 * p[1] * p[0])[None]
wave = lambda p: (p[0] ** 3 * p[-1] + p[-1] ** 2)[None]
two = lambda p: jnp.stack([p[0] * p[1], p[0] ** 2 + p[1]])
solid = lambda p: (p[0] ** 2 * p[2] + p[1] * p[2] ** 2)[None]
CASES = {
    "dirichlet": (
        plane,
        (SQUARE, laplace),
        Dirichlet("left", lambda x, y: 2 * y),
        lambda x, y: x**2 + 3 * x * y - 2 * y,
    ),
    "dirichlet_everywhere": (
        solid,
        (DISC * TIME, heat_2d),
        Dirichlet("boundary", 0.5),
        lambda x, y, t: x**2 * t + y * t**2 - 0.5,
    ),
    "neumann_left": (
        plane,
        (SQUARE, laplace),
        Neumann("left", 1.0),
        lambda x, y: -(2 * x + 3 * y) - 1,
    ),
    "neumann_disc": (
        plane,
        (DISC, laplace),
        Neumann("surface", lambda x, y: x),
        lambda x, y: ((2 * x + 3 * y) * (x - 1) + 3 * x * y) / 0.5 - x,
    ),
    "neumann_in_time": (
        solid,
        (DISC * TIME, heat_2d),
        Neumann("boundary"),
        lambda x, y, t: (2 * x * t * (x - 1) + t**2 * y) / 0.5,
    ),
    "robin_top": (
        plane,
        (SQUARE, laplace),
        Robin("top", 2.0, lambda x, y: x, 1.0),
        lambda x, y: 2 * (x**2 + 3 * x * y) + x * 3 * x - 1,
    ),
    "robin_in_time": (
        wave,
        (Interval(0.0, 2.0) * TIME, heat),
        Robin("right", 1.0, 0.5),
        lambda x, t: x**3 * t + t**2 + 0.5 * 3 * x**2 * t,
    ),
    "periodic_value": (
        wave,
        (Interval(0.5, 2.0) * TIME, heat),
        Periodic("left", "right"),
        lambda x, t: x**3 * t - (x + 1.5) ** 3 * t,
    ),
    "periodic_slope": (
        plane,
        (SQUARE, laplace),
        Periodic("top", "bottom", order=1),
        lambda x, y: 0 * x,
    ),
    "periodic_slope_that_differs": (
        wave,
        (Interval(0.5, 2.0) * TIME, heat),
        Periodic("right", "left", order=1),
        lambda x, t: 3 * x**2 * t - 3 * (x - 1.5) ** 2 * t,
    ),
    "initial_value": (
        wave,
        (Interval(0.0, 2.0) * TIME, heat),
        Initial(lambda x, t: x),
        lambda x, t: x**3 * 0.25 + 0.0625 - x,
    ),
    "initial_slope_of_second_field": (
        two,
        (Interval(0.0, 2.0) * TIME, pair),
        Initial(3.0, order=1, field="v"),
        lambda x, t: 1 - 3 + 0 * x,
    ),
}


def pde(place, *conditions, **options):
    domain, equation = place
    rest = [n for n in domain.boundaries if n != "final"]
    return PDE(domain, equation, conditions, **({"free": rest} | options))


@pytest.mark.parametrize("case", CASES)
def test_residual_of_condition(case, key):
    model, place, condition, expected = CASES[case]
    problem = pde(place, condition)
    points = problem.domains[condition.boundary].sample(7, key)
    found = condition.residual(problem.setting, model, points)
    by_hand = expected(*np.asarray(points).T)
    np.testing.assert_allclose(found, by_hand, rtol=1e-13, atol=1e-13)


def test_terms_have_names_and_weights(key):
    conditions = [
        Dirichlet("left", 1.0, field="u", weight=4),
        Neumann("left", field="v"),
        Robin("right", field="v"),
        Periodic("left", "right", order=1, field="u"),
        Initial(field="u"),
        Initial(order=1, field="v"),
    ]
    places = jr.uniform(key, (3, 2))
    seen = Measured(places, np.array([1.0, 2.0, 3.0]), field="v", weight=9.0)
    problem = pde((Interval(0.0, 1.0) * TIME, pair), *conditions, measured=[seen])
    assert set(problem.domains) == {"interior", "left", "right", "initial"}
    batch = {n: d.sample(5, key) for n, d in problem.domains.items()}
    found = eqx.filter_jit(problem.residuals)(two, batch)
    assert set(found) == {
        "interior/0",
        "interior/1",
        "left/u",
        "left/v_n",
        "right/v+v_n",
        "left/periodic u_1",
        "initial/u",
        "initial/v_t",
        "data",
    }
    x, t = batch["interior"].T
    np.testing.assert_allclose(found["interior/0"], x + 2 * x, rtol=1e-14)
    np.testing.assert_allclose(found["interior/1"], 1 + t, rtol=1e-14)
    left = batch["left"]
    np.testing.assert_allclose(found["left/u"], 2 * (left[:, 0] * left[:, 1] - 1))
    wrong = places[:, 0] ** 2 + places[:, 1] - jnp.array([1.0, 2.0, 3.0])
    np.testing.assert_allclose(found["data"], 3 * wrong, rtol=1e-14)
    terms, aux = problem.terms(two, batch, key)
    np.testing.assert_allclose(terms["data"], 9 * jnp.mean(wrong**2))
    assert int(aux.counts["data"]) == 3


@pytest.fixture(scope="module")
def mixed():
    """`u_t = u_xx + f`, the ends and the start exact but for the right end."""

    @residual("x t")
    def equation(u, x, t):
        return u.t - u.xx - (jnp.pi**2 - 1) * jnp.exp(-t) * jnp.sin(jnp.pi * x)

    start = lambda x, t: jnp.sin(jnp.pi * x)
    conditions = [
        Dirichlet("left", exact=True),
        Dirichlet("right", weight=10),
        Initial(start, exact=True),
    ]
    return PDE(Interval(0.0, 1.0) * Interval(0.0, 1.0), equation, conditions)


def exact(p):
    return (jnp.exp(-p[1]) * jnp.sin(jnp.pi * p[0]))[None]


NUM_POINTS = {"interior": 64, "right": 8}
SAMPLERS = {
    "uniform": lambda d: opx.Uniform(d, NUM_POINTS),
    "quasi_random": lambda d: opx.QuasiRandom(d, NUM_POINTS),
    "rad": lambda d: opx.RAD(d, NUM_POINTS, {"interior": 128, "right": 16}),
}


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_all_samplers_serve_a_problem(mixed, sampler, key):
    sampler = SAMPLERS[sampler](mixed.domains)
    assert set(mixed.domains) == {"interior", "right"}
    model = mixed.impose(MLP((mixed.features, 4, 1), key=key))
    state = sampler.init(key)
    state = eqx.filter_jit(sampler.resample)(state, mixed, model, key)
    batch = sampler.batch(state, key, jnp.zeros((), jnp.int32))
    np.testing.assert_allclose(batch["right"][:, 0], 1)
    found = eqx.filter_eval_shape(mixed.residuals, model, batch)
    assert {n: r.shape for n, r in found.items()} == {
        "interior": (64,),
        "right/u": (8,),
    }


def test_training_solves_it(mixed, key):
    model = mixed.impose(MLP((mixed.features, 12, 12, 1), key=key))
    edge = jnp.stack([jnp.zeros(9), jnp.linspace(0.0, 1.0, 9)], 1)
    np.testing.assert_allclose(jax.vmap(model)(edge), 0, atol=1e-15)
    start = edge[:, ::-1]
    np.testing.assert_allclose(jax.vmap(model)(start), jax.vmap(exact)(start), atol=0)
    optim = optax.adam(optax.cosine_decay_schedule(1e-2, 1500))
    sampler = SAMPLERS["quasi_random"](mixed.domains)
    recipe = opx.Recipe(mixed, optim, sampler, steps=300)
    state = opx.fit(recipe, recipe.init(model, key=key), num_chunks=5)
    points = mixed.domain.sample(400, jr.key(5))
    truth = jax.vmap(exact)(points)
    wrong = jax.vmap(state.model)(points) - truth
    # 3.2e-3 was measured.
    assert jnp.linalg.norm(wrong) < 1e-2 * jnp.linalg.norm(truth)


def test_residuals_are_transformable(mixed):
    batch = {n: d.sample(6, jr.key(1)) for n, d in mixed.domains.items()}
    make = lambda key: mixed.impose(MLP((mixed.features, 5, 1), key=key))
    models = eqx.filter_vmap(make)(jr.split(jr.key(0), 2))
    axes = (eqx.if_array(0), None)
    found = eqx.filter_jit(eqx.filter_vmap(mixed.residuals, in_axes=axes))(
        models, batch
    )
    model = make(jr.split(jr.key(0), 2)[1])
    alone = eqx.filter_jit(mixed.residuals)(model, batch)
    for name, r in alone.items():
        np.testing.assert_allclose(found[name][1], r, rtol=1e-12, atol=1e-12)
    # The gradient along a direction is that of central differences.
    leaf = lambda m: m.network.weights[0]
    loss = lambda w: mixed.terms(eqx.tree_at(leaf, model, w), batch, jr.key(0))[0]
    total = jax.jit(lambda w: loss(w)["interior"] + loss(w)["right/u"])
    w, along = leaf(model), jnp.ones_like(leaf(model))
    slope = jnp.sum(jax.grad(total)(w) * along)
    h = 1e-5
    differences = (total(w + h * along) - total(w - h * along)) / (2 * h)
    np.testing.assert_allclose(slope, differences, rtol=1e-7)


def test_the_solution_leaves_nothing_over(mixed):
    class Solution(eqx.Module):
        """What the formula turns into the solution."""

        def __call__(self, features):
            x, t = (features + 1) / 2
            # The distance to the left end is x, so the network is multiplied by x t.
            s = jnp.sin(jnp.pi * x) / x
            return (s * jnp.expm1(-t) / t)[None]

    batch = {n: d.sample(20, jr.key(2)) for n, d in mixed.domains.items()}
    found = eqx.filter_jit(mixed.residuals)(mixed.impose(Solution()), batch)
    for r in found.values():
        np.testing.assert_allclose(r, 0, atol=1e-11)


def test_beam_may_be_clamped(key):
    # Value and slope at the same end: two conditions of an equation of order four.
    @residual("x")
    def beam(u, x):
        return u.xxxx - 24

    conditions = [Dirichlet("boundary", exact=True), Neumann("boundary")]
    problem = PDE(Interval(0.0, 1.0), beam, conditions)
    batch = {n: d.sample(6, key) for n, d in problem.domains.items()}
    # The solution is (x (1 - x))^2, and the distance a multiple of x (1 - x).
    scale = problem.domain.distance(jnp.array([0.5])) / 0.25
    model = problem.impose(lambda z: (1 - z**2) / 4 / scale)
    for r in eqx.filter_jit(problem.residuals)(model, batch).values():
        np.testing.assert_allclose(r, 0, atol=1e-12)


def test_single_precision(mixed):
    single = lambda x: x.astype(jnp.float32) if eqx.is_inexact_array(x) else x
    domain = Interval(0, 1, jnp.float32) * Interval(0, 1, jnp.float32)
    problem = PDE(
        domain,
        mixed.equation,
        [Dirichlet("boundary", exact=True), Initial(lambda x, t: x * (1 - x))],
    )
    net = MLP((2, 4, 1), key=jr.key(0), dtype=jnp.float32)
    batch = {n: d.sample(4, jr.key(1)) for n, d in problem.domains.items()}
    model = problem.impose(jax.tree_util.tree_map(single, net))
    found = eqx.filter_eval_shape(problem.residuals, model, batch)
    assert {r.dtype for r in found.values()} == {jnp.dtype("float32")}


BAR = Interval(0.0, 1.0) * TIME
BAD = {
    "unknown_boundary": (
        lambda: PDE(BAR, heat, [Dirichlet("lfet")]),
        "Unknown name 'lfet' in `boundary`. Did you mean 'left'?",
    ),
    "unknown_partner": (
        lambda: PDE(BAR, heat, [Periodic("left", "top")]),
        "Unknown name 'top' in `boundary`",
    ),
    "unknown_free": (
        lambda: PDE(BAR, heat, free="outflow"),
        "Unknown name 'outflow' in `free`",
    ),
    "unknown_field": (
        lambda: pde((BAR, heat), Dirichlet("left", field="w")),
        "Unknown name 'w' in `field`",
    ),
    "field_left_open": (
        lambda: pde((BAR, pair), Dirichlet("left")),
        "in `field`",
    ),
    "measured_field": (
        lambda: pde((BAR, pair), measured=[Measured(np.ones((2, 2)), np.ones(2))]),
        "in `field`",
    ),
    "overlap": (
        lambda: pde((BAR, heat), Dirichlet("boundary"), Dirichlet("left", 1.0)),
        "prescribe 'u' twice on 'left'",
    ),
    "missing": (
        lambda: PDE(BAR, heat, [Dirichlet("left")]),
        r"prescribe nothing on \['right', 'initial'\]",
    ),
    "dimension": (
        lambda: PDE(SQUARE * TIME, heat),
        "`domain` is of dimension 3. Name one coordinate a column",
    ),
    "measured_dimension": (
        lambda: pde((BAR, heat), measured=[Measured(np.ones((2, 3)), np.ones(2))]),
        "points of shape",
    ),
    "not_opposite": (
        lambda: pde((SQUARE, laplace), Periodic("left", "top")),
        "must be a shift of `boundary` along one coordinate",
    ),
    "empty_set": (
        lambda: pde((Disc([0.0, 0.0], 1.0) - Box([-2.0, -2.0], [2.0, 2.0]), laplace)),
        "empty|no point",
    ),
    "nan": (lambda: Dirichlet("left", float("nan")), "`value` must be a finite number"),
    "text": (lambda: Robin("left", "a"), "`a` must be a finite number"),
    "weight": (lambda: Initial(weight=0.0), "`weight` must be positive"),
    "order": (lambda: Initial(order=2), "`order` must be 0 or 1, got 2"),
    "measured_nan": (
        lambda: Measured(np.ones((2, 2)), np.array([1.0, np.inf])),
        "`values` holds NaN or an infinity, first in row 1",
    ),
    "measured_shape": (
        lambda: Measured(np.ones((2, 2)), np.ones(3)),
        "`values` must hold one number a row",
    ),
    "two_of_one_name": (
        lambda: pde((BAR, heat), measured=[Measured(np.ones((2, 2)), np.ones(2))] * 2),
        "Two terms of the loss would be called 'data'",
    ),
    "slope_alone": (
        lambda: pde((BAR, heat), Initial(order=1, exact=True)),
        "need an exact initial value beside them",
    ),
    "exact_with_coefficient": (
        lambda: pde((BAR, heat), Dirichlet("left", lambda x, t, *, k: k, exact=True)),
        "needs the keyword argument 'k', but coefficients are handed to soft",
    ),
    "harmonics": (
        lambda: pde(
            (BAR, heat), Periodic("left", "right", exact=True), harmonics={"y": 2}
        ),
        "Unknown name 'y' in `harmonics`",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_problem(case):
    make, message = BAD[case]
    with pytest.raises((ValueError, TypeError), match=message):
        make()


def bad_use(case):
    points = {"interior": jnp.ones((3, 2)), "left": jnp.ones((3, 2))}
    net = lambda p: p[:1]
    value = Dirichlet("left", lambda x, t: jnp.ones((3, 1)))
    with_k = residual("x t")(lambda u, x, t, *, k: u.t - k * u.xx)
    return {
        "not_imposed": (pde((BAR, heat), Dirichlet("left", exact=True)), net, points),
        "no_points": (pde((BAR, heat), Dirichlet("right")), net, points),
        "column": (pde((BAR, heat), value), net, points),
        "outputs": (pde((BAR, pair)), net, points),
        "not_taken": (pde((BAR, heat)), Inverse(net, {"c": Free(1.0)}), points),
        "not_given": (pde((BAR, with_k)), net, points),
    }[case]


@pytest.mark.parametrize(
    "case, message",
    [
        ("not_imposed", "must be what `problem.impose"),
        (
            "no_points",
            "Unknown name 'right' in `batch`.* all sets of `problem.domains`",
        ),
        ("column", "must give one number a point"),
        ("outputs", "must map a point to 2 numbers"),
        ("not_taken", "has 'c', which neither `heat` nor"),
        ("not_given", r"needs the keyword arguments \['k'\]"),
    ],
)
def test_bad_use(case, message):
    problem, model, points = bad_use(case)
    with pytest.raises((ValueError, TypeError), match=message):
        problem.residuals(model, points)


def test_a_column_of_residuals_is_refused():
    # Broadcast against a vector it would be a matrix, whose mean is another loss.
    check_vectors({"interior": jnp.ones(3)})
    with pytest.raises(ValueError, match=r"got shape \(3, 1\) for 'left'"):
        check_vectors({"interior": jnp.ones(3), "left": jnp.ones((3, 1))})


def test_parts_of_the_boundary():
    sides = part_of(DISC * TIME, "boundary")
    points = sides.sample(50, jr.key(0))
    np.testing.assert_allclose(
        jnp.linalg.norm(points[:, :2] - jnp.array([[1.0, 0.0]]), axis=1), 0.5
    )
    assert 0.25 < points[:, 2].min() < points[:, 2].max() < 1
