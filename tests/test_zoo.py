import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from scipy.integrate import quad

from opifex import zoo
from opifex.zoo.burgers import cole_hopf, cole_hopf_trapezoid, NU


def exact(x, t, nu):
    """Cole-Hopf by adaptive quadrature, written from the formula."""
    scale = lambda y: np.exp(
        (-np.cos(np.pi * y) - 1) / (2 * np.pi * nu) - (x - y) ** 2 / (4 * nu * t)
    )
    options = {"limit": 500, "epsabs": 0, "epsrel": 1e-10, "points": [-1, 0, 1]}
    numerator = quad(lambda y: np.sin(np.pi * y) * scale(y), -2, 2, **options)[0]
    return -numerator / quad(scale, -2, 2, **options)[0]


@pytest.mark.parametrize("x, t", [(0.3, 0.2), (-0.7, 0.5), (0.02, 0.9), (0.999, 1.0)])
def test_the_reference_is_the_solution(x, t):
    nu = 0.02  # quad cannot do the sharper one
    np.testing.assert_allclose(cole_hopf(x, t, nu=nu), exact(x, t, nu), rtol=1e-9)


def test_the_reference_solves_the_equation_and_knows_its_error():
    x, t, h = np.linspace(-0.9, 0.9, 37)[:, None], np.array([0.1, 0.25]), 1e-4
    u = lambda dx=0.0, dt=0.0: cole_hopf(x + dx, t + dt)
    u_t = (u(dt=h) - u(dt=-h)) / (2 * h)
    u_x = (u(dx=h) - u(dx=-h)) / (2 * h)
    u_xx = (u(dx=h) - 2 * u() + u(dx=-h)) / h**2
    np.testing.assert_allclose(u_t + u() * u_x - NU * u_xx, 0, atol=1e-4)
    np.testing.assert_allclose(cole_hopf(x, 0.0), -np.sin(np.pi * x), atol=1e-14)
    reference = zoo.burgers().reference()
    assert 0 < reference.error < 1e-12
    # The measure of that error does see a quadrature that is too coarse.
    late = np.array([0.6, 0.9])
    coarse = cole_hopf(x, late, nodes=20) - cole_hopf_trapezoid(x, late)
    assert np.abs(coarse).max() > 1e-6
    # Basdevant et al. (1986), table 2: the largest slope, at x = 0.
    slope = (cole_hopf(h, 1.6037 / np.pi) - cole_hopf(-h, 1.6037 / np.pi)) / (2 * h)
    np.testing.assert_allclose(slope, -152.00516, rtol=2e-4)


def test_residuals_are_those_of_nested_grad(key):
    benchmark = zoo.burgers()
    model = benchmark.model(key, jnp.float64)
    points = benchmark.domains["interior"].sample(20, jr.key(1))

    def residual(point):
        u = lambda x, t: model(x[None], t[None])[0]
        x, t = point
        u_xx = jax.grad(jax.grad(u))(x, t)
        return jax.grad(u, 1)(x, t) + u(x, t) * jax.grad(u)(x, t) - NU * u_xx

    ours = benchmark.problem.residuals(model, {"interior": points})["interior"]
    np.testing.assert_allclose(ours, jax.vmap(residual)(points), rtol=1e-12, atol=1e-13)


def test_conditions_hold_exactly(key):
    model = zoo.burgers().model(key, jnp.float64)
    x, zero, one = jnp.linspace(-1, 1, 11), jnp.zeros(11), jnp.ones(11)
    np.testing.assert_allclose(model(x, zero), -jnp.sin(jnp.pi * x), atol=1e-15)
    np.testing.assert_allclose(model(one, x**2), 0, atol=1e-15)
    np.testing.assert_allclose(model(-one, x**2), 0, atol=1e-15)


def test_rel_l2_of_a_known_error():
    benchmark = zoo.burgers()
    reference = benchmark.reference()
    wrong = zoo.Benchmark(**{**vars(benchmark), "predict": lambda m, p: m * 1.0})
    scaled = 1.25 * reference.values.ravel()
    np.testing.assert_allclose(wrong.rel_l2(scaled, reference), 0.25, rtol=1e-12)
