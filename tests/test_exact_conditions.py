"""What a network is made to meet, whatever it gives."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from opifex._problem.conditions import Dirichlet, Initial, part_of, Periodic
from opifex._problem.pde import PDE
from opifex.derivatives import Residual
from opifex.geometry import Box, Disc, Interval, Polygon
from opifex.neural.mlp import MLP

from .test_geometry import QUICK


DISC = Disc([0.5, -1.0], 2.0)
L = Polygon([[0, 0], [1, 0], [1, 1], [-1, 1], [-1, -1], [0, -1]])
BITE = Box([-1.0, -1.0], [2.0, 1.0]) - Disc([2.0, 1.0], 0.75)
BOX = Box([0.5, 0.0], [2.0, 1.0])
TIME = Interval(0.25, 1.0)

given = functools.partial(Dirichlet, exact=True)
start = functools.partial(Initial, exact=True)
PERIODIC = Periodic("left", "right", exact=True)


# A smooth function that has all the values on a boundary, and its slope in time.
def smooth(x, y, t=1.0):
    return jnp.sin(2 * x) * y + x * jnp.cos(3 * t) + y * t**2


def smooth_t(x, y, t):
    return -3 * x * jnp.sin(3 * t) + 2 * y * t


def inside_box(x, y):
    """Zero on the boundary of `BOX`: what else there may be at the start."""
    return jnp.exp(y) * (x - 0.5) * (2 - x) * y * (1 - y)


# What the faces of `BOX` have, each as a function of its own, that knows no more.
FACES = {
    "left": lambda x, y, *t: smooth(0.5 + 0 * x, y, *t),
    "right": lambda x, y, *t: smooth(2.0 + 0 * x, y, *t),
    "bottom": lambda x, y, *t: smooth(x, 0 * y, *t),
    "top": lambda x, y, *t: smooth(x, 1.0 + 0 * y, *t),
}
MOVING = [
    start(lambda x, y, t: smooth(x, y, t) + inside_box(x, y)),
    start(lambda x, y, t: smooth_t(x, y, t) - inside_box(x, y), order=1),
]

# A domain, the conditions on it, and what is free.
CASES = {
    "disc_varying": (DISC, [given("surface", smooth)], ()),
    "l": (L, [given("boundary", 0.7)], ()),
    "l_varying": (L, [given("boundary", smooth)], ()),
    "l_two_values": (
        L,
        [given("edge1", smooth), given("edge3", 0.7)],
        ("edge0", "edge2", "edge4", "edge5"),
    ),
    "difference_varying": (BITE, [given("boundary", smooth)], ()),
    "difference_by_piece": (
        BITE,
        [given(name, i - 1.5) for i, name in enumerate(BITE.boundaries)],
        (),
    ),
    "box_by_face": (BOX, [given(name, f) for name, f in FACES.items()], ()),
    "box_with_jumps": (
        BOX,
        [given(n, jnp.array(i - 1.5)) for i, n in enumerate(FACES)],
        (),
    ),
    "start": (DISC * TIME, [start(smooth)], ("boundary",)),
    "start_and_slope": (BOX * TIME, MOVING, ("boundary",)),
    "box_in_time": (BOX * TIME, [given("boundary", smooth), *MOVING], ()),
    "faces_in_time": (
        BOX * TIME,
        [*(given(name, f) for name, f in FACES.items()), *MOVING],
        (),
    ),
    "periodic": (
        BOX * TIME,
        [
            PERIODIC,
            Periodic("left", "right", order=1, exact=True),
            given("bottom", lambda x, y, t: jnp.cos(t)),
            given("top", 0.0),
            start(lambda x, y, t: jnp.cos(t) * (1 - y**2)),
        ],
        (),
    ),
}
# That of the edges of L is compared with nested derivatives below.
DERIVED = ("disc_varying", "difference_varying", "box_in_time", "periodic")


def equation_on(domain):
    if domain.dim == 2:
        return Residual(lambda u, x, y: u.lap() + u.x, ("x", "y"), ("u",))
    return Residual(lambda u, x, y, t: u.t - u.lap("x y"), ("x", "y", "t"), ("u",))


def pose(name):
    domain, conditions, free = CASES[name]
    return PDE(domain, equation_on(domain), conditions, free=free)


def survey(problem, keys, *, derivatives):
    """For a network of each key: by how much it fails the conditions, its values, and
    what it leaves over inside."""
    arrays, static = eqx.partition(problem, eqx.is_array)

    @functools.partial(jax.jit, compiler_options=QUICK)
    def run(arrays, keys):
        problem = eqx.combine(arrays, static)
        inner = problem.domain.sample(32, jr.key(1))

        def one(key):
            model = problem.impose(network(problem, key))
            values = [jax.vmap(model)(inner)[:, 0]]
            if derivatives:
                values.append(problem.equation(model, inner))
            return gaps(problem, model).max(), jnp.stack(values)

        return jax.vmap(one)(keys)

    return run(arrays, keys)


def network(problem, key):
    return MLP((problem.features, 8, 1), key=key)


def gaps(problem, model):
    """The largest failure of each condition, at random points of its part."""
    found = []
    for condition in problem.conditions:
        points = part_of(problem.domain, condition.boundary).sample(64, jr.key(2))
        gap = condition.residual(problem.setting, model, points)
        found.append(jnp.abs(gap).max())
    return jnp.stack(found)


@pytest.mark.parametrize("name", CASES)
def test_conditions_hold(name, key):
    gap, values = survey(pose(name), jr.split(key), derivatives=name in DERIVED)
    assert gap.max() <= 1e-12
    # But inside the networks have their say.
    assert jnp.isfinite(values).all()
    assert jnp.abs(values[0] - values[1]).max(axis=-1).min() > 1e-2


def test_no_weight_moves_the_boundary(key):
    problem = pose("box_by_face")
    points = problem.domain.boundary("top").sample(64, key)
    value = lambda n: jnp.sum(jax.vmap(problem.impose(n))(points))
    mine = network(problem, key)
    slopes = jax.jit(jax.grad(value), compiler_options=QUICK)(mine)
    assert max(float(jnp.abs(g).max()) for g in jax.tree.leaves(slopes)) <= 1e-12


def test_single_precision(key):
    box = Box([0.5, 0.0], [2.0, 1.0], jnp.float32)
    conditions = [given(name, f) for name, f in FACES.items()]
    problem = PDE(box, equation_on(box), conditions)
    model = problem.impose(MLP((2, 8, 1), key=key, dtype=jnp.float32))
    found = jax.jit(lambda: gaps(problem, model), compiler_options=QUICK)()
    assert found.dtype == jnp.float32 and found.max() < 1e-5


def test_derivatives_of_the_distance_to_a_polygon(key):
    problem = pose("l_varying")
    model = problem.impose(network(problem, key))
    points = problem.domain.sample(16, key)
    u = lambda point: model(point)[0]
    by_hand = lambda x: jnp.trace(jax.hessian(u)(x)) + jax.grad(u)(x)[0]
    both = lambda x: (problem.equation(model, x), jax.vmap(by_hand)(x))
    ours, theirs = jax.jit(both, compiler_options=QUICK)(points)
    np.testing.assert_allclose(ours, theirs, rtol=1e-10, atol=1e-10)
