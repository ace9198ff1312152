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
REST = ("edge0", "edge1", "edge3", "edge4", "edge5")

# A domain, the conditions on it, and what is free.
CASES = {
    "disc": (DISC, [given("boundary", 0.7)], ()),
    "disc_varying": (DISC, [given("surface", smooth)], ()),
    "l": (L, [given("boundary", 0.7)], ()),
    "l_varying": (L, [given("boundary", smooth)], ()),
    "l_one_edge": (L, [given("edge2", smooth)], REST),
    "l_two_values": (
        L,
        [given("edge1", smooth), given("edge3", 0.7)],
        ("edge0", "edge2", "edge4", "edge5"),
    ),
    "difference": (BITE, [given("boundary", 0.7)], ()),
    "difference_varying": (BITE, [given("boundary", smooth)], ()),
    "difference_by_piece": (
        BITE,
        [given(name, i - 1.5) for i, name in enumerate(BITE.boundaries)],
        (),
    ),
    "box_by_face": (BOX, [given(name, f) for name, f in FACES.items()], ()),
    "box_with_jumps": (BOX, [given(name, i) for i, name in enumerate(FACES)], ()),
    "box_traced": (
        BOX,
        [given(n, jnp.array(i - 1.5)) for i, n in enumerate(FACES)],
        (),
    ),
    "start": (DISC * TIME, [start(smooth)], ("boundary",)),
    "start_and_slope": (BOX * TIME, MOVING, ("boundary",)),
    "disc_in_time": (DISC * TIME, [given("boundary", smooth), start(smooth)], ()),
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


def equation_on(domain):
    if domain.dim == 2:
        return Residual(lambda u, x, y: u.lap() + u.x, ("x", "y"), ("u",))
    return Residual(lambda u, x, y, t: u.t - u.lap("x y"), ("x", "y", "t"), ("u",))


def pose(name):
    domain, conditions, free = CASES[name]
    return PDE(domain, equation_on(domain), conditions, free=free)


def survey(problem, key):
    """For two networks: by how much they fail the conditions, their values and what
    they leave over inside, and how much their weights move the boundary."""
    arrays, static = eqx.partition(problem, eqx.is_array)

    def gaps(problem, network):
        model, points = problem.impose(network), {}
        for name in {c.boundary for c in problem.conditions}:
            points[name] = part_of(problem.domain, name).sample(64, jr.key(1))
        return jnp.stack(
            [
                jnp.abs(c.residual(problem.setting, model, points[c.boundary])).max()
                for c in problem.conditions
            ]
        )

    @functools.partial(jax.jit, compiler_options=QUICK)
    def run(arrays, keys):
        problem = eqx.combine(arrays, static)
        inner = problem.domain.sample(32, key)

        def one(key):
            network = MLP((problem.features, 8, 8, 1), key=key)
            model = problem.impose(network)
            slopes = jax.grad(lambda n: gaps(problem, n).max())(network)
            sizes = [jnp.abs(g).max() for g in jax.tree.leaves(slopes)]
            return {
                "gap": gaps(problem, network).max(),
                "slope": jnp.stack(sizes).max(),
                "inside": jax.vmap(model)(inner)[:, 0],
                "residual": problem.equation(model, inner),
            }

        return jax.vmap(one)(keys)

    return run(arrays, jr.split(key))


@pytest.mark.parametrize("name", CASES)
def test_conditions_hold(name, key):
    found = survey(pose(name), key)
    assert found["gap"].max() <= 1e-12 and found["slope"].max() <= 1e-11
    # But inside the networks have their say, with derivatives.
    assert jnp.abs(jnp.diff(found["inside"], axis=0)).max() > 1e-2
    assert jnp.isfinite(found["residual"]).all()
    assert jnp.abs(jnp.diff(found["residual"], axis=0)).max() > 1e-2
