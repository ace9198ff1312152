"""The problems of the zoo in two and more dimensions of space."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from opifex._problem.conditions import part_of, Periodic
from opifex._sampler.uniform import sample_each
from opifex.derivatives import AbstractDerivatives, laplacian, STDE
from opifex.zoo import references
from opifex.zoo.problems import elliptic, flow, heat, many_dims
from opifex.zoo.references.l_shape import l_shape

from .test_geometry import QUICK


def over_coordinates(function):
    """A solution that takes coordinates, as a network that takes a point."""
    return lambda point: jnp.atleast_1d(jnp.stack(jnp.atleast_1d(function(*point))))


def fields(function):
    return lambda point: jnp.stack(function(*point))


PROBLEMS = {
    "poisson": (elliptic.poisson, over_coordinates(references.poisson)),
    "poisson-disc": (elliptic.poisson_disc, over_coordinates(references.disc)),
    "helmholtz": (elliptic.helmholtz, over_coordinates(references.helmholtz)),
    "heat": (heat.heat, over_coordinates(references.heat)),
    "kovasznay": (flow.kovasznay, fields(references.kovasznay)),
    "taylor-green": (flow.taylor_green, fields(references.taylor_green)),
    "poisson-10d": (many_dims.poisson_10d, lambda x: references.poisson_nd(x)[None]),
    "two-body-100d": (many_dims.two_body_100d, lambda x: references.two_body(x)[None]),
    "poisson-l-shape": (elliptic.poisson_l_shape, None),
}
CLOSED = [name for name, (_, solution) in PROBLEMS.items() if solution is not None]


class ByHessian(AbstractDerivatives):
    """A Laplacian over all coordinates as the trace of a Hessian."""

    def __call__(self, function, points, wanted, key=None):
        assert list(wanted) == [laplacian(range(points.shape[1]))]
        trace = lambda x: jnp.trace(jax.hessian(lambda x: function(x)[0])(x))
        values = jax.vmap(function, out_axes=-1)(points)
        return values, dict.fromkeys(wanted, jax.lax.map(trace, points)[None])


def exactly(equation):
    """The same without chance."""
    if not isinstance(equation.derivatives, STDE):
        return equation
    return dataclasses.replace(equation, derivatives=ByHessian())


quick = functools.partial(jax.jit, compiler_options=QUICK)


def gaps(problem, model):
    """By how much a model fails each condition."""
    found = []
    for condition in problem.conditions:
        part = part_of(problem.domain, condition.boundary)
        gap = condition.residual(problem.setting, model, part.sample(20, jr.key(1)))
        found.append(jnp.abs(gap).max())
    return found


def parts(residual):
    return jnp.stack(residual) if isinstance(residual, tuple) else residual[None]


@pytest.mark.parametrize("name", CLOSED)
def test_the_solution_solves_the_problem(name):
    make, solution = PROBLEMS[name]
    benchmark = make()
    problem, key = benchmark.problem, jr.key(0)
    points = problem.domain.sample(20, key)
    wrong = lambda x: 1.01 * solution(x) + 0.1 + 0.1 * x[0] ** 2
    equation = exactly(problem.equation)

    def left_over(points):
        models = (solution, wrong, lambda x: 0 * solution(x) + x[0] ** 2)
        return [jnp.abs(parts(equation(m, points, key=key))).max() for m in models]

    none, some, scale = quick(left_over)(points)
    assert none <= 1e-9 * max(scale, 1) and some > 1e-3
    for gap, wrong_gap, condition in zip(
        quick(lambda: gaps(problem, solution))(),
        quick(lambda: gaps(problem, wrong))(),
        problem.conditions,
        strict=True,
    ):
        assert gap <= 1e-12
        assert isinstance(condition, Periodic) or wrong_gap > 1e-2


@pytest.mark.parametrize("name", CLOSED)
def test_the_error_of_the_solution_is_rounding(name):
    make, solution = PROBLEMS[name]
    benchmark, reference = make(), make().reference()
    halves = lambda x: 0.5 * solution(x)
    error = lambda r: [benchmark.rel_l2(f, r) for f in (solution, halves)]
    none, half = quick(error)(reference)
    assert none <= 1e-13
    np.testing.assert_allclose(half, 0.5, rtol=1e-6)


def test_the_l_shape_is_that_of_the_reference():
    benchmark = elliptic.poisson_l_shape()
    problem, reference = benchmark.problem, benchmark.reference()
    assert quick(lambda x: problem.domain.contains(x))(reference.points).all()
    x, y = np.asarray(problem.domain.sample(200, jr.key(0))).T
    # Away from the corner, for the differences; it is the origin.
    x, y = (z[np.hypot(x, y) > 0.2] for z in (x, y))
    h = 1e-3
    stars = [l_shape(x + dx, y + dy) for dx, dy in ((h, 0), (-h, 0), (0, h), (0, -h))]
    differences = (sum(stars) - 4 * l_shape(x, y)) / h**2
    parabola = lambda p: (p[0] ** 2 / 4 - p[1] ** 2 * 3 / 4)[None]
    points = jnp.stack([x, y], axis=1)
    np.testing.assert_allclose(differences, -1, atol=1e-4)
    np.testing.assert_allclose(problem.equation(parabola, points), 0, atol=1e-14)
    edge = problem.domain.boundary("boundary").sample(200, jr.key(1))
    np.testing.assert_allclose(l_shape(*np.asarray(edge).T), 0, atol=1e-10)
    (given,) = problem.conditions
    np.testing.assert_array_equal(
        given.residual(problem.setting, parabola, edge), jax.vmap(parabola)(edge)[:, 0]
    )


@pytest.mark.parametrize("name", PROBLEMS)
def test_a_network_meets_the_exact_conditions(name, key):
    benchmark = PROBLEMS[name][0]()
    problem = benchmark.problem
    assert set(benchmark.domains) == set(benchmark.num_points)
    points = problem.domain.sample(20, key)

    def values(key):
        model = benchmark.model(key, jnp.float64)
        return jax.vmap(model)(points), gaps(problem, model)

    (one, found), (other, _) = (quick(values)(k) for k in jr.split(key))
    assert jnp.abs(one - other).max() > 1e-3  # the networks are heard
    assert [gap <= 1e-12 for gap in found] == [c.exact for c in problem.conditions]


@pytest.mark.parametrize("name", PROBLEMS)
def test_a_benchmark_is_of_one_precision(name, key):
    benchmark = PROBLEMS[name][0](jnp.float32)

    def residuals(key):
        batch = sample_each(benchmark.domains, benchmark.num_points, key)
        model = benchmark.model(key, jnp.float32)
        return benchmark.problem.stochastic_residuals(model, batch, key)

    found = jax.eval_shape(residuals, key)
    assert {r.dtype for r in found.values()} == {jnp.dtype("float32")}
