import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
import pytest
from scipy import integrate, special, stats

from opifex.geometry import (
    Ball,
    Box,
    Difference,
    Disc,
    Ellipsoid,
    Intersection,
    Interval,
    Polygon,
    TriangleMesh,
    Union,
)


PI = np.pi
# A spiral: pockets in pockets, and lines of edges that run through the inside.
SPIRAL = [[0, 0], [4, 0], [4, 3], [1, 3], [1, 2], [3, 2], [3, 1], [0, 1]]
L_SHAPE = [[0, 0], [2, 0], [2, 1], [1, 1], [1, 2], [0, 2]]
RING = [[0, 0], [3, 0], [3, 3], [0, 3], [1, 1], [2, 1], [2, 2], [1, 2]]
RING_TRIANGLES = [
    tri
    for i in range(4)
    for tri in ([i, (i + 1) % 4, 4 + i], [(i + 1) % 4, 4 + (i + 1) % 4, 4 + i])
]
# The lens of unit discs one apart, and the box less half a disc.
LENS = 2 * PI / 3 - np.sqrt(3) / 2
BITE = 2 - PI * 0.5**2 / 2
LENGTHS = {"left": 1.0, "right": 1.0, "bottom": 2.0, "top": 2.0}
ELLIPSE = 4 * 2 * special.ellipe(1 - 0.25)


def area_of_ellipsoid(a, b, c):
    def element(theta, phi):
        x, y = np.sin(theta) * np.cos(phi) / a, np.sin(theta) * np.sin(phi) / b
        return np.hypot(np.hypot(x, y), np.cos(theta) / c) * np.sin(theta)

    return 8 * a * b * c * integrate.dblquad(element, 0, PI / 2, 0, PI / 2)[0]


# Each: how to make it, its measure, its centroid, its pieces' measures.
SHAPES = {
    "interval": (lambda: Interval(-1.0, 2.0), 3.0, [0.5], {"left": 1.0, "right": 1.0}),
    "box": (lambda: Box([0.0, 1.0], [2.0, 2.0]), 2.0, [1.0, 1.5], LENGTHS),
    "box3": (
        lambda: Box([0.0, 0.0, 0.0], [1.0, 2.0, 3.0]),
        6.0,
        [0.5, 1.0, 1.5],
        {"left": 6, "right": 6, "bottom": 3, "top": 3, "back": 2, "front": 2},
    ),
    "disc": (lambda: Disc([1.0, 2.0], 0.5), PI / 4, [1.0, 2.0], {"surface": PI}),
    "ball": (
        lambda: Ball([1.0, 0, 0], 2),
        32 * PI / 3,
        [1, 0, 0],
        {"surface": 16 * PI},
    ),
    "ball4": (
        lambda: Ball(np.zeros(4), 1.0),
        PI**2 / 2,
        np.zeros(4),
        {"surface": 2 * PI**2},
    ),
    "ellipse": (
        lambda: Ellipsoid([0.0, 1.0], [2.0, 1.0]),
        2 * PI,
        [0.0, 1.0],
        {"surface": ELLIPSE},
    ),
    "ellipsoid": (
        lambda: Ellipsoid([0.0, 0.0, 1.0], [2.0, 1.0, 0.5]),
        4 * PI / 3,
        [0.0, 0.0, 1.0],
        {"surface": area_of_ellipsoid(2.0, 1.0, 0.5)},
    ),
    "polygon": (
        lambda: Polygon(L_SHAPE, ["south", "east", "inner", "inner", "north", "west"]),
        3.0,
        [5 / 6, 5 / 6],
        {"south": 2.0, "east": 1.0, "inner": 2.0, "north": 1.0, "west": 2.0},
    ),
    "spiral": (
        lambda: Polygon(SPIRAL[::-1]),
        8.0,
        None,
        {f"edge{i}": s for i, s in enumerate([3.0, 1, 2, 1, 3, 3, 4, 1])},
    ),
    "mesh": (
        lambda: TriangleMesh(RING, RING_TRIANGLES),
        8.0,
        [1.5, 1.5],
        {"loop0": 12.0, "loop1": 4.0},
    ),
    "union": (
        lambda: Box([0.0, 0.0], [2.0, 1.0]) | Disc([0.0, 0.5], 0.3),
        2 + PI * 0.045,
        None,
        LENGTHS | {"left": 0.4, "surface": 0.3 * PI},
    ),
    "lens": (
        lambda: Disc([0.0, 0.0], 1.0) & Disc([1.0, 0.0], 1.0),
        LENS,
        [0.5, 0.0],
        {"a.surface": 2 * PI / 3, "b.surface": 2 * PI / 3},
    ),
    "bite": (
        lambda: Box([0.0, 0.0], [2.0, 1.0]) - Disc([1.0, 0.0], 0.5),
        BITE,
        [1.0, (1 - 2 / 3 * 0.5**3) / BITE],
        LENGTHS | {"bottom": 1.0, "surface": PI / 2},
    ),
    "product": (
        lambda: Disc([1.0, 0.0], 1.0) * Interval(0.0, 2.0),
        2 * PI,
        [1.0, 0.0, 1.0],
        {"surface": 4 * PI, "initial": PI, "final": PI},
    ),
    "bite_in_time": (
        lambda: (Box([0.0, 0.0], [2.0, 1.0]) - Disc([1.0, 0.0], 0.5)) * Interval(0, 3),
        3 * BITE,
        None,
        {n: 3 * s for n, s in (LENGTHS | {"bottom": 1.0, "surface": PI / 2}).items()}
        | {"initial": BITE, "final": BITE},
    ),
}
ESTIMATED = {"union", "lens", "bite", "bite_in_time"}
MANY = {"polygon", "spiral", "mesh", "box", "box3"}
# What another has in it, or is in another dimension.
SURVEYED = [name for name in SHAPES if name not in {"ball", "bite", "disc"}]


@functools.cache
def shape(name):
    return SHAPES[name][0]()


def field(x):
    """A vector field without symmetries, whose divergence is not constant."""
    return jnp.sin(x) + x * jnp.roll(x, 1) + x**2 * jnp.sum(x) / 3


def divergence(x):
    return jnp.trace(jax.jacfwd(field)(x))


# Programs that run once: what they cost is their compilation.
QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
STEP = 1e-6


@functools.partial(jax.jit, compiler_options=QUICK)
def survey(domain):
    points, weights = domain.quadrature(4096)
    return {
        "inside": domain.contains(points).all(),
        "centroid": jnp.sum(weights[:, None] * points, axis=0) / jnp.sum(weights),
        "total": jnp.sum(weights),
        "divergence": jnp.sum(weights * jax.vmap(divergence)(points)),
    }


@functools.partial(jax.jit, compiler_options=QUICK)
def survey_piece(domain, piece):
    points, weights = piece.quadrature(1024)
    normals, count = piece.normals(points), points.shape[0]
    moves = STEP * jnp.array([0.0, 1.0, -1.0])
    around = points[None] + moves[:, None, None] * normals[None]
    on, out = piece.contains(around[:2].reshape(-1, domain.dim)).reshape(2, count)
    signed = jax.vmap(jax.vmap(domain.signed_distance))(around)
    return {
        "total": jnp.sum(weights),
        "measure": piece.measure,
        "unit": jnp.abs(jnp.linalg.norm(normals, axis=1) - 1).max(),
        "flux": jnp.sum(weights * jnp.sum(jax.vmap(field)(points) * normals, 1)),
        "on": on.all(),
        "off": out.any(),
        "zero": jnp.abs(signed[0]).max(),
        "slopes": signed[1:] / jnp.array([-STEP, STEP])[:, None],
    }


@pytest.mark.parametrize("name", SURVEYED)
def test_measures_and_flux(name):
    domain, (_, measure, centroid, pieces) = shape(name), SHAPES[name]
    inner = jtu.tree_map(np.asarray, survey(domain))
    error = 2e-3 if name in ESTIMATED else 1e-6
    np.testing.assert_allclose(domain.measure, measure, rtol=error)
    np.testing.assert_allclose(inner["total"], domain.measure, rtol=1e-12)
    if name in ESTIMATED and isinstance(domain, Union | Intersection | Difference):
        assert abs(domain.measure - measure) <= 5 * domain.measure_error
        assert domain.measure_error < 1e-3 * measure
    assert inner["inside"]
    if centroid is not None:
        np.testing.assert_allclose(inner["centroid"], centroid, atol=3e-3)
    names = list(domain.boundaries)
    assert names == list(pieces) and "boundary" not in names
    for piece, size in pieces.items():
        found = domain.boundary(piece).measure
        np.testing.assert_allclose(found, size, rtol=3 * error)
    # Of those with many pieces, all of a kind, the last and all together.
    all_of_them = name not in ESTIMATED | MANY
    some = [*pieces] if all_of_them else [*pieces][-1:]
    some = [] if len(pieces) == 1 else some  # it is the boundary
    flux = {}
    for piece in [*some, "boundary"]:
        edge = survey_piece(domain, domain.boundary(piece))
        edge = jtu.tree_map(np.asarray, edge)
        flux[piece] = edge["flux"]
        np.testing.assert_allclose(edge["total"], edge["measure"], rtol=1e-12)
        assert edge["on"] and not edge["off"]
        assert edge["unit"] < 1e-12 and edge["zero"] < 1e-12
        # Normals by finite differences, but for points so near a corner as to feel it.
        assert np.mean(np.abs(edge["slopes"] - 1) > 1e-3) < 0.03
    np.testing.assert_allclose(edge["measure"], sum(pieces.values()), rtol=3 * error)
    # Sampled as one, each piece gets what is due to it.
    size = abs(inner["divergence"]) + measure
    assert abs(flux.pop("boundary") - inner["divergence"]) < 2e-2 * size
    if all_of_them and some:
        assert abs(sum(flux.values()) - inner["divergence"]) < 1e-2 * size


def test_uniform(key):
    """Where random points lie, against distributions known in closed form."""
    p_values = []
    count = 4000
    draw = lambda d: np.asarray(eqx.filter_jit(lambda k: d.sample(count, k))(key))
    x = draw(Disc([1.0, 2.0], 0.5)) - [1, 2]
    p_values.append(stats.kstest(4 * np.sum(x**2, 1), "uniform").pvalue)
    x = draw(Ball([0.0] * 4, 2.0))
    p_values.append(
        stats.kstest((np.linalg.norm(x, axis=1) / 2) ** 4, "uniform").pvalue
    )
    x = draw(Ball([0.0] * 3, 2.0).boundary("surface"))
    p_values.append(stats.kstest(x[:, 2] / 4 + 0.5, "uniform").pvalue)
    # The length of the ellipse x = 2 sin(t), y = cos(t) up to t.
    x = draw(Ellipsoid([0.0, 0.0], [2.0, 1.0]).boundary("surface"))
    length = special.ellipeinc(np.arctan2(x[:, 0] / 2, x[:, 1]), 0.75)
    whole = special.ellipeinc(2 * PI, 0.75)
    p_values.append(stats.kstest(length / whole + 0.5, "uniform").pvalue)
    # The zone of an oblate spheroid up to z, by quadrature.
    x = draw(Ellipsoid([0.0] * 3, [2.0, 2.0, 1.0]).boundary("surface"))
    z = np.linspace(-1, 1, 4001)
    zones = integrate.cumulative_simpson(np.sqrt(1 + 3 * z**2), x=z, initial=0)
    share = np.interp(x[:, 2], z, zones / zones[-1])
    p_values.append(stats.kstest(share, "uniform").pvalue)
    # Equal cells of polygons and of what rejection leaves.
    cells = np.array([[i, j] for i in range(8) for j in range(8)])
    squares = {"polygon": [[0, 0], [1, 0], [0, 1]], "bite": [[0, 0.5], [1.0, 0.5]]}
    for name, corners in squares.items():
        x = draw(shape(name))
        side = 1.0 if name == "polygon" else 0.5
        index = np.floor((x[:, None] - corners) / side * 8).astype(int)
        inside = np.all((index >= 0) & (index < 8), axis=2)
        counts = [
            np.sum(inside[:, c] & np.all(index[:, c] == cell, axis=1))
            for c in range(len(corners))
            for cell in cells
        ]
        p_values.append(stats.chisquare(counts).pvalue)
        assert shape(name).contains(jnp.asarray(x)).all()
        assert len(np.unique(x, axis=0)) == count
    assert min(p_values) * len(p_values) > 1e-2, p_values
