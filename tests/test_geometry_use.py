"""Domains in use: names, samplers, transformations, and what they refuse."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import jax.tree_util as jtu
import numpy as np
import pytest

import opifex as opx
from opifex.geometry import (
    Ball,
    Box,
    ComplexDomain,
    Disc,
    Ellipsoid,
    Interval,
    Polygon,
    TriangleMesh,
)
from opifex.geometry.planar import area, ear_clipping, signed_areas

from .helpers import assert_same_bits


BOX, DISC = Box([0.0, 0.0], [2.0, 1.0]), Disc([1.0, 0.0], 0.5)
BITE = BOX - DISC
STEP = jnp.array(3, jnp.int32)


class Far(opx.AbstractResidualProblem):
    """Residuals that are large on the right."""

    def residuals(self, model, batch):
        return {"inside": jnp.exp(model * batch["inside"][:, 0])}


@pytest.mark.parametrize("kind", ["uniform", "quasi", "rad"])
def test_samplers(kind, key):
    domains = {
        "inside": BITE * Interval(0.0, 2.0),
        "edge": BITE.boundary("surface"),
        "plain": DISC,
    }
    counts = {"inside": 50, "edge": 40, "plain": 30}
    sampler = {
        "uniform": opx.Uniform,
        "quasi": opx.QuasiRandom,
        "rad": lambda *sets: opx.RAD(*sets, {"inside": 400}, k=4.0, c=0.0),
    }[kind](domains, counts)

    @eqx.filter_jit
    def run(key):
        state = sampler.resample(sampler.init(key), Far(), jnp.array(1.0), key)
        return sampler.batch(state, key, STEP)

    batch = run(key)
    for name, domain in domains.items():
        assert batch[name].shape == (counts[name], domain.dim)
        assert domain.contains(batch[name]).all()
        assert len(np.unique(batch[name], axis=0)) == counts[name]
    if kind == "rad":
        assert batch["inside"][:, 0].mean() > 1.3
    assert np.any(np.asarray(run(jr.key(1))["inside"] != batch["inside"]))


def test_a_quasi_random_sequence_stays_even_in_every_piece():
    edge = BOX.boundary("boundary")
    unit = opx.sobol(1024, *edge.unit_shape(1024)[1:], 0)
    points = edge.from_unit(jnp.asarray(unit))
    for name, share in {"left": 1 / 6, "top": 1 / 3}.items():
        on = np.asarray(BOX.boundary(name).contains(points))
        assert abs(on.mean() - share) < 2e-3
        axis = {"left": 1, "top": 0}[name]
        along = np.sort(np.asarray(points)[on, axis]) / (2 - axis)
        even = (np.arange(len(along)) + 0.5) / len(along)
        # Random points would be off by more than 0.05.
        assert np.abs(along - even).max() < 0.02


def test_too_few_points_are_repeated():
    # One proposal in ten is accepted, and hardly any rows are given.
    thin = BOX & Box([0.0, 0.0], [0.2, 1.0]) | Box([0.0, 0.0], [0.2, 1.0])
    share = thin.acceptance
    rows, cols = thin.unit_shape(8)
    assert share < 1 and rows > 8 / share
    unit = jr.uniform(jr.key(0), (rows, cols))
    full = thin.from_unit(unit, 8)
    assert len(np.unique(full, axis=0)) == 8
    assert thin.from_unit(unit).shape == (8, 2)
    points, keep = thin.propose(unit)
    first = np.flatnonzero(keep)[:3]
    some = thin.from_unit(unit[: first[-1] + 1], 8)
    np.testing.assert_array_equal(some, np.asarray(points)[np.resize(first, 8)])


def test_transformations(key):
    """A domain is a pytree: its numbers may be batched, traced and differentiated."""

    def facts(radius):
        disc = Disc(jnp.zeros(2), radius)
        domain = disc * Interval(0.0, radius)
        edge = domain.boundary()
        points = edge.sample(5, key)
        return domain.measure, edge.measure, domain.sample(5, key), points

    radii = jnp.array([0.5, 2.0])
    many = jax.jit(jax.vmap(facts))(radii)
    for i, radius in enumerate(radii):
        for a, b in zip(many, facts(radius), strict=True):
            np.testing.assert_allclose(a[i], b, rtol=1e-12, atol=1e-14)
    slope = jax.grad(lambda r: facts(r)[0])(radii[1])
    np.testing.assert_allclose(slope, 3 * np.pi * 4, rtol=1e-12)
    leaves, structure = jtu.tree_flatten(BITE)
    assert_same_bits(jtu.tree_unflatten(structure, leaves), BITE)
    assert len(leaves) == 4
    # Known domains may also be combined while something else is traced.
    measure = jax.jit(lambda x: x * (BOX - DISC).measure)(1.0)
    np.testing.assert_allclose(measure, BITE.measure, rtol=1e-12)


def test_single_precision(key):
    box = Box([10.0, 0.0], [12.0, 1.0], jnp.float32)
    domain = (box - Disc([11.0, 0.0], 0.5, jnp.float32)) * Interval(0, 1, jnp.float32)

    @eqx.filter_jit
    def facts(key):
        points, edge = domain.sample(300, key), domain.boundary()
        on = edge.sample(300, key)
        distance = lambda x: domain.distance(x, ("boundary",))
        contained = [domain.contains(points), edge.contains(on), ~edge.contains(points)]
        return points, on, edge.normals(on), jax.vmap(distance)(on), contained

    *floats, contained = facts(key)
    assert {x.dtype for x in floats} == {jnp.dtype(jnp.float32)}
    assert jnp.abs(floats[-1]).max() < 1e-5 and all(x.all() for x in contained)
    assert {x.dtype for x in box.quadrature(8)} == {jnp.dtype(jnp.float32)}
    assert abs(domain.measure - (2 - np.pi / 8)) < 2e-3


def test_names():
    assert list(Box([0.0] * 3, [1.0] * 3).boundaries)[4:] == ["back", "front"]
    assert list(Box([0.0] * 4, [1.0] * 4).boundaries)[:3] == ["x0-", "x0+", "x1-"]
    assert Box([0.0, 1.0], [1.0, 1.0]).boundaries == {}
    # The first keeps what both have; what is hidden has no name.
    less = Box([0.0, 0.0], [2.0, 2.0]) - Box([1.0, 1.0], [3.0, 3.0])
    found = {name: float(piece.measure) for name, piece in less.boundaries.items()}
    assert found == {"a.left": 2, "a.right": 1, "a.bottom": 2, "a.top": 1} | {
        "b.left": 1,
        "b.bottom": 1,
    }
    into = less.boundary("b.left").normals(jnp.array([[1.0, 1.5]]))
    np.testing.assert_array_equal(into, [[1.0, 0.0]])
    point = jnp.array([1.0, 1.5])
    assert less.distance(point, ("b.left",)) == 0
    assert less.distance(point, ("b.bottom", "a.left")) > 0.1


def test_boundaries_that_coincide():
    # An L of two boxes: well sampled, but what they share must not be a boundary.
    low, high = BOX, Box([0.0, 1.0], [1.0, 2.0])
    both = low | high
    np.testing.assert_allclose(both.measure, 3.0, rtol=1e-12)
    np.testing.assert_allclose(both.boundary().measure, 8.0, rtol=1e-3)
    assert "b.bottom" not in both.boundaries
    with pytest.raises(ValueError, match="`distance`.*overlap.*`Polygon`"):
        both.distance(jnp.array([0.5, 0.5]))
    # Where two boundaries are one, it counts once.
    same = low & Box([0.0, 0.0], [1.0, 3.0])
    np.testing.assert_allclose(same.boundary().measure, 4.0, rtol=1e-3)


def test_quadrature():
    cube = Box([0.0, 1.0, 2.0], [1.0, 3.0, 2.0])  # flat in the last coordinate
    points, weights = cube.quadrature(16)
    assert points.shape == (16, 3)
    f = points[:, 0] ** 7 * points[:, 1] ** 6 * points[:, 2]
    np.testing.assert_allclose(jnp.sum(weights * f), 2 * (3**7 - 1) / 56, rtol=1e-13)
    points, weights = Interval(0.0, 1.0).quadrature(1000)
    assert abs(points.shape[0] - 1000) < 64 and jnp.all(jnp.diff(points[:, 0]) > 0)
    exact = (1 - np.cos(300.0)) / 300
    value = jnp.sum(weights * jnp.sin(300 * points[:, 0]))
    np.testing.assert_allclose(value, exact, rtol=1e-10)
    product = Interval(0.0, 2.0) * Interval(0.0, 1.0)
    for domain in (product, product.boundary("left"), product.boundary("initial")):
        points, weights = domain.quadrature(9)
        value = jnp.sum(weights * jnp.exp(points.sum(1)))
        e = np.e
        exact = {2: (e**2 - 1) * (e - 1), 1: e - 1, 0: e**2 - 1}
        which = 2 if domain is product else int(domain.upper[1] < 1)
        expected = exact[{2: 2, 0: 1, 1: 0}[which]]
        np.testing.assert_allclose(value, expected, rtol=1e-3)


@pytest.mark.parametrize("seed", range(4))
def test_triangulation(seed):
    """Random star-shaped polygons, some corners on straight lines, either way."""
    rng = np.random.default_rng(seed)
    angles = np.sort(rng.uniform(0, 2 * np.pi, 30))
    ring = np.stack([np.cos(angles), np.sin(angles)], 1) * rng.uniform(0.3, 1, (30, 1))
    middles = (ring + np.roll(ring, -1, 0)) / 2
    corners = np.stack([ring, middles], 1).reshape(-1, 2)[:: -1 if seed % 2 else 1]
    triangles = ear_clipping(corners)
    assert triangles.shape == (58, 3)
    areas = signed_areas(corners[triangles])
    assert areas.min() > -1e-12
    np.testing.assert_allclose(areas.sum(), abs(area(corners)), rtol=1e-12)


def test_complex_domain(key):
    plain = ComplexDomain(boundaries=["left", "right", "top", "bottom"])
    assert list(plain.boundaries) == ["left", "right", "bottom", "top"]
    assert_same_bits(plain.shape, Box([0.0, 0.0], [1.0, 1.0]))
    assert_same_bits(plain.sample_interior(9, key), plain.shape.sample(9, key))
    top = plain.sample_boundary("top", 9, key)
    assert np.all(top[:, 1] == 1) and plain.contains(top).all()
    np.testing.assert_array_equal(
        plain.normals(top, "top"), np.tile([0.0, 1.0], (9, 1))
    )
    np.testing.assert_array_equal(plain.normals(top[:3]), plain.normals(top[:3], "top"))
    point = jnp.array([0.25, 0.5])
    assert plain.distance(point) == plain.shape.distance(point)
    # Only what was named counts.
    ends = ComplexDomain(["right", "left"], time=(0, 2))
    assert list(ends.boundaries) == ["left", "right"] and ends.dim == 3
    edge = ends.sample_boundary("boundary", 50, key)
    assert set(np.asarray(edge[:, 0])) == {0.0, 1.0}
    assert ends.distance(jnp.array([0.25, 0.0, 0.0])) == 0.25 * 0.75
    assert ComplexDomain(["front"]).dim == 3
    holed = ComplexDomain(["surface"], shape=BITE)
    np.testing.assert_allclose(holed.boundary("surface").measure, np.pi / 2, rtol=1e-2)
    batch = opx.QuasiRandom({"in": holed}, {"in": 64}).init(key)
    assert BITE.contains(batch["in"]).all()
    again = holed & Box([0.0, 0.0], [1.0, 1.0])
    np.testing.assert_allclose(again.measure, BITE.measure / 2, rtol=5e-3)
    assert "surface" in again.boundaries


SQUARE = [[0, 0], [1, 0], [1, 1], [0, 1]]
POINT = jnp.zeros(2)


@pytest.mark.parametrize(
    "call, match",
    [
        (lambda: Disc([0, 0], 0.0), "`radius`.*positive.*0"),
        (lambda: Disc([0, 0, 0], 1.0), "`center`.*two numbers.*`Ball`"),
        (lambda: Ball([0.0], 1.0), "`center`.*`Interval`"),
        (lambda: Ball([0.0, float("nan")], 1.0), "`center.*NaN"),
        (lambda: Ball([0.0, 0.0], float("inf")), "`radius`.*inf"),
        (lambda: Ellipsoid([0, 0], [1.0, -1.0]), "`semi_axes`.*positive"),
        (lambda: Ellipsoid([0, 0], [1.0, 1.0, 1.0]), "`center` and `semi_axes`"),
        (lambda: Interval(1.0, 1.0), "`start`.*less than `end`.*1.0"),
        (lambda: Interval(0.0, float("nan")), "`end.*NaN"),
        (lambda: Polygon(SQUARE[:2]), r"`vertices`.*3 points.*\(2, 2\)"),
        (lambda: Polygon([[0, 0], [1, 1], [1, 0], [0, 1]]), "`vertices`.*cross"),
        (lambda: Polygon([*SQUARE, [0, 1]]), "`vertices` 3 and 4.*same point"),
        (lambda: Polygon([[0, 0], [1, 0], [2, 0]]), "`vertices`"),
        (lambda: Polygon([[0, 0], [2, 0], [2, 2], [1, 0], [0, 2]]), "cross or touch"),
        (lambda: Polygon([[0, 0], [1, 0], [0, np.nan]]), "`vertices.*NaN"),
        (lambda: Polygon(SQUARE, ["a"]), "`names`.*4 in all, got 1"),
        (lambda: TriangleMesh(SQUARE, [[0, 1, 4]]), "`triangles`.*index the 4"),
        (lambda: TriangleMesh(SQUARE, [[0, 1, 1]]), "without area.*row 0"),
        (lambda: TriangleMesh(SQUARE, [[0, 1, 2], [0, 1, 3]]), "on one another"),
        (lambda: TriangleMesh(SQUARE, [[0.0, 1, 2]]), "whole numbers"),
        (lambda: BOX & Disc([9.0, 9.0], 1.0), "`Intersection` is empty"),
        (lambda: BOX - Disc([1.0, 0.5], 9.0), "`Difference` is empty"),
        (lambda: BOX | Ball([0, 0, 0], 1.0), "one dimension, got 2 and 3"),
        (lambda: BOX | Disc([0, 0], 1.0, jnp.float32), "one type.*dtype"),
        (lambda: BOX | Box([0.0, 0.0], [1.0, 0.0]), "`b` of Union.*flat"),
        (lambda: BOX | BOX.boundary("left"), "`b` of Union.*inside.*Face"),
        (lambda: BOX * BOX, "`time`.*Interval.*got Box"),
        (lambda: BOX * Interval(0, 1) * Interval(0, 1), "`space`.*TimeProduct"),
        (lambda: BOX.boundary("lefty"), "'lefty'.*mean 'left'.*'bottom'"),
        (lambda: DISC.distance(POINT, ("edge",)), "'edge' in `names`.*'surface'"),
        (lambda: DISC.distance(POINT, ()), "`names` is empty"),
        (lambda: DISC.normals(POINT[None]), '`normals`.*boundary."boundary"'),
        (lambda: DISC.boundary("surface").distance(POINT), "Ask the domain"),
        (lambda: Box([0.0, 0.0], [1.0, 0.0]).distance(POINT), "equal bounds in.*1"),
        (lambda: ComplexDomain(["lid"]), "'lid' in `boundaries`.*'bottom'"),
        (lambda: ComplexDomain("left"), r"`boundaries`.*\['left'\]"),
        (lambda: ComplexDomain([]), "`boundaries` is empty"),
        (lambda: BOX.quadrature(0), "`num_points`.*0"),
        (
            lambda: jax.jit(lambda r: (BOX | Disc([0, 0], r)).measure)(1.0),
            "`b` of Union.*traced.*outside of `jit`",
        ),
    ],
)
def test_errors(call, match):
    # A few are caught by the types before the message that users see.
    with pytest.raises((ValueError, TypeError), match=match):
        call()
