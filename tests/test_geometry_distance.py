"""Distances: by hand, against finite differences, across lines and near corners."""

import functools

import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
import pytest

from opifex.geometry import Box, Disc, Interval

from .test_geometry import PI, QUICK, shape


EPS = (1e-6, -1e-6)
# One piece of each, towards which the distance to it alone must have slope one.
NAMED = {
    "interval": ("left",),
    "box": ("left",),
    "ellipse": ("surface",),
    "polygon": ("inner",),
    "spiral": ("edge2",),
    "union": ("left",),
    "bite": ("surface",),
    "product": ("surface",),
    "bite_in_time": ("bottom",),
}


@functools.partial(jax.jit, compiler_options=QUICK, static_argnums=2)
def slopes(domain, piece, names):
    points, _ = piece.quadrature(64)
    inner, _ = domain.quadrature(64)
    some, all_ = (lambda x: domain.distance(x, names)), domain.distance
    value, slope = jax.vmap(jax.value_and_grad(some))(points)
    # Derivatives of derivatives against finite differences of derivatives.
    line = jnp.linspace(-1.0, 1.5, domain.dim)
    along = lambda x: jax.jvp(jax.grad(all_), (x,), (line,))[1]
    ahead, behind = (jax.vmap(jax.grad(all_))(inner + s * line[None]) for s in EPS)
    return {
        "value": jnp.abs(value).max(),
        "total": jnp.abs(jax.vmap(all_)(points)).max(),
        "slope": slope + piece.normals(points),
        "positive": jnp.minimum(
            jax.vmap(some)(inner).min(), jax.vmap(all_)(inner).min()
        ),
        "second": jax.vmap(along)(inner),
        "difference": (ahead - behind) / (EPS[0] - EPS[1]),
    }


@pytest.mark.parametrize("name", NAMED)
def test_distance(name):
    domain, names = shape(name), NAMED[name]
    found = jtu.tree_map(np.asarray, slopes(domain, domain.boundary(names[0]), names))
    assert found["value"] < 1e-14 and found["total"] < 1e-12
    assert found["positive"] > 0
    assert np.abs(found["slope"]).max() < 1e-9
    scale = 1 + np.abs(found["second"]).max(1, keepdims=True)
    error = np.abs(found["second"] - found["difference"]) / scale
    assert np.isfinite(found["second"]).all() and np.quantile(error, 0.9) < 1e-6
    assert error.max() < 1e-2  # the nearest to a corner


def test_distance_of_a_box_is_a_polynomial():
    box, line = Box([0.0, 1.0], [2.0, 2.0]), Interval(-1.0, 2.0)
    x, y = 0.3, 1.6
    at = lambda *names: float(box.distance(jnp.array([x, y]), names or None))
    q, r = x * (2 - x), (y - 1) * (2 - y)
    # By hand: one in slope at the middle of the closest faces.
    expected = {
        (): q * r * 4 / 4,
        ("left",): x,
        ("top",): 2 - y,
        ("left", "right"): q / 2,
        ("left", "bottom"): x / 2 * (y - 1),
        ("right", "bottom", "top"): (2 - x) / 2 * 4 * r / 4,
    }
    for names, value in expected.items():
        np.testing.assert_allclose(at(*names), value, rtol=1e-14)
    np.testing.assert_allclose(at("boundary"), at(), rtol=1e-15)
    point = jnp.array([0.0])
    np.testing.assert_allclose(line.distance(point), 2 / 3, rtol=1e-15)
    assert jax.grad(line.distance)(line.lower) == 1
    fifth = jax.grad(lambda p: box.distance(p)).__call__
    assert jnp.all(jnp.isfinite(jax.jacfwd(jax.jacfwd(fifth))(box.lower)))


def test_distance_in_time():
    disc, time = Disc([0.0, 0.0], 1.0), Interval(1.0, 3.0)
    domain, point = disc * time, jnp.array([0.3, 0.4, 1.5])
    space = float(disc.distance(point[:2]))
    expected = {
        None: space * 0.25,
        ("surface",): space,
        ("initial",): 0.5,
        ("final",): 1.5,
        ("initial", "final"): 0.5 * 1.5 / 2,
        ("surface", "initial", "final"): space * 4 * 0.25 * 0.75,
    }
    for names, value in expected.items():
        np.testing.assert_allclose(domain.distance(point, names), value, rtol=1e-14)
    np.testing.assert_array_equal(
        domain.boundary("final").normals(point[None])[0], [0, 0, 1]
    )
    edge = domain.boundary("surface").normals(jnp.array([[0.6, 0.8, 2.0]]))
    np.testing.assert_allclose(edge, [[0.6, 0.8, 0.0]], rtol=1e-14)


@pytest.mark.parametrize("name, corner", [("polygon", [1, 1]), ("bite", [0.5, 0])])
def test_second_derivatives_near_corners(name, corner):
    domain, at = shape(name), jnp.array(corner, float)
    angles = jnp.linspace(0, 2 * PI, 16)
    ring = jnp.stack([jnp.cos(angles), jnp.sin(angles)], axis=1)
    points = jnp.concatenate([at[None] + r * ring for r in (1e-2, 1e-5)])
    inside = domain.contains(points)
    line = jnp.array([0.6, -0.8])
    along = lambda x: jax.jvp(jax.grad(domain.distance), (x,), (line,))[1]
    second = jax.jit(jax.vmap(along), compiler_options=QUICK)
    assert inside.sum() >= 8
    assert jnp.all(jnp.isfinite(second(points[inside])))


def test_smooth_across_the_lines_of_edges():
    # The line of the edge from (4, 3) to (1, 3) and others run through other arms.
    domain = shape("spiral")
    on_line = jnp.array([[3.5, 2.0], [3.5, 1.0], [0.5, 0.5], [3.0, 0.5], [3.0, 2.5]])
    third = jax.jacfwd(jax.hessian(domain.distance))
    third = jax.jit(jax.vmap(third), compiler_options=QUICK)
    step = jnp.array([[1e-7, 1.3e-7]])
    here, there = third(on_line), third(on_line + step)
    np.testing.assert_allclose(here, there, atol=1e-4 * float(jnp.abs(here).max()))
