"""The inverse problems of the zoo: their equations, conditions, data and figures."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from opifex._problem.coefficients import Inverse
from opifex.zoo import make_benchmark
from opifex.zoo.references import (
    cole_hopf,
    DIFFUSION_REACTION_D,
    NU,
    reaction_rate,
)
from opifex.zoo.run import Config, run


NAMES = ("burgers-inverse", "diffusion-reaction-inverse")


@pytest.fixture(scope="module")
def benchmarks():
    return {name: make_benchmark(name) for name in NAMES}


class ColeHopf(eqx.Module):
    """The solution of Burgers' equation by quadrature, as a network."""

    nodes: np.ndarray
    weights: np.ndarray

    def __call__(self, p):
        x, t = p
        y = x - jnp.sqrt(4 * NU * t) * self.nodes
        log_density = -jnp.cos(jnp.pi * y) / (2 * jnp.pi * NU)
        largest = jax.lax.stop_gradient(jnp.max(log_density))
        density = self.weights * jnp.exp(log_density - largest)
        return -jnp.sum(jnp.sin(jnp.pi * y) * density)[None] / jnp.sum(density)


def test_burgers_is_solved_by_its_solution(benchmarks):
    solution = ColeHopf(*np.polynomial.hermite.hermgauss(100))
    points = jr.uniform(jr.key(0), (50, 2), minval=jnp.array([-1.0, 0.1]), maxval=1.0)
    values = jax.vmap(solution)(points)[:, 0]
    np.testing.assert_allclose(values, cole_hopf(*np.asarray(points).T), atol=1e-13)
    equation = benchmarks["burgers-inverse"].problem.equation
    left = equation(solution, points, nu=jnp.asarray(NU))
    scale = jnp.max(jnp.abs(equation(solution, points, nu=jnp.asarray(2 * NU))))
    np.testing.assert_allclose(left / scale, 0, atol=1e-9)


def test_diffusion_reaction_is_the_equation_on_paper(benchmarks):
    problem = benchmarks["diffusion-reaction-inverse"].problem
    x = jnp.linspace(0.01, 0.99, 41)
    network = lambda p: jnp.stack([p[0] ** 3, jnp.log(reaction_rate(p[0]))])
    found = problem.equation(network, x[:, None])
    diffused = DIFFUSION_REACTION_D * 6 * x
    by_hand = diffused - reaction_rate(x) * x**3 - jnp.sin(2 * jnp.pi * x)
    np.testing.assert_allclose(found, by_hand, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("name", NAMES)
def test_conditions_hold_exactly(benchmarks, name):
    benchmark = benchmarks[name]
    model = benchmark.model(jr.key(1), jnp.float64)
    if name == NAMES[0]:
        assert isinstance(model, Inverse)
        np.testing.assert_allclose(model.values["nu"], 3 * NU)
        x, t = jnp.linspace(-1, 1, 9), jnp.linspace(0, 1, 9)
        u = lambda x, t: benchmark.predict(model, jnp.stack([x, t], 1))["u"]
        np.testing.assert_allclose(u(x, 0 * t), -jnp.sin(jnp.pi * x), atol=1e-12)
        np.testing.assert_allclose(u(jnp.ones(9), t), 0, atol=1e-12)
        np.testing.assert_allclose(u(-jnp.ones(9), t), 0, atol=1e-12)
    else:
        fields = benchmark.predict(model, jnp.array([[0.0], [0.5], [1.0]]))
        np.testing.assert_allclose(fields["u"][jnp.array([0, 2])], 0, atol=1e-12)
        assert jnp.all(fields["k"] > 0)


@pytest.mark.parametrize("name, error", [(NAMES[0], 0.01), (NAMES[1], 0.0)])
def test_data_are_those_of_the_solution(benchmarks, name, error):
    benchmark = benchmarks[name]
    reference, (seen,) = benchmark.reference(), benchmark.problem.measured
    if name == NAMES[0]:
        truth = cole_hopf(*np.asarray(seen.points).T)
        assert seen.values.shape == (2000,)
    else:
        truth = np.interp(
            seen.points[:, 0], reference.points[:, 0], reference.values["u"]
        )
        assert seen.values.shape == (8,)
    spread = np.std(seen.values - truth) / np.std(truth)
    np.testing.assert_allclose(spread, error, rtol=0.05, atol=2e-3)


def test_the_solution_has_no_error(benchmarks):
    solution = ColeHopf(*np.polynomial.hermite.hermgauss(100))
    benchmark = benchmarks[NAMES[0]]
    assert benchmark.rel_l2(solution, benchmark.reference()) < 1e-13
    assert benchmark.coefficients == {"nu": NU}
    benchmark = benchmarks[NAMES[1]]
    reference = benchmark.reference()
    x, u = reference.points[:, 0], reference.values["u"]
    at = lambda x0: jnp.stack([jnp.interp(x0, x, u), jnp.log(reaction_rate(x0))])
    assert benchmark.rel_l2(lambda p: at(p[0]), reference) < 1e-13


def test_a_short_run(tmp_path):
    config = Config(
        problem="diffusion-reaction-inverse",
        steps=20,
        seed=0,
        ensemble=1,
        sampler="sobol",
        optimizer="adam",
        dtype="float64",
    )
    figures = run(config, tmp_path, quiet=True)
    assert figures["result"] == "successful"
    assert np.isfinite(figures["rel_l2_fields"]["k"])
