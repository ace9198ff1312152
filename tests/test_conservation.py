"""What is conserved: integrals of known waves, and what a law does to training."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest

import opifex as opx
from opifex._problem.coefficients import Free, Inverse
from opifex._problem.conservation import (
    Conserved,
    energy,
    mass,
    momentum,
    symmetry,
)
from opifex._problem.pde import PDE
from opifex._weighting.augmented_lagrangian import AugmentedLagrangian
from opifex.derivatives import residual
from opifex.geometry import Box, Disc, Interval


STRING = Interval(0.0, 1.0) * Interval(0.0, 2.0)
TIMES = jnp.linspace(0.0, 2.0, 7)


@residual("x t")
def string(u, x, t):
    return u.tt - 4 * u.xx


@residual("x t")
def string_energy(u, x, t):
    return 0.5 * (u.t**2 + 4 * u.x**2)


def standing(p):
    return (jnp.sin(jnp.pi * p[0]) * jnp.cos(2 * jnp.pi * p[1]))[None]


def damped(p):
    return jnp.exp(-0.1 * p[1]) * standing(p)


def quantity(law, domain, model):
    return eqx.filter_jit(law.quantity)(domain, model, TIMES)


def test_energy_of_a_standing_wave():
    law = Conserved(string_energy, name="energy")
    np.testing.assert_allclose(quantity(law, STRING, standing), jnp.pi**2, rtol=1e-13)
    np.testing.assert_allclose(
        eqx.filter_jit(law.drift)(STRING, standing, TIMES), 0, atol=1e-12
    )
    # At the turning points of `damped`, where its speed is that of the damping alone,
    # E(t) = exp(-0.2 t) (pi^2 + 0.01 / 4).
    turning = jnp.array([0.0, 0.5, 1.0])
    by_hand = jnp.exp(-0.2 * turning) * (jnp.pi**2 + 0.0025)
    found = law.quantity(STRING, damped, turning)
    np.testing.assert_allclose(found, by_hand, rtol=1e-13)
    np.testing.assert_allclose(
        law.drift(STRING, damped, turning), by_hand - by_hand[0], atol=1e-12
    )


def test_built_in_densities():
    # On a box: u = x + t, v = y t, p = 1.
    model = lambda p: jnp.stack([p[0] + p[2], p[1] * p[2], jnp.ones(())])
    domain = Box([0.0, 0.0], [2.0, 1.0]) * Interval(0.0, 1.0)
    names = ("x y t", "u v p")
    t = TIMES / 2
    of = lambda law: eqx.filter_jit(law.quantity)(domain, model, t)
    np.testing.assert_allclose(of(mass(*names)), 2 + 2 * t, rtol=1e-13)
    np.testing.assert_allclose(of(mass(*names, of="p")), 2, rtol=1e-13)
    along_x, along_y = momentum(*names, of="u v")
    assert (along_x.name, along_y.name) == ("momentum_u", "momentum_v")
    np.testing.assert_allclose(of(along_x), 2 + 2 * t, rtol=1e-13)
    np.testing.assert_allclose(of(along_y), t, rtol=1e-13)
    # Half the integrals of (x + t)^2 and of (y t)^2.
    kinetic = ((2 + t) ** 3 - t**3) / 6 + t**2 / 3
    np.testing.assert_allclose(of(energy(*names, of="u v")), kinetic, rtol=1e-13)
    np.testing.assert_allclose(of(energy(*names)), kinetic + 1, rtol=1e-13)
    with pytest.raises(ValueError, match="Unknown name 'w' in `of`"):
        mass(*names, of="w")


def test_mass_on_a_disc():
    # By a Sobol sequence: the integral of x^2 + t over the unit disc is pi (1/4 + t).
    domain = Disc([0.0, 0.0], 1.0) * Interval(0.0, 2.0)
    law = mass("x y t", num_points=4096)
    model = lambda p: (p[0] ** 2 + p[2])[None]
    found = quantity(law, domain, model)
    np.testing.assert_allclose(found, jnp.pi * (0.25 + TIMES), rtol=2e-3)


@pytest.mark.parametrize("reference, tolerance", [(None, 0.0), (None, 0.3), (9.0, 0.1)])
def test_residual_and_its_gradient(reference, tolerance):
    law = Conserved(
        string_energy, name="energy", reference=reference, tolerance=tolerance
    )
    problem = PDE(STRING, string, conserved=[law], free=("boundary", "initial"))
    turning = jnp.array([0.5, 1.0, 1.5])
    batch = {"interior": jnp.full((1, 2), 0.3), "times": turning[:, None]}

    @jax.jit
    def penalty(rate):
        model = lambda p: jnp.exp(-rate * p[1]) * standing(p)
        r = problem.residuals(model, batch)["times/energy"]
        return jnp.mean(r**2), r

    def by_hand(rate):
        total = lambda t: jnp.exp(-2 * rate * t) * (jnp.pi**2 + rate**2 / 4)
        first = total(0.0) if reference is None else reference
        drift = total(turning) - first
        return jnp.sign(drift) * jnp.maximum(jnp.abs(drift) - tolerance, 0)

    np.testing.assert_allclose(penalty(0.1)[1], by_hand(0.1), rtol=1e-12, atol=1e-12)
    # A drift within the tolerance costs nothing, and pulls at nothing.
    inside = penalty(1e-4)
    if reference is None and tolerance:
        assert inside[0] == 0
        assert jax.grad(lambda c: penalty(c)[0])(1e-4) == 0
    h = 1e-6
    differences = (penalty(0.1 + h)[0] - penalty(0.1 - h)[0]) / (2 * h)
    slope = jax.grad(lambda c: penalty(c)[0])(0.1)
    np.testing.assert_allclose(slope, differences, rtol=1e-6)


def test_density_takes_a_coefficient():
    @residual("x t")
    def scaled(u, x, t, *, c):
        return c * u**2

    law = Conserved(scaled, name="square", weight=4)
    problem = PDE(STRING, string, conserved=[law], free=("boundary", "initial"))
    assert set(problem.domains) == {"interior", "times"}
    batch = {"interior": jnp.ones((2, 2)), "times": jnp.array([[0.25]])}
    model = Inverse(standing, {"c": Free(3.0)})
    found = problem.residuals(model, batch)
    # Twice, for the weight, from 3/2 to zero.
    np.testing.assert_allclose(found["times/square"], -3.0, rtol=1e-12)


def test_constraint_by_augmented_lagrangian():
    """`u' = -u` is fitted by lines, but the mass shall stay what it is."""

    class Line(eqx.Module):
        slope: jax.Array

        def __call__(self, p):
            return (1 + self.slope * p[1])[None]

    @residual("x t")
    def decay(u, x, t):
        return u.t + u

    domain = Interval(0.0, 1.0) * Interval(0.0, 1.0)
    law = mass("x t", num_points=4)
    problem = PDE(domain, decay, conserved=[law], free=("boundary", "initial"))
    grid = jnp.linspace(0.0, 1.0, 11)
    points = {"interior": jnp.stack([grid, grid], 1), "times": grid[:, None]}

    def solve(weighting):
        recipe = opx.Recipe(
            problem,
            optax.sgd(0.05),
            opx.Fixed(points),
            weighting=weighting,
            recovery=opx.NoRecovery(),
            steps=400,
        )
        state = recipe.init(Line(jnp.zeros(())), key=jr.key(0))
        return float(opx.fit(recipe, state, num_chunks=1).model.slope)

    constraint = AugmentedLagrangian(
        ("times/mass",), mu=1.0, max_mu=16.0, every=20, pointwise=False
    )
    # As a penalty the law is one term of two: mean of (s + 1 + s t)^2 + (s t)^2.
    second = float(jnp.mean((1 + grid) ** 2 + grid**2))
    np.testing.assert_allclose(
        solve(opx.Static()), -float(jnp.mean(1 + grid)) / second, rtol=1e-6
    )
    assert abs(solve(constraint)) < 1e-3


def test_symmetry():
    points = jr.normal(jr.key(0), (5, 2))
    even = lambda p: jnp.stack([p[0] * p[1], jnp.cos(p[0])])
    np.testing.assert_allclose(symmetry(even, points), 0, atol=1e-15)
    odd = lambda p: jnp.stack([p[0], jnp.sin(p[1])])
    np.testing.assert_allclose(symmetry(odd, points, of_fields=jnp.negative), 0)
    np.testing.assert_allclose(
        symmetry(odd, points),
        2 * jnp.hypot(points[:, 0], jnp.sin(points[:, 1])),
        rtol=1e-14,
    )
    # A mirror: (x, y) to (x, -y), under which a velocity turns along.
    mirror = lambda p: p * jnp.array([1.0, -1.0])
    velocity = lambda p: jnp.stack([p[1] ** 2, p[0] * p[1]])
    np.testing.assert_allclose(symmetry(velocity, points, mirror, mirror), 0)
    # A number for a field does as well.
    np.testing.assert_allclose(symmetry(lambda p: p[0] ** 2, points), 0)


BAD = {
    "no_time": (
        lambda law: PDE(
            Box([0.0, 0.0], [1.0, 1.0]), string, conserved=[law], free="boundary"
        ),
        "needs a domain with time",
    ),
    "coords": (
        lambda law: _wave(conserved=[mass("t x")]),
        "must have the coords of the equation",
    ),
    "fields": (
        lambda law: _wave(conserved=[mass("x t", "v")]),
        "must have the fields of the equation",
    ),
    "twice": (
        lambda law: _wave(conserved=[law, law]),
        "would be called 'times/energy'",
    ),
    "tolerance": (
        lambda law: dataclasses.replace(law, tolerance=-1.0),
        "`tolerance` must not be negative, got -1.0",
    ),
    "reference": (
        lambda law: dataclasses.replace(law, reference=float("nan")),
        "`reference` must be finite",
    ),
    "nodes": (
        lambda law: dataclasses.replace(law, num_points=0),
        "`num_points` must be a whole number of at least 1, got 0",
    ),
    "two_numbers": (
        lambda law: Conserved(
            residual("x t")(lambda u, x, t: (u.x, u.t)), name="q"
        ).quantity(STRING, standing, TIMES),
        "`density` of 'q' must return one number a point, got 2",
    ),
}


def _wave(**options):
    return PDE(STRING, string, free=("boundary", "initial"), **options)


@pytest.mark.parametrize("case", BAD)
def test_bad_law(case):
    make, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        make(Conserved(string_energy, name="energy"))
