"""The references of the zoo against their equations and against other methods."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import linalg, special
from scipy.integrate import solve_ivp

from opifex.zoo import Reference, references as zr
from opifex.zoo.references.grids import relative_l2


pi = math.pi


def _poisson(source):
    """The residual of `-Laplace u = source`."""
    return lambda p, u, g, h: [-np.trace(h[:, 0], axis1=1, axis2=2) - source(p)]


def _diffusion(p, u, g, h):
    return [g[:, 0, 1] - h[:, 0, 0, 0] - zr.diffusion_source(*p.T)]


def _heat(p, u, g, h):
    return [g[:, 0, 2] - zr.HEAT_ALPHA * (h[:, 0, 0, 0] + h[:, 0, 1, 1])]


def _helmholtz(p, u, g, h):
    return [h[:, 0, 0, 0] + h[:, 0, 1, 1] + u[:, 0] - zr.helmholtz_source(*p.T)]


def _navier_stokes(nu, unsteady):
    def residuals(p, u, g, h):
        laplace = h[:, :2, 0, 0] + h[:, :2, 1, 1]
        carried = np.einsum("nj,nij->ni", u[:, :2], g[:, :2, :2])
        momentum = carried + g[:, 2, :2] - nu * laplace
        if unsteady:
            momentum = momentum + g[:, :2, 2]
        return [*momentum.T, g[:, 0, 0] + g[:, 1, 1]]

    return residuals


# The solution, a function of one point; the corners of a box; and the residuals of the
# equation as it stands in the papers.
CLOSED = {
    "diffusion": (zr.diffusion, [-1, 0], [1, 1], _diffusion),
    "heat": (zr.heat, [0, 0, 0], [1, 1, 1], _heat),
    "advection": (
        zr.advection,
        [0, 0],
        [2 * pi, 1],
        lambda p, u, g, h: [g[:, 0, 1] + 30 * g[:, 0, 0]],
    ),
    "wave": (
        zr.wave,
        [0, 0],
        [1, 1],
        lambda p, u, g, h: [h[:, 0, 1, 1] - 4 * h[:, 0, 0, 0]],
    ),
    "poisson": (
        zr.poisson,
        [0, 0],
        [1, 1],
        _poisson(lambda p: zr.poisson_source(*p.T)),
    ),
    "disc": (zr.disc, [-1, -1], [1, 1], _poisson(lambda p: zr.disc_source(*p.T))),
    "helmholtz": (zr.helmholtz, [-1, -1], [1, 1], _helmholtz),
    "kovasznay": (zr.kovasznay, [-0.5, -0.5], [1, 1.5], _navier_stokes(1 / 40, False)),
    "taylor_green": (
        zr.taylor_green,
        [0, 0, 0],
        [2 * pi, 2 * pi, 1],
        _navier_stokes(0.01, True),
    ),
    "poisson_nd": (
        lambda *x: zr.poisson_nd(jnp.stack(x)),
        [0] * 10,
        [1] * 10,
        _poisson(lambda p: pi**2 / 4 * np.sin(pi / 2 * p).sum(1)),
    ),
    "two_body": (
        lambda *x: zr.two_body(jnp.stack(x)),
        [-0.1] * 100,
        [0.1] * 100,
        _poisson(zr.two_body_source),
    ),
}


@pytest.mark.parametrize("name", CLOSED)
def test_closed_forms_solve_their_equations(name):
    solution, lower, upper, residuals = CLOSED[name]
    points = np.random.default_rng(1).uniform(lower, upper, (7, len(lower)))

    def fields(point):
        return jnp.stack(jax.tree.leaves(solution(*point)))

    everything = lambda p: (fields(p), jax.jacfwd(fields)(p), jax.hessian(fields)(p))
    u, g, h = map(np.asarray, jax.jit(jax.vmap(everything))(jnp.asarray(points)))
    scale = np.abs(g).max() + np.abs(h).max()
    assert scale > 0.1
    for residual in residuals(points, u, g, h):
        assert residual.shape == (7,)
        np.testing.assert_allclose(residual, 0, atol=1e-13 * scale)


def test_closed_forms_are_the_same_in_numpy_and_meet_their_conditions():
    s, t = np.linspace(0, 1, 9), np.linspace(0, 1, 9)[::-1].copy()
    zero, one, two_pi = np.zeros(9), np.ones(9), np.full(9, 2 * pi)
    close = functools.partial(np.testing.assert_allclose, rtol=0, atol=1e-14)
    near = functools.partial(np.testing.assert_allclose, rtol=0, atol=2e-14)
    for solution in (zr.diffusion, zr.wave, zr.disc, zr.kovasznay):
        ours, jaxs = solution(s, t), solution(jnp.asarray(s), jnp.asarray(t))
        close(np.stack([*np.atleast_2d(ours)]), np.stack([*np.atleast_2d(jaxs)]))
    close(zr.diffusion(s, zero), np.sin(pi * s))
    close(zr.diffusion(-one, t), 0)
    close(zr.wave(s, zero), np.sin(pi * s) + np.sin(4 * pi * s) / 2)
    close((zr.wave(s, zero + 1e-5) - zr.wave(s, zero - 1e-5)), 0)  # starts at rest
    near(zr.advection(zero, t), zr.advection(two_pi, t))
    close(zr.advection(s, zero), np.sin(s))
    angle = 2 * pi * s
    close(zr.disc(np.cos(angle), np.sin(angle)), 0)
    for edge in ((zero, s), (one, s), (s, zero), (s, one)):
        close(zr.poisson(*edge), 0)
        close(zr.heat(*edge, t), 0)
    for edge in ((-one, s), (one, s), (s, -one), (s, one)):
        close(zr.helmholtz(*edge), 0)
    # sin(pi / 2), sin(3 pi / 2) and sin(pi / 2) at y = 1/2
    modes = np.sin(np.outer([1, 2, 4], pi * s))
    close(zr.heat(s, one / 2, zero), modes[0] - modes[1] / 2 + modes[2] / 4)
    for here, there in (((zero, s), (two_pi, s)), ((s, zero), (s, two_pi))):
        near(zr.taylor_green(*here, t), zr.taylor_green(*there, t))
    x = np.random.default_rng(0).normal(size=(5, 100))
    close(zr.two_body(x / np.linalg.norm(x, axis=1, keepdims=True)), 0)
    # Kovasznay (1948): at Re = 40 the wake decays with the rate -0.96374.
    u, _, _ = zr.kovasznay(one, zero)
    np.testing.assert_allclose(np.log(1 - u), -0.963740544195769, rtol=1e-12)


REFERENCES = {
    "allen_cahn": (zr.allen_cahn_reference, 1e-8),
    "burgers": (zr.burgers_reference, 1e-14),
    "diffusion_reaction": (zr.diffusion_reaction_reference, 1e-11),
    "kdv": (zr.kdv_reference, 1e-9),
    "l_shape": (zr.l_shape_reference, 1e-12),
    "disc": (zr.disc_reference, 1e-15),
    "poisson_nd": (zr.poisson_nd_reference, 1e-15),
    "two_body": (zr.two_body_reference, 1e-15),
} | {
    name: (getattr(zr, f"{name}_reference"), 1e-15)
    for name in CLOSED
    if name not in ("disc", "poisson_nd", "two_body")
}


@pytest.mark.parametrize("name", REFERENCES)
def test_references_know_their_points_and_their_error(name):
    make, error = REFERENCES[name]
    reference = make()
    assert isinstance(reference, Reference)
    assert 0 < reference.error < error
    assert not reference.floor(1e-7) and reference.floor(reference.error)
    assert float(reference.rel_l2(reference.values)) == 0
    points = np.asarray(reference.points)
    for values in reference.values.values():
        assert np.isfinite(values).all() and np.std(values) > 1e-3
    if reference.axes is None:
        assert len(np.unique(points, axis=0)) == len(points)
    else:
        grid = np.meshgrid(*reference.axes.values(), indexing="ij")
        np.testing.assert_array_equal(points, np.stack([x.ravel() for x in grid], 1))
    if name in CLOSED:
        solution, some = CLOSED[name][0], points[:: len(points) // 5]
        truth = [jax.tree.leaves(solution(*map(jnp.asarray, p))) for p in some]
        for values, exact in zip(
            reference.values.values(), zip(*truth, strict=True), strict=True
        ):
            ours = np.asarray(values)[:: len(points) // 5]
            np.testing.assert_allclose(ours, np.stack(exact), atol=1e-13)


def test_scattered_points_lie_where_they_should():
    x, y = np.asarray(zr.l_shape_reference(21).points).T
    assert len(x) == 21**2 - 100 and ((x <= 0) | (y >= 0)).all()
    r = np.linalg.norm(np.asarray(zr.disc_reference(21).points), axis=1)
    assert r.max() == 1 and len(r) == pytest.approx(pi * 100, rel=0.02)
    # A ball of dimension 10 is uniform if r^10 is, with mean 1/2.
    r = np.linalg.norm(np.asarray(zr.two_body_reference(10, 4000).points), axis=1)
    assert r.max() < 1 and abs(np.mean(r**10) - 0.5) < 4 / np.sqrt(12 * 4000)


# Stiff, oscillating and growing modes, coupled by a quadratic term.
RATES = np.array([-300.0, 40.0j, 0.0, -1.0 + 5.0j, 0.5])


def _integrate(steps):
    nonlinear = lambda v: np.roll(v, 1) * v - v**2
    start = np.full(5, 0.5 + 0.1j)
    end = zr.etdrk4(
        RATES, nonlinear, start, step=1 / steps, snapshots=2, steps_between=steps
    )
    return end[1], nonlinear, start


def test_etdrk4_is_of_fourth_order():
    _, nonlinear, start = _integrate(1)
    slope = lambda t, v: RATES * v + nonlinear(v)
    options = {"method": "DOP853", "rtol": 1e-12, "atol": 1e-14}
    truth = solve_ivp(slope, (0, 1), start, **options).y[:, -1]
    errors = [relative_l2(_integrate(steps)[0], truth) for steps in (100, 200, 400)]
    assert errors[2] < 1e-6
    for coarse, fine in zip(errors, errors[1:], strict=False):
        assert 12 < coarse / fine < 20


def test_kdv_moves_a_soliton():
    # u = 3 c sech^2(sqrt(c) (x - c t) / (2 delta)), delta^2 = KDV_DISPERSION
    speed = 0.5
    rate = np.sqrt(speed / zr.KDV_DISPERSION) / 2
    soliton = lambda x: 3 * speed / np.cosh(rate * x) ** 2
    moved = zr.solve_kdv(soliton, 320, 400, times=6)
    x = -1 + 2 * np.arange(320) / 320
    exact = soliton((x - speed + 1) % 2 - 1)
    assert relative_l2(moved[-1], exact) < 1e-7
    assert relative_l2(moved[0], exact) > 1


def test_kdv_keeps_what_is_conserved():
    reference = zr.kdv_reference()
    u = np.asarray(reference.values["u"]).reshape(256, 101).T
    v = np.fft.rfft(u, axis=1)
    u_x = np.fft.irfft(1j * pi * np.arange(129) * v, axis=1)
    x = np.asarray(reference.axes["x"])
    np.testing.assert_allclose(u[0], np.cos(pi * x), atol=1e-14)
    np.testing.assert_allclose(u.mean(1), 0, atol=1e-13)
    np.testing.assert_allclose((u**2).mean(1), 0.5, rtol=1e-9)
    # Cubed, the modes beyond 85 reach the mean by aliasing.
    fine = np.fft.irfft(np.pad(v, ((0, 0), (0, 128))) * 2, axis=1)
    energy = (fine**3 / 3).mean(1) - zr.KDV_DISPERSION * (u_x**2).mean(1)
    np.testing.assert_allclose(energy, energy[0], rtol=1e-7)
    # The measure of the error does see a computation that is too coarse.
    coarse = zr.solve_kdv(lambda x: np.cos(pi * x), 128, 40)
    assert relative_l2(coarse[:, ::2], u[:, ::4]) > 1e-4 > 10 * reference.error


def _allen_cahn_by_polynomials(at, degree, steps, times):
    """By Legendre-Gauss-Lobatto collocation on `[0, 1]`, no slope at the ends, where
    the nodes crowd: the kink of the start is no obstacle."""
    inner = special.roots_jacobi(degree - 1, 1, 1)[0]
    x = np.concatenate([[-1.0], inner, [1.0]])
    legendre = special.eval_legendre(degree, x)
    root = np.sqrt(1 / (degree * (degree + 1))) / np.abs(legendre)
    derivative = legendre[:, None] / legendre / (x[:, None] - x + np.eye(degree + 1))
    np.fill_diagonal(derivative, 0)
    np.fill_diagonal(derivative, -derivative.sum(1))
    x, scaled = (x + 1) / 2, root[:, None] * 2 * derivative / root
    rates, modes = linalg.eigh(scaled.T @ scaled)  # the weak form: natural conditions
    to_modes, to_nodes = (root[:, None] * modes).T, modes / root[:, None]
    v = zr.etdrk4(
        5 - 1e-4 * rates,
        lambda v: to_modes @ (-5 * (to_nodes @ v) ** 3),
        to_modes @ (x**2 * np.cos(pi * x)),
        step=1 / (times - 1) / steps,
        snapshots=times,
        steps_between=steps,
    )
    share = 1 / legendre / (at[:, None] - x)  # barycentric
    return v @ to_nodes.T @ (share / share.sum(1, keepdims=True)).T


def test_allen_cahn_is_what_polynomials_converge_to():
    some = np.delete(np.arange(1, 128), 63)  # without 1/2, which is a node
    ours = zr.solve_allen_cahn(1024, 50, times=11)[:, ::4]
    errors = [
        relative_l2(_allen_cahn_by_polynomials(some / 128, n, 50, 11), ours[:, some])
        for n in (200, 400)
    ]
    assert errors[1] < 2e-7 < 1e-5 < errors[0]
    reference = zr.allen_cahn_reference()
    values = np.asarray(reference.values["u"]).reshape(257, 101)
    np.testing.assert_array_equal(values, values[::-1])
    x = np.asarray(reference.axes["x"])
    np.testing.assert_allclose(values[:, 0], x**2 * np.cos(pi * x), atol=1e-15)
    assert np.abs(values).max() < 1 + 1e-9  # it started so: the maximum principle
    np.testing.assert_allclose(values[128:, ::10].T[:, :-1], ours[:, :-1], atol=1e-9)
    # With the kink, where a series needs most terms.
    fine = zr.solve_allen_cahn(4096, 50, times=11)
    np.testing.assert_allclose(values[128:, ::10].T, fine[:, ::16], atol=1e-9)
    coarse = zr.solve_allen_cahn(256, 2)
    assert relative_l2(coarse.T, values[128:]) > 1e-5 > 10 * reference.error


def test_l_shape_solves_its_equation():
    # Over a circle, the mean of a solution of -Laplace u = 1 is u - radius^2 / 4.
    centres = np.array([[-0.5, 0.5], [0.02, 0.03], [-0.03, -0.04], [0.8, 0.8]])
    radii = np.array([0.49, 0.029, 0.029, 0.19])
    angle = 2 * pi * np.arange(400) / 400
    for (x, y), radius in zip(centres, radii, strict=True):
        around = zr.l_shape(x + radius * np.cos(angle), y + radius * np.sin(angle))
        u = zr.l_shape(np.array([x]), np.array([y]))[0]
        np.testing.assert_allclose(around.mean(), u - radius**2 / 4, atol=1e-13)
        assert u > 0
    corners = np.array([[0, 0], [1, 0], [1, 1], [-1, 1], [-1, -1], [0, -1]], float)
    np.testing.assert_allclose(zr.l_shape(*corners.T), 0, atol=1e-12)
    # The same from either side of the diagonal that the L is symmetric about.
    x, y = np.random.default_rng(0).uniform(0, 1, (2, 50))
    np.testing.assert_allclose(zr.l_shape(x, y), zr.l_shape(-y, -x), atol=1e-13)


def test_l_shape_has_the_published_energy():
    # Triangles about the re-entrant corner, in which r^(2/3) becomes smooth.
    s, weight = np.polynomial.legendre.leggauss(40)
    s, weight = (s + 1) / 2, weight / 2
    ends = np.array([1, 1 + 1j, 1j, -1 + 1j, -1, -1 - 1j, -1j])
    total = 0.0
    for a, b in zip(ends, ends[1:], strict=False):
        z = s[:, None] ** 3 * (a + s * (b - a))
        area = np.imag(np.conj(a) * b) * 3 * s**5
        u = zr.l_shape(z.real.ravel(), z.imag.ravel()).reshape(z.shape)
        total += np.einsum("i,j,ij->", weight * area, weight, u)
    # By adaptive finite elements, so from below, P. Bammer found the first value (given
    # in github.com/leuraph/experiments).
    assert 0.214075802220546 < total < 0.214075802220546 * (1 + 5e-9)


def test_l_shape_error_is_a_bound_that_sees_a_coarse_fit():
    x, y = np.asarray(zr.l_shape_reference(41).points).T
    truth = zr.l_shape(x, y)
    for singular, smooth in ((4, 4), (10, 8), (20, 16)):
        options = {"singular": singular, "smooth": smooth}
        off = np.abs(zr.l_shape(x, y, **options) - truth).max()
        bound = zr.l_shape_error(**options)
        assert 1e-9 < off <= bound < 100 * off
        assert zr.l_shape_reference(41, **options).error >= bound


def test_diffusion_reaction_agrees_with_chebyshev_collocation():
    n = 128
    j = np.arange(n + 1)
    nodes = (np.cos(pi * j / n) + 1) / 2
    c = np.where((j == 0) | (j == n), 2.0, 1.0) * (-1.0) ** j
    matrix = np.outer(c, 1 / c) / (nodes[:, None] - nodes + np.eye(n + 1))
    matrix -= np.diag(matrix.sum(1))
    k = 0.1 + np.exp(-((nodes - 0.5) ** 2) / (2 * 0.15**2))
    operator = (0.01 * matrix @ matrix - np.diag(k))[1:-1, 1:-1]
    u = np.linalg.solve(operator, np.sin(2 * pi * nodes[1:-1]))
    ours = zr.diffusion_reaction(nodes)
    np.testing.assert_allclose(ours[1:-1], u, atol=1e-11)
    np.testing.assert_allclose(ours[[0, -1]], 0, atol=1e-14)
    np.testing.assert_allclose(zr.reaction_rate(nodes), k, rtol=1e-15)
    assert zr.diffusion_reaction_reference(tolerance=1e-5).error > 1e-9
    with pytest.raises(RuntimeError, match="solve_bvp"):
        zr.diffusion_reaction(nodes, tolerance=1e-12)


def test_observations():
    data = zr.burgers_observations(4000, noise=0.01, seed=3)
    again = zr.burgers_observations(4000, noise=0.01, seed=3)
    np.testing.assert_array_equal(data.values["u"], again.values["u"])
    other = zr.burgers_observations(4000, noise=0.01, seed=4)
    assert not np.array_equal(data.points, other.points)
    exact = zr.cole_hopf(*np.asarray(data.points).T)
    off = np.asarray(data.values["u"]) - exact
    # The standard deviation of 4000 numbers is known to 1.1 %.
    assert off.std() == pytest.approx(0.01 * exact.std(), rel=0.05)
    np.testing.assert_array_equal(
        zr.burgers_observations(9, noise=0).values["u"],
        zr.cole_hopf(*np.asarray(zr.burgers_observations(9, noise=0).points).T),
    )
    for options in ({"num": 0}, {"noise": -0.1}, {"noise": math.nan}):
        with pytest.raises(ValueError, match="`num` must be at least 1 and `noise`"):
            zr.burgers_observations(**options)
    few = zr.diffusion_reaction_observations()
    assert few.points.shape == (8, 1) and few.noise == 0
    np.testing.assert_allclose(few.points[:, 0], np.arange(1, 9) / 9)


def test_burgers_error_sees_a_coarse_quadrature():
    assert zr.burgers_reference(32, 11, nodes=20).error > 1e-6
