"""The problems of the zoo in one dimension of space and time."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from opifex.zoo import make_benchmark, references
from opifex.zoo.run import Config, run


NODES = np.polynomial.hermite.hermgauss(100)


def cole_hopf(x, t):
    """The solution of Burgers' equation, by quadrature in JAX."""
    nodes, weights = map(jnp.asarray, NODES)
    y = x - jnp.sqrt(4 * references.NU * t) * nodes
    density = weights * jax.nn.softmax(
        -jnp.cos(jnp.pi * y) / (2 * np.pi * references.NU)
    )
    return -jnp.sum(jnp.sin(jnp.pi * y) * density) / jnp.sum(density)


def soliton(x, t):
    """One wave that solves the equation of Korteweg and de Vries on the whole line."""
    speed = 0.4
    root = np.sqrt(speed / references.KDV_DISPERSION) / 2
    return 3 * speed / jnp.cosh(root * (x - speed * t)) ** 2


def front(x, t):
    """A front between the phases 0 and 1: J. D. Murray, Mathematical Biology I, 3rd
    edition, 2002, section 13.5, with `a = -1`."""
    steep = np.sqrt(5 / (2 * references.ALLEN_CAHN_EPS))
    speed = 3 * np.sqrt(5 * references.ALLEN_CAHN_EPS / 2)
    return jax.nn.sigmoid(-steep * (x - speed * t))


# Solutions of the equations; those of the first four are those of the problems too.
SOLUTIONS = {
    "advection": references.advection,
    "burgers": cole_hopf,
    "diffusion": references.diffusion,
    "wave": references.wave,
    "allen-cahn": front,
    "kdv": soliton,
}
STARTS = {
    "advection": jnp.sin,
    "burgers": lambda x: -jnp.sin(jnp.pi * x),
    "diffusion": lambda x: jnp.sin(jnp.pi * x),
    "wave": lambda x: jnp.sin(jnp.pi * x) + jnp.sin(4 * jnp.pi * x) / 2,
    "allen-cahn": lambda x: x**2 * jnp.cos(jnp.pi * x),
    "kdv": lambda x: jnp.cos(jnp.pi * x),
}
NAMES = sorted(SOLUTIONS)
PERIODIC = ("advection", "allen-cahn", "kdv")


def as_network(function):
    return lambda point: function(point[0], point[1])[None]


@pytest.mark.parametrize("name", NAMES)
def test_the_residual_of_a_solution_vanishes(name, key):
    equation = make_benchmark(name).problem.equation
    points = make_benchmark(name).domains["interior"].sample(200, key)
    # Where the front and the wave are, and before Burgers' shock is too steep.
    points = points * jnp.array([[0.05, 1.0] if name in PERIODIC[1:] else [1.0, 0.3]])
    solution = as_network(SOLUTIONS[name])
    size = jnp.abs(jax.vmap(jax.jacfwd(solution))(points)[:, 0, 1]).max()
    assert size > 0.1
    at = eqx.filter_jit(lambda model: jnp.abs(equation(model, points)).max())
    assert at(solution) <= 1e-9 * size
    # And only that of a solution does.
    assert at(lambda point: 1.01 * solution(point) + 0.01 * point[0] ** 2) > 1e-3


@pytest.mark.parametrize("name", NAMES)
def test_conditions_hold_exactly(name, key):
    benchmark = make_benchmark(name)
    domain, model = benchmark.problem.domain, benchmark.model(key, jnp.float64)
    both = jax.jit(jax.vmap(lambda point: (model(point), jax.jacfwd(model)(point))))
    x = jnp.linspace(domain.lower[0], domain.upper[0], 21)
    times = jr.uniform(key, (21,))
    values, slopes = both(jnp.stack([x, jnp.zeros(21)], 1))
    if name != "allen-cahn":  # whose start has a kink
        np.testing.assert_allclose(values[:, 0], STARTS[name](x), rtol=0, atol=1e-12)
    if name == "wave":
        np.testing.assert_allclose(slopes[:, 0, 1], 0, atol=1e-12)
    here, there = (
        both(jnp.stack([jnp.full(21, end), times], 1)) for end in (x[0], x[-1])
    )
    if name in PERIODIC:
        np.testing.assert_allclose(here[0], there[0], rtol=0, atol=1e-12)
        np.testing.assert_allclose(here[1], there[1], rtol=0, atol=1e-10)
    else:
        np.testing.assert_allclose(jnp.stack([here[0], there[0]]), 0, atol=1e-12)


@pytest.mark.parametrize("name", sorted(set(NAMES) - {"allen-cahn", "kdv"}))
def test_the_error_of_the_solution_is_rounding(name):
    benchmark = make_benchmark(name)
    reference = benchmark.reference()
    solution = as_network(SOLUTIONS[name])
    error = benchmark.rel_l2(solution, reference)
    assert error < 1e-12 and reference.floor(error)
    half = benchmark.rel_l2(lambda point: 0.5 * solution(point), reference)
    np.testing.assert_allclose(half, 0.5, rtol=1e-9)


@pytest.mark.parametrize("name", NAMES)
def test_a_benchmark_is_of_one_precision(name, key):
    benchmark = make_benchmark(name, jnp.float32)
    batch = {k: domain.sample(4, key) for k, domain in benchmark.domains.items()}
    model = benchmark.model(key, jnp.float32)
    out = eqx.filter_eval_shape(benchmark.problem.residuals, model, batch)
    assert {x.dtype for x in (*out.values(), *batch.values())} == {jnp.dtype("float32")}


def test_a_run(tmp_path):
    config = Config("diffusion", 20, 0, 1, "sobol", "adam", "float64")
    figures = run(config, tmp_path, quiet=True)
    assert figures["result"] == "successful" and figures["steps"] == 20
    assert np.isfinite(figures["rel_l2"]) and figures["n_params"] < 1000
    assert figures["trust"]["residual_ratio"] > 0
    assert "coefficients" not in figures
