"""What a conservation law is good for: the drift of the energy of a wave.

    python benchmarks/conservation.py [--seed 0] [--json FILE]

The wave equation of the zoo, `u_tt = 4 u_xx` on a string that is held at both ends, is
trained for 1200 steps and then for 200 more, twice from the same state: without and
with the law that the energy, half the integral of `u_t^2 + 4 u_x^2`, is conserved, as a
soft term. The zoo takes 2500 steps: these runs are not converged.

- `wave.drift_first`: the largest difference of the energy from that at the start, over
  that, after the steps that both share.
- `wave.drift_without`, `wave.drift_with`: the same at the end.
- `wave.drift_ratio`: the first of these two over the second.
- `wave.rel_l2_without`, `wave.rel_l2_with`: errors of the solutions.
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
from opifex._problem.conservation import Conserved
from opifex._problem.pde import PDE
from opifex.derivatives import residual
from opifex.zoo import make_benchmark, OPTIMIZERS
from opifex.zoo.references import WAVE_SPEED


FIRST, MORE, TIMES = 1200, 200, 64


@residual("x t")
def energy_density(u, x, t):
    return 0.5 * (u.t**2 + WAVE_SPEED**2 * u.x**2)


# Heavy, for a drift of 1 % (the energy is 5 pi^2) is to weigh as much as a residual
# of 16 out of the 350 that its terms reach.
ENERGY = Conserved(energy_density, name="energy", num_points=48, weight=1000)


def recipe(wave, problem):
    num_points = dict(wave.num_points)
    if problem.conserved:
        num_points["times"] = TIMES
    sampler = opx.QuasiRandom(problem.domains, num_points)
    optim = OPTIMIZERS["adam+ssbroyden"](FIRST)
    # When the law comes in, the loss leaps; that is no fault.
    recovery = opx.Backtrack(max_rise=float("inf"))
    return opx.Recipe(problem, optim, sampler, recovery, steps=100)


def with_law(problem):
    return PDE(problem.domain, problem.equation, problem.conditions, conserved=[ENERGY])


def relative_drift(domain, model):
    """The largest difference of the energy from that at the start, over that."""
    fine = dataclasses.replace(ENERGY, num_points=200)
    times = jnp.linspace(0.0, 1.0, 101)
    energy = eqx.filter_jit(fine.quantity)(domain, model, times)
    return float(jnp.max(jnp.abs(energy / energy[0] - 1)))


def measure(seed):
    wave, began = make_benchmark("wave"), time.process_time()
    reference, plain = wave.reference(), wave.problem
    model_key, key = jr.split(jr.key(seed))
    start = recipe(wave, plain)
    model = wave.model(model_key, jnp.float64)
    state = opx.fit(start, start.init(model, key=key), num_chunks=FIRST // 100)
    figures = {"wave.drift_first": relative_drift(plain.domain, state.model)}
    for name, problem in (("without", plain), ("with", with_law(plain))):
        rest = recipe(wave, problem)
        # New sets of points; all else goes on.
        points = rest.sampler.init(state.key_for("resample"))
        mine = dataclasses.replace(state, sampler_state=points)
        model = opx.fit(rest, mine, num_chunks=MORE // 100).model
        figures[f"wave.drift_{name}"] = relative_drift(plain.domain, model)
        figures[f"wave.rel_l2_{name}"] = float(wave.rel_l2(model, reference))
    ratio = figures["wave.drift_without"] / figures["wave.drift_with"]
    cpu_s = time.process_time() - began
    return figures | {"wave.drift_ratio": ratio, "cpu_s": cpu_s}


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
